import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pipeline.config.architectures import ReluConfig, TopKConfig
from pipeline.config.serialization import from_json, load_toml, to_json
from pipeline.config.training import TrainConfig
from pipeline.errors import ConfigError
from tests.helpers.refusals import refused

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
    ("change", "message"),
    [
        ({"batchsize": 1}, "config has no setting 'batchsize': did you mean 'batch_size'?"),
        ({"zzz": 1}, "config has no setting 'zzz': of the 50 it has, the nearest are normalize, "),
        ({"decay": 1}, "config has no setting 'decay': did you mean 'lr_decay'"),
        ({"k_aus": 1}, "config has no setting 'k_aus': did you mean 'arch.k_aux'"),
        (
            {"k_aux": 9},
            "config has no setting 'k_aux', but arch has: type arch = {kind = 'gated', k_aux = 9}",
        ),
        (
            {"k": 9, "arch": {"kind": "batchtopk"}},
            "config has no setting 'k', but arch has: type arch = {kind = 'batchtopk', k = 9}",
        ),
        (
            {"arch": {"kind": "topk", "lr": 1.0}},
            "config.arch has no setting 'lr', but config has: it stands beside it, not inside",
        ),
        (
            {"arch": {"kind": "relu", "k": 9}},
            "config.arch has no setting 'k' of kind 'relu': it is of topk, batchtopk",
        ),
        ({"arch": {"kind": "topk", "kk": 3}}, "config.arch has no setting 'kk': did you mean 'k'?"),
        (
            {"d_sae": 4096},
            "config has no setting 'd_sae': it is 'expansion' here: latents per input, so that "
            "latents = expansion x width",
        ),
        ({"l1_coefficient": 3}, "config has no setting 'l1_coefficient': it is 'arch.l1' here"),
        ({"arch": {"kind": "relux"}}, "jumprelu, got 'relux': did you mean 'relu'?"),
        (
            {"arch": {"l1": 0.1}},
            "config.arch.kind must be one of relu, relu-april, tied, gated, topk",
        ),
        (
            {"arch": "topk"},
            "config.arch must be a table with a kind, got 'topk': type {kind = 'topk'}",
        ),
        ({"arch": {"kind": "topk", "k": "9"}}, "config.arch.k must be a number, got '9'"),
        (
            {"arch": {"kind": "topk", "k": 1.5}},
            "topk keeps a whole number of latents of each row, got k = 1.5: type --arch batchtopk",
        ),
        ({"arch": {"kind": "topk", "k": 0}}, "k must be positive, got 0"),
        ({"batch_size": 1.5}, "config.batch_size must be a whole number, got 1.5"),
        ({"lr": True}, "config.lr must be a number, got True"),
        ({"lr": float("nan")}, "config.lr must be a number, got nan"),
        ({"lr": 10**400}, "config.lr must be a number, got 1000"),
        ({"lr": -1.0}, "lr must be positive, got -1.0"),
        ({"seed": False}, "config.seed must be a whole number, got False"),
        ({"device": "gpu"}, "config.device must be one of auto, cpu, cuda, mps, got 'gpu'"),
        ({"seed": 2**63}, "config.seed must be below 2**63, got 9223372036854775808"),
        ({"out": 3}, "config.out must be text, got 3"),
        ({"site": 3}, "config.site must be text, got 3"),
        ({"exclude_tokens": [7, "8"]}, "config.exclude_tokens[1] must be a whole number, got '8'"),
        ({"exclude_tokens": "78"}, "config.exclude_tokens must be a list, got '78'"),
        ({"arch": {"kind": "relu", "target": 1.0}}, "target must be above 0 and below 1, got 1.0"),
        ({"arch": {"kind": "gated", "target": 0.0}}, "target must be above 0 and below 1, got 0.0"),
        ({"ema": 1.0}, "ema must be above 0 and below 1, got 1.0"),
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1, got 1.0"),
        ({"hold": "5 parsecs"}, "'5 parsecs' is not a length of training: type 10k steps, 5M or"),
        ({"precision": "fp16"}, "precision fp16 overflows in training: type --precision bf16"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(change, message):
    with refused(ConfigError, re.escape(message)):
        from_json(TrainConfig, TRAIN | change)


def test_a_number_is_a_list_of_one_and_a_length_of_so_many_rows_where_these_are_meant():
    config = from_json(TrainConfig, TRAIN | {"exclude_positions": 0, "lr_warmup": 5000})
    assert (config.exclude_positions, config.lr_warmup) == ((0,), "5000")
    assert TrainConfig(**TRAIN, exclude_positions=0, lr_warmup=5000) == config


def test_a_loop_of_links_is_told_wherever_a_path_is_given(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with refused(ConfigError, "config.store: .*loop/below is a loop of symbolic links"):
        from_json(TrainConfig, TRAIN | {"store": str(tmp_path / "loop" / "below")})
    assert from_json(TrainConfig, TRAIN | {"store": "x" * 300}).store == Path("x" * 300)


def test_what_is_no_table_or_not_all_of_one_is_refused():
    with refused(ConfigError, "^config lacks the setting 'out'$"):
        from_json(TrainConfig, {"store": "s"})
    with refused(ConfigError, "config must be a table of settings, got 3"):
        from_json(TrainConfig, 3)


def test_toml_is_read_and_its_faults_are_one_line(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text('store = "s"\nout = "o"\nlr = 1\n[arch]\nkind = "topk"\nk = 16\n')
    config = from_json(TrainConfig, load_toml(path))
    assert config == TrainConfig(store="s", out="o", lr=1.0, arch=TopKConfig(k=16))
    assert isinstance(config.lr, float)
    path.write_text("lr = = 3\n")
    with refused(ConfigError, r"train\.toml is not TOML: .*line 1"):
        load_toml(path)
    with refused(ConfigError, r"cannot read .*absent\.toml: No such file"):
        load_toml(tmp_path / "absent.toml")
