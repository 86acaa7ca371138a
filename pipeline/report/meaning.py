"""The section of a page about fine-tunings: what each learned, and which features that changed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.finetune.compare import read_comparison
from pipeline.finetune.effects import SHARE
from pipeline.finetune.meaning import Moved
from pipeline.finetune.run import FinetunedRun
from pipeline.finetune.tables import (
    comparison_table,
    effect_words,
    finetune_table,
    fires_on,
    gain_words,
    moved_table,
)
from pipeline.plots.finetune import meaning_figures
from pipeline.report.figures import Drawings, drawings
from pipeline.report.render import Tile
from pipeline.report.tables import number
from pipeline.runs.names import public
from pipeline.tables import Table, percent
from pipeline.text.token_text import label


@dataclass(frozen=True, kw_only=True)
class TuningView:
    """One fine-tuning, for the template."""

    name: str
    headline: str
    prefix: str
    """Of ids."""
    losses: Table
    notes: Sequence[str]
    comparison: Table | None
    """With other ways to learn, if it was made."""
    comparison_notes: Sequence[str]
    gain: str
    """How many features make it; empty where an earlier version did not measure it."""
    figures: Drawings
    lists: Sequence[Table]
    """Features by effect, and those moved most."""
    features: Sequence[Moved]
    """Those of the lists, each once."""

    @staticmethod
    def words(one: Moved) -> str:
        """What was learned of a feature, in a line."""
        told = f"scale {one.c:.3f}, bias {one.d:+.3f}"
        if effect_words(one) == "-":
            return told
        told = f"{told}, effect {effect_words(one)} nats"
        both = one.effect is not None and one.estimate is not None
        return f"{told}, estimated {one.estimate:+.4f}" if both else told

    @staticmethod
    def fires_on(one: Moved) -> list[str]:
        """Some of the tokens that it is active on."""
        return [*map(label, fires_on(one))]

    @staticmethod
    def label(token: str) -> str:
        """A token by itself."""
        return label(token)


def tuning_tiles(run: FinetunedRun) -> list[Tile]:
    """The main numbers of a fine-tuning.

    Raises:
        CheckpointError: a file of it is damaged.
    """
    report, meaning = run.report, run.meaning()
    gain = report.ce_spliced - report.ce_finetuned
    losses = f"held-out loss {report.ce_finetuned:.4f}, {report.ce_spliced:.4f} before"
    tiles = [
        Tile(name="gain", value=f"{gain:.4f}", note=f"nats: {losses}"),
        Tile(
            name="against the model alone",
            value=f"{report.ce_base - report.ce_finetuned:+.4f}",
            note=f"nats gained on its loss of {report.ce_base:.4f}",
        ),
    ]
    if meaning and meaning.effects and (n := meaning.effects.n_for_share) is not None:
        words = f"whose changes make {SHARE:.0%} of the gain, of {meaning.effects.n_changed:,}"
        tiles.append(Tile(name="features", value=number(n), note=words))
    if report.n_questions is not None:
        before = f"of {report.n_questions:,} questions; {percent(report.exact_spliced)} before"
        tiles.append(Tile(name="exact", value=percent(report.exact_finetuned), note=before))
    was, now = report.ce_general_spliced, report.ce_general_finetuned
    if was is not None and now is not None:
        elsewhere = f"on {public(report.general_text)}; {math.exp(was):.2f} before"
        tiles.append(
            Tile(name="perplexity elsewhere", value=f"{math.exp(now):.2f}", note=elsewhere)
        )
    return tiles


def tuning_view(run: FinetunedRun, *, name: str, headline: str, prefix: str) -> TuningView:
    """What lies in the folder of a fine-tuning.

    Raises:
        CheckpointError: a file of it is damaged.
    """
    meaning, comparison = run.meaning(), read_comparison(run.path)
    report = run.report
    shown = replace(
        report, text=public(report.text), model=public(report.model),
        general_text=public(report.general_text),
    )  # fmt: skip
    lists = {} if meaning is None else meaning.lists
    return TuningView(
        name=name,
        headline=headline,
        prefix=prefix,
        losses=finetune_table(shown),
        notes=[*map(public, report.notes)],
        comparison=None if comparison is None else comparison_table(comparison),
        comparison_notes=() if comparison is None else comparison.notes,
        gain=gain_words(meaning.effects, report) if meaning and meaning.effects else "",
        figures=drawings(meaning_figures(run), prefix=prefix),
        lists=[
            moved_table(title.capitalize(), meaning, features)
            for title, features in lists.items()
            if meaning
        ],
        features=list(meaning.features.values()) if meaning else (),
    )
