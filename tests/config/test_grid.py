import re
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings as how, strategies as st

from pipeline.config.architectures import ARCHS, JumpReluConfig, ReluConfig, TopKConfig
from pipeline.config.grid import ONE_PASS, comma_list, expand
from pipeline.config.serialization import from_json, to_json
from pipeline.config.settings import parse_count as count
from pipeline.config.training import TrainConfig
from pipeline.errors import ConfigError
from tests.helpers.refusals import refused

OUT = Path("runs/sweep")


def expand_(**settings: object):
    return expand({"store": "s.actstore"} | settings, out=OUT)


def names_of(**settings: object) -> list[str]:
    return [point.name for point in expand_(**settings)]


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 3e-4, "arch": {"kind": "topk", "k": 8}},
        {"lr": [3e-4], "arch": {"kind": ["topk"], "k": [8]}, "batch_size": [None]},
    ],
    ids=["no lists", "lists of one value"],
)
def test_what_does_not_vary_is_one_run_in_the_folder_itself(settings):
    (point,) = expand_(exclude_positions=[0, 1], **settings)
    assert (point.name, point.varies) == ("", {})
    assert point.config == TrainConfig(
        store="s.actstore", out=OUT, lr=3e-4, arch=TopKConfig(k=8), exclude_positions=(0, 1)
    )


def test_members_come_in_the_order_of_the_settings_and_are_named_by_what_varies():
    points = expand_(
        seed=[0, 1], site=["mlp_out.1", "mlp_out.2"], arch={"l1": [1e-3, 1], "kind": "relu"}, lr=0.1
    )
    assert [point.name for point in points] == [
        f"{site}+l1={l1}+seed={seed}"
        for site, l1, seed in product(("mlp_out.1", "mlp_out.2"), ("0.001", "1"), (0, 1))
    ]
    assert points[1].varies == {"site": "mlp_out.1", "l1": 1e-3, "seed": 1}
    assert points[1].config.out == OUT / "mlp_out.1+l1=0.001+seed=1"
    assert points[6].config.arch == ReluConfig(l1=1.0)
    assert {point.config.lr for point in points} == {0.1}


def test_each_kind_takes_the_knobs_it_knows_and_no_member_comes_twice():
    points = expand_(arch={"kind": ["relu", "topk"], "l1": [0.1, 0.2, 0.3], "k": [8, 16]})
    assert [p.name for p in points] == [
        "relu+l1=0.1", "relu+l1=0.2", "relu+l1=0.3", "topk+k=8", "topk+k=16",
    ]  # fmt: skip
    assert [p.config.arch for p in points[2:4]] == [ReluConfig(l1=0.3), TopKConfig(k=8)]
    assert points[3].varies == {"arch": "topk", "k": 8}
    names = names_of(arch={"kind": list(ARCHS), "k": 4, "l1": 0.1, "target": 0.1})
    assert names == list(ARCHS)


def test_a_number_of_latents_is_asked_of_every_kind_in_its_own_words():
    points = expand_(arch={"kind": ["relu", "topk", "jumprelu"], "l0": [8, 1]})
    assert [p.name for p in points[1:4]] == ["relu+l0=1", "topk+l0=8", "topk+l0=1"]
    assert [p.config.arch for p in points] == [
        ReluConfig(l0=8), ReluConfig(l0=1), TopKConfig(k=8), TopKConfig(k=1), JumpReluConfig(l0=8),
        JumpReluConfig(l0=1),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="of topk, k 4 and l0 8 say the same thing"):
        expand_(arch={"kind": "topk", "l0": 8, "k": 4})


def test_no_knob_shares_its_name_with_a_setting():
    """So that both can stand in one name, and in one table."""
    of_runs = {f.name for f in fields(TrainConfig)} | {"folder", "state"}
    for kind, config in ARCHS.items():
        assert not of_runs & {f.name for f in fields(config)}, kind


def test_settings_that_are_lists_are_swept_by_lists_of_lists():
    (point,) = expand_(exclude_tokens=[])
    assert point.config.exclude_tokens == ()
    points = expand_(exclude_positions=[[], [0], [0, 1]], exclude_tokens=[[7, 8]])
    assert [p.config.exclude_positions for p in points] == [(), (0,), (0, 1)]
    assert {p.config.exclude_tokens for p in points} == {(7, 8)}
    assert [p.name for p in points] == [f"exclude_positions={x}" for x in ("none", "0", "0_1")]


def test_lengths_and_large_numbers_are_told_in_what_no_shell_minds():
    names = names_of(lr_warmup=["5%", "1k steps"], lr=[1e22, 1e-5])
    assert names[0] == "lr=1e22+lr_warmup=5pct" and names[-1] == "lr=1e-05+lr_warmup=1k-steps"


