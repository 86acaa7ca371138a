"""A model that is loaded in part is held to transformers' own before it is harvested."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.lm.check
from pipeline.config.stages import HarvestConfig
from pipeline.errors import ModelError
from pipeline.harvest.harvest import harvest
from pipeline.lm.check import TOLERANCE, check, why_unchecked
from pipeline.lm.families import FAMILIES, Shape
from pipeline.lm.hub import ModelFiles
from pipeline.lm.model import load_for_sites
from pipeline.lm.sites import KINDS, LayerSite
from tests.helpers.families import MAKERS
from tests.helpers.models import CPU, FP32, save_random
from tests.helpers.refusals import refused
from tests.helpers.tiny import make_model, make_text

BF16 = torch.bfloat16
QUICK = ("gemma2", "gemma3-of-images", "falcon-two-norms", "gptj", "opt-350m", "mixtral", "mamba")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of checkpoints, made when they are first asked for."""
    there: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in there:
            there[name] = tmp_path_factory.mktemp(name.replace("-", "_"))
            save_random(MAKERS[name](), there[name])
        return there[name]

    return folder


def difference(folder: Path, kind: str, *, layer: int = 1, dtype: torch.dtype = FP32) -> float:
    sites = [LayerSite(layer, KINDS[kind])]
    return check(load_for_sites(str(folder), sites, device=CPU, dtype=dtype), sites)


@pytest.mark.parametrize("dtype", [FP32, pytest.param(BF16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MAKERS],
)
def test_every_family_passes_with_room(made, name, dtype):
    kinds = Shape.of(ModelFiles(str(made(name))).config, name=name).kinds()
    for kind in kinds:
        assert difference(made(name), kind.name, dtype=dtype) <= TOLERANCE[dtype] / 2


def say(monkeypatch, model_type: str, **entries: Any) -> None:
    """Make the entry of a family say something else."""
    monkeypatch.setitem(FAMILIES, model_type, replace(FAMILIES[model_type], **entries))


def parts_without(model_type: str, *parts: str) -> Mapping[str, str]:
    return {part: path for part, path in FAMILIES[model_type].parts.items() if part not in parts}


VARIANT = FAMILIES["falcon"].variant
WRONG = {
    # what is wrong: the checkpoint, its model type, entries, a site, what is told
    "a branch's end before its norm": (
        "gemma2", "gemma2", lambda: {"parts": parts_without("gemma2", "mlp_post_norm")},
        "mlp_out", "the sum up to resid_post.1 differs",
    ),
    "one norm for another": (
        "gemma2", "gemma2",
        lambda: {"parts": parts_without("gemma2") | {"attention_post_norm": "input_layernorm"}},
        "attn_out", "the sum up to resid_post.1 differs",
    ),
    "said to be parallel": (
        "qwen3", "qwen3", lambda: {"parallel": True}, "mlp_out",
        "(resid|mlp|sum|what runs before)",
    ),
    "a part that runs is left out": (
        "falcon-two-norms", "falcon",
        lambda: {"variant": lambda family, _: replace(
            family, parallel=True, parts=family.parts | {"mlp_norm": "input_layernorm"}
        )},
        "mlp_out", "what runs before mlp_out.1 was not read",
    ),
    "adds into what it gave": (
        "falcon-two-norms", "falcon",
        lambda: {"variant": lambda family, config: replace(
            VARIANT(family, config), adds_into_mlp=False
        )},
        "mlp_out", r"mlp_out\.1 differs from transformers' own by .*e.* of its largest",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_entry_is_caught_in_a_line(made, monkeypatch, what):
    name, model_type, entries, kind, told = WRONG[what]
    folder = made(name)
    say(monkeypatch, model_type, **entries())
    with refused(
        ModelError, rf"is not computed as its \w+ForCausalLM does it: .*{told}.*--modules"
    ):
        difference(folder, kind)


@pytest.fixture
def config(tmp_path) -> HarvestConfig:
    return HarvestConfig(
        model=str(make_model(tmp_path / "model")),
        text=make_text(tmp_path / "text.txt", n_contexts=20),
        sites=("mlp_out.1",), out=tmp_path / "acts.actstore", tokens=64, ctx_len=8, device="cpu",
    )  # fmt: skip


def test_a_harvest_checks_before_anything_is_written(monkeypatch, config):
    monkeypatch.setattr(pipeline.lm.check, "TOLERANCE", {FP32: -1.0})
    with refused(ModelError, "not computed as its GPTNeoXForCausalLM does it: mlp_out.1 differs"):
        harvest(config)
    assert not config.out.exists()
    assert harvest(replace(config, check_model=False)).n_rows == 64


def test_a_harvest_that_goes_on_does_not_check_again(monkeypatch, config):
    asked: list[int] = []
    monkeypatch.setattr("pipeline.harvest.forward.check", lambda *_: asked.append(1))
    for tokens, sites in ((32, ("mlp_out.1",)), (64, ("mlp_out.1",)), (64, ("attn_out.0",))):
        harvest(replace(config, tokens=tokens, sites=sites))
    assert len(asked) == 2


def test_why_a_model_is_not_checked_is_told(monkeypatch, config, caplog):
    monkeypatch.setattr(pipeline.lm.check, "bytes_free", lambda _: 1000)
    harvest(config)
    assert "was not held to what transformers computes: there is too little mem" in caplog.text


def test_files_of_other_layers_are_not_downloaded_for_it(made, monkeypatch):
    site = LayerSite(0, KINDS["mlp_out"])
    lm = load_for_sites(str(made("gemma2")), [site], device=CPU, dtype=FP32)
    assert why_unchecked(lm) == ""
    monkeypatch.setattr(ModelFiles, "is_here", lambda _, name: False)
    assert why_unchecked(lm) == "1 of its weight files were not needed for this, and are not here"
