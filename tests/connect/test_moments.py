"""Moments of latents, against the same sums made plainly of the store's own rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from actstore.reader import ActStore
from pipeline.config.architectures import TopKConfig
from pipeline.connect.connector import SAEPair
from pipeline.connect.moments import BLOCK, add_dense, add_latents, find_moments
from pipeline.errors import ConfigError
from pipeline.training.feed import sample_rows
from tests.helpers.tiny import make_sae
from tests.helpers.training import make_training_store

SITES = ("resid_post.0", "mlp_out.0")
CPU = torch.device("cpu")


def make_pair(*, sites: tuple[str, str] = SITES) -> SAEPair:
    """Coders of different widths and kinds, between the sites of the training store."""
    source = make_sae(d_in=8, expansion=4, arch=TopKConfig(k=4), seed=1)
    return SAEPair(source=source, target=make_sae(d_in=8, expansion=6, seed=2), sites=sites)


def make_store(folder: Path, *, n_rows: int = 2048) -> ActStore:
    return ActStore.open(make_training_store(folder / "acts.actstore", n_rows=n_rows))


def all_rows(store: ActStore, pair: SAEPair) -> list[np.ndarray]:
    """`x1, x2, z1, z2` of the whole store in float64, the coders run as they are."""
    blocks = list(sample_rows(store, sites=tuple({*pair.sites}), n_rows=store.n_rows))
    batch = {site: torch.cat([block[site] for block in blocks]) for site in pair.sites}
    with torch.no_grad():
        z = pair.source.encode(batch[pair.sites[0]]), pair.target.encode(batch[pair.sites[1]])
    return [t.numpy().astype(np.float64) for t in (*(batch[s] for s in pair.sites), *z)]


def assert_products(
    products, u: np.ndarray, v: np.ndarray, *, rtol: float, atol: float = 1e-12
) -> None:
    n = len(u)
    expected = {
        "mean1": u.mean(0), "mean2": v.mean(0), "product11": u.T @ u / n,
        "product12": u.T @ v / n, "var1": u.var(0),
    }  # fmt: skip
    for name, values in expected.items():
        found = getattr(products, name)
        assert found.dtype == torch.float64, name
        np.testing.assert_allclose(found.numpy(), values, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("sites", [SITES, (SITES[0], SITES[0])], ids=["two sites", "one site"])
def test_moments_of_all_rows_are_the_plain_sums(tmp_path, sites):
    store, pair = make_store(tmp_path), make_pair(sites=sites)
    x1, x2, z1, z2 = all_rows(store, pair)
    moments = find_moments(pair, store, device=CPU)
    assert moments.n_rows == 2048
    assert_products(moments.activations, x1, x2, rtol=1e-9)
    assert_products(moments.latents, z1, z2, rtol=2e-6)


@pytest.mark.parametrize("block", [1, 1000])
def test_however_many_rows_are_encoded_at_a_time_the_moments_are_the_same(
    tmp_path, monkeypatch, block
):
    store, pair = make_store(tmp_path, n_rows=160), make_pair()
    *_, z1, z2 = all_rows(store, pair)
    monkeypatch.setitem(BLOCK, "cpu", block)
    moments = find_moments(pair, store, device=CPU)
    assert moments.n_rows == 160
    # Latents of order 1, whose float32 rounding depends on how many rows are encoded together.
    assert_products(moments.latents, z1, z2, rtol=2e-6, atol=1e-6)


def test_only_rows_that_count_are_counted_and_without_any_there_are_no_moments(tmp_path):
    store, pair = make_store(tmp_path, n_rows=512), make_pair()
    blocks = list(sample_rows(store, sites=SITES, metadata=("position",), n_rows=512))
    batch = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    with torch.no_grad():
        z1, z2 = pair.latents({s: batch[s][batch["position"] >= 3] for s in SITES})
    moments = find_moments(
        pair, store, device=CPU, kept=lambda rows: rows["position"] >= 3, metadata=("position",)
    )
    assert moments.n_rows == len(z1) == 512 * 13 // 16
    assert_products(moments.latents, z1.double().numpy(), z2.double().numpy(), rtol=2e-6)
    with pytest.raises(ConfigError, match="no row of the sample"):
        find_moments(pair, store, device=CPU, kept=lambda rows: rows[SITES[0]][:, 0] > torch.inf)


def make_latents(*, rows: int, width: int, share: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(rows, width, generator=generator) + 0.1
    return z * (torch.rand(rows, width, generator=generator) < share)


@pytest.mark.parametrize("size", [1, 1000, 2**24])
@pytest.mark.parametrize(
    ("block", "other_way", "share", "rtol"),
    [("PAIRS", "add_dense", 0.015, 1e-14), ("STRIPE", "_add_pairs", 0.5, 1e-6)],
    ids=["few, pair by pair and exactly", "many, by dense products in stripes"],
)
def test_active_latents_are_added_by_the_faster_way(
    monkeypatch, block, other_way, share, rtol, size
):
    monkeypatch.setattr(f"pipeline.connect.moments.{block}", size)
    monkeypatch.setattr(f"pipeline.connect.moments.{other_way}", None)
    z1 = make_latents(rows=90, width=300, share=share, seed=0)
    z2 = make_latents(rows=90, width=400, share=share, seed=1)
    z1[17], z2[23], z1[40], z2[40] = 0, 0, 0, 0  # rows that are silent at one site or at both
    total = torch.ones(300, 400, dtype=torch.float64)
    add_latents(total, z1, z2)
    expected = 1 + z1.double().T @ z2.double()
    np.testing.assert_allclose(total.numpy(), expected.numpy(), rtol=rtol)


def test_rows_without_any_active_latent_add_nothing():
    total = torch.ones(30, 40, dtype=torch.float64)
    add_latents(total, torch.zeros(7, 30), torch.ones(7, 40))
    add_latents(total, torch.ones(7, 30), torch.zeros(7, 40))
    add_latents(total, torch.zeros(0, 30), torch.zeros(0, 40))
    assert torch.equal(total, torch.ones_like(total))


def test_a_product_of_rows_far_from_zero_keeps_their_covariance():
    """What activations need: in float32 it would be off by its whole size."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(1e4 + rng.standard_normal((400, 3)))
    total = torch.zeros(3, 3, dtype=torch.float64)
    add_dense(total, x, x)
    mean = x.mean(0)
    np.testing.assert_allclose(
        (total / 400 - mean.outer(mean)).numpy(), np.cov(x.numpy().T, bias=True), atol=1e-6
    )
