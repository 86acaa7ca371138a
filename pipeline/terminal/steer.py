"""Steered texts on the screen, beside those of the model alone."""

from collections.abc import Iterator, Sequence

from pipeline.steer.report import Continuation, Effect, SteeredText, SteerReport
from pipeline.tables import Column, Table, many, percent
from pipeline.text.token_text import visible


def steer_tables(report: SteerReport) -> Iterator[Table]:
    """A table a text, a line a strength; then what the strengths do to all texts."""
    for text in report.texts:
        yield text_table(report, text)
    if report.is_sweep or len(report.texts) > 1:
        yield effects_table(report)


def text_table(report: SteerReport, text: SteeredText) -> Table:
    """What one prompt was gone on with."""
    lines = zip((report.clean, *report.effects), (text.clean, *text.steered), strict=True)
    sample = f", sample {text.sample + 1}" if report.config.samples > 1 else ""
    return Table(
        title=f"{visible(text.prompt)}{sample}",
        columns=[*_numbers(report), Column(head="goes on with", folds=True, fills=True)],
        sections=[[[*_line(report, one, its), visible(its.text)] for one, its in lines]],
        ruled=False,
    )


def effects_table(report: SteerReport) -> Table:
    """A line a strength, over all texts."""
    return Table(
        title=f"{report.title}, {many(len(report.texts), 'text')}",
        columns=_numbers(report),
        sections=[[_line(report, one, one) for one in (report.clean, *report.effects)]],
        edged=True,
    )


def _numbers(report: SteerReport) -> list[Column]:
    heads = ("strength", "perplexity", *(_head(name) for name in report.names), "changed")
    return [Column(head=head, align="right") for head in heads]


def _head(name: str) -> str:
    """Of a feature, in two lines where its site is told."""
    return name.replace(" at ", "\n")


def _line(report: SteerReport, effect: Effect, its: Continuation | Effect) -> Sequence[str]:
    activations = (f"{value:.3g}" for value in its.activations)
    changed = "" if effect is report.clean else percent(its.changed)
    return [report.label(effect), f"{its.perplexity:.4g}", *activations, changed]
