"""The part of a page about SAEs: plain values for its template, and data for its script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast, final

from pipeline.config.serialization import portable, to_json
from pipeline.config.training import LoopConfig
from pipeline.evaluate.report import EvalReport, load_report
from pipeline.finetune.run import FinetunedRun, is_finetuned
from pipeline.plots.evaluation import evaluation_figures, frontier_figure
from pipeline.plots.finetune import loss_figure
from pipeline.plots.steer import steer_figure
from pipeline.report.feature_data import ShownFeatures, feature_data, shown_features
from pipeline.report.figures import (
    HIGH,
    WIDE,
    Drawings,
    curve_drawings,
    curves_lost,
    curves_of,
    drawings,
)
from pipeline.report.meaning import TuningView, tuning_tiles, tuning_view
from pipeline.report.render import Exhibit, Part, Tile
from pipeline.report.tables import Cell, Group, Row, main_heads, main_rows, metric_groups, number
from pipeline.runs.folder import Provenance, flat
from pipeline.runs.names import public, typed
from pipeline.runs.sae_run import SAERun
from pipeline.steer.report import Continuation, Effect, SteerReport, steerings_of
from pipeline.tables import many, percent

_KNOBS = ("k", "l1", "l0", "target")
"""What tells runs of one architecture apart."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SAEExhibit(Exhibit):
    """One run of a sparse autoencoder. What is absent is None."""

    noun: ClassVar[str] = "sparse autoencoder"
    title: ClassVar[str] = "Sparse autoencoder report"

    run: SAERun
    """The SAE's; of a fine-tuned one, that of the SAE it froze."""
    tuned: FinetunedRun | None
    curves: Path | None
    """Its metrics.jsonl, if it has any lines, and they are its own."""
    evaluation: EvalReport | None
    features: ShownFeatures | None
    steerings: tuple[SteerReport, ...] = ()

    @classmethod
    def gather(cls, path: Path, name: str, *, n_features: int) -> "SAEExhibit":
        """What is known of the SAE in a folder."""
        tuned = FinetunedRun.open(path) if is_finetuned(path) else None
        run = tuned.run if tuned else SAERun.open(path)
        return cls(
            name=name,
            path=path,
            run=run,
            tuned=tuned,
            curves=curves_of(tuned or run),
            evaluation=load_report(path),
            features=shown_features(path, n=n_features),
            steerings=steerings_of(path),
        )

    @property
    def headline(self) -> str:
        """Architecture and place: `topk SAE (k = 32) at mlp_out.2`."""
        arch = self.run.config.arch
        settings = [(name, getattr(arch, name, None)) for name in _KNOBS]
        knobs = ", ".join(f"{name} = {value:g}" for name, value in settings if value is not None)
        site = self.tuned.report.site if self.tuned else self.provenance.site
        tuned = ", fine-tuned" if self.tuned else ""
        return f"{arch.kind} SAE{f' ({knobs})' if knobs else ''} at {site}{tuned}"

    @property
    def tiles(self) -> list[Tile]:
        """The main numbers: of a fine-tuned one what it gained, of others their evaluation."""
        if self.tuned is not None:
            return tuning_tiles(self.tuned)
        if (report := self.evaluation) is None:
            return []
        of = f"of {report.d_sae:,}"
        losses = f"{number(report.ce_patched)} nats spliced in, {number(report.ce_clean)} without"
        return [
            Tile(name="loss added", value=number(report.ce_added), note=losses),
            Tile(
                name="loss recovered",
                value=number(report.loss_recovered_mean),
                note=f"against the site's mean; {number(report.loss_recovered)} against zero",
            ),
            Tile(name="L0", value=number(report.l0), note=f"features active per token, {of}"),
            Tile(
                name="explained variance",
                value=number(report.explained_variance),
                note=f"cosine {number(report.cosine)}",
            ),
            Tile(
                name="dead",
                value=percent(report.frac_dead),
                note=f"{number(report.n_dead)} features {of}",
            ),
        ]

    @property
    def facts(self) -> dict[str, str]:
        """The few that say what one is looking at."""
        run, source = self.run, self.provenance
        found = {
            "language model": named(source.model, source.revision),
            "site": source.site,
            "text trained on": public(source.text) or "unknown",
            "features": f"{run.d_sae:,}, {run.config.expansion:.4g} x the width {source.d_in:,}",
            **(trained_on(run.config, source) if source.fingerprint else {}),
            "contexts": f"{source.ctx_len} tokens each",
        }
        if self.tuned:
            report = self.tuned.report
            found |= {
                "fine-tuned in": public(report.model),
                "fine-tuned at": report.site,
                "fine-tuned on": f"{public(report.text)}, {report.n_steps:,} steps",
                "held-out loss, model alone": number(report.ce_base),
                "held-out loss, SAE spliced in": number(report.ce_spliced),
                "held-out loss, fine-tuned": number(report.ce_finetuned),
            }
        return found

    @staticmethod
    def part(exhibits: Sequence["SAEExhibit"]) -> "SAEsPart":
        """The part about these runs."""
        reports = [exhibit.evaluation for exhibit in exhibits]
        evaluated = [report for report in reports if report is not None]
        names = [exhibit.name for exhibit in exhibits]
        few = len(exhibits) <= MANY
        known = {exhibit.path.resolve(): exhibit.name for exhibit in exhibits}
        notes = [public(note) for m in exhibits if m.features for note in m.features.notes]
        return SAEsPart(
            tunings=[
                tuning_view(m.tuned, name=m.name, headline=m.headline, prefix=f"t{i}-")
                for i, m in enumerate(exhibits, start=1)
                if m.tuned is not None
            ],
            groups=metric_groups(reports) if evaluated and few else (),
            heads=[(e.name, e.headline) for e in exhibits] if few else main_heads(),
            rows=main_rows(names, reports) if evaluated and not few else (),
            frontier=drawings(
                {"frontier": frontier_figure(evaluated)} if len(evaluated) > 1 else {},
                size=(WIDE, HIGH),
            ),
            runs=[_view(m, place=i, known=known) for i, m in enumerate(exhibits, start=1)],
            feature_notes=list(dict.fromkeys(notes)),
            browsed=[_browsed(exhibit) for exhibit in exhibits],
        )


