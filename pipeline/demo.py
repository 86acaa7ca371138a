"""What `saepipe demo` runs: every stage on the embedded model and text."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.archs import TopKConfig
from pipeline.config import EvalConfig, FeaturesConfig, FinetuneConfig, HarvestConfig
from pipeline.train_config import TrainConfig

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
