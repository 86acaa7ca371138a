"""The part about SAEs.

What a run is, for people: a few facts in front, every setting folded away.

The part of the page about sparse autoencoders: plain values for the template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

from pipeline.config.serialization import to_json
from pipeline.evaluate.report import EvalReport, WorstContext
from pipeline.report.feature_data import feature_data
from pipeline.report.figures import Drawing, curve_drawings, evaluation_drawings, frontier_drawing
from pipeline.report.gather import SAEExhibit
from pipeline.report.render import Tile
from pipeline.report.tables import Group, Row, main_names, main_rows, metric_groups, number, percent

_KNOBS = ("k", "l1", "l0", "target")
"""What tells runs of one architecture apart."""


def headline(exhibit: SAEExhibit) -> str:
    """Architecture and place: `topk SAE (k = 32) at mlp_out.2`."""
    arch = exhibit.run.config.arch
    settings = [(name, getattr(arch, name, None)) for name in _KNOBS]
    knobs = ", ".join(f"{name} = {value:g}" for name, value in settings if value is not None)
    tuned = ", fine-tuned" if exhibit.tuned else ""
    site = exhibit.tuned.report.site if exhibit.tuned else exhibit.run.provenance.site
    return f"{arch.kind} SAE{f' ({knobs})' if knobs else ''} at {site}{tuned}"


def facts(exhibit: SAEExhibit) -> dict[str, str]:
    """The few that say what one is looking at."""
    run, tuned = exhibit.run, exhibit.tuned
    config, source = run.config, run.provenance
    tokens = source.n_rows if config.tokens is None else config.tokens
    epochs = tokens / source.n_rows if source.n_rows else 0
    found = {
        "language model": named(source.model, source.revision),
        "site": source.site,
        "text": source.text or "unknown",
        "features": f"{run.d_sae:,}, {config.expansion} x the width {source.d_in:,}",
        "trained on": f"{tokens:,} tokens, {epochs:.3g} x the store",
        "step": f"{config.batch_size:,} tokens, learning rate {config.lr:g}",
        "contexts": f"{source.ctx_len} tokens each",
    }
    if tuned:
        report = tuned.report
        found |= {
            "fine-tuned in": report.model,
            "fine-tuned at": report.site,
            "fine-tuned on": f"{report.text}, {report.n_steps:,} steps",
            "held-out loss, model alone": number(report.ce_base),
            "held-out loss, SAE spliced in": number(report.ce_spliced),
            "held-out loss, fine-tuned": number(report.ce_finetuned),
        }
    return found


def settings(exhibit: SAEExhibit) -> dict[str, str]:
    """Every setting and everything known of the store."""
    tuned = exhibit.tuned
    return {
        **flat(to_json(exhibit.run.config)),
        **flat(to_json(exhibit.run.provenance), prefix="store."),
        **(flat(to_json(tuned.config), prefix="finetune.") if tuned else {}),
    }


def named(model: str, revision: str) -> str:
    """A language model, and its revision if that is not the main one."""
    name = model or "unknown"
    return name if revision in ("", "main") else f"{name} at {revision}"


def flat(value: object, *, prefix: str = "") -> dict[str, str]:
    """Nested settings as `arch.k` -> its value."""
    found: dict[str, str] = {}
    for name, item in cast("Mapping[str, object]", value).items():
        if isinstance(item, Mapping):
            found |= flat(cast("object", item), prefix=f"{prefix}{name}.")
        else:
            found[prefix + name] = _setting(item)
    return found


def _setting(value: object) -> str:
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[object]", value)))
    return f"{value:,}" if isinstance(value, int) else str(value)


MANY = 4
"""Runs, with more of which the table of fidelity has a row a run."""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One run."""

    name: str
    path: str
    headline: str
    facts: Mapping[str, str]
    settings: Mapping[str, str]
    curves: Sequence[Drawing]
    figures: Sequence[Drawing]
    evaluated: str
    """On what; empty if it was not."""
    worst: Sequence[WorstContext]
    overlaps: Mapping[str, str]
    """Other runs, and how much of this one's dictionary each has found too."""
    notes: Sequence[str]
    missing: Mapping[str, str]
    """What is not there yet, and the command that makes it."""


