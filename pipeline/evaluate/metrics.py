"""The metrics of an evaluation: what each is called, what it means, and the formula it is.

This is the one place that knows them. An entry of `METRICS` is a number of every report, a key of
`eval.json`, a column of `eval.csv`, and a row of the tables in the terminal and on the page.

A metric is a formula from sums over all tokens, or from a value of each latent. In definitions `x`
is an activation, `x̂` its reconstruction, and `mean x` one mean over the whole text; "alone" is the
model as it is, and "spliced", "zeroed" and "mean" the model with the site replaced by `x̂`, by zero,
and by its mean.

The sums, by name:

- n_tokens, n_predictions: tokens, and predictions of a next one, that are counted.
- nll_PASS: negative log-likelihood over predictions, PASS being clean, spliced, zero or mean.
- kl_PASS: KL divergence from the clean predictions to those of spliced, or of zero.
- error, spread, cosine, square_hat, product, norm_ratio: over tokens, ‖x - x̂‖², ‖x - mean x‖²,
  cos(x, x̂), ‖x̂‖², x·x̂ and ‖x̂‖ / ‖x‖.
- l0, l1: over tokens, latents above zero, and the sum of their values.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float64
from torch import Tensor

Number = float | int | None
"""What a metric is: None where its formula would divide by nothing."""

Totals = Mapping[str, np.ndarray]
"""`[n]` sums by name: those of a whole text (`n` = 1), or of so many resamplings of its contexts.

Hence the formulas of both are the same. A ratio that would divide by nothing is NaN here.
"""

RARE, FREQUENT = 1e-6, 0.1
"""Densities below the first are rare, above the second frequent."""

NATS = "nats"
SHARE = "share"
"""A unit: it is written in percent."""


CHANCES = 100
"""Draws of living features that say how alike the dead would be by chance."""


@dataclass(frozen=True, kw_only=True)
class OthersCosine:
    """Of a set of directions, the mean cosine of each with the mean of the others."""

    dead: float
    living: float | None
    """Mean of `CHANCES` draws of as many living ones; None where there are fewer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """A value of each latent, on the CPU."""

    density: Float64[Tensor, " d_sae"]
    """On which share of the tokens it is above zero."""
    dead: Bool[Tensor, " d_sae"]
    """Whether it is so on none."""
    dead_cosine: Float64[Tensor, " d_sae"] | None
    """Of its decoder row with the mean row of the dead; None without dead."""
    others_cosine: OthersCosine | None
    """None with fewer than two dead."""
    encoder_decoder_cosine: Float64[Tensor, " d_sae"]
    """Of what it reads with what it writes."""
    max_cosine: Float64[Tensor, " d_sae"]
    """The largest of its decoder row with that of another."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is told of a metric; `OfSums` and `OfLatents` know its formula."""

    name: str
    """In reports, `eval.json`, `eval.csv`."""
    section: str
    """Those that belong together are shown under this title."""
    words: str
    """What people know it by, in up to 26 characters."""
    definition: str = ""
    """In a line; on the narrowest screens a row of the page's table has room for six."""
    unit: str = ""
    heading: str = ""
    """Over its column where each of many runs has a line; without one it has no column there."""
    main: bool = False
    """Whether it stands where there is room for some alone."""

    @property
    def note(self) -> str:
        """Its definition, and its unit unless that can be seen."""
        unit = "" if self.unit == SHARE else self.unit
        return "; ".join(filter(None, (self.definition, unit)))


@final
@dataclass(frozen=True, kw_only=True)
class OfSums(Metric):
    """A metric of sums over tokens or predictions."""

    formula: Callable[[Totals], np.ndarray]
    interval: bool = False
    """Whether contexts are resampled to see how far it moves."""


@final
@dataclass(frozen=True, kw_only=True)
class OfLatents(Metric):
    """A metric of a value of each latent."""

    formula: Callable[[Latents], Number]


