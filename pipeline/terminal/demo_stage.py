"""The demo: one stage after the other, and what they found in one table."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.demo import demo_configs
from pipeline.terminal.screen import Screen
from pipeline.terminal.stages import (
    run_eval,
    run_features,
    run_finetune,
    run_harvest,
    run_report,
    run_train,
)
from pipeline.terminal.tables import EVAL_ROWS, TUNED_ROWS, named
from pipeline.training.grid import single

if TYPE_CHECKING:
    from pipeline.evaluate.report import EvalReport
    from pipeline.finetune_run import FinetuneReport


def run_demo(out: Path, *, screen: Screen) -> "dict[str, EvalReport | FinetuneReport | Path]":
    """Run every stage in a folder; gives what JSON is to hold."""
    configs = demo_configs(out)
    run_harvest(configs.harvest, screen=screen)
    run_train([single(configs.train)], out=configs.train.out, resume=True, screen=screen)
    (report,) = run_eval(configs.evaluate, screen=screen)
    run_features(configs.features, screen=screen)
    tuned = run_finetune(configs.finetune, screen=screen)
    learned = {f"on arithmetic: {key}": x for key, x in named(tuned, TUNED_ROWS).items()}
    title = f"{report.arch} SAE at {report.site}, {report.d_sae:,} features"
    screen.show(f"{title}; losses in nats a token", {**named(report, EVAL_ROWS), **learned})
    page = run_report([configs.train.out], out=out / "report.html", screen=screen)
    return {"eval": report, "finetune": tuned, "report": page}
