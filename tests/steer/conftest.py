"""A small world with features, which nobody changes, and copies of its runs to steer with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.features.collect import collect_features
from tests.helpers.featured import World, config_of, make_world
from tests.helpers.tiny import make_sae


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """Runs `run` and `later`, the features of the first known."""
    made = make_world(tmp_path_factory.mktemp("steered"))
    collect_features(config_of(made.run()))
    made.run("later", site="resid_post.2", coder=make_sae(seed=1))
    return made


@pytest.fixture
def copied(world, tmp_path) -> Callable[[str], Path]:
    """A run of its own, by the name of the one it is a copy of."""
    return lambda name: shutil.copytree(world.folder / name, tmp_path / name)


@pytest.fixture
def run(copied) -> Path:
    return copied("run")
