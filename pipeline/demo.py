"""The demo: every stage on the embedded model and text, in one folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import verbs
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
from pipeline.progress import OnProgress


def run_demo(
    out: Path,
    *,
    on_progress: OnProgress | None = None,
    on_stage: Callable[[str, Any], None] | None = None,
) -> dict[str, Any]:
    """Harvest, train, evaluate, find features, fine-tune, write a page and draw, on two CPU cores.

    What the folder `out` holds already is not made again.

    Args:
        out: A folder, with a store, a run, a fine-tuned run and report.html.
        on_progress: Told how far each stage has come.
        on_stage: Told each stage's name and result, when it ends.

    Returns:
        What each stage returned, by its name, in this order: harvest, train, evaluate, features,
        finetune, report, plot.

    Raises:
        ConfigError: a folder of these names holds something else.
        StoreError: another writer is at work, or the disk fails; the same call goes on.
        CheckpointError: a run is damaged.
    """
    store, sae = out / "acts.actstore", out / "sae"
    harvest = HarvestConfig(out=store, sites=("mlp_out.2",), tokens=500_000)
    train = TrainConfig(
        store=store, out=sae, arch=TopKConfig(k=32), expansion=8, tokens=1_000_000, batch_size=1024,
        log_every=10,
    )  # fmt: skip
    evaluate = EvalConfig(runs=(sae,), tokens=40_000, layers=(0, 1, 2, 3))
    finetune = FinetuneConfig(
        run=sae, out=out / "finetuned", epochs=4, steps_per_epoch=50, ctx_len=64
    )
    stages: dict[str, Callable[[], Any]] = {
        "harvest": lambda: verbs.harvest(harvest, on_progress=on_progress),
        "train": lambda: verbs.train_points(
            [Point(name="", config=train, varies={})], on_progress=on_progress
        )[0],
        "evaluate": lambda: verbs.evaluate(evaluate, on_progress=on_progress)[0],
        "features": lambda: verbs.features(FeaturesConfig(run=sae), on_progress=on_progress),
        "finetune": lambda: verbs.finetune(finetune, on_progress=on_progress),
        "report": lambda: verbs.report(
            ReportConfig(runs=(sae,), out=out / "report.html"), on_progress=on_progress
        ),
        "plot": lambda: verbs.plot(sae),
    }
    done: dict[str, Any] = {}
    for name, run in stages.items():
        done[name] = run()
        if on_stage is not None:
            on_stage(name, done[name])
    return done