MANY = 4
"""Runs, with more of which the table of fidelity has a row a run."""


@dataclass(frozen=True, kw_only=True)
class SAEsPart(Part):
    """All of them."""

    template: ClassVar[str] = "saes.html"
    scripts: ClassVar[Sequence[str]] = ("browser.js", "features.js", "finetuning.js")
    tunings: Sequence[TuningView]
    """Those of the runs that were fine-tuned."""
    groups: Sequence[Group]
    """The fidelity of up to `MANY` runs; empty if none was evaluated."""
    heads: Sequence[tuple[str, str]]
    """What stands over the columns: a run with what it is, or a metric."""
    rows: Sequence[Row]
    """That of more."""
    frontier: Drawings
    runs: Sequence[Mapping[str, object]]
    """What the template tells of each."""
    feature_notes: Sequence[str]
    """What a reader of any run's features must know."""
    browsed: Sequence[Mapping[str, object]]
    """What the script is given of each."""

    @property
    def data(self) -> dict[str, object]:
        """What the script is given."""
        return {"runs": self.browsed}

    @property
    def sections(self) -> dict[str, str]:
        """What there is to go to."""
        told = {"finetuning": "Fine-tuning"} if self.tunings else {}
        told |= {"fidelity": "Fidelity"} if self.groups or self.rows else {}
        return told | {"runs": "Run" if len(self.runs) == 1 else "Runs", "features": "Features"}


def _view(exhibit: SAEExhibit, *, place: int, known: Mapping[Path, str]) -> dict[str, object]:
    """One run, `known` being the names of all that are on the page.

    `overlaps` are other runs, and how much of this one's dictionary each has found too; `missing`
    is what is not there yet, and the command that makes it.
    """
    tuned = {"finetune": exhibit.tuned.config} if exhibit.tuned else {}
    missing: dict[str, str] = {}
    if exhibit.evaluation is None:
        missing["It has not been evaluated yet."] = f"saepipe eval {typed(exhibit.path)}"
    if exhibit.features is None:
        missing["Its features have not been collected yet."] = exhibit.command
    view: dict[str, object] = {
        "name": exhibit.name,
        "headline": exhibit.headline,
        "facts": exhibit.facts,
        "settings": settings_of(
            # of what was imported, the training is not known
            exhibit.run.config if exhibit.provenance.fingerprint else exhibit.run.config.arch,
            folder=exhibit.path,
            store=exhibit.provenance,
            **tuned,
        ),
        "curves": _curves(exhibit, prefix=f"r{place}-"),
        "curves_lost": curves_lost(exhibit.tuned or exhibit.run),
        "missing": missing,
        "evaluated": "",
        "worst": (),
        "steerings": [
            _steering(report, prefix=f"r{place}-s{i}-")
            for i, report in enumerate(exhibit.steerings, start=1)
        ],
    }
    if (report := exhibit.evaluation) is None:
        return view
    excluded = f"; left out: {', '.join(report.excluded)}" if report.excluded else ""
    none_dead = [f"None of the {report.d_sae:,} features is dead on these tokens."]
    return view | {
        "evaluated": f"In {public(report.model)} on {public(report.text)}: "
        f"{report.n_tokens:,} tokens in contexts "
        f"of {report.ctx_len}, the model in {report.precision}{excluded}.",
        "figures": _drawings(report, prefix=f"r{place}-"),
        "worst": report.worst,
        "overlaps": {
            known.get(o.run.resolve(), o.run.name): number(o.mmcs) for o in report.overlaps
        },
        "notes": [*map(public, report.notes), *(none_dead if report.dead_cosine is None else ())],
    }