def ratio(
    above: Float64[np.ndarray, " n"], below: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Their quotients, NaN where one would divide by nothing."""
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below != 0)


def recovered(
    floor: Float64[np.ndarray, " n"],
    found: Float64[np.ndarray, " n"],
    ceiling: Float64[np.ndarray, " n"],
) -> Float64[np.ndarray, " n"]:
    """How much of the way down from one loss to another: NaN where that is no way down."""
    down = floor - ceiling
    return ratio(floor - found, np.where(down > 0, down, 0.0))


def perplexity_of(ce: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """`exp(ce)`, or the largest number there is."""
    return np.exp(np.minimum(ce, _LARGEST))


_LARGEST = math.log(np.finfo(np.float64).max) - 1


def _a_token(s: Totals, name: str) -> np.ndarray:
    return ratio(s[name], s["n_tokens"])


def _a_prediction(s: Totals, name: str) -> np.ndarray:
    return ratio(s[name], s["n_predictions"])


def _perplexity(s: Totals, name: str) -> np.ndarray:
    return perplexity_of(_a_prediction(s, f"nll_{name}"))


def _recovered(s: Totals, ablated: str) -> np.ndarray:
    clean, spliced, floor = (_a_prediction(s, f"nll_{p}") for p in ("clean", "spliced", ablated))
    return recovered(floor, spliced, clean)


def _mean(cosine: Float64[Tensor, " d_sae"] | None, of: Bool[Tensor, " d_sae"]) -> float | None:
    return None if cosine is None or not of.any() else cosine[of].mean().item()


_LOSSES, _RECONSTRUCTION, _SPARSITY, _GEOMETRY = (
    "Losses, per prediction", "Reconstruction", "Sparsity", "Geometry",
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in (
    OfSums(
        name="ce_added", section=_LOSSES, words="loss added", unit=NATS, main=True,
        heading="loss\nadded",
        definition="spliced - alone",
        formula=lambda s: _a_prediction(s, "nll_spliced") - _a_prediction(s, "nll_clean"),
        interval=True,
    ),
    OfSums(
        name="loss_recovered_mean", section=_LOSSES, words="loss recovered (mean)", main=True,
        definition="(mean - spliced) / (mean - alone)",
        formula=lambda s: _recovered(s, "mean"), interval=True,
    ),
    OfSums(
        name="loss_recovered", section=_LOSSES, words="loss recovered", main=True,
        heading="loss\nrecovered",
        definition="(zeroed - spliced) / (zeroed - alone)",
        formula=lambda s: _recovered(s, "zero"), interval=True,
    ),
    OfSums(
        name="kl", section=_LOSSES, words="KL(model || spliced)", unit=NATS, main=True,
        heading="KL",
        definition="from the model's predictions to the spliced model's",
        formula=lambda s: _a_prediction(s, "kl_spliced"), interval=True,
    ),
    OfSums(
        name="kl_recovered", section=_LOSSES, words="KL recovered",
        definition="1 - KL / KL of zeroing the site",
        formula=lambda s: 1 - ratio(s["kl_spliced"], s["kl_zero"]), interval=True,
    ),
    OfSums(
        name="ce_clean", section=_LOSSES, words="loss, the model alone", unit=NATS, main=True,
        definition="cross-entropy",
        formula=lambda s: _a_prediction(s, "nll_clean"), interval=True,
    ),
    OfSums(
        name="ce_patched", section=_LOSSES, words="loss, SAE spliced in", unit=NATS, main=True,
        definition="x̂ in the place of x",
        formula=lambda s: _a_prediction(s, "nll_spliced"), interval=True,
    ),
    OfSums(
        name="ce_zero", section=_LOSSES, words="loss, site zeroed", unit=NATS,
        definition="0 in the place of x",
        formula=lambda s: _a_prediction(s, "nll_zero"),
    ),
    OfSums(
        name="ce_mean", section=_LOSSES, words="loss, site at its mean", unit=NATS,
        definition="mean x in the place of x",
        formula=lambda s: _a_prediction(s, "nll_mean"),
    ),
    OfSums(
        name="kl_zero", section=_LOSSES, words="KL(model || zeroed)", unit=NATS,
        definition="from the model's predictions to those with the site zeroed",
        formula=lambda s: _a_prediction(s, "kl_zero"),
    ),
    OfSums(
        name="perplexity_clean", section=_LOSSES, words="perplexity, model alone",
        definition="exp(loss)",
        formula=lambda s: _perplexity(s, "clean"),
    ),
    OfSums(
        name="perplexity_patched", section=_LOSSES, words="perplexity, SAE spliced in",
        formula=lambda s: _perplexity(s, "spliced"),
    ),
    OfSums(
        name="perplexity_difference", section=_LOSSES, words="perplexity added",
        definition="spliced - alone",
        formula=lambda s: _perplexity(s, "spliced") - _perplexity(s, "clean"),
    ),
    OfSums(
        name="explained_variance", section=_RECONSTRUCTION, words="explained variance", main=True,
        heading="explained\nvariance",
        definition="1 - Σ‖x - x̂‖² / Σ‖x - mean x‖²",
        formula=lambda s: 1 - ratio(s["error"], s["spread"]), interval=True,
    ),
    OfSums(
        name="mse", section=_RECONSTRUCTION, words="mean squared error",
        definition="‖x - x̂‖², mean over tokens",
        formula=lambda s: _a_token(s, "error"), interval=True,
    ),
    OfSums(
        name="cosine", section=_RECONSTRUCTION, words="cosine similarity", main=True,
        definition="of x and x̂, mean over tokens",
        formula=lambda s: _a_token(s, "cosine"), interval=True,
    ),
    OfSums(
        name="relative_bias", section=_RECONSTRUCTION, words="relative bias", main=True,
        definition=(
            "Σ‖x̂‖² / Σ x·x̂ (Rajamanoharan et al. 2024, eq. 10): below 1 where x̂ is shrunk"
        ),  # arXiv 2404.16014
        formula=lambda s: ratio(s["square_hat"], s["product"]), interval=True,
    ),
    OfSums(
        name="l2_ratio", section=_RECONSTRUCTION, words="ratio of norms",
        definition="mean over tokens of ‖x̂‖ / ‖x‖",
        formula=lambda s: _a_token(s, "norm_ratio"),
    ),
    OfSums(
        name="l0", section=_SPARSITY, words="L0", heading="L0", main=True,
        definition="features active per token",
        formula=lambda s: _a_token(s, "l0"), interval=True,
    ),
    OfSums(
        name="l1", section=_SPARSITY, words="L1",
        definition="sum of a token's activations",
        formula=lambda s: _a_token(s, "l1"),
    ),
    OfLatents(
        name="n_dead", section=_SPARSITY, words="dead features", heading="dead",
        definition="active on none of the tokens",
        formula=lambda z: int(z.dead.sum()),
    ),
    OfLatents(
        name="frac_dead", section=_SPARSITY, words="share of dead features", unit=SHARE, main=True,
        formula=lambda z: z.dead.double().mean().item(),
    ),
    OfLatents(
        name="n_rare", section=_SPARSITY, words="rare features, < 1e-6",
        definition="active on fewer than one in a million tokens, the dead too",
        formula=lambda z: int((z.density < RARE).sum()),
    ),
    OfLatents(
        name="n_frequent", section=_SPARSITY, words="frequent features, > 10 %",
        definition="active on more than a tenth of the tokens",
        formula=lambda z: int((z.density > FREQUENT).sum()),
    ),
    OfLatents(
        name="dead_cosine_others", section=_GEOMETRY, words="dead-feature cosine",
        definition="of dead decoder rows with the mean of the others",
        formula=lambda z: None if z.others_cosine is None else z.others_cosine.dead,
    ),
    OfLatents(
        name="dead_cosine_chance", section=_GEOMETRY, words="- by chance",
        definition=f"the same of as many living rows, {CHANCES} draws",
        formula=lambda z: None if z.others_cosine is None else z.others_cosine.living,
    ),
    OfLatents(
        name="dead_cosine_mean", section=_GEOMETRY, words="- to the mean dead row",
        definition="themselves in the mean: 1 / √n by chance",
        formula=lambda z: _mean(z.dead_cosine, z.dead),
    ),
    OfLatents(
        name="alive_cosine_mean", section=_GEOMETRY, words="- alive to the same",
        definition="of living decoder rows with the mean dead row",
        formula=lambda z: _mean(z.dead_cosine, ~z.dead),
    ),
    OfLatents(
        name="encoder_decoder_cosine_median", section=_GEOMETRY, words="encoder-decoder cosine",
        definition="median, of what each reads with what it writes",
        formula=lambda z: float(np.median(z.encoder_decoder_cosine.numpy())),
    ),
    OfLatents(
        name="max_cosine_mean", section=_GEOMETRY, words="max cosine to another",
        definition="mean, of a decoder row with the nearest other",
        formula=lambda z: z.max_cosine.mean().item(),
    ),
)}  # fmt: skip
"""By name, in the order in which they are shown."""


def sections() -> dict[str, list[Metric]]:
    """All metrics by the titles under which they stand."""
    found: dict[str, list[Metric]] = {}
    for metric in METRICS.values():
        found.setdefault(metric.section, []).append(metric)
    return found


def of_sums(s: Totals) -> dict[str, np.ndarray]:
    """Those that are formulas from sums, by name."""
    return {m.name: m.formula(s) for m in METRICS.values() if isinstance(m, OfSums)}


def measured(s: Totals, z: Latents) -> dict[str, Number]:
    """All metrics of one text, by name."""
    values = {name: value.item() for name, value in of_sums(s).items()}
    numbers = {name: None if math.isnan(value) else value for name, value in values.items()}
    numbers |= {m.name: m.formula(z) for m in METRICS.values() if isinstance(m, OfLatents)}
    return {name: numbers[name] for name in METRICS}
