"""Where a page finds what it names."""

import sys
from pathlib import Path

import pytest

from pipeline import saepipe


@pytest.fixture(scope="session")
def model_of_hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for the model of the hub, which nobody changes."""
    from tests.docs.stand_ins import make_model  # it brings transformers

    return make_model(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def hub(monkeypatch, model_of_hub):
    """Names of the hub that pages use are found, and no network is asked."""
    from tests.docs.stand_ins import put_in_place

    put_in_place(monkeypatch, model=model_of_hub)


@pytest.fixture
def in_a_new_folder(tmp_path, monkeypatch):
    """The working folder of whoever reads a page, for whom `import saepipe` is what is tested."""
    monkeypatch.setitem(sys.modules, "saepipe", saepipe)
    monkeypatch.delenv("SAEPIPE_STORES", raising=False)
    monkeypatch.chdir(tmp_path)