def test_names_stay_apart_and_inside_of_the_folder():
    sites = ["a/b", "a:b", "A-B", "..", ".", "", "é", "x" * 300, "x" * 301, "-rf", "a b$`~,%+"]
    names = names_of(site=sites)
    assert names[:3] == ["a-b", "a-b_2", "A-B_3"]
    assert len({name.lower() for name in names}) == len(sites)
    for name in names:
        assert (OUT / name).resolve().parent == OUT.resolve()
        assert 0 < len(name.encode()) < 240
        assert re.fullmatch(r"[A-Za-z0-9._=+-]+", name) and name[0] not in ".-"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": []}, "lr is an empty list: give it at least one value"),
        ({"arch": {"kind": "relu", "l1": []}}, "l1 is an empty list"),
        ({"arch": {"kind": []}}, "arch is an empty list"),
        ({"exclude_positions": [[0], [0]]}, "exclude_positions=0 twice: name each value once"),
        ({"lr": [1, 2, 1.0]}, "the sweep has lr=1.0 twice"),
        ({"seed": [0, 1], "arch": {"kind": "topk", "k": [8, 8]}}, "the sweep has k=8+seed=0 twice"),
        ({"arch": {"kind": ["relu", "relu"]}}, "the sweep has relu twice"),
        ({"lr": [1e-3, "fast"]}, "config.lr must be a number, got 'fast'"),
        ({"lr": [1e-3, -1]}, "lr must be positive, got -1"),
        ({"arch": {"kind": ["relu", "topk"], "kk": [1]}}, "config.arch has no setting 'kk'"),
        ({"arch": {"kind": "relu", "k": [1, 2]}}, "config.arch has no setting 'k'"),
        ({"arch": {"kind": ["relu", "relux"], "k": [1]}}, "config.arch.kind must be one of"),
        ({"arch": {"l1": [1]}}, "config.arch.kind must be one of"),
        ({"arch": ["relu", "topk"]}, "config.arch must be a table with a kind"),
        ({"lrr": [1, 2]}, "config has no setting 'lrr': did you mean 'lr'?"),
        ({"exclude_positions": ["a", [1]]}, "config.exclude_positions must be a list, got 'a'"),
    ],
)
def test_a_grid_that_cannot_be_is_one_line(settings, message):
    with refused(ConfigError, re.escape(message)):
        expand_(**settings)


@pytest.mark.parametrize("name", ONE_PASS)
def test_what_one_pass_shares_cannot_be_swept(name):
    said = f"^{name} must be one for all members of a sweep, got a, b: run saepipe train once for"
    with refused(ConfigError, said):
        expand_(**{name: ["a", "b"]})


values = {
    "site": st.sampled_from(["mlp_out.1", "resid_post.0", "attn_out.3", "odd/site"]),
    "expansion": st.integers(1, 64),
    "tokens": st.integers(1, 10**9),
    "seed": st.integers(0, 99),
    "lr": st.floats(1e-9, 1),
    "lr_warmup": st.sampled_from(["0", "5%", "1k steps", "2M"]),
    "ema": st.floats(0.5, 0.999),
    "project": st.booleans(),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "log_every": st.integers(1, 9),
    "checkpoint_every": st.integers(1, 9),
    "exclude_positions": st.lists(st.integers(0, 9), max_size=3),
    "l1": st.floats(0, 10),
    "k": st.integers(1, 512),
}


@how(max_examples=40)
@given(st.data())
def test_a_grid_is_the_product_of_its_lists_and_every_member_is_a_config(data):
    swept = data.draw(st.lists(st.sampled_from(sorted(values)), max_size=4, unique=True))
    lists = {
        name: data.draw(st.lists(values[name], min_size=1, max_size=3, unique_by=repr))
        for name in swept
    }
    arch: dict[str, object] = {n: lists.pop(n) for n in ("l1", "k") if n in lists}
    arch |= (
        {"kind": ["relu", "topk"]}
        if len(arch) == 2
        else {"kind": "topk" if "k" in arch else "relu"}
    )
    points = expand_(arch=arch, **lists)
    lengths = [len(arch.get(name, "1")) for name in ("l1", "k")]
    expected = sum(lengths) if len(arch) == 3 else lengths[0] * lengths[1]
    for items in lists.values():
        expected *= len(items)
    assert len(points) == expected
    assert len({p.name.lower() for p in points}) == len(points)
    assert len({p.config for p in points}) == len(points)
    for point in points:
        assert from_json(TrainConfig, to_json(point.config)) == point.config
        assert point.config.out == OUT / point.name
        told = cast("dict[str, Any]", to_json(point.config))
        knobs = told.pop("arch")
        assert point.varies.items() <= (told | knobs | {"arch": knobs["kind"]}).items()


def test_comma_lists_are_read_by_their_kind():
    assert comma_list("1e-4,3e-4", float, option="--lr") == [1e-4, 3e-4]
    assert comma_list(" 8, 16 ", int, option="--k") == [8, 16]
    assert comma_list("relu", str, option="--arch") == ["relu"]
    assert comma_list("500k,1M", count, option="--tokens") == [500_000, 1_000_000]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("1e-4,x", float, "--lr must be a number, or several with commas between them, got '1e-4,"),
        ("1,,2", float, "--lr must be a number, or several"),
        ("", str, "--lr must be text, or several"),
        ("1,", int, "--lr must be a whole number, or several"),
        ("1.5", int, "--lr must be a whole number, or several"),
        ("1k,many", count, "--lr: expected a number like 500k, 20M or 1B, got 'many'"),
    ],
)
def test_a_bad_comma_list_names_its_option(text, kind, message):
    with refused(ConfigError, f"^{message}"):
        comma_list(text, kind, option="--lr")