def _browsed(exhibit: SAEExhibit) -> dict[str, object]:
    head: dict[str, object] = {"name": exhibit.name, "command": exhibit.command}
    if exhibit.features is None:
        return head | {"nTokens": 0, "tokens": [], "items": []}
    return head | feature_data(exhibit.features)


STEERED_TEXTS = 8
"""Texts of a steering that a page shows, at most."""


def _steering(report: SteerReport, *, prefix: str) -> dict[str, object]:
    """What one steering did: its numbers, its figure, and some of its texts beside the others."""
    effects = (report.clean, *report.effects)
    shown, n_more = report.texts[:STEERED_TEXTS], len(report.texts) - STEERED_TEXTS
    more = f" {many(n_more, 'text')} more: {report.path.name}." if n_more > 0 else ""
    drawn = f", drawn at temperature {report.temperature:g}" if report.temperature else ""
    asked = report.config
    where = {"all": "all tokens", "prompt": "tokens of the prompt", "new": "new tokens"}
    return {
        "title": report.title,
        "told": f"In {public(report.model)}, steered at {where[asked.where]}, up to "
        f"{asked.tokens:,} new tokens{drawn}; numbers are of the model that is not steered."
        f"{more}",
        "notes": list(map(public, report.notes)),
        "heads": [(head, "") for head in ("perplexity", *report.names, "tokens changed")],
        "rows": [
            Row(name=report.label(one), note="", cells=_cells(one, clean=one is report.clean))
            for one in effects
        ],
        "figures": drawings(
            {"steer": steer_figure(report, width=WIDE, height=HIGH)} if report.is_sweep else {},
            prefix=prefix,
        ),
        "texts": [
            {
                "prompt": text.prompt,
                "sample": f", sample {text.sample + 1}" if asked.samples > 1 else "",
                "lines": [
                    (report.label(effect), number(its.perplexity), its.text)
                    for effect, its in zip(effects, (text.clean, *text.steered), strict=True)
                ],
            }
            for text in shown
        ],
    }


def _cells(its: Effect | Continuation, *, clean: bool) -> tuple[Cell, ...]:
    values = [number(its.perplexity), *map(number, its.activations)]
    values.append("" if clean else percent(its.changed))
    return tuple(Cell(value=value, interval="") for value in values)


_SPARE = 1.0
"""Inches that figures of evaluations can do without."""


def _curves(exhibit: SAEExhibit, *, prefix: str) -> Drawings:
    """The curves of a training, or the loss of a fine-tuning; none without them."""
    if exhibit.curves is None or exhibit.tuned is None:
        return curve_drawings(exhibit.curves, prefix=prefix)
    return drawings({"loss": loss_figure(exhibit.tuned)}, prefix=prefix)


def _drawings(report: EvalReport, *, prefix: str) -> Drawings:
    figures = evaluation_figures(report)
    if report.dead_cosine is None:
        del figures["dead_cosine"]  # a note says so
    for figure in figures.values():
        figure.set_size_inches(max(WIDE, figure.get_figwidth() - _SPARE), HIGH)
    return drawings(figures, prefix=prefix)


def settings_of(config: object, *, folder: Path, **others: object) -> dict[str, str]:
    """Every setting as `arch.k` -> its value; those of the others as `store.text`.

    Paths are those from the folder of the run.
    """
    found = flat(to_json(portable(config, folder)))
    for name, values in others.items():
        found |= flat(to_json(portable(values, folder)), f"{name}.")
    return {name: _setting(value) for name, value in found.items()}


def trained_on(config: LoopConfig, store: Provenance) -> dict[str, str]:
    """How much of which store, in what steps."""
    tokens = store.n_rows if config.tokens is None else config.tokens
    epochs = tokens / store.n_rows if store.n_rows else 0
    return {
        "trained on": f"{tokens:,} tokens, {epochs:.3g} x the store",
        "step": f"{config.rows_per_step:,} tokens, learning rate {config.peak_lr:g}",
    }


def named(model: str, revision: str) -> str:
    """A language model, and its revision if that is not the main one."""
    name = public(model) or "unknown"
    return name if revision in ("", "main") else f"{name} at {revision}"


def _setting(value: object) -> str:
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[object]", value)))
    return f"{value:,}" if isinstance(value, int) else public(str(value))
