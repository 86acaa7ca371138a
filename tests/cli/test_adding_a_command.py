"""What adding a command takes: one function in cli.py. Its errors and its JSON are everybody's."""

import json
from typing import Annotated

import pytest
import typer

import cli
from actstore.reader import ActStore


@pytest.fixture
def norm(monkeypatch):
    """`saepipe norm STORE`: how long the mean of each site's rows is."""
    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])

    @cli.app.command()
    def norm(store: cli.Store, site: Annotated[str, typer.Option()], json: cli.JsonOut = None):
        """Say how long the mean of a site's rows is."""
        length = float((ActStore.open(store).mean(site) ** 2).sum() ** 0.5)
        screen = cli._screen(json)
        screen.say(f"norm      {length:.3f}")
        screen.emit({"norm": length})


@pytest.mark.usefixtures("norm")
def test_a_command_is_one_function(saepipe, make_store, tmp_path):
    store = make_store()
    code, out, err = saepipe("norm", store, "--site", "mlp_out.1", "--json", "-")
    length = json.loads(out)["norm"]
    assert (code, err.strip()) == (0, f"norm      {length:.3f}")
    assert "Say how long" in saepipe("--help")[1]
    code, out, err = saepipe("norm", store)
    assert (code, out) == (2, "") and "--site" in err
    code, out, err = saepipe("norm", tmp_path / "none.actstore", "--site", "mlp_out.1")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
