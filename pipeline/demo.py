"""The demo: every stage on the embedded model and text, in one folder."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config.architectures import TopKConfig
from pipeline.config.grid import Point
from pipeline.config.stages import (
    EvalConfig,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    ReportConfig,
)
from pipeline.config.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DemoConfigs:
    """The configs, in the order in which they run."""

    harvest: HarvestConfig
    train: Point
    evaluate: EvalConfig
    features: FeaturesConfig
    finetune: FinetuneConfig
    report: ReportConfig


def demo_configs(out: Path) -> DemoConfigs:
    """Sizes that two CPU cores get through in under three minutes."""
    store, sae = out / "acts.actstore", out / "sae"
    train = TrainConfig(
        store=store, out=sae, arch=TopKConfig(k=32), expansion=8, lr=1e-3, tokens=1_000_000,
        batch_size=2048, dead_window="200k", log_every=10,
    )  # fmt: skip
    return DemoConfigs(
        harvest=HarvestConfig(out=store, sites=("mlp_out.2",), tokens=500_000),
        train=Point(name="", config=train, varies={}),
        evaluate=EvalConfig(runs=(sae,), tokens=40_000, layers=(0, 1, 2, 3)),
        features=FeaturesConfig(run=sae),
        finetune=FinetuneConfig(
            run=sae, out=out / "finetuned", epochs=4, steps_per_epoch=50, ctx_len=64
        ),
        report=ReportConfig(runs=(sae,), out=out / "report.html"),
    )
