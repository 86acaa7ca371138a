"""Reports of evaluations that never took place, to save, to draw and to show."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluate.metrics import METRICS
from pipeline.evaluate.report import EvalReport, Inserted, Interval, Overlap, WorstContext


def report_of(**values: Any) -> EvalReport:
    """A report of these fields and metrics."""
    known = {f.name for f in fields(EvalReport)}
    metrics = {name: values.pop(name) for name in values.keys() - known}
    assert metrics.keys() <= METRICS.keys()
    return EvalReport(metrics=metrics, **values)


def changed(report: EvalReport, **changes: Any) -> EvalReport:
    """With some of its fields and metrics as they are here."""
    values = {**vars(report), **report.metrics}
    del values["metrics"]
    return report_of(**(values | changes))


def make_report(run: Path = Path("runs/sae"), *, d_sae: int = 64, **changes: Any) -> EvalReport:
    """A report as of a TopK coder with a few dead latents; `changes` as in `changed`."""
    rng = np.random.default_rng(0)
    density = np.where(np.arange(d_sae) % 8 == 0, 0, 10 ** rng.uniform(-4, -0.3, d_sae))
    report = report_of(
        run=run, site="mlp_out.2", arch="topk", d_in=16, d_sae=d_sae, model="builtin",
        trained_on_model="builtin", text="builtin@heldout", precision="fp32", ctx_len=128,
        n_tokens=40_064, n_predictions=39_751, excluded=(), ce_added=0.0411,
        ce_clean=2.6231, ce_patched=2.6642, ce_zero=3.2519, ce_mean=3.1874,
        loss_recovered=0.934622, loss_recovered_mean=0.92715, kl=0.0391,
        kl_zero=0.61, kl_recovered=0.9359, perplexity_clean=13.78,
        perplexity_patched=14.36, perplexity_difference=0.58, explained_variance=0.8117, mse=3.1e-5,
        cosine=0.9021, relative_bias=1.0021, l2_ratio=0.8932, l0=32.25,
        l0_quantiles=(20.0, 26.0, 31.0, 37.0, 51.0), l1=14.2, density=tuple(density.tolist()),
        n_dead=d_sae // 8, frac_dead=0.125, n_rare=d_sae // 8, n_frequent=5, dead_cosine_mean=0.61,
        dead_cosine_others=0.53, dead_cosine_chance=0.0112, alive_cosine_mean=0.02,
        dead_cosine=tuple(rng.normal(0.1, 0.2, d_sae).clip(-1, 1).tolist()),
        encoder_decoder_cosine=tuple(rng.normal(0.8, 0.1, d_sae).clip(-1, 1).tolist()),
        encoder_decoder_cosine_median=0.8012,
        max_cosine=tuple(rng.uniform(0.1, 0.9, d_sae).tolist()), max_cosine_mean=0.4417,
        overlaps=(), intervals=(), inserted=(), worst=(), notes=(),
    )  # fmt: skip
    return changed(report, **changes)


def with_everything(run: Path = Path("runs/sae")) -> EvalReport:
    """A report whose every list has something in it."""
    return make_report(
        run,
        excluded=("position 0", "token 3"),
        overlaps=(Overlap(run=Path("runs/other"), mmcs=0.71),),
        intervals=(
            Interval(metric="ce_added", low=0.0333, high=0.0492),
            Interval(metric="loss_recovered", low=0.931, high=0.938),
        ),
        inserted=(
            Inserted(site="mlp_out.1", ce_patched=4.1, added=1.4769),
            Inserted(site="mlp_out.2", ce_patched=2.6642, added=0.0411),
        ),
        worst=(
            WorstContext(
                context=17, ce_clean=2.5, ce_patched=3.5, perplexity_difference=20.9,
                text="two\nlines \x1b[31mred\x1b[0m \u202ebackwards",
            ),
        ),
        notes=("evaluated on the text it was trained on: not held out",),
    )  # fmt: skip
