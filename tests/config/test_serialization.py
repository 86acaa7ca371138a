import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pipeline.config.architectures import ReluConfig, TopKConfig
from pipeline.config.serialization import from_json, load_toml, to_json
from pipeline.config.stages import EvalConfig, FinetuneConfig, HarvestConfig
from pipeline.config.training import TrainConfig
from pipeline.errors import ConfigError

TRAIN = {"store": "s.actstore", "out": "runs/a"}

counts = st.integers(1, 10**9)
# Made in the test, not by a strategy: checking the types of a tuple draws random numbers.
trains = st.fixed_dictionaries(
    {
        "store": st.sampled_from([Path("a.actstore"), Path("/b/c")]),
        "out": st.just(Path("runs/x")),
        "site": st.none() | st.just("mlp_out.1"),
        "arch": st.builds(ReluConfig, l1=st.floats(0, 10)) | st.builds(TopKConfig, k=counts),
        "lr": st.floats(1e-9, 1),
        "tokens": st.none() | counts,
        "threads": st.none() | counts,
        "device": st.sampled_from(["auto", "cpu", "cuda", "mps"]),
    }
)


@given(trains)
def test_what_is_written_reads_back_equal(settings: dict[str, Any]):
    config = TrainConfig(**settings)
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    "config",
    [
        HarvestConfig(out=Path("x"), sites=("mlp_out.1", "resid_post.0"), batch_size=3),
        EvalConfig(runs=(Path("a"), Path("b")), text="builtin@heldout"),
        FinetuneConfig(run=Path("a"), out=Path("b")),
    ],
    ids=lambda config: type(config).__name__,
)
def test_every_kind_of_config_survives_the_round_trip(config):
    assert from_json(type(config), json.loads(json.dumps(to_json(config)))) == config


def test_settings_left_out_take_their_defaults():
    assert from_json(TrainConfig, TRAIN) == TrainConfig(
        store=Path("s.actstore"), out=Path("runs/a")
    )


def test_a_whole_number_stands_for_a_number_but_not_the_other_way_round():
    lr = from_json(TrainConfig, TRAIN | {"lr": 1}).lr
    assert isinstance(lr, float)
    with pytest.raises(ConfigError, match=r"^config\.batch_size must be a whole number, got 1\.5$"):
        from_json(TrainConfig, TRAIN | {"batch_size": 1.5})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batchsize": 1}, "config has no setting 'batchsize': did you mean 'batch_size'?"),
        ({"zzz": 1}, "config has no setting 'zzz': it has store, out, tokens"),
        ({"arch": {"kind": "topk", "kk": 3}}, "config.arch has no setting 'kk': did you mean 'k'?"),
        ({"arch": {"kind": "relux"}}, "jumprelu, got 'relux': did you mean 'relu'?"),
        (
            {"arch": {"l1": 0.1}},
            "config.arch.kind must be one of relu, relu-april, tied, gated, topk",
        ),
        (
            {"arch": "topk"},
            "config.arch must be a table with a kind, got 'topk': type {kind = 'topk'}",
        ),
        ({"arch": {"kind": "topk", "k": "9"}}, "config.arch.k must be a whole number, got '9'"),
        ({"arch": {"kind": "topk", "k": 0}}, "k must be positive, got 0"),
        ({"lr": True}, "config.lr must be a number, got True"),
        ({"lr": float("nan")}, "config.lr must be a number, got nan"),
        ({"lr": -1.0}, "lr must be positive, got -1.0"),
        ({"seed": False}, "config.seed must be a whole number, got False"),
        ({"device": "gpu"}, "config.device must be one of auto, cpu, cuda, mps, got 'gpu'"),
        ({"out": 3}, "config.out must be text, got 3"),
        ({"site": 3}, "config.site must be text, got 3"),
        ({"arch": {"kind": "relu", "target": 1.0}}, "target must be above 0 and below 1, got 1.0"),
        ({"arch": {"kind": "gated", "target": 0.0}}, "target must be above 0 and below 1, got 0.0"),
        ({"ema": 1.0}, "ema must be above 0 and below 1, got 1.0"),
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1, got 1.0"),
        ({"hold": "5 parsecs"}, "'5 parsecs' is not a length of training: type 10k steps, 5M or"),
        ({"precision": "fp16"}, "precision fp16 overflows in training: type --precision bf16"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(change, message):
    with pytest.raises(ConfigError) as caught:
        from_json(TrainConfig, TRAIN | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named():
    with pytest.raises(ConfigError, match=r"^config lacks the setting 'out'$"):
        from_json(TrainConfig, {"store": "s"})


def test_a_list_is_read_item_by_item():
    config = from_json(HarvestConfig, {"out": "x", "sites": ["mlp_out.1"]})
    assert config.sites == ("mlp_out.1",)
    with pytest.raises(ConfigError, match=r"config\.sites\[1\] must be text, got 2"):
        from_json(HarvestConfig, {"out": "x", "sites": ["a", 2]})
    with pytest.raises(ConfigError, match=r"config\.sites must be a list, got 'mlp_out\.1'"):
        from_json(HarvestConfig, {"out": "x", "sites": "mlp_out.1"})


def test_something_else_than_a_table_is_refused():
    with pytest.raises(ConfigError, match="config must be a table of settings, got 3"):
        from_json(TrainConfig, 3)


def test_dataclasses_outside_the_configs_work_too():
    @dataclass(frozen=True, kw_only=True)
    class Figures:
        density: tuple[float, ...]
        name: str | None = None

    figures = Figures(density=(0.5, 0.25))
    assert to_json(figures) == {"density": [0.5, 0.25], "name": None}
    assert from_json(Figures, {"density": [0.5, 0.25]}) == figures


def test_toml_is_read_and_its_faults_are_one_line(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text('store = "s"\nout = "o"\nlr = 3e-4\n[arch]\nkind = "topk"\nk = 16\n')
    assert from_json(TrainConfig, load_toml(path)).arch == TopKConfig(k=16)
    path.write_text("lr = = 3\n")
    with pytest.raises(ConfigError, match=r"train\.toml is not TOML: .*line 1") as caught:
        load_toml(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such file"):
        load_toml(tmp_path / "absent.toml")
