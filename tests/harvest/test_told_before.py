"""Stores whose fingerprints of model and text an earlier version made, from their ends alone."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actstore.errors import StoreError
from actstore.reader import ActStore, peek
from actstore.verify import verify
from pipeline.config.stages import HarvestConfig
from pipeline.errors import ConfigError, TextError
from pipeline.harvest.harvest import _carry_out, harvest
from pipeline.harvest.plan import make_plan
from pipeline.harvest.repair import repair
from pipeline.lm.hub import ModelFiles
from pipeline.runs.default_text import DefaultTexts
from pipeline.runs.folder import Provenance
from pipeline.text.open import open_text
from tests.helpers.harvests import harvest_config
from tests.helpers.refusals import refused
from tests.helpers.stores import flip, require_same_store, shard_file
from tests.helpers.tiny import CTX_LEN, make_model, make_text

SITES = ("mlp_out.1", "resid_pre.0")
FEW = 23 * CTX_LEN


def retrain(folder: Path) -> None:
    """Change the weights of the middle layer: both ends of their file stay as they are."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if ".layers.1.mlp" in name:
            tensors[name] = tensors[name] + torch.randn(tensors[name].shape) / 2
    save_file(tensors, path, {"format": "pt"})


def carried_out(config: HarvestConfig) -> None:
    plan = make_plan(config).with_precision("fp32")
    told = {
        "model_fingerprint": ModelFiles(config.model).fingerprint_like("sha256:"),
        "text_fingerprint": open_text(config.text).fingerprint_like("sha256:"),
    }
    _carry_out(replace(plan, spec=replace(plan.spec, source={**plan.spec.source, **told})))


@pytest.fixture
def before(tmp_path) -> HarvestConfig:
    """It was carried out, on a model and a text of which the ends are not all."""
    model = make_model(tmp_path / "model", width=96)
    config = harvest_config(tmp_path, model=model, sites=SITES, tokens=FEW)
    config = replace(config, text=make_text(tmp_path / "text.txt", n_contexts=20_000))
    carried_out(config)
    return config


def told_by(path: Path) -> set[str]:
    source = peek(path).spec.source
    return {str(source[key]).split(":")[0] for key in ("model_fingerprint", "text_fingerprint")}


def test_it_is_reused_and_found_and_a_new_one_tells_more(before, tmp_path):
    assert told_by(before.out) == {"sha256"}
    assert make_plan(before).state == "complete"
    assert make_plan(replace(before, out=tmp_path / "b.actstore")).found == before.out
    other = replace(before, out=tmp_path / "b.actstore", seed=1)
    assert make_plan(other).found is None
    harvest(other)
    assert told_by(other.out) == {"sha256-2"}
    assert make_plan(other).state == "complete"


def test_it_is_extended_and_given_sites_as_if_harvested_at_once(before, tmp_path):
    more = replace(before, tokens=33 * CTX_LEN, sites=(*SITES, "resid_post.0"))
    assert harvest(more).rows_written == (23 + 13) * CTX_LEN
    assert told_by(more.out) == {"sha256"}
    (tmp_path / "elsewhere").mkdir()
    extended = more.out.rename(tmp_path / "elsewhere" / more.out.name)
    carried_out(more)
    require_same_store(extended, more.out)


def test_it_is_repaired(before):
    flip(shard_file(before.out, "mlp_out.1", 1), 40)
    repair(before.out, verify(before.out), device="cpu", batch_size=4)
    assert not verify(before.out)


def test_what_lies_behind_it_is_evaluated_on(before, monkeypatch):
    monkeypatch.setattr("pipeline.runs.default_text.heldout_text", lambda _: "gone.txt")
    trained_on = Provenance.of(ActStore.open(before.out), site=SITES[0])
    assert DefaultTexts("text").of(trained_on, before.out).start is not None
    make_text(Path(before.text), n_contexts=20_000, seed=1)
    with refused(TextError, "has changed since"):
        DefaultTexts("text").of(trained_on, before.out)


def test_another_end_of_its_text_is_refused(before):
    make_text(Path(before.text), n_contexts=20_000, seed=1)
    with refused(ConfigError, r"\(source.text_fingerprint: sha256:\w+ there, sha256:\w+ now\)"):
        make_plan(before)


def test_rows_of_a_model_retrained_in_its_middle_do_not_join_it(before):
    retrain(Path(before.model))
    assert make_plan(before).state == "complete"  # its fingerprint does not tell
    with refused(StoreError, "no longer gives the rows of mlp_out.1 it gave for shard 2"):
        harvest(replace(before, tokens=33 * CTX_LEN))
    assert ActStore.open(before.out).n_rows == FEW
    assert not verify(before.out)


@pytest.mark.parametrize("what", ["model", "text"])
def test_a_new_one_tells_a_middle_that_changed(before, what):
    shutil.rmtree(before.out)
    harvest(before)
    if what == "model":
        retrain(Path(before.model))
    else:
        with Path(before.text).open("r+b") as file:
            file.seek(120_000)
            file.write(b"?")
    told = r"sha256-2:\w+ there, sha256-2:\w+ now"
    with refused(ConfigError, rf"\(source.{what}_fingerprint: {told}\)"):
        make_plan(before)
