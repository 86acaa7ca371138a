"""Factories that several test modules use: a test states only what it is about."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.ids import name_of

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core has a worker already

settings.register_profile("saepipe", deadline=None)  # other machines are slower
settings.load_profile("saepipe")


MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="kill -9 of a writer, so many times")


def pytest_configure(config: pytest.Config) -> None:
    """Have temporary files in memory, where there is room: a disk is slow to remove small ones."""
    chosen = config.option.basetemp or os.environ.get("PYTEST_DEBUG_TEMPROOT")
    if not chosen and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    return name_of(val, argname)


COLLECTED = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = [item.nodeid for item in items]  # before a marker leaves some out


@pytest.fixture(scope="session")
def collected_ids(request: pytest.FixtureRequest) -> list[str]:
    """The names of all tests that were collected, those too that will not run."""
    return request.config.stash[COLLECTED]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Syncing matters to power cuts only, and takes most of the time of a small store."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


@pytest.fixture(scope="session")
def written_stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Stores that `make_store` copies: the same settings give the same bytes."""
    from tests.helpers.stores import make_spec, write_store  # jaxtyping must see the package first

    folder, made = tmp_path_factory.mktemp("stores"), dict[str, Path]()

    def written(n_rows: int, spec: dict[str, object]) -> Path:
        key = repr((n_rows, spec))
        if key not in made:
            made[key] = write_store(folder / str(len(made)), make_spec(**spec), n_rows=n_rows)
        return made[key]

    return written


@pytest.fixture
def make_store(tmp_path: Path, written_stores: Callable[..., Path]):
    """A finished store of random rows: `make_store(n_rows=80, widths={"mlp_out.1": 16}, ...)`."""

    def make(*, n_rows: int = 200, name: str = "acts", **spec) -> Path:
        return shutil.copytree(written_stores(n_rows, spec), tmp_path / f"{name}.actstore")

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of tests.helpers.tiny, which nobody changes."""
    from tests.helpers.tiny import make_model  # it brings transformers

    return make_model(tmp_path_factory.mktemp("lm") / "model")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of tests.helpers.evaluations, which nobody changes."""
    from tests.helpers.evaluations import N_CONTEXTS
    from tests.helpers.tiny import make_text

    return make_text(tmp_path_factory.mktemp("text") / "a.txt", n_contexts=N_CONTEXTS)


@pytest.fixture
def evals(tmp_path: Path, tiny_model: Path, tiny_text: str):
    """Runs in the tiny model, and their evaluations."""
    from tests.helpers.evaluations import Evaluations

    return Evaluations(folder=tmp_path, model=tiny_model, text=tiny_text)


@pytest.fixture
def passes(monkeypatch):
    """What a call gives, and how many forward passes it made, whole or not."""
    from pipeline.lm.model import LanguageModel

    calls: list[int] = []
    hidden = LanguageModel.hidden

    def counted(self, tokens):
        calls.append(len(tokens))
        return hidden(self, tokens)

    monkeypatch.setattr(LanguageModel, "hidden", counted)

    def of(call) -> tuple[object, int]:
        calls.clear()
        return call(), len(calls)

    return of


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


@pytest.fixture
def succeeds(saepipe):
    """Run the command line, which ends well: its stdout and stderr."""

    def run(*arguments: object) -> tuple[str, str]:
        code, out, err = saepipe(*arguments)
        assert code == 0, err
        return out, err

    return run


@pytest.fixture
def fails(saepipe):
    """Run the command line, which ends with what the user can mend, in one line: that line."""

    def run(*arguments: object) -> str:
        code, _, err = saepipe(*arguments)
        (line,) = err.splitlines()
        assert code == 1
        assert line.startswith("error: ")
        return line

    return run
