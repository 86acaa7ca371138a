"""Every metric that is a ratio of sums over tokens: one formula a line.

`s` holds `[n]` sums, those of a whole text (`n = 1`) or of so many resamplings of its contexts.
Hence the formulas of both are the same. A ratio that would divide by nothing is NaN here, and None
in a report.
"""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

Totals = Mapping[str, np.ndarray]
"""`[n]` sums by name."""

_LARGEST = math.log(np.finfo(np.float64).max) - 1


def metrics(s: Totals) -> dict[str, np.ndarray]:
    """Metrics by their names in `EvalReport`.

    The sums are over tokens (`x` an activation, `x_hat` its reconstruction, `z` its latents) and
    over predictions (`nll_PASS`, and `kl_PASS` from the clean one).

    - relative_bias: below 1 is shrinkage (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 10).
    - explained_variance: with one mean over the whole text.
    - mse: summed over the width, as in training.
    """
    tokens, predictions = s["n_tokens"], s["n_predictions"]
    ce = {name: _ratio(s[f"nll_{name}"], predictions) for name in _PASSES}
    perplexity = {name: perplexity_of(ce[name]) for name in ("clean", "patched")}
    return {
        **{f"ce_{name}": ce[name] for name in _PASSES},
        "loss_recovered": _ratio(ce["zero"] - ce["patched"], ce["zero"] - ce["clean"]),
        "loss_recovered_mean": _ratio(ce["mean"] - ce["patched"], ce["mean"] - ce["clean"]),
        "kl": _ratio(s["kl_patched"], predictions),
        "kl_zero": _ratio(s["kl_zero"], predictions),
        "kl_recovered": 1 - _ratio(s["kl_patched"], s["kl_zero"]),
        "perplexity_clean": perplexity["clean"],
        "perplexity_patched": perplexity["patched"],
        "perplexity_difference": perplexity["patched"] - perplexity["clean"],
        "explained_variance": 1 - _ratio(s["error"], s["spread"]),
        "mse": _ratio(s["error"], tokens),
        "cosine": _ratio(s["cosine"], tokens),
        "relative_bias": _ratio(s["square_hat"], s["product"]),
        "l2_ratio": _ratio(s["norm_ratio"], tokens),
        "l0": _ratio(s["l0"], tokens),
        "l1": _ratio(s["l1"], tokens),
    }


_PASSES = ("clean", "patched", "zero", "mean")


def perplexity_of(ce: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """`exp(ce)`, or the largest number there is."""
    return np.exp(np.minimum(ce, _LARGEST))


def _ratio(
    above: Float64[np.ndarray, " n"], below: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below != 0)
