"""The demo: configs and its one table.

What `saepipe demo` runs: every stage on the embedded model and text.

The demo: one stage after the other, and what they found in one table.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.architectures import TopKConfig
from pipeline.config.grid import single
from pipeline.config.stages import (
    EvalConfig,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    ReportConfig,
)
from pipeline.config.training import TrainConfig
from pipeline.terminal.commands import (
    run_eval,
    run_features,
    run_finetune,
    run_harvest,
    run_report,
    run_train,
)
from pipeline.terminal.evaluations import EVAL_ROWS, TUNED_ROWS, named
from pipeline.terminal.lines import features_line
from pipeline.terminal.screen import Screen

SITE = "mlp_out.2"


@dataclass(frozen=True, kw_only=True)
class DemoConfigs:
    """The configs, in the order in which they run."""

    harvest: HarvestConfig
    train: TrainConfig
    evaluate: EvalConfig
    features: FeaturesConfig
    finetune: FinetuneConfig


def demo_configs(out: Path) -> DemoConfigs:
    """Sizes that two CPU cores get through in under three minutes."""
    store, sae = out / "acts.actstore", out / "sae"
    return DemoConfigs(
        harvest=HarvestConfig(out=store, sites=(SITE,), tokens=500_000),
        train=TrainConfig(
            store=store,
            out=sae,
            arch=TopKConfig(k=32),
            expansion=8,
            lr=1e-3,
            tokens=1_000_000,
            batch_size=2048,
            dead_window="200k",
            log_every=10,
        ),
        evaluate=EvalConfig(runs=(sae,), tokens=40_000, layers=(0, 1, 2, 3)),
        features=FeaturesConfig(run=sae),
        finetune=FinetuneConfig(
            run=sae, out=out / "finetuned", epochs=4, steps_per_epoch=50, ctx_len=64
        ),
    )


if TYPE_CHECKING:
    from pipeline.evaluate.report import EvalReport
    from pipeline.finetune.run import FinetuneReport


def run_demo(out: Path, *, screen: Screen) -> "dict[str, EvalReport | FinetuneReport | Path]":
    """Run every stage in a folder; gives what JSON is to hold."""
    configs = demo_configs(out)
    run_harvest(configs.harvest, screen=screen)
    run_train([single(configs.train)], out=configs.train.out, resume=True, screen=screen)
    (report,) = run_eval(configs.evaluate, screen=screen)
    screen.say(features_line(run_features(configs.features, screen=screen)))
    tuned = run_finetune(configs.finetune, screen=screen)
    learned = {f"on arithmetic: {key}": x for key, x in named(tuned, TUNED_ROWS).items()}
    title = f"{report.arch} SAE at {report.site}, {report.d_sae:,} features"
    screen.show(f"{title}; losses in nats a token", {**named(report, EVAL_ROWS), **learned})
    page = ReportConfig(runs=(configs.train.out,), out=out / "report.html")
    return {"eval": report, "finetune": tuned, "report": run_report(page, screen=screen)}
