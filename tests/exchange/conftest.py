"""A model, a store of it, and a run whose features were found; nobody changes them."""

from pathlib import Path

import pytest
import torch

from pipeline.features.collect import collect_features
from pipeline.features.files import FeatureSet
from tests.helpers.featured import World, config_of, make_world
from tests.helpers.tiny import make_sae

EVERY = 1000
"""Above the tokens of the store: a sample of so many holds all activations."""


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="session")
def run(world) -> Path:
    coder = make_sae()
    with torch.no_grad():  # rows of no one length
        coder.W_dec.mul_(torch.linspace(0.5, 2, coder.d_sae)[:, None])
    run = world.run(coder=coder)
    collect_features(config_of(run, n_values=EVERY))
    return run


@pytest.fixture(scope="session")
def features(run) -> FeatureSet:
    return FeatureSet.open(run)
