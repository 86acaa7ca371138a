"""Published settings: each can be trained, and what is typed goes before it."""

import re

import pytest

from pipeline.config.architectures import ReluConfig, TiedConfig
from pipeline.config.command_line import arch_table, merged
from pipeline.config.recipes import PUBLISHED, recipe, recipes
from pipeline.config.serialization import from_json
from pipeline.config.training import TrainConfig
from pipeline.errors import ConfigError


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_is_a_training_that_says_where_it_comes_from(name):
    config = from_json(TrainConfig, {**recipe(name), "store": "s", "out": "o"})
    said = recipe(name)
    # What our defaults do that no source did must be said, or it would be done.
    assert {"lr", "lr_warmup", "lr_decay", "clip", "batch_size", "normalize"} <= said.keys()
    assert (config.revive, config.w_dec_start) == (0.0, "random")
    assert re.search(r"\(.*20\d\d\)", recipes()[name])


def test_the_seeds_own_numbers():
    s0 = from_json(TrainConfig, {**recipe("s0"), "store": "s", "out": "o"})
    assert (s0.lr, s0.batch_size, s0.expansion, s0.checkpoint_every) == (1e-4, 1024, 4, 20_000)
    assert (s0.arch, s0.hold) == (ReluConfig(target=0.01), "5M")
    resampled = (s0.resample, s0.resample_every, s0.resample_window)
    assert resampled == ("random", "10k steps", "5k steps")
    s1 = from_json(TrainConfig, {**recipe("s1"), "store": "s", "out": "o"})
    assert (s1.lr, s1.arch) == (1e-3, TiedConfig(l1=0.44))


def test_flag_before_file_before_recipe_before_default(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('lr = 2e-4\nhold = "1M"\n')
    options = {"lr": 3e-4, "batch_size": None, "expansion": 4}
    settings = merged(file, options, given=frozenset({"lr"}), named="s0")
    assert (settings["lr"], settings["hold"], settings["batch_size"]) == (3e-4, "1M", 1024)


@pytest.mark.parametrize(
    ("knobs", "table"),
    [
        ({}, {"kind": "relu", "target": 0.01}),
        ({"l0": 50}, {"kind": "relu", "l0": 50}),
        ({"target": 0.02}, {"kind": "relu", "target": 0.02}),
        ({"l1": 0.1}, {"kind": "relu", "target": 0.01, "l1": 0.1}),
    ],
)
def test_another_way_to_say_how_many_latents_displaces_that_of_the_recipe(knobs, table):
    options = {"l0": None, "l1": None, "k": None, "target": None} | knobs
    assert arch_table(recipe("s0")["arch"], options, given=frozenset(knobs)) == table


def test_one_that_there_is_not_is_one_line():
    with pytest.raises(ConfigError, match="no recipe 'gao': did you mean 'gao2024'\\?"):
        recipe("gao")
    with pytest.raises(ConfigError, match="no recipe '../s0'"):
        recipe("../s0")
    assert len(recipes()) == len([*PUBLISHED.iterdir()]) > 5