@dataclass(frozen=True, kw_only=True)
class CodersView:
    """All of them."""

    template: ClassVar[str] = "coders.html"
    scripts: ClassVar[Sequence[str]] = ("browser.js", "features.js")
    groups: Sequence[Group]
    """The fidelity of up to `MANY` runs; empty if none was evaluated."""
    columns: Sequence[str]
    rows: Sequence[Row]
    """That of more."""
    frontier: Drawing | None
    runs: Sequence[RunView]
    feature_notes: Sequence[str]
    """What a reader of any run's features must know."""

    @property
    def sections(self) -> dict[str, str]:
        """What there is to go to."""
        told = {"fidelity": "Fidelity"} if self.groups or self.rows else {}
        return told | {"runs": "Run" if len(self.runs) == 1 else "Runs", "features": "Features"}


def coders_view(exhibits: Sequence[SAEExhibit]) -> CodersView:
    """The part about these runs.

    Raises:
        CheckpointError: the curves of one are damaged.
    """
    reports = [exhibit.evaluation for exhibit in exhibits]
    evaluated = [report for report in reports if report is not None]
    names = [exhibit.name for exhibit in exhibits]
    few = len(exhibits) <= MANY
    known = {exhibit.path.resolve(): exhibit.name for exhibit in exhibits}
    notes = [note for m in exhibits if m.features for note in m.features.notes]
    return CodersView(
        groups=metric_groups(reports) if evaluated and few else (),
        columns=main_names(),
        rows=main_rows(names, reports) if evaluated and not few else (),
        frontier=frontier_drawing(evaluated),
        runs=[_run(m, place=i, known=known) for i, m in enumerate(exhibits, start=1)],
        feature_notes=list(dict.fromkeys(notes)),
    )


def coder_tiles(report: EvalReport) -> list[Tile]:
    """The few numbers in front of a page about one run."""
    of = f"of {report.d_sae:,}"
    return [
        Tile(
            name="loss recovered",
            value=number(report.loss_recovered),
            note=f"{number(report.ce_patched)} nats spliced in, {number(report.ce_clean)} without",
        ),
        Tile(name="L0", value=number(report.l0), note=f"features active per token, {of}"),
        Tile(
            name="explained variance",
            value=number(report.explained_variance),
            note=f"cosine {number(report.cosine)}",
        ),
        Tile(name="dead", value=percent(report.frac_dead), note=f"{report.n_dead:,} features {of}"),
    ]


def _run(exhibit: SAEExhibit, *, place: int, known: Mapping[Path, str]) -> RunView:
    """One run; `known` are the names of all that are on the page."""
    report = exhibit.evaluation
    overlaps = report.overlaps if report else ()
    return RunView(
        name=exhibit.name,
        path=str(exhibit.path),
        headline=headline(exhibit),
        facts=facts(exhibit),
        settings=settings(exhibit),
        curves=curve_drawings(exhibit, place=place),
        figures=evaluation_drawings(report, place=place),
        evaluated=_evaluated(report) if report else "",
        worst=report.worst if report else (),
        overlaps={known.get(o.run.resolve(), str(o.run)): number(o.mmcs) for o in overlaps},
        notes=_notes(report) if report else (),
        missing=_missing(exhibit),
    )


def _evaluated(report: EvalReport) -> str:
    excluded = f"; left out: {', '.join(report.excluded)}" if report.excluded else ""
    return (
        f"In {report.model} on {report.text}: {report.n_tokens:,} tokens in contexts of "
        f"{report.ctx_len}, the model in {report.precision}{excluded}."
    )


def _notes(report: EvalReport) -> list[str]:
    """What a reader of the figures must know."""
    told = [f"None of the {report.d_sae:,} features is dead on these tokens."]
    return [*report.notes, *(told if report.dead_cosine is None else ())]


def _missing(exhibit: SAEExhibit) -> dict[str, str]:
    missing: dict[str, str] = {}
    if exhibit.evaluation is None:
        missing["It has not been evaluated yet."] = f"saepipe eval {exhibit.path}"
    if exhibit.features is None:
        missing["Its features have not been collected yet."] = _collect(exhibit)
    return missing


def _collect(exhibit: SAEExhibit) -> str:
    return f"saepipe features {exhibit.path}"


def coder_data(exhibit: SAEExhibit) -> dict[str, object]:
    """A run as the browser of features shows it."""
    head: dict[str, object] = {"name": exhibit.name, "command": _collect(exhibit)}
    if exhibit.features is None:
        return head | {"nTokens": 0, "tokens": [], "items": []}
    return head | feature_data(exhibit.features)
