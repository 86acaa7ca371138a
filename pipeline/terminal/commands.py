"""What each command shows while it runs and when it ends.

What brings torch is imported inside of functions: a harvest that is complete needs none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import verbs
from pipeline.config.stages import (
    EvalConfig,
    FeatureOrder,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    ReportConfig,
    SteerConfig,
)
from pipeline.errors import ConfigError, PipelineError
from pipeline.runs.names import beside, names_of
from pipeline.terminal.lines import (
    advice_lines,
    alone_line,
    checkpoints_of_unfinished,
    curve_words,
    export_line,
    features_line,
    finetune_line,
    finetune_plan_line,
    fold_line,
    going_on_line,
    harvest_lines,
    import_line,
    outcome_line,
    plan_line,
    published_line,
    report_lines,
    steer_line,
    together_line,
)
from pipeline.terminal.screen import Screen

if TYPE_CHECKING:
    from pipeline.config.grid import Point
    from pipeline.exchange.delphi import DelphiExport
    from pipeline.exchange.exporting import ExportReport
    from pipeline.exchange.importing import ImportReport
    from pipeline.exchange.neuronpedia import NeuronpediaExport
    from pipeline.finetune.fold import FoldReport
    from pipeline.finetune.run import FinetuneReport
    from pipeline.harvest.harvest import HarvestSummary
    from pipeline.runs.curves import StepReport
    from pipeline.steer.report import SteerReport


def run_harvest(config: HarvestConfig, *, screen: Screen) -> "HarvestSummary":
    """Harvest what is missing."""
    from pipeline.harvest.harvest import harvest

    with screen.progress("harvest") as show:
        summary = harvest(
            config,
            on_plan=lambda plan, seconds: screen.say(plan_line(plan, seconds)),
            on_progress=show,
        )
    screen.tell(harvest_lines(summary))
    screen.note(summary.notes)
    return summary


def run_train(
    points: "Sequence[Point]", *, resume: bool, screen: Screen, log: Sequence[str] = ()
) -> "list[StepReport]":
    """Train what is not complete already."""
    from pipeline.exchange.importing import ends_brought_in
    from pipeline.training.sweep import complete, named_as_there
    from pipeline.training.trackers import Loggers

    points = ends_brought_in(named_as_there(points), say=_imported_told(screen))
    folders = [point.config.out for point in points]
    began = checkpoints_of_unfinished(folders)

    def on_step(report: "StepReport") -> None:
        if (step := began.pop(report.run.resolve(), None)) is not None:
            screen.say(going_on_line(report.run, step))
        loggers.log(report)

    with screen.progress("train") as show, closing(Loggers(log, folders)) as loggers:
        outcomes = verbs.train_points(
            points, resume=resume, on_progress=show, on_step=on_step, words=curve_words
        )
    for folder, outcome in zip(folders, outcomes, strict=True):
        screen.say(outcome_line(outcome, folder))
    reports = complete(outcomes)
    screen.note(advice_lines([report.run for report in reports]))
    return reports


def run_eval(config: EvalConfig, *, screen: Screen) -> tuple[Any, ...]:
    """Evaluate, and draw; show tables of what was found."""
    from pipeline.evaluate.evaluate import draw, evaluate
    from pipeline.evaluate.report import measured_on, replaces
    from pipeline.runs.kinds import by_kind

    config = replace(config, runs=_runs_of(config.runs, screen))
    before = dict(zip(config.runs, map(_evaluated_on, config.runs), strict=True))
    with screen.progress("eval") as show:
        reports = evaluate(config, on_progress=show)
    drawn, runs_of = draw(config, reports), by_kind(config.runs)
    folder = config.out or beside(config.runs)
    for kind, runs in runs_of.items():
        if len(runs) > 1:
            screen.say(together_line(kind, len(runs), drawn[kind], folder))
        else:
            screen.say(alone_line(runs[0]))
    for kind, runs in runs_of.items():
        for table in kind.eval_tables([report for report in reports if report.run in runs]):
            screen.draw(table)
    screen.note(notes_by_run(reports))
    screen.note(
        f"the evaluation of {report.run} on {was[0]:,} tokens of {was[1]} is kept beside this one, "
        f"on {now[0]:,} of {now[1]}"
        for report in reports
        for was, now in [(before[report.run], measured_on(report))]
        if replaces(was, now)
    )
    return reports


def _evaluated_on(run: Path) -> tuple[int, str]:
    """How many tokens of which text the evaluation is of that a run has; none without one."""
    from pipeline.evaluate.report import measured_on
    from pipeline.runs.kinds import kind_of

    with suppress(PipelineError):
        return measured_on(kind_of(run).evaluation(run))
    return 0, ""


_NAMED = 3
"""Runs that a note on several names."""


def notes_by_run(reports: Sequence[Any]) -> Iterator[str]:
    """Each once: notes on all runs as they are, those on some with the names of these."""
    names = names_of([report.run for report in reports])
    of: dict[str, list[str]] = {}
    for name, report in zip(names, reports, strict=True):
        for note in report.notes:
            of.setdefault(note, []).append(name)
    for note, its in of.items():
        rest = [f"{len(its) - _NAMED} more"] if len(its) > _NAMED else []
        yield note if len(its) == len(reports) else f"{', '.join([*its[:_NAMED], *rest])}: {note}"


def run_features(
    config: FeaturesConfig,
    chosen: Sequence[int],
    *,
    order: FeatureOrder,
    rows: int,
    screen: Screen,
) -> Sequence[Mapping[str, object]]:
    """Find what fires and show it, or some of it closely; gives what JSON is to hold."""
    from pipeline.runs.kinds import kind_of

    config = replace(config, run=brought_in([config.run], screen)[0])
    kind = kind_of(config.run)
    if chosen and (wrong := max(chosen)) >= (n := kind.n_features(config.run)):
        raise ConfigError(f"{config.run} has features 0 to {n - 1}, got {wrong}")
    with screen.progress("features") as show:
        found = verbs.features(config, on_progress=show)
    shown = kind.shown(found, chosen, order=order, rows=rows)
    screen.tell(shown.lines)
    for table in shown.tables:
        screen.draw(table)
    screen.note(shown.notes)
    return shown.documents


def run_report(config: ReportConfig, *, screen: Screen) -> Path:
    """Write the page, having made what is missing for it."""
    config = replace(config, runs=_runs_of(config.runs, screen))
    with screen.progress("report") as show:
        summary = verbs.report(config, on_progress=show)
    screen.tell(report_lines(summary))
    screen.note(summary.notes)
    return summary.path


def run_plot(runs: Sequence[Path], *, screen: Screen) -> Sequence[Path]:
    """Draw what there is to draw of runs."""
    files = verbs.plot(brought_in(runs, screen))
    screen.tell(f"plot      {file}" for file in files if file.suffix == ".png")
    return files


def run_finetune(
    config: FinetuneConfig, *, screen: Screen
) -> "FinetuneReport | Sequence[FinetuneReport]":
    """Fine-tune, unless that run is complete already."""
    from pipeline.finetune.compare import read_comparison
    from pipeline.finetune.run import FinetunedRun
    from pipeline.finetune.tables import comparison_table, effects_table, finetune_table

    own, *others = brought_in([config.run, *config.beside], screen)
    config = replace(config, run=own, beside=tuple(others))
    with screen.progress("finetune") as show:
        reports = verbs.learn_features(
            config, on_plan=lambda plan: screen.say(finetune_plan_line(plan)), on_progress=show
        )
    report = reports[0]
    screen.tell(map(finetune_line, reports))
    screen.draw(finetune_table(*reports))
    for one in reports:
        meaning = FinetunedRun.open(one.out).meaning()
        table = None if meaning is None else effects_table(meaning, one)
        if table is not None:
            screen.draw(table)
    screen.note(dict.fromkeys(note for one in reports for note in one.notes))
    if config.compare and (comparison := read_comparison(report.out)) is not None:
        screen.draw(comparison_table(comparison))
        screen.note(comparison.notes)
    return reports if config.beside else report


def run_finetune_plan(config: FinetuneConfig, *, screen: Screen) -> None:
    """Show what a fine-tuning would take of the memory; then refuse what does not fit."""
    from pipeline.finetune.tables import memory_table
    from pipeline.runs.sae_run import SAERun

    own, *others = brought_in([config.run, *config.beside], screen)
    config = replace(config, run=own, beside=tuple(others))
    plan = verbs.finetune(config, plan=True)
    screen.draw(memory_table(plan))
    screen.emit(plan)
    plan.fitting([SAERun.open(run) for run in (config.run, *config.beside)])


def run_fold(run: Path, out: Path, *, screen: Screen) -> "FoldReport":
    """Fold, unless that is done already."""
    from pipeline.finetune.fold import fold

    report = fold(run, out)
    screen.say(fold_line(report))
    screen.note(report.notes)
    return report


def run_import(source: str, out: Path, *, screen: Screen, **settings: Any) -> "ImportReport":  # noqa: ANN401
    """Import, unless that is done already."""
    from pipeline.exchange.importing import import_sae

    report = import_sae(source, out, **settings)
    screen.say(import_line(report))
    screen.note(report.notes)
    return report


PUBLISHED = {
    "neuronpedia": ("export_neuronpedia", ("creator", "release", "model_id", "source_set")),
    "delphi": ("export_delphi", ("store", "tokens")),
}
"""Where features go to, the verb that writes them, and what it may be told."""


def run_export(
    run: Path, to: str, out: Path, *, told: Mapping[str, object], screen: Screen
) -> "ExportReport | NeuronpediaExport | DelphiExport":
    """Export, unless that is done already."""
    from pipeline import saepipe
    from pipeline.exchange.exporting import TARGETS, export

    if to not in (*TARGETS, *PUBLISHED):
        raise ConfigError(f"--to must be one of {', '.join((*TARGETS, *PUBLISHED))}, got {to!r}")
    verb, known = PUBLISHED.get(to, ("", ()))
    if strange := [name for name in told if name not in known]:
        others = [name for name, (_, its) in PUBLISHED.items() if strange[0] in its]
        option = f"--{strange[0].replace('_', '-')}"
        raise ConfigError(f"{option} is of --to {others[0]}, and --to is {to}: leave it out")
    run = brought_in([run], screen)[0]
    if verb:
        with screen.progress("export") as show:
            made = getattr(saepipe, verb)(run, out=out, on_progress=show, **told)
        screen.say(published_line(made, to))
        screen.note(getattr(made, "notes", ()))
        return made
    report = export(run, to, out)
    screen.say(export_line(report))
    screen.note(report.notes)
    return report


def brought_in(paths: Sequence[Path], screen: Screen) -> list[Path]:
    """These runs; an SAE of another library is imported first, which is said."""
    from pipeline.exchange.importing import brought_in as bring

    return bring(paths, say=_imported_told(screen))


def _imported_told(screen: Screen) -> "Callable[[ImportReport], None]":
    from pipeline.exchange.importing import stays

    def told(report: "ImportReport") -> None:
        screen.say(import_line(report))
        if not report.reused:
            screen.note([stays(report)])

    return told


def _runs_of(paths: Sequence[Path], screen: Screen) -> tuple[Path, ...]:
    """As `brought_in`, a sweep's folder being its runs."""
    from pipeline.exchange.importing import runs_of

    return runs_of(
        paths,
        say=_imported_told(screen),
        note=lambda what: screen.note([what]),
    )


