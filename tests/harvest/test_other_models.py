"""A model of no family that saepipe knows, from the text to its features, by a module's path."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline.saepipe as sp
from actstore.reader import ActStore
from pipeline.errors import ConfigError
from pipeline.sae.sae import SAE
from tests.helpers.models import reference
from tests.helpers.other_models import save_other
from tests.helpers.refusals import refused
from tests.helpers.tiny import CTX_LEN, make_text

SITE, NAME = "layers.1.self_attn", "biogpt.layers.1.self_attn"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_other("biogpt", tmp_path_factory.mktemp("biogpt") / "biogpt")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    return make_text(tmp_path_factory.mktemp("text") / "text.txt", n_contexts=60)


def settings(model: Path, text: str, out: Path, *, sites: list[str]) -> dict[str, Any]:
    return {
        "model": str(model), "text": text, "sites": sites, "out": out, "tokens": 480,
        "ctx_len": CTX_LEN, "dtype": "fp32", "device": "cpu",
    }  # fmt: skip


@pytest.fixture(scope="module")
def store(model, text, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("store") / "a.actstore"
    told = sp.harvest(**settings(model, text, out, sites=[SITE, "layers.2.fc2:in"]))
    assert f"{SITE} is {NAME} of {model}" in told.notes
    return out


@torch.no_grad()
def test_a_store_holds_what_hooks_on_transformers_own_model_see(model, store):
    opened = ActStore.open(store)
    assert opened.sites == (NAME, "biogpt.layers.2.fc2.input")
    plain, seen = reference(model), {}
    layers = plain.biogpt.layers
    layers[1].self_attn.register_forward_hook(lambda _, __, out: seen.update({NAME: out[0]}))
    layers[2].fc2.register_forward_pre_hook(lambda _, x: seen.update({opened.sites[1]: x[0]}))
    for context in opened.contexts(np.arange(40)):
        plain(torch.from_numpy(context.tokens)[None].long())
        for site, x in context.acts.items():
            torch.testing.assert_close(torch.from_numpy(x), seen[site][0], rtol=1e-6, atol=1e-6)


def test_the_same_harvest_is_recognised_under_any_of_its_names(model, text, store, tmp_path):
    for name in (SITE, NAME, "biogpt.layers[1].self_attn.output"):
        again = sp.harvest(**settings(model, text, store, sites=[name]))
        assert again.reused
    with refused(ConfigError, f"{NAME} is {NAME} of .*, which is named twice"):
        sp.harvest(**settings(model, text, tmp_path / "b.actstore", sites=[SITE, NAME]))
    assert not (tmp_path / "b.actstore").exists()


@torch.no_grad()
def test_from_training_to_features_as_anywhere(model, text, store, tmp_path):
    """Losses are those of transformers' own model, with the SAE put in by a hook."""
    run = sp.train(store, site=NAME, arch="topk", k=2, expansion=2, out=tmp_path / "run")
    report = sp.evaluate(run, text=text, tokens=20 * CTX_LEN, n_bootstrap=0, device="cpu")
    assert report.site == NAME
    plain, sae = reference(model), SAE.from_pretrained(run.path)
    tokens = torch.from_numpy(np.stack([
        context.tokens for context in ActStore.open(store).contexts(np.arange(20))
    ])).long()  # fmt: skip

    def loss() -> float:
        logits = plain(tokens).logits[:, :-1].double()
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten()
        ).item()

    assert report.ce_clean == pytest.approx(loss(), abs=1e-6)
    attention = plain.biogpt.layers[1].self_attn
    with attention.register_forward_hook(lambda _, __, out: (sae(out[0]), *out[1:])):
        assert report.ce_patched == pytest.approx(loss(), abs=1e-6)
    with attention.register_forward_hook(lambda _, __, out: (0 * out[0], *out[1:])):
        assert report.ce_zero == pytest.approx(loss(), abs=1e-6)
    found = sp.features(run)
    assert found.facts.site == NAME and not found.facts.attributed
    assert any("whose way to the logits is not known" in note for note in found.facts.notes)


def test_other_layers_than_its_own_are_refused(model, text, store, tmp_path):
    run = sp.train(store, site=NAME, arch="topk", k=2, expansion=2, out=tmp_path / "run")
    with refused(ConfigError, "is a module, which has no kind to be found at in layer 0"):
        sp.evaluate(run, text=text, tokens=120, device="cpu", layers=(0,))
