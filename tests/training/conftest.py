"""What several files of trainings begin with."""

from pathlib import Path

import pytest
import torch

from tests.helpers.training import make_training_store


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """A store of two sites, which nobody changes."""
    return make_training_store(tmp_path_factory.mktemp("stores") / "a.actstore")


@pytest.fixture(scope="module")
def one_thread():
    """Steps this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
