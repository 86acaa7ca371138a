"""The table of an evaluation: what each number is called, what it means, and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pipeline.evaluate.report import QUANTILES, EvalReport


def number(value: int | float | None) -> str:
    """Four significant digits, no powers of ten from 0.0001 to a million; a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share in at most three digits."""
    return f"{100 * share:.3g} %"


METRICS: dict[str, dict[str, tuple[str, str]]] = {
    "Losses, in nats per prediction": {
        "ce_clean": ("cross-entropy, the model alone", ""),
        "ce_patched": ("cross-entropy, SAE spliced in", ""),
        "ce_zero": ("cross-entropy, site zeroed", ""),
        "ce_mean": ("cross-entropy, site at its mean", ""),
        "loss_recovered": ("loss recovered", "(zeroed - spliced) / (zeroed - alone)"),
        "loss_recovered_mean": (
            "loss recovered, against the mean", "(mean - spliced) / (mean - alone)",
        ),
        "kl": ("KL divergence", "from the model's predictions to the spliced model's"),
        "kl_recovered": ("KL recovered", "1 - KL / KL of zeroing the site"),
        "perplexity_clean": ("perplexity, the model alone", ""),
        "perplexity_patched": ("perplexity, SAE spliced in", ""),
        "perplexity_difference": ("difference in perplexity", ""),
    },
    "Reconstruction": {
        "explained_variance": ("explained variance", "1 - Σ‖x - x̂‖² / Σ‖x - mean x‖²"),
        "mse": ("mean squared error", ""),
        "cosine": ("cosine of x and x̂", "mean over tokens"),
        "relative_bias": ("relative reconstruction bias", "below 1 where x̂ is shrunk"),
        "l2_ratio": ("ratio of norms", "mean of ‖x̂‖ / ‖x‖"),
    },
    "Sparsity": {
        "l0": ("L0", "features active per token"),
        "l0_quantiles": ("its quantiles", " / ".join(f"{q:.0%}" for q in QUANTILES)),
        "l1": ("L1", "sum of a token's activations"),
        "n_dead": ("dead features", "active on none of the tokens"),
        "frac_dead": ("share of dead features", ""),
        "n_rare": ("rare features", "active on fewer than one in a million tokens, the dead too"),
        "n_frequent": ("frequent features", "active on more than a tenth of the tokens"),
    },
    "Geometry": {
        "dead_cosine_mean": ("dead-feature cosine, dead", "of decoder rows with the mean dead row"),
        "alive_cosine_mean": ("dead-feature cosine, alive", "the same of living decoder rows"),
        "encoder_decoder_cosine_median": ("encoder-decoder cosine", "median"),
        "max_cosine_mean": ("largest cosine with another feature", "mean"),
    },
}  # fmt: skip
"""By group and field of `EvalReport`: name and definition."""

MAIN = (
    "loss_recovered", "kl", "explained_variance", "l0", "frac_dead", "ce_clean", "ce_patched",
    "cosine", "relative_bias",
)  # fmt: skip
"""The columns where each of many runs has a row."""

_SHARES = {"frac_dead"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number."""

    value: str
    interval: str
    """Its 95 % interval, empty without one."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of every run, or every main metric of one."""

    name: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


def metric_groups(reports: Sequence[EvalReport | None]) -> list[Group]:
    """A row a metric, a cell a run; empty cells for runs that were not evaluated."""
    return [
        Group(
            title=title,
            rows=tuple(
                Row(name=name, note=note, cells=tuple(_cell(report, key) for report in reports))
                for key, (name, note) in metrics.items()
            ),
        )
        for title, metrics in METRICS.items()
    ]


def main_heads() -> list[tuple[str, str]]:
    """What the main metrics are called; no more is said of them."""
    names = {key: name for metrics in METRICS.values() for key, (name, _) in metrics.items()}
    return [(names[key], "") for key in MAIN]


def main_rows(names: Sequence[str], reports: Sequence[EvalReport | None]) -> list[Row]:
    """A row a run, a cell a main metric."""
    return [
        Row(name=name, note="", cells=tuple(_cell(report, key) for key in MAIN))
        for name, report in zip(names, reports, strict=True)
    ]


def _cell(report: EvalReport | None, key: str) -> Cell:
    if report is None:
        return Cell(value="", interval="")
    value = getattr(report, key)
    if isinstance(value, tuple):
        return Cell(value=" / ".join(map(number, cast("tuple[float, ...]", value))), interval="")
    write = percent if key in _SHARES else number
    found = next((i for i in report.intervals if i.metric == key), None)
    interval = f"{write(found.low)} to {write(found.high)}" if found else ""
    return Cell(value=write(value), interval=interval)
