"""Means of the latents of both SAEs, and of their products, over a fixed sample of rows.

Sums of products are in float64, by whichever way is faster: of whole rows, or of active pairs.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from actstore.reader import ActStore
from pipeline.connect.connector import SAEPair
from pipeline.errors import ConfigError
from pipeline.sae.select import Picked, above
from pipeline.training.feed import sample_rows

BLOCK = {"cpu": 2**21}
"""Latents of one SAE encoded at once: small enough that their memory is used again."""
GPU_BLOCK = 2**26

Kept = Callable[[Mapping[str, Tensor]], Bool[Tensor, " rows"]]
"""Which rows of a batch count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Products:
    """Means over rows of `u` and `v`, and of the products from which a line is fitted."""

    mean1: Float64[Tensor, " n_1"]
    mean2: Float64[Tensor, " n_2"]
    product11: Float64[Tensor, "n_1 n_1"]
    """Mean of `u u^T`."""
    product12: Float64[Tensor, "n_1 n_2"]
    """Mean of `u v^T`."""

    @property
    def var1(self) -> Float64[Tensor, " n_1"]:
        """Variance of each `u`; rounding can leave it at no less than zero."""
        return (self.product11.diagonal() - self.mean1.square()).clamp_min(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """What a sample of rows tells of a pair of SAEs; on the device it was found on."""

    n_rows: int
    """That count."""
    latents: Products
    """Of `z1` and `z2`."""
    activations: Products
    """Of `x1` and `x2`, the activations at the two sites."""


@torch.no_grad()
def find_moments(
    pair: SAEPair,
    store: ActStore,
    *,
    device: torch.device,
    kept: Kept | None = None,
    metadata: tuple[str, ...] = (),
) -> Moments:
    """Read rows from all over the store, or all that it has, and encode each once.

    The SAEs are on the device. Totals are in float64: `8 n_in (n_in + n_out)` bytes, 4 GiB for
    16,384 latents each, and a few hundred MiB beside them. `kept` says which rows of a batch count,
    all if None; beside the sites it reads the metadata.
    """
    home = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    activations = _zeros(pair.source.d_in, pair.target.d_in, device=home)
    latents = _zeros(pair.source.d_sae, pair.target.d_sae, device=home)
    n_counted = 0
    sites = tuple(dict.fromkeys(pair.sites))
    blocks = sample_rows(store, sites=sites, metadata=metadata)
    block = BLOCK.get(device.type, GPU_BLOCK)
    rows = max(1, block // max(pair.source.d_sae, pair.target.d_sae))
    for batch in _pieces(blocks, rows=rows, device=device):
        chosen = slice(None) if kept is None else kept(batch)
        piece = {site: batch[site][chosen] for site in sites}
        x1, x2, z1, z2 = (
            t.to(home) for t in (*(piece[site] for site in pair.sites), *pair.latents(piece))
        )
        n_counted += len(x1)
        # Activations can be far from zero: their products must be exact to give covariances.
        _add(activations, x1.double(), x2.double(), add_dense)
        _add(latents, z1, z2, add_latents)
    if not n_counted:
        raise ConfigError("no row of the sample is left to count: exclude less")
    for products in (activations, latents):
        for total in vars(products).values():
            total.div_(n_counted)
    return Moments(n_rows=n_counted, latents=latents, activations=activations)


def _pieces(
    blocks: Generator[dict[str, Tensor], None, None], *, rows: int, device: torch.device
) -> Generator[dict[str, Tensor], None, None]:
    """The same rows on the device, no more than `rows` at a time."""
    for block in blocks:
        names, parts = block.keys(), zip(*(v.split(rows) for v in block.values()), strict=True)
        for part in parts:
            yield {name: values.to(device) for name, values in zip(names, part, strict=True)}


def _zeros(n_1: int, n_2: int, *, device: torch.device) -> Products:
    zeros = partial(torch.zeros, dtype=torch.float64, device=device)
    return Products(
        mean1=zeros(n_1),
        mean2=zeros(n_2),
        product11=zeros(n_1, n_1),
        product12=zeros(n_1, n_2),
    )


def _add(
    to: Products,
    u: Float[Tensor, "rows n_1"],
    v: Float[Tensor, "rows n_2"],
    add_product: Callable[[Tensor, Tensor, Tensor], None],
) -> None:
    """Add sums over rows, the products as `add_product` does."""
    to.mean1.add_(u.sum(0, dtype=torch.float64))
    to.mean2.add_(v.sum(0, dtype=torch.float64))
    add_product(to.product11, u, u)
    add_product(to.product12, u, v)


# --- sums of products of latents ------------------------------------------------------------

PAIR_COST = 1000
"""Times that a pair of active latents takes as long as a multiplication of a dense product.

Measured on one core: 45 to 57 ns a pair, 0.044 to 0.06 ns a multiplication, for 640 to 16,384
latents. More cores make dense products alone faster, but where few latents are active that does
not matter: with 50 active of 16,384, pairs are faster by a hundred.
"""
STRIPE = 2**24
"""Values of the result of a dense product in memory at a time."""
PAIRS = 2**20
"""Pairs in memory at a time, about."""


def add_latents(
    total: Float64[Tensor, "n_in n_out"],
    z1: Float32[Tensor, "rows n_in"],
    z2: Float32[Tensor, "rows n_out"],
) -> None:
    """Add `z1.T @ z2` of latents, none below zero, to a total.

    On a CPU, where few are active, only pairs that are active in the same row are multiplied, in
    float64. Else the product of these rows is in float32: its sums have no terms of opposite sign,
    so that its error is about that of float32, 1e-7 of each sum, and sums of products are float64.
    """
    if total.device.type == "cpu":
        first, second = above(z1[None], 0.0), above(z2[None], 0.0)
        n_pairs = int((first.crow.diff().long() * second.crow.diff()).sum())
        if n_pairs * PAIR_COST < len(z1) * total.numel():
            _add_pairs(total, first, first.values(z1[None]), second, second.values(z2[None]))
            return
    add_dense(total, z1, z2)


def add_dense(
    total: Float64[Tensor, "n_1 n_2"],
    a: Float[Tensor, "rows n_1"],
    b: Float[Tensor, "rows n_2"],
) -> None:
    """Add `a.T @ b`, computed in their dtype, to a total, so many of its rows at a time."""
    step = max(1, STRIPE // total.shape[1])
    for start in range(0, len(total), step):
        stripe = slice(start, start + step)
        total[stripe] += a[:, stripe].T @ b


def _add_pairs(
    total: Float64[Tensor, "n_in n_out"],
    first: Picked,
    values1: Float32[Tensor, " n1"],
    second: Picked,
    values2: Float32[Tensor, " n2"],
) -> None:
    """Latent after latent of the first, so that what is added to stays in the cache.

    The pairs of an active latent of a row are with those of the second that are active in it, which
    lie one after another: pair `j` of all is with `j + shift` of them.
    """
    transposed = first.transposed
    latent, value = (of.index_select(0, transposed.order) for of in (first.col, values1.double()))
    n_pairs = second.crow.diff().long().index_select(0, transposed.row)
    begin = second.crow[:-1].index_select(0, transposed.row)
    step = max(1, PAIRS * len(latent) // max(1, int(n_pairs.sum())))
    for start in range(0, len(latent), step):
        part = slice(start, start + step)
        counts = n_pairs[part]
        n = int(counts.sum())
        shift = begin[part] - (counts.cumsum(0) - counts)
        own = torch.arange(len(counts)).repeat_interleave(counts, output_size=n)
        other = torch.arange(n) + shift.index_select(0, own)
        at = latent[part].long() * total.shape[1]
        total.view(-1).index_add_(
            0,
            at.index_select(0, own) + second.col.index_select(0, other),
            value[part].index_select(0, own) * values2.index_select(0, other),
        )
