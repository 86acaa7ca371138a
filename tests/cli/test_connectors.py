"""Connectors by the commands that people type: from SAEs of two sites to a page."""

import json
from pathlib import Path

import pytest

from pipeline.connect.run import ConnectorRun
from tests.helpers.featured import World, make_store_of
from tests.helpers.tiny import make_model, make_sae, make_text

SITES = ("resid_pre.1", "mlp_out.1")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    model = make_model(folder / "model")
    store = make_store_of(model, folder / "acts.actstore", sites=SITES)
    world = World(folder=folder, model=model, store=store)
    for seed, site in enumerate(SITES):
        world.run(site, site=site, coder=make_sae(d_in=store.width(site), seed=seed))
    return world


@pytest.mark.slow  # it draws all figures there are
def test_two_connectors_are_trained_evaluated_read_and_put_on_a_page(succeeds, world):
    folder, out = world.folder, world.folder / "connectors"
    text = make_text(folder / "heldout.txt", n_contexts=6)
    pair = ":".join(str(folder / site) for site in SITES)
    told, err = succeeds(
        "train", world.store.path, "--connect", pair, "--l1", "0,0.01", "--batch-size", "64",
        "--tokens", "1280", "--device", "cpu", "--set", "start=random", "--out", out, "--json", "-",
    )  # fmt: skip
    runs = [out / "l1=0.0", out / "l1=0.01"]
    assert [line["beta"] for line in json.loads(told)] == [0.0, 0.01]
    assert ConnectorRun.open(runs[0]).config.start == "random"

    told, err = succeeds(
        "eval", *runs, folder / SITES[1], "--text", text, "--tokens", "60", "--device", "cpu",
        "--out", out, "--json", "-",
    )  # fmt: skip
    *connectors, coder = json.loads(told)  # in the order of the runs
    assert coder["site"] == SITES[1]
    assert [Path(report["run"]) for report in connectors] == runs
    assert connectors[0]["maps"][0]["name"] == "connector"
    assert connectors[0]["ce_sae"] == pytest.approx(coder["ce_patched"], rel=1e-5)
    assert connectors[0]["ce_zero"] == pytest.approx(coder["ce_zero"], rel=1e-5)
    assert (out / "connectors.csv").read_text().count("\n") == 7  # names, two, four baselines
    assert not [*out.glob("*/*.png")], "of several, what compares them alone"
    succeeds("plot", out)
    for file in ("sweep.png", "l1=0.01/curves.svg", "l1=0.0/explained.png"):
        assert (out / file).exists()
    assert (out / "connectors.png").exists()

    told, err = succeeds("features", runs[0], "--feature", "3", "--json", "-")
    (document,) = json.loads(told)
    assert document["output"] == 3
    assert "OF3 =" in err

    succeeds("report", runs[0], folder / SITES[1], "--out", out / "page.html")
    page = (out / "page.html").read_text(encoding="utf-8")
    assert "resid_pre.1 → mlp_out.1" in page


def test_a_feature_that_a_connector_does_not_predict_is_one_line(saepipe, succeeds, world):
    pair = ":".join(str(world.folder / site) for site in SITES)
    out = world.folder / "alone"
    train = ("train", world.store.path, "--connect", pair, "--tokens", "64", "--device", "cpu")
    succeeds(*train, "--batch-size", "64", "--out", out)
    assert "99999" in saepipe("features", out, "--feature", "99999")[2].splitlines()[-1]
