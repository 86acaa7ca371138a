"""SAEs that others trained, read from ../shared/data; each test skips where they are absent."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import saepipe as sp
import torch
from safetensors.torch import load_file

from tests.helpers.foreign import computes, relu

DATA = Path(__file__).parents[3] / "shared" / "data"


def data(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def of(tensors) -> dict[str, np.ndarray]:
    return {name: t.double().numpy() for name, t in tensors.items()}


@pytest.mark.parametrize("layer", [1, 3, 5])
@pytest.mark.parametrize("times", [8, 16])
def test_six_of_saelens(tmp_path, layer, times):
    source = data(f"saelens_othello_saes/blocks.{layer}.hook_resid_pre_{layer}_{times}")
    run = sp.import_sae(source, out=tmp_path / "run")
    w = of(load_file(source / "sae_weights.safetensors"))
    x = np.random.default_rng(0).standard_normal((200, 128))
    z, x_hat = computes(w, relu, centred=False, x=x)
    with torch.no_grad():
        rows = torch.from_numpy(x).float()
        np.testing.assert_allclose(run.sae.encode(rows).numpy(), z, atol=2e-5)
        np.testing.assert_allclose(run.sae(rows).numpy(), x_hat, atol=5e-5)
    assert (run.provenance.site, run.d_sae) == (f"resid_pre.{layer}", 128 * times)
    assert run.provenance.ctx_len == 59


@pytest.mark.parametrize(("file", "d_in", "d_sae"), [("ae1.pt", 48, 192), ("ae2.pt", 120, 1920)])
def test_two_of_dictionary_learning(tmp_path, file, d_in, d_sae):
    source = data(f"dictionary_learning_aes/{file}")
    run = sp.import_sae(source, out=tmp_path / "run", site="mlp_out.1")
    kept = of(torch.load(source, map_location="cpu", weights_only=True))
    norms = np.linalg.norm(kept["decoder.weight"], axis=0)
    w = {
        "W_enc": kept["encoder.weight"].T * norms, "b_enc": kept["encoder.bias"] * norms,
        "W_dec": (kept["decoder.weight"] / norms).T, "b_dec": kept["bias"],
    }  # fmt: skip
    assert (run.provenance.d_in, run.d_sae) == (d_in, d_sae)
    x = np.random.default_rng(0).standard_normal((200, d_in))
    z, x_hat = computes(w, relu, x=x)
    with torch.no_grad():
        rows = torch.from_numpy(x).float()
        np.testing.assert_allclose(run.sae.encode(rows).numpy(), z, atol=2e-5)
        np.testing.assert_allclose(run.sae(rows).numpy(), x_hat, atol=5e-5)


def at_the_separator(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """The stream behind layer 0 of the list model at its third token, for every pair of digits.

    It attends to the two digits alone; values and outputs are the identity where it was so trained.
    """
    w = {name.removeprefix("blocks.0.attn."): t.double() for name, t in weights.items()}
    pairs = torch.tensor([*itertools.product(range(100), repeat=2)])
    tokens = torch.cat([pairs, torch.full((len(pairs), 1), 101)], 1)
    x = w["embed.W_E"][tokens] + w["pos_embed.W_pos"][:3]
    q, k, v = (x @ w[f"W_{n}"][0] + w[f"b_{n}"][0] for n in "QKV")
    scores = (q[:, 2:] * k[:, :2]).sum(-1) / q.shape[-1] ** 0.5
    pattern = scores.softmax(-1)
    return (x[:, 2] + (pattern[..., None] * v[:, :2]).sum(1) @ w["W_O"][0] + w["b_O"]).float()


def test_the_list_model_s_sae_has_the_numbers_that_its_authors_state(tmp_path):
    """Mean square 0.0045, explained variance 0.9885, L0 3.89; its input was without its mean."""
    folder = data("listcomp_model_and_sae")
    model = torch.load(folder / "2layer_100dig_64d.pt", map_location="cpu", weights_only=True)
    source = folder / "sae_d100_k4_50ksteps_2layer_100dig_64d.pt"
    run = sp.import_sae(source, out=tmp_path / "run", site="resid_post.0")
    assert (run.provenance.d_in, run.d_sae, run.config.arch.kind) == (64, 100, "batchtopk")
    x = at_the_separator(model)
    mean = torch.load(source, map_location="cpu", weights_only=True)["act_mean"]
    with torch.no_grad():
        z, x_hat = run.sae.encode(x), run.sae(x)
    square = (x - x_hat).square().mean()
    assert float(square) == pytest.approx(0.0045, abs=1e-4)
    assert float(square / (x - mean).square().mean()) == pytest.approx(0.0115, abs=3e-4)
    assert float((z > 0).sum(-1).double().mean()) == pytest.approx(3.89, abs=0.02)
