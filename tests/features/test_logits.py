"""Which tokens a feature promotes: by its direct path, and by what the model does without it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pipeline.evaluate.geometry
import pipeline.features.ablation
import pipeline.lm.logits
from pipeline.errors import ConfigError
from pipeline.evaluate.geometry import nearest
from pipeline.features.ablation import ablation_effects, mean_drops
from pipeline.lm.hooks import capture, splice
from pipeline.lm.logits import attribute, load_path
from pipeline.lm.model import load_model
from pipeline.lm.sites import Site
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.lm.weights import Weights
from pipeline.text.token_text import TokenTexts
from tests.helpers.models import CPU, TOKENS, gpt2, llama, neox, save_random
from tests.helpers.tiny import make_sae

N_VOCAB = 60

# Square: as many coordinates in the MLP as in the stream, so that shapes do not tell its sides.
MAKERS = {
    "pythia": neox, "gpt2": gpt2, "gpt2-square": lambda: gpt2(n_inner=32), "llama-tied": llama,
    "llama": lambda: llama(tied=False),
}  # fmt: skip


@pytest.fixture(scope="module", params=MAKERS)
def folder(request, tmp_path_factory) -> Path:
    return save_random(MAKERS[request.param](), tmp_path_factory.mktemp("model"))


def path_of(folder: Path, site: str):
    return load_path(str(folder), Site.parse(site), revision="main", n_vocab=N_VOCAB, device=CPU)


def test_a_family_that_ties_its_embeddings_need_not_say_so(tmp_path):
    save_random(gpt2(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    embedding = load_file(tmp_path / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(path_of(tmp_path, "mlp_out.1").unembedding, embedding[:N_VOCAB])


@pytest.mark.parametrize("kind", ["resid_post", "mlp_out", "mlp_act"])
def test_a_direct_path_is_the_change_of_logits_but_for_the_scale_of_the_norm(folder, kind):
    """In the last layer nothing comes in between; the norm's own change is taken out by a
    direction at right angles to the stream, which does not change the length of it."""
    site, last = Site.parse(f"{kind}.2"), Site.parse("resid_post.2")
    lm = load_model(str(folder), device=CPU, dtype=torch.float64)
    path = path_of(folder, str(site))
    with torch.no_grad(), capture(lm, [last]) as acts:
        lm.hidden(TOKENS)
    x = acts[last][1, 5]
    centered = x - x.mean() if path.centered else x
    direction = torch.randn(lm.width(site), generator=torch.Generator().manual_seed(1)).double()
    reads = centered if path.out is None else path.out.double().T @ centered
    direction -= reads * (direction @ reads) / (reads @ reads)

    def logits(step: float) -> torch.Tensor:
        with torch.no_grad(), splice(lm, {site: lambda a: a + step * direction}):
            return lm.logits(lm.hidden(TOKENS)[1, 5:6])[0, :N_VOCAB]

    change = (logits(0.01) - logits(-0.01)) / 0.02
    scale = centered.square().mean().sqrt()
    expected = path.logits(direction[None].float())[0].double() / scale
    assert change.abs().max() > 0.1
    torch.testing.assert_close(change, expected, rtol=2e-3, atol=2e-3 * change.abs().max().item())


def test_the_ends_are_those_of_a_sort_of_all_logits(folder, monkeypatch):
    path, W_dec = path_of(folder, "mlp_out.0"), torch.randn(50, 32)
    logits = path.logits(W_dec).double()
    for cells in (1, 7 * N_VOCAB, 2**24):
        monkeypatch.setattr(pipeline.lm.logits, "_CELLS", cells)
        told = attribute(path, W_dec)
        for end, ends in (
            ("promoted", logits.sort(descending=True)),
            ("suppressed", logits.sort()),
        ):
            found, by = told[end]
            assert found.shape == (50, 10)
            torch.testing.assert_close(found, ends.indices[:, :10])
            torch.testing.assert_close(by.double(), ends.values[:, :10], rtol=1e-4, atol=1e-5)


def test_only_the_weights_on_the_way_are_read(folder, monkeypatch):
    read: list[str] = []
    load = Weights.load

    def listening(self, wanted, **options):
        read.extend(wanted)
        return load(self, wanted, **options)

    monkeypatch.setattr(Weights, "load", listening)
    path_of(folder, "resid_pre.1")
    assert len(read) == 2
    path_of(folder, "mlp_act.1")
    assert len(read) == 5


def test_sites_without_a_linear_way_are_refused(folder):
    with pytest.raises(ConfigError, match=r"mlp_pre.1 has no linear way to the logits"):
        path_of(folder, "mlp_pre.1")
    with pytest.raises(ConfigError, match="features write 8 values, the site has 32"):
        attribute(path_of(folder, "mlp_out.1"), torch.randn(3, 8))
    path = path_of(folder, "mlp_act.1")
    width = path.out.shape[1]
    with pytest.raises(ConfigError, match=f"features write 7 values, the site has {width}"):
        attribute(path, torch.randn(3, 7))


@pytest.fixture(scope="module")
def lm(world):
    return load_model(str(world.model), device=CPU, dtype=torch.float32)


POSITIONS = np.array([3, 0, 11, 7, 7], np.int32)


@pytest.mark.parametrize("cells", [1, 2**24])
def test_the_ablation_effect_is_what_the_model_loses_without_the_feature(
    world, lm, cells, monkeypatch
):
    monkeypatch.setattr(pipeline.features.ablation, "_CELLS", cells)
    coder, feature = make_sae(), 1
    tokens = torch.from_numpy(world.store.tokens(np.arange(5)))
    drops = mean_drops(lm, Site.parse("mlp_out.1"), coder, feature, tokens, POSITIONS)
    module = lm.module.gpt_neox.layers[1].mlp
    expected = []
    for context, position in zip(tokens, POSITIONS.tolist(), strict=True):
        with torch.no_grad():
            clean = lm.module(context[None].long()).logits[0, position]

            def remove(_module, _args, out):
                z = (out - coder.b_dec) @ coder.W_enc[:, feature] + coder.b_enc[feature]
                return out - z.relu()[..., None] * coder.W_dec[feature]

            handle = module.register_forward_hook(remove)
            expected.append((clean - lm.module(context[None].long()).logits[0, position]).double())
            handle.remove()
    assert drops.abs().max() > 0.01
    torch.testing.assert_close(drops, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-5)
    assert drops.dtype == torch.float64


@pytest.mark.parametrize("cells", [1, 300, 2**24])
def test_the_nearest_are_those_of_a_sort_of_all_cosines(cells, monkeypatch):
    monkeypatch.setattr(pipeline.evaluate.geometry, "_CELLS", cells)
    W_dec = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) * 3
    W_dec[7] = 0
    indices, cosines = nearest(W_dec)
    rows = W_dec.double().numpy()
    for i in range(40):
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(rows[i])
        cosine = np.divide(rows @ rows[i], norms, out=np.zeros(40), where=norms > 0)
        others = np.delete(np.arange(40), i)
        np.testing.assert_allclose(cosines[i], np.sort(cosine[others])[::-1][:5], atol=1e-6)
        assert i not in indices[i].tolist()
        if i != 7:
            order = others[np.argsort(-cosine[others])]
            np.testing.assert_array_equal(indices[i], order[:5])
    assert nearest(W_dec[:1])[0].shape == (1, 0)
    assert nearest(W_dec[:3])[0].shape == (3, 2)


def test_an_effect_names_the_tokens_at_both_ends_and_a_dead_feature_has_none(world, features, lm):
    told, none = (ablation_effects(features, [1, 0], device="cpu")[i] for i in (1, 0))
    assert none is None
    top = features.feature(1).top
    tokens = torch.from_numpy(world.store.tokens(top.context))
    drops = mean_drops(lm, Site.parse("mlp_out.1"), make_sae(), 1, tokens, top.position)[:257]
    assert [t.token for t in told.dropped] == drops.argsort(descending=True)[:10].tolist()
    assert [t.token for t in told.raised] == drops.argsort()[:10].tolist()
    assert told.dropped[0].effect == pytest.approx(drops.max().item(), rel=1e-5)
    assert told.raised[0].effect == pytest.approx(drops.min().item(), rel=1e-5)
    assert told.raised[0].effect < 0 < told.dropped[0].effect
    token = told.dropped[0].token
    texts = TokenTexts(load_tokenizer(str(world.model)).token_bytes)
    assert told.dropped[0].text == texts.alone(token)
    assert told.n_contexts == 3
    with pytest.raises(ConfigError, match="has features 0 to 63, got 64"):
        ablation_effects(features, [64])
