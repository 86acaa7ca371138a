"""What a stage says in one line, before it and after."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.reader import ActStore
from actstore.removal import Removable
from pipeline.errors import PipelineError
from pipeline.progress import duration, size
from pipeline.runs.listing import state_of
from pipeline.runs.names import from_here, names_of
from pipeline.tables import many
from pipeline.terminal.store_facts import fidelity_of

if TYPE_CHECKING:  # they bring torch
    from pipeline.exchange.delphi import DelphiExport
    from pipeline.exchange.exporting import ExportReport
    from pipeline.exchange.importing import ImportReport
    from pipeline.exchange.neuronpedia import NeuronpediaExport
    from pipeline.features.files import FeatureSet
    from pipeline.finetune.fold import FoldReport
    from pipeline.finetune.plan import FinetunePlan
    from pipeline.finetune.run import FinetuneReport
    from pipeline.harvest.harvest import HarvestSummary
    from pipeline.harvest.plan import HarvestPlan
    from pipeline.report.page import ReportSummary
    from pipeline.runs.curves import StepReport
    from pipeline.runs.kinds import RunKind
    from pipeline.steer.report import SteerReport
    from pipeline.training.train import Outcome


_TOLD = {
    "l0": "L0", "explained_variance": "EV", "n_dead": "dead",
    "fvu": "FVU", "weights": "weights per output",
}  # fmt: skip
"""What tells where a training stands, of a coder and of a connector."""


def plan_line(plan: "HarvestPlan", seconds: float) -> str:
    """What a harvest is going to do, and how long it will take."""
    config = plan.config
    return (
        f"harvest   {', '.join(map(str, plan.sites))} of {config.model} on {config.text}: "
        f"{plan.n_rows:,} rows a site ({plan.state}), {size(plan.bytes_to_write)} to write, "
        f"{size(plan.bytes_free)} free, about {duration(seconds)}"
    )


def harvest_lines(summary: "HarvestSummary") -> Iterator[str]:
    """What a harvest did, and what a lossy codec cost each site; or which store made it idle."""
    more = (
        f"; {summary.n_rows_asked:,} were asked for: train with --tokens {summary.n_rows_asked}"
        if summary.holds_more
        else ""
    )
    if summary.reused:
        linked = "" if summary.found is None else f"{summary.found}, linked as "
        rows = f"{summary.n_rows:,} rows a site"
        yield f"harvest   complete, reused: {rows} in {linked}{summary.store}{more}"
        return
    ended = "; the text ended there" if summary.source_exhausted else ""
    speed = f", {summary.tokens_per_s:,.0f} tokens/s" if summary.rows_written else ""
    yield (
        f"harvest   {summary.n_rows:,} rows a site, {size(summary.n_bytes)} in {summary.store}"
        f"{speed}{ended}{more}"
    )
    store = ActStore.open(summary.store)
    for site, told in fidelity_of(store).items():
        yield (
            f"harvest   {site}: {store.spec.codec} cost {told.relative_error:.2e} of the variance, "
            f"{told.worst_coordinate:.2e} at the worst coordinate"
        )


def curve_words(report: "StepReport") -> str:
    """Where a training stands."""
    told = {name: getattr(report, name) for name in _TOLD if hasattr(report, name)}
    words = (f"{_TOLD[name]} {_short(value)}" for name, value in told.items())
    return f"loss {report.loss:.4g}  {'  '.join(words)}"


def _short(value: int | float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}" if value < 1 else f"{value:.1f}"


def features_line(found: "FeatureSet") -> str:
    """What was read to find features, and where they are kept."""
    what = "complete, reused" if found.reused else f"{len(found):,} features"
    n_alive = int((found.n_active > 0).sum())
    return (
        f"features  {what}: {n_alive:,} active on {found.facts.n_tokens:,} tokens of "
        f"{found.facts.text or 'a text'}, in {found.run / 'features'}"
    )


def checkpoints_of_unfinished(folders: Iterable[Path]) -> dict[Path, int]:
    """Of each training that was interrupted, the step of its newest checkpoint."""
    from pipeline.runs.checkpoints import checkpoints_of

    steps = {f.resolve(): checkpoints_of(f) for f in folders if state_of(f) == "unfinished"}
    return {folder: max(found) for folder, found in steps.items() if found}


def going_on_line(run: Path, step: int) -> str:
    """That a training was not begun anew."""
    return f"train     {run} goes on from step {step:,}"


def outcome_line(outcome: "Outcome", path: Path) -> str:
    """How a training ended."""
    if isinstance(outcome, PipelineError):
        return f"train     {outcome}"
    what = "complete, reused" if outcome.reused else f"{outcome.rows:,} rows"
    over = getattr(outcome, "dead_over", 0)
    silent = f" in the last {over:,} rows" if over else ""
    return f"train     {what}: {path} ({curve_words(outcome)}{silent})"


def advice_lines(runs: Sequence[Path]) -> Iterator[str]:
    """What to look at and try, of each run of SAEs; of several, each with its name."""
    from pipeline.runs.kinds import says_kind
    from pipeline.runs.sae_run import SAERun

    for name, path in zip(names_of(runs), runs, strict=True):
        if says_kind(path) == SAERun.KIND:
            for line in SAERun.open(path).advice:
                yield f"{name}: {line}" if len(runs) > 1 else line


def together_line(kind: "RunKind", n_runs: int, figures: Sequence[Path], folder: Path) -> str:
    """Where the table and the figures of several evaluations of a kind are."""
    files = ", ".join([kind.eval_table, *(path.name for path in figures)])
    return f"eval      {many(n_runs, kind.noun)}: {folder}/{files}"


def alone_line(run: Path) -> str:
    """Where the report and the figures of one evaluation are."""
    return f"eval      report and figures: {run}"


def finetune_plan_line(plan: "FinetunePlan") -> str:
    """What a fine-tuning is going to do, and how long it will take."""
    return (
        f"finetune  {plan.n_steps:,} steps of {many(plan.batch_size, 'context')}, then at most "
        f"{plan.n_passes:,} passes to see which changes matter and what they do, about "
        f"{duration(plan.seconds)}"
    )


def finetune_line(report: "FinetuneReport") -> str:
    """Whether and where it learned."""
    what = "complete, reused" if report.reused else f"{report.n_steps} steps"
    return f"finetune  {what}: {report.out}"


def fold_line(report: "FoldReport") -> str:
    """What it is now, and where."""
    reused = "complete, reused" if report.reused else f"{report.d_sae:,} scales and biases"
    return f"fold      {reused}: {report.out} ({report.arch} at {report.site})"


def import_line(report: "ImportReport") -> str:
    """What it is, whose it was, and where it is now."""
    reused = "complete, reused" if report.reused else f"{report.source} of {report.library}"
    at = f" at {report.site}" if report.site else ""
    width = f"{report.d_in} -> {report.d_sae:,}"
    return f"import    {reused}: {from_here(report.out)} ({report.arch}{at}, {width})"


def export_line(report: "ExportReport") -> str:
    """For whom, which files, and where."""
    reused = "complete, reused" if report.reused else f"for {report.to}"
    return f"export    {reused}: {from_here(report.out)} ({', '.join(report.files)})"


def published_line(report: "NeuronpediaExport | DelphiExport", to: str) -> str:
    """For whom, how much, and where."""
    reused = "complete, reused" if report.reused else f"for {to}"
    return f"export    {reused}: {from_here(report.folder)} ({size(report.n_bytes)})"


def steer_line(report: "SteerReport") -> str:
    """What was steered, how many texts, and where they are kept."""
    sweep = f" for {len(report.effects)} strengths" if report.is_sweep else ""
    texts = many(len(report.texts), "text")
    return f"steer     {report.title}: {texts}{sweep}, in {from_here(report.path)}"


def report_lines(summary: "ReportSummary") -> Iterator[str]:
    """What was made for a page, and where it is."""
    for words in summary.made:
        yield f"report    made {words}"
    yield f"report    {summary.path} ({size(summary.path.stat().st_size)})"


def removal_line(what: Removable) -> str:
    """What will go."""
    if what.target is not None:
        return f"{what.path} is a link to {what.target}: the link will go, the store stays"
    if what.manifest is None:
        return f"{what.path}: what is left of a damaged store, {size(what.n_bytes)}"
    manifest = what.manifest
    sites = ", ".join(site.name for site in manifest.spec.sites)
    rows = f"{manifest.n_rows:,} rows{'' if manifest.state == 'complete' else ' wanted'} a site"
    return f"{what.path}: {manifest.state}, {rows} of {sites}, {size(what.n_bytes)}"
