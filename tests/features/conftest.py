"""A model, a store of it, and a run whose features were found; nobody changes them."""

from pathlib import Path

import pytest

from pipeline.features.collect import collect_features
from pipeline.features.files import FeatureSet
from tests.helpers.featured import World, config_of, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def run(world) -> Path:
    return world.run()


@pytest.fixture(scope="session")
def features(run) -> FeatureSet:
    collect_features(config_of(run))
    return FeatureSet.open(str(run))
