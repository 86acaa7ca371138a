"""Factories that several test modules use: a test states only what it is about."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core has a worker already

from tests.stores import make_spec, write_store

settings.register_profile("saepipe", deadline=None)  # shapes are checked while testing: slow
settings.load_profile("saepipe")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="kill -9 of a writer, so many times")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Syncing matters to power cuts only, and takes most of the time of a small store."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


@pytest.fixture
def make_store(tmp_path: Path):
    """A finished store of random rows: `make_store(n_rows=80, widths={"mlp_out.1": 16}, ...)`."""

    def make(*, n_rows: int = 200, name: str = "acts", **spec) -> Path:
        return write_store(tmp_path / f"{name}.actstore", make_spec(**spec), n_rows=n_rows)

    return make


@pytest.fixture
def saepipe(monkeypatch, capsys):
    """Run the command line in this process: its exit code, stdout and stderr."""
    import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["saepipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run
