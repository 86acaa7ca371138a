"""The stages of the command line: each runs one function, shows its progress, and tells its end.

What brings torch is imported inside of them: a harvest that is complete needs none.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.errors import StoreError
from pipeline.config import EvalConfig, FinetuneConfig, HarvestConfig
from pipeline.terminal.screen import Screen
from pipeline.terminal.words import size

if TYPE_CHECKING:
    from actstore.verify import Finding
    from pipeline.curves import TrainReport
    from pipeline.evaluate.report import EvalReport
    from pipeline.finetune_run import FinetuneReport
    from pipeline.harvest import HarvestSummary
    from pipeline.training.grid import Point


def run_harvest(config: HarvestConfig, *, screen: Screen) -> "HarvestSummary | None":
    """Harvest what is missing, in as many plans as it takes; None when nothing was."""
    from pipeline.plan import make_plan
    from pipeline.terminal.lines import harvest_lines, plan_line, reused_line

    summary = None
    while (plan := make_plan(config)).state != "complete":
        from pipeline.harvest import harvest as run  # it brings torch

        with screen.progress("harvest", "tokens") as show:
            summary = run(
                plan,
                on_plan=lambda plan, seconds: screen.say(plan_line(plan, seconds)),
                on_progress=lambda p: show(p.rows, p.n_rows, f"{size(p.n_bytes)} on disk"),
            )
        for line in harvest_lines(summary, config.out):
            screen.say(line)
        if plan.state != "add":
            break  # only an addition of sites may leave rows to write: do not ask the hub again
    if plan.found is not None:
        from pipeline.reuse import link

        link(plan.found, config.out)
    if summary is None:
        screen.say(reused_line(plan))
    return summary


def run_train(
    points: "Sequence[Point]",
    *,
    out: Path,
    resume: bool,
    screen: Screen,
    log: Sequence[str] = (),
) -> "list[TrainReport]":
    """Train what is not complete already, and draw the curves."""
    from pipeline.plots_training import sweep_figure, training_curves
    from pipeline.terminal.lines import curve_words, outcome_line
    from pipeline.training.loggers import make_loggers
    from pipeline.training.sweep import complete, train_sweep

    configs = [point.config for point in points]
    with screen.progress("train", "rows") as show, closing(make_loggers(log, configs)) as loggers:

        def on_step(report: "TrainReport") -> None:
            loggers.log(report)
            show(report.rows, report.n_steps * configs[0].batch_size, curve_words(report))

        outcomes = train_sweep(points, out=out, resume=resume, on_step=on_step)
    reports = complete(outcomes)
    curves = {point.name: point.config.out / "metrics.jsonl" for point in points}
    for path in curves.values():
        if path.stat().st_size:  # one may have diverged before its first line
            training_curves(path, path.with_name("curves.png"))
    if len(points) > 1:
        sweep_figure(curves, out / "sweep.png")
    for config, outcome in zip(configs, outcomes, strict=True):
        screen.say(outcome_line(outcome, config.out))
    return reports


def run_eval(config: EvalConfig, *, screen: Screen) -> "tuple[EvalReport, ...]":
    """Evaluate, and draw the figures into the folders of the runs."""
    from pipeline.evaluate.evaluation import evaluate as run
    from pipeline.evaluate.figures import save_figures

    with screen.progress("eval", "tokens") as show:
        reports = run(config, on_progress=lambda p: show(p.n_done, p.n_tokens, p.stage))
    for report in reports:
        save_figures(report)
    return reports


def run_finetune(config: FinetuneConfig, *, screen: Screen) -> "FinetuneReport":
    """Fine-tune, unless that run is complete already."""
    from pipeline.finetune import finetune as run
    from pipeline.terminal.lines import finetune_line

    with screen.progress("finetune", "steps") as show:
        report = run(config, on_step=lambda s: show(s.step, s.n_steps, f"loss {s.loss:.4f}"))
    screen.say(finetune_line(report, config.out))
    return report


def run_verify(path: Path, *, screen: Screen) -> "list[Finding]":
    """Check every byte, and say what is wrong, a line a finding."""
    from actstore.verify import verify
    from pipeline.terminal.damage import finding_line

    with screen.progress("verify", "B") as show:
        findings = verify(path, on_progress=lambda done, total: show(done, total, ""))
    for finding in findings:
        if finding.path == path:
            raise StoreError(finding.what)  # there is no whole store to check
        screen.say(finding_line(finding))
    return findings
