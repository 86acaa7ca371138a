"""The section of a page about fine-tunings: what each learned, and which features that changed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.finetune.compare import read_comparison
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
from pipeline.runs.names import public
from pipeline.tables import Table
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
        return told if effect_words(one) == "-" else f"{told}, effect {effect_words(one)} nats"

    @staticmethod
    def fires_on(one: Moved) -> list[str]:
        """Some of the tokens that it is active on."""
        return [*map(label, fires_on(one))]

    @staticmethod
    def label(token: str) -> str:
        """A token by itself."""
        return label(token)


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