def run_steer(config: SteerConfig, *, screen: Screen) -> "SteerReport":
    """Steer, and show the texts side by side."""
    from pipeline.terminal.steer import steer_tables

    config = replace(config, runs=tuple(brought_in(config.runs, screen)))
    with screen.progress("steer") as show:
        report = verbs.steer(config, on_progress=show)
    screen.say(steer_line(report))
    for table in steer_tables(report):
        screen.draw(table)
    screen.note(report.notes)
    return report


def run_demo(out: Path, *, screen: Screen) -> dict[str, object]:
    """Run every stage in a folder; gives what JSON is to hold."""
    from pipeline.demo import run_demo as run
    from pipeline.terminal.evaluations import TUNED_ROWS, metric_facts, named

    lines: dict[str, Callable[[Any], Iterable[str]]] = {
        "harvest": harvest_lines,
        "train": lambda outcome: [outcome_line(outcome, out / "sae")],
        "evaluate": lambda report: [],
        "features": lambda found: [features_line(found)],
        "finetune": lambda report: [finetune_line(report)],
        "report": report_lines,
        "plot": lambda files: [],
    }
    with screen.progress("demo") as show:
        done = run(out, on_progress=show, on_stage=lambda name, it: screen.tell(lines[name](it)))
    report, tuned = done["evaluate"], done["finetune"]
    learned = {f"on arithmetic: {key}": x for key, x in named(tuned, TUNED_ROWS).items()}
    title = f"{report.arch} SAE at {report.site}, {report.d_sae:,} features"
    screen.show(f"{title}; losses in nats", {**metric_facts(report), **learned})
    return {"eval": report, "finetune": tuned, "report": done["report"].path}
