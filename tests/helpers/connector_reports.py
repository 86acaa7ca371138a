"""Evaluations of connectors that never took place, to save, to draw and to show."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.connect.report import ConnectorReport, LayerWeights, MapScores
from pipeline.evaluate.report import Interval


def make_map(name: str = "connector", **changes: Any) -> MapScores:
    """A map with some weights above tau and more that are not zero."""
    scored = MapScores(
        name=name, fvu=0.41, mse=2.1e-4, explained_quantiles=(-0.2, 0.1, 0.3, 0.5, 0.8), l1=0.004,
        n_nonzero=640, nonzero_mean=10.0, nonzero_quantiles=(1.0, 4.0, 8.0, 12.0, 30.0),
        n_above=128, above_mean=2.0, above_quantiles=(0.0, 1.0, 1.5, 3.0, 6.0), above_max=11,
        ce=2.7, kl=0.11, loss_recovered=0.8, recovered_of_sae=0.88,
        intervals=(
            Interval(metric="fvu", low=0.39, high=0.43),
            Interval(metric="loss_recovered", low=0.71, high=0.86),
        ),
    )  # fmt: skip
    return replace(scored, **changes)


def make_baselines() -> tuple[MapScores, ...]:
    """All four."""
    none = {"n_nonzero": 0, "nonzero_mean": 0.0, "nonzero_quantiles": (0.0,) * 5}
    nothing = {"n_above": 0, "above_mean": 0.0, "above_quantiles": (0.0,) * 5, "above_max": 0}
    return (
        make_map("mean", fvu=1.01, recovered_of_sae=0.2, **none, **nothing),
        make_map("weights", fvu=7.25, recovered_of_sae=0.9, nonzero_mean=640.0, above_mean=99.0),
        make_map("correlation", fvu=0.85, recovered_of_sae=-2.5, nonzero_mean=1.0, above_mean=0.5),
        make_map("ridge", fvu=0.35, recovered_of_sae=0.95, nonzero_mean=640.0, above_mean=7.0),
    )


def make_report(
    run: Path = Path("runs/connector"), *, at: int = 1, n_out: int = 64, **changes: Any
) -> ConnectorReport:
    """A report on a connector with every eighth output dead; `changes` are any of its fields."""
    rng = np.random.default_rng(0)
    dead = np.arange(n_out) % 8 == 0
    explained = rng.uniform(-1, 1, n_out)
    report = ConnectorReport(
        run=run, source=Path(f"runs/resid_pre.{at}"), target=Path(f"runs/mlp_out.{at}"),
        sites=(f"resid_pre.{at}", f"mlp_out.{at}"), activation="relu", start="random",
        l1=0.01, model="builtin", revision="main", text="builtin@heldout", precision="fp32",
        ctx_len=128, n_tokens=40_064, n_predictions=39_751, excluded=(), n_in=640, n_out=n_out,
        n_alive=int((~dead).sum()), l0_in=16.0, l0_out=15.5, tau=0.1,
        layer=LayerWeights(n=204_800, n_above=8_875), ce_clean=2.5, ce_zero=3.5, ce_sae=2.6,
        loss_recovered_sae=0.9, maps=(make_map(), *make_baselines()),
        explained=tuple(None if dead[o] else float(explained[o]) for o in range(n_out)),
        above=tuple(rng.integers(0, 12, n_out).tolist()), notes=(),
    )  # fmt: skip
    return replace(report, **changes)


def make_sweep(*fvus: float, at: int = 1, **changes: Any) -> list[ConnectorReport]:
    """Connectors of growing coefficients, of which each has half as many weights as the last."""
    return [
        make_report(
            Path(f"runs/sweep/l1={i}"), at=at, l1=0.01 * i,
            maps=(
                make_map(fvu=fvu, above_mean=8 / 2**i, nonzero_mean=64 / 2**i),
                *make_baselines(),
            ),
            **changes,
        )
        for i, fvu in enumerate(fvus, 1)
    ]  # fmt: skip
