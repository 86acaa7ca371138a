"""What `import saepipe` can do: a function a stage, as its command on the command line.

Each takes its main argument and its settings as keywords, or a config; paths as text, `Path` or a
run or store that is open; counts as `500k`. They return values and print nothing: `on_progress` is
told how far they have come. What goes wrong is a `PipelineError` or `StoreError` of one line.

Torch is imported by what needs it, when it is called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from pipeline.config.architectures import ARCHS, TopKConfig
from pipeline.config.command_line import arch_table
from pipeline.config.grid import Point, expand
from pipeline.config.keywords import config_of, settings_of, takes, told_in_settings
from pipeline.config.recipes import recipe as recipe_of
from pipeline.config.stages import (
    EvalConfig,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    ReportConfig,
    SteerConfig,
)
from pipeline.config.training import ConnectConfig, LoopConfig, TrainConfig
from pipeline.errors import ConfigError
from pipeline.limits import limits_told
from pipeline.progress import OnProgress, Progress

if TYPE_CHECKING:
    from pipeline.connect.run import ConnectorRun
    from pipeline.evaluate.report import EvalReport
    from pipeline.finetune.memory import MemoryPlan
    from pipeline.finetune.plan import OnPlan
    from pipeline.finetune.run import FinetuneReport
    from pipeline.harvest.harvest import HarvestSummary
    from pipeline.report.page import ReportSummary
    from pipeline.runs.curves import StepReport
    from pipeline.runs.listing import ListedRun
    from pipeline.runs.sae_run import SAERun
    from pipeline.steer.report import SteerReport
    from pipeline.training.loop import OnStep, Outcome

AnyPath = str | PathLike[str]
"""Text, a `Path`, a run or a store."""


@takes(HarvestConfig)
@limits_told()
def harvest(
    config: HarvestConfig | None = None,
    *,
    on_progress: OnProgress | None = None,
    **settings: object,
) -> "HarvestSummary":
    """Run a language model over a text, once, and store its activations.

    What the store holds already is not run again: rows and sites are added, an interrupted harvest
    goes on.

        sp.harvest(model="builtin", sites=["mlp_out.2"], tokens="500k", out="acts.actstore")

    Raises:
        ConfigError: a setting is unknown or impossible here.
        ModelError: the model cannot be found, reached or read.
        TextError: the text cannot.
        StoreError: another writer is at work, or the disk fails; the same call goes on.
    """
    from pipeline.harvest.harvest import harvest as run

    made = config_of(HarvestConfig, config or {}, settings, verb="harvest")
    return run(made, on_progress=on_progress)


@takes(TrainConfig, others="of_arch")
@limits_told()
def train(
    store: AnyPath | TrainConfig,
    *,
    resume: bool = True,
    on_progress: OnProgress | None = None,
    on_step: "OnStep | None" = None,
    recipe: str | None = None,
    **settings: object,
) -> "SAERun":
    """Train a sparse autoencoder from a store; a run that is complete is not trained again.

        run = sp.train("acts.actstore", arch="topk", k=32, expansion=8, out="runs/topk")

    Args:
        store: From `harvest`.
        resume: Whether to go on with an unfinished run, from its newest checkpoint; it is refused
            otherwise.
        on_progress: Told the rows done.
        on_step: Told each line of the curves.
        recipe: Published settings by their name; `saepipe train --recipe list` has all. Other
            settings go before its own.
        settings: Those below. `arch` is a name, and what that architecture can be told stands
            beside it, as `k=32`; or it is a config of `pipeline.config.architectures`.

    Raises:
        ConfigError: a setting is unknown or impossible here, or `out` holds something else, or is
            trained into by another process.
        CheckpointError: the run in `out` is damaged.
        DataError: the loss stopped being finite.
        StoreError: the store is missing, unfinished or damaged.
    """
    from pipeline.runs.sae_run import SAERun

    (point,) = points = _points(TrainConfig, store, settings, verb="train", named=recipe)
    train_points(points, resume=resume, on_progress=on_progress, on_step=on_step)
    return SAERun.open(point.config.out)


@takes(TrainConfig, others="of_arch")
@limits_told()
def sweep(
    store: AnyPath | TrainConfig,
    *,
    resume: bool = True,
    on_progress: OnProgress | None = None,
    on_step: "OnStep | None" = None,
    recipe: str | None = None,
    **settings: object,
) -> "list[SAERun]":
    """Train every combination of settings of which lists are given, in one pass over a store.

        runs = sp.sweep("acts.actstore", arch="topk", k=[16, 32, 64], seed=[0, 1], out="runs/sweep")

    The folder `out` gets a table, sweep.csv, and a folder a run.

    Args:
        store: From `harvest`.
        resume: Whether to go on with what is unfinished.
        on_progress: Told the rows done.
        on_step: Told each line of each run's curves.
        recipe: As `train` takes it.
        settings: As `train` takes them, any of them a list.

    Returns:
        The runs, the last setting changing fastest. One that diverged says so.

    Raises:
        ConfigError: a setting is unknown or impossible here, or `out` holds something else, or is
            trained into by another process.
        CheckpointError: a run in `out` is damaged.
        DataError: all of them diverged.
        StoreError: the store is missing, unfinished or damaged.
    """
    from pipeline.runs.sae_run import SAERun
    from pipeline.training.sweep import named_as_there

    points = named_as_there(_points(TrainConfig, store, settings, verb="sweep", named=recipe))
    train_points(points, resume=resume, on_progress=on_progress, on_step=on_step)
    return [SAERun.read(point.config.out) for point in points]


@takes(ConnectConfig)
@limits_told()
def connect(
    store: AnyPath | ConnectConfig,
    *,
    resume: bool = True,
    on_progress: OnProgress | None = None,
    on_step: "OnStep | None" = None,
    **settings: object,
) -> "ConnectorRun":
    """Train a sparse connector between two SAEs of one store: from latents to latents.

        sp.connect("acts.actstore", ends=["runs/layer1", "runs/layer3"], out="runs/1-3")

    Args:
        store: It holds the sites of both SAEs.
        resume: Whether to go on with an unfinished run, from its newest checkpoint; it is refused
            otherwise.
        on_progress: Told the rows done.
        on_step: Told each line of the curves.
        settings: Those below.

    Raises:
        ConfigError: a setting is unknown or impossible here, or `out` holds something else, or is
            trained into by another process.
        CheckpointError: a run is damaged or missing.
        DataError: the loss stopped being finite.
        StoreError: the store is missing, unfinished or damaged.
    """
    from pipeline.connect.run import ConnectorRun

    (point,) = points = _points(ConnectConfig, store, settings, verb="connect")
    train_points(points, resume=resume, on_progress=on_progress, on_step=on_step)
    return ConnectorRun.open(point.config.out)


def _points(
    kind: type[LoopConfig],
    store: object,
    settings: Mapping[str, object],
    *,
    verb: str,
    named: str | None = None,
) -> tuple[Point, ...]:
    """What is to be trained: one run, or for a sweep any number."""
    given: Any = store
    if not isinstance(store, kind):
        given = {**({} if named is None else recipe_of(named)), "store": store}
    elif named is not None:
        raise ConfigError(f"{verb} takes a config, which says everything, or the recipe {named!r}")
    knobs = {f.name for arch in ARCHS.values() for f in fields(arch)} - {"kind"}
    knobs = frozenset(knobs if kind is TrainConfig else ())
    table = settings_of(kind, given, settings, verb=verb, also=knobs)
    if table.get("out") is None:
        raise ConfigError(f"{verb} lacks the setting 'out', the folder to write to")
    if not isinstance(table["out"], str):
        raise ConfigError(f"{verb}.out must be a path, got {table['out']!r}")
    shaping = {name: table.pop(name) for name in [*table] if name in knobs}
    if shaping or "arch" in table:
        arch = table.get("arch", TopKConfig.kind)
        table["arch"] = arch_table(arch, shaping, given=frozenset(shaping))
    points = expand(table, out=Path(str(table["out"])), kind=kind)
    if len(points) > 1 and verb != "sweep":
        raise ConfigError(
            f"{verb} makes one run, and these settings {len(points)}, since some are lists: "
            "sweep makes them all"
        )
    from pipeline.exchange.importing import ends_brought_in

    return ends_brought_in(points)


def train_points(
    points: Sequence[Point],
    *,
    resume: bool = True,
    on_progress: OnProgress | None = None,
    on_step: "OnStep | None" = None,
    words: "Callable[[StepReport], str]" = lambda report: f"loss {report.loss:.4g}",
) -> "list[Outcome]":
    """Train what is not complete; `words` tell where a training stands."""
    from pipeline.training.sweep import complete, train_sweep

    first = points[0].config

    def told(report: "StepReport") -> None:
        if on_step is not None:
            on_step(report)
        if on_progress is not None:
            on_progress(
                Progress(
                    stage="train",
                    done=report.rows,
                    total=report.n_steps * (report.rows // report.step),
                    unit="rows",
                    words=words(report),
                )
            )

    out = first.out if len(points) == 1 else first.out.parent
    outcomes = train_sweep(points, out=out, resume=resume, on_step=told)
    complete(outcomes)
    return outcomes


@overload
def evaluate(
    runs: AnyPath, *, on_progress: OnProgress | None = None, **settings: object
) -> "EvalReport": ...


@overload
def evaluate(
    runs: list[AnyPath] | tuple[AnyPath, ...] | EvalConfig,
    *,
    on_progress: OnProgress | None = None,
    **settings: object,
) -> "tuple[EvalReport, ...]": ...


@takes(EvalConfig)
@limits_told()
def evaluate(
    runs: AnyPath | list[AnyPath] | tuple[AnyPath, ...] | EvalConfig,
    *,
    on_progress: OnProgress | None = None,
    **settings: object,
) -> Any:
    """Put SAEs into the model: loss recovered, L0, explained variance, dead features and more.

        report = sp.evaluate("runs/topk", tokens="100k")
        report.loss_recovered, report.to_frame()

    Reports go into the folders of the runs, a table and figures that compare several into `out`.
    Connectors are evaluated, too, and have reports of their own.

    Args:
        runs: A run or several, which share passes over the text, or a sweep; or a config.
        on_progress: Told the tokens done.
        settings: Those below.

    Returns:
        The report of a run, or a tuple of those of several, or of a sweep's, in their order.

    Raises:
        ConfigError: a setting is unknown or impossible here.
        CheckpointError: a run cannot be used.
        ModelError: the language model cannot be used.
        TextError: the text cannot be used.
        StoreError: a store that is needed is damaged.
        DataError: a loss is not finite.
    """
    from pipeline.evaluate.evaluate import draw, evaluate as run
    from pipeline.exchange.importing import runs_of
    from pipeline.runs.sweep import SWEEP

    given = runs if isinstance(runs, EvalConfig) else {"runs": runs}
    made = config_of(EvalConfig, given, settings, verb="evaluate")
    made = replace(made, runs=runs_of(made.runs))
    reports = run(made, on_progress=on_progress)
    draw(made, reports)
    alone = isinstance(runs, str | PathLike) and not (Path(runs) / SWEEP).exists()
    return reports[0] if alone else reports


@takes(FeaturesConfig)
@limits_told()
def features(
    run: AnyPath | FeaturesConfig,
    *,
    on_progress: OnProgress | None = None,
    **settings: object,
) -> Any:  # noqa: ANN401 - of the kind of run
    """Find what every feature of an SAE fires on, in one pass over its store; kept beside the run.

        sp.features("runs/topk").top(520)     # contexts: a table, and in a notebook HTML

    Args:
        run: Of an SAE, a fine-tuned one, or a connector.
        on_progress: Told the tokens done.
        settings: Those below.

    Returns:
        A `FeatureSet`; of a connector a `Reading`: which features make which.

    Raises:
        ConfigError: a setting is unknown or impossible, or the store does not fit or is gone.
        CheckpointError: the run cannot be used.
        StoreError: the store cannot be read.
        DataError: an activation of a feature is not finite.
    """
    from pipeline.exchange.importing import brought_in
    from pipeline.runs.kinds import kind_of

    given = run if isinstance(run, FeaturesConfig) else {"run": run}
    made = config_of(FeaturesConfig, given, settings, verb="features")
    made = replace(made, run=brought_in([made.run])[0])
    return kind_of(made.run).features(made, on_progress=on_progress)


@overload
def finetune(
    runs: AnyPath | FinetuneConfig,
    *,
    plan: Literal[False] = False,
    on_progress: OnProgress | None = None,
    **settings: object,
) -> "FinetuneReport": ...


@overload
def finetune(
    runs: list[AnyPath] | tuple[AnyPath, ...],
    *,
    plan: Literal[False] = False,
    on_progress: OnProgress | None = None,
    **settings: object,
) -> "tuple[FinetuneReport, ...]": ...


@overload
def finetune(
    runs: AnyPath | list[AnyPath] | tuple[AnyPath, ...] | FinetuneConfig,
    *,
    plan: Literal[True],
    on_progress: OnProgress | None = None,
    **settings: object,
) -> "MemoryPlan": ...


@takes(FinetuneConfig)
@limits_told()
def finetune(
    runs: AnyPath | list[AnyPath] | tuple[AnyPath, ...] | FinetuneConfig,
    *,
    plan: bool = False,
    on_progress: OnProgress | None = None,
    **settings: object,
) -> Any:
    """Freeze a model and an SAE in it, and learn one scale and one bias for each feature.

        sp.finetune("runs/topk", text="builtin:arithmetic", out="runs/arithmetic").ce_finetuned

    Args:
        runs: Of an SAE; or a list of several, each at a site of its own, which learn together: of
            each `out` has a run by the name of its site.
        plan: Only tell how much memory it takes: no weights are read, and nothing is written.
        on_progress: Told the steps done.
        settings: Those below.

    Returns:
        What it came to, of a list a report of each; of a plan the memory, part by part.

    Raises:
        ConfigError: a setting is unknown or impossible here, or `out` holds something else, or is
            trained into by another process, or there is too little memory.
        CheckpointError: a run cannot be used.
        ModelError: the language model cannot be used.
        TextError: the text cannot be read, or is too short.
        DataError: the loss is not finite.
    """
    from pipeline.exchange.importing import brought_in

    listed = isinstance(runs, list | tuple)
    first, *rest = runs if listed else [runs]
    given = first if isinstance(first, FinetuneConfig) else {"run": first}
    beside = {"beside": rest} if rest else {}
    made = config_of(FinetuneConfig, given, settings | beside, verb="finetune")
    own, *others = brought_in([made.run, *made.beside])
    made = replace(made, run=own, beside=tuple(others))
    if plan:
        from pipeline.finetune.memory import plan_memory
        from pipeline.runs.sae_run import SAERun

        return plan_memory(made, [SAERun.open(run) for run in (made.run, *made.beside)])
    reports = learn_features(made, on_progress=on_progress)
    return reports if listed or made.beside else reports[0]


@limits_told()
def learn_features(
    config: FinetuneConfig,
    *,
    on_plan: "OnPlan | None" = None,
    on_progress: OnProgress | None = None,
) -> "tuple[FinetuneReport, ...]":
    """Fine-tune, compare if that is asked for, and draw; `on_plan` is told what is to be done."""
    from pipeline.finetune.finetune import finetune as learn
    from pipeline.plots.finetune import save_finetune_figures

    reports = learn(config, on_plan=on_plan, on_progress=on_progress)
    if config.compare:
        from pipeline.finetune.compare import compare

        compare(config.out, config.compare_lrs, on_progress=on_progress)
    for report in reports:
        save_finetune_figures(report.out)
    return reports


@told_in_settings
@limits_told()
def fold(run: AnyPath, *, out: AnyPath) -> "SAERun":
    """Make a fine-tuned SAE a plain one, its scales and biases part of its encoder.

        sp.evaluate(sp.fold("runs/arithmetic", out="runs/plain"))

    It computes the same, has no curves, and is taken by every verb and by `SAE.from_pretrained`.

    Args:
        run: Of `finetune`.
        out: Folder of the plain SAE's run.

    Raises:
        ConfigError: `out` holds something else, or is written by another process.
        CheckpointError: the run is no fine-tuning, or is damaged; or the disk fails.
    """
    from pipeline.finetune.fold import fold as run_fold
    from pipeline.runs.sae_run import SAERun

    return SAERun.open(run_fold(Path(run), Path(out)).out)


@takes(SteerConfig)
@limits_told()
def steer(
    runs: AnyPath | list[AnyPath] | tuple[AnyPath, ...] | SteerConfig,
    *,
    on_progress: OnProgress | None = None,
    **settings: object,
) -> "SteerReport":
    """Let a model write with features raised, held or off, beside what it writes alone.

        sp.steer("runs/topk", feature=123, scale="5x", prompt="def f(x):").texts

    The report, and of several strengths a figure, goes into the folder of the first run. To steer a
    model yourself, see `Steering` and `LanguageModel.steered`.

    Args:
        runs: Of an SAE or a fine-tuned one; or several, each at a site of its own.
        on_progress: Told the tokens done.
        settings: Those below. One of `scale`, `clamp` and `ablate` must be given.

    Raises:
        ConfigError: a run, a feature, a prompt or a setting is none that fits here.
        CheckpointError: a run cannot be used, or the disk is full.
        ModelError: the language model cannot be used.
        TextError: the file of prompts cannot be read.
        DataError: what the model says of a text is not finite.
    """
    from pipeline.exchange.importing import brought_in
    from pipeline.plots.steer import save_steer_figure
    from pipeline.steer.steer import steer as run

    given = runs if isinstance(runs, SteerConfig) else {"runs": runs}
    made = config_of(SteerConfig, given, settings, verb="steer")
    made = replace(made, runs=tuple(brought_in(made.runs)))
    report = run(made, on_progress=on_progress)
    save_steer_figure(report)
    return report


def plot(runs: AnyPath | Sequence[AnyPath]) -> tuple[Path, ...]:
    """Draw the curves of runs as far as they have come, and their evaluations, into their folders.

        sp.plot("runs/topk")

    Args:
        runs: Of SAEs, fine-tuned ones and connectors; or sweeps. What compares a sweep's members is
            drawn into its folder, what compares several evaluations where these runs lie.

    Returns:
        The files.

    Raises:
        ConfigError: there is nothing to draw yet, or a folder may only be read.
        CheckpointError: a folder is not a run, or a file of it is damaged.
    """
    from pipeline.exchange.importing import brought_in
    from pipeline.plots.draw import draw

    given = [runs] if isinstance(runs, str | PathLike) else runs
    if not given:
        raise ConfigError("there is no run to draw: give at least one")
    return draw(brought_in([Path(run) for run in given]))


def runs(folder: AnyPath = ".") -> "list[ListedRun]":
    """Which runs are in a folder and below it: what, when, how far, how good; the newest last.

    Raises:
        ConfigError: it is no folder.
    """
    from pipeline.runs.listing import list_runs

    return list_runs(Path(folder))


@takes(ReportConfig)
@limits_told()
def report(
    runs: AnyPath | Sequence[AnyPath] | ReportConfig,
    *,
    out: AnyPath | None = None,
    on_progress: OnProgress | None = None,
    **settings: object,
) -> "ReportSummary":
    """Write one HTML page about runs, that opens anywhere; what is missing for it is made first.

    Args:
        runs: Of SAEs, fine-tuned ones and connectors; or sweeps.
        out: The page; None means report.html beside the runs.
        on_progress: Told how far what is missing has come.
        settings: Those below.

    Returns:
        Where the page is, what was made for it, and what could not be.

    Raises:
        ConfigError: a setting is unknown or impossible, or `out` is a folder.
        CheckpointError: a run cannot be used.
        ModelError: a language model that is needed cannot be used.
        TextError: the text that was asked for cannot be used.
    """
    from pipeline.exchange.importing import brought_in, runs_of
    from pipeline.report.page import write_report
    from pipeline.runs.names import beside

    given: Any = runs
    if not isinstance(runs, ReportConfig):
        paths = [Path(run) for run in ([runs] if isinstance(runs, str | PathLike) else runs)]
        if not paths:
            raise ConfigError("there is no run to show: give at least one")
        paths = brought_in(paths)
        given = {"runs": paths, "out": out or beside(paths) / "report.html"}
    made = config_of(ReportConfig, given, settings, verb="report")
    return write_report(replace(made, runs=runs_of(made.runs)), on_progress=on_progress)
