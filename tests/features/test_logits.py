"""Which tokens a feature promotes: by its direct path, and by what the model does without it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import pipeline.features.ablation
import pipeline.features.logits
from pipeline.errors import ConfigError
from pipeline.features.ablation import ablation_effect, ablation_effects, mean_drops
from pipeline.features.feature import Examples
from pipeline.features.logits import attribute, load_path, nearest
from pipeline.lm.families import Site
from pipeline.lm.hooks import capture, splice
from pipeline.lm.model import load_model
from pipeline.lm.weights import Weights
from pipeline.text.token_text import TokenTexts
from tests.helpers.tiny import make_sae

CPU = torch.device("cpu")
N_VOCAB = 60
TOKENS = torch.arange(24).reshape(2, 12) % N_VOCAB


def neox():
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config)


def gpt2(n_inner: int = 48):
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_inner=n_inner, n_positions=32
    )
    return transformers.GPT2LMHeadModel(config)


def llama(*, tied: bool = False):
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=32,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


# Square: as many coordinates in the MLP as in the stream, so that shapes do not tell its sides.
MAKERS = {
    "pythia": neox, "gpt2": gpt2, "gpt2-square": lambda: gpt2(n_inner=32), "llama": llama,
    "llama-tied": lambda: llama(tied=True),
}  # fmt: skip


@pytest.fixture(scope="module", params=MAKERS)
def folder(request, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = MAKERS[request.param]()
    for p in model.parameters():
        p.data.normal_(std=0.3)
    path = tmp_path_factory.mktemp("model") / request.param
    model.save_pretrained(path)
    return path


def path_of(folder: Path, site: str):
    return load_path(str(folder), Site.parse(site), revision="main", n_vocab=N_VOCAB, device=CPU)


def test_a_family_that_ties_its_embeddings_need_not_say_so(tmp_path):
    torch.manual_seed(0)
    gpt2().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    embedding = load_file(tmp_path / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(path_of(tmp_path, "mlp_out.1").unembedding, embedding[:N_VOCAB])


@pytest.mark.parametrize("kind", ["resid_post", "mlp_out", "mlp_act"])
def test_a_direct_path_is_the_change_of_logits_but_for_the_scale_of_the_norm(folder, kind):
    """In the last layer nothing comes in between; the norm's own change is taken out by a
    direction at right angles to the stream, which does not change the length of it."""
    site, last = Site.parse(f"{kind}.1"), Site.parse("resid_post.1")
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
        monkeypatch.setattr(pipeline.features.logits, "_CELLS", cells)
        told = attribute(path, W_dec)
        for found, by, ends in [
            (told.promoted, told.promoted_by, logits.sort(descending=True)),
            (told.suppressed, told.suppressed_by, logits.sort()),
        ]:
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


def test_an_effect_names_the_tokens_at_both_ends(world, lm):
    n, site, coder = 5, Site.parse("mlp_out.1"), make_sae()
    examples = Examples(
        context=np.arange(n),
        position=POSITIONS,
        value=np.ones(n, np.float32),
        tokens=np.zeros((n, 33), np.int32),
        values=np.zeros((n, 33), np.float32),
    )
    texts = TokenTexts({7: b"seven"}.get)

    def effect(examples):
        return ablation_effect(
            lm, site, coder, 1, store=world.store, examples=examples, texts=texts, n_vocab=200
        )

    told = effect(examples)
    drops = mean_drops(
        lm, site, coder, 1, torch.from_numpy(world.store.tokens(np.arange(n))), POSITIONS
    )[:200]
    assert [t.token for t in told.dropped] == drops.argsort(descending=True)[:10].tolist()
    assert [t.token for t in told.raised] == drops.argsort()[:10].tolist()
    assert told.dropped[0].effect == drops.max() > 0 > told.raised[0].effect == drops.min()
    assert told.dropped[0].text == f"[{told.dropped[0].token}]"
    assert told.n_contexts == n
    none = Examples(**{name: values[:0] for name, values in vars(examples).items()})
    assert effect(none) is None


@pytest.mark.parametrize("cells", [1, 300, 2**24])
def test_the_nearest_are_those_of_a_sort_of_all_cosines(cells, monkeypatch):
    monkeypatch.setattr(pipeline.features.logits, "_CELLS", cells)
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


def test_features_that_are_few_have_fewer_neighbours():
    assert nearest(torch.eye(1, 4))[0].shape == (1, 0)
    assert nearest(torch.eye(3, 4))[0].shape == (3, 2)


def test_effects_of_some_features_of_a_run(world, features, lm):
    coder = make_sae()
    told = ablation_effects(features, [1, 0], device="cpu")
    assert told[0] is None  # a dead one
    top = features.feature(1).top
    tokens = torch.from_numpy(world.store.tokens(top.context))
    drops = mean_drops(lm, Site.parse("mlp_out.1"), coder, 1, tokens, top.position)
    assert told[1].dropped[0].effect == pytest.approx(drops[:257].max().item(), rel=1e-5)
    assert told[1].n_contexts == 3
    with pytest.raises(ConfigError, match="has features 0 to 63, got 64"):
        ablation_effects(features, [64])
