"""Figures as inline SVG.

Figures as parts of a page: SVG whose text is text, and whose colours are the page's own.

A strict Content-Security-Policy blocks style attributes, so that each becomes the presentation
attributes it stands for.

The figures of a page.

The figures about connectors.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from pipeline.connect.report import ConnectorReport
from pipeline.evaluate.report import EvalReport
from pipeline.plots.connectors import (
    connector_frontier_figure,
    effects_figure,
    explained_figure,
    recovered_figure,
    weights_figure,
)
from pipeline.plots.evaluation import (
    dead_cosine_figure,
    density_figure,
    encoder_decoder_figure,
    frontier_figure,
    inserted_figure,
)
from pipeline.plots.finetune import loss_figure
from pipeline.plots.style import BLUE, GRAY, GRID, INK, RED
from pipeline.plots.training import curve_figures
from pipeline.report.gather import Connections, Material

COLORS = {
    "#ffffff": "card", INK: "ink", GRAY: "muted", GRID: "line", BLUE: "blue", RED: "red",
    "#2f855a": "green", "#b7791f": "gold", "#6b46c1": "violet", "#0987a0": "cyan",
}  # fmt: skip
"""What figures are drawn in, and the variable of the style sheet that takes its place."""

_MATH_FONT = "'DejaVu Sans', Verdana, sans-serif"  # formulas are set letter by letter, for this one
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_NUMBER = re.compile(r"-?\d+\.\d+")


def inline_svg(figure: Figure, *, name: str, label: str) -> Markup:
    """An `<svg>` element, the same bytes for the same figure.

    Args:
        figure: Drawn in the colours of `pipeline.plots.style`.
        name: Unique in the page; the element's ids start with it.
        label: What a reader who does not see it is told.
    """
    data = BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(data.getvalue())
    used = _references(root)
    for element in [*root.iter()]:
        _drop_unwanted(element)
        _adopt(element, used=used, prefix=name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {
        "role": "img", "aria-label": label, "fill": "var(--ink)",
        "stroke-linejoin": "round", "stroke-linecap": "butt",
    }  # fmt: skip
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _references(root: ElementTree.Element) -> set[str]:
    """Ids that something in the figure points to."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    return {v[1:] for v in values if v.startswith("#")} | set(_REFERENCE.findall("\n".join(values)))


def _drop_unwanted(parent: ElementTree.Element) -> None:
    """Remove metadata, and the style sheet that the root's attributes stand for."""
    for child in [*parent]:
        if _local(child.tag) in ("metadata", "style"):
            parent.remove(child)


def _adopt(element: ElementTree.Element, *, used: set[str], prefix: str) -> None:
    """Rewrite one element for its place in the page."""
    element.tag = _local(element.tag)
    given = {_local(name): value for name, value in element.attrib.items()}
    for declaration in given.pop("style", "").split(";"):
        name, _, value = declaration.partition(":")
        if name.strip():
            given[name.strip()] = value.strip()
    given = {name: _value(name, value, prefix) for name, value in given.items()}
    if "id" in given and given["id"].removeprefix(f"{prefix}-") not in used:
        del given["id"]
    if element.tag == "text":
        given.pop("font-family", None)  # the page's
    elif "font-family" in given:
        given["font-family"] = _MATH_FONT
    element.attrib.clear()
    element.attrib.update(given)
    if element.text is not None and element.tag not in ("text", "tspan"):
        element.text = None  # line ends between elements
    element.tail = None


def _value(name: str, value: str, prefix: str) -> str:
    """What an attribute says in the page."""
    if name in ("fill", "stroke") and value in COLORS:
        return f"var(--{COLORS[value]})"
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value.removeprefix('#')}"
    if name in ("d", "x", "y"):
        return _NUMBER.sub(lambda match: f"{float(match[0]):.2f}", value).replace("\n", "")
    return _REFERENCE.sub(rf"url(#{prefix}-\1)", value)


def _local(name: str) -> str:
    """A name without its namespace: HTML knows what an `<svg>` holds."""
    return name.rpartition("}")[2]


WIDE, HIGH = 5.2, 3.2
"""Inches: so narrow that their words can be read on a phone."""
_HELDOUT = ("ce_base", "ce_spliced", "ce_finetuned")
_SPARE = 1.0
"""Inches that figures of evaluations can do without."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure in the page."""

    name: str
    svg: Markup


def curve_drawings(material: Material, *, place: int) -> list[Drawing]:
    """The curves of a training, or the loss of a fine-tuning; none without them.

    Raises:
        CheckpointError: metrics.jsonl is damaged.
    """
    if material.curves is None:
        return []
    if material.tuned:
        heldout = {name: getattr(material.tuned.report, name) for name in _HELDOUT}
        figures = {"loss": loss_figure(material.tuned.losses(), **heldout)}
    else:
        figures = curve_figures(material.curves)
    return [drawing(figure, f"r{place}-{key}") for key, figure in figures.items()]


def evaluation_drawings(report: EvalReport | None, *, place: int) -> list[Drawing]:
    """What the evaluation of one run shows."""
    if report is None:
        return []
    density, n_tokens = np.array(report.density), report.n_tokens
    figures = {
        "density": density_figure(density, n_tokens=n_tokens),
        "encdec": encoder_decoder_figure(np.array(report.encoder_decoder_cosine)),
    }
    if report.dead_cosine is not None:
        cosine = np.array(report.dead_cosine)
        figures["dead"] = dead_cosine_figure(cosine, density == 0, n_tokens=n_tokens)
    if report.inserted:
        figures["inserted"] = inserted_figure(report)
    for figure in figures.values():
        figure.set_size_inches(max(WIDE, figure.get_figwidth() - _SPARE), HIGH)
    return [drawing(figure, f"r{place}-{key}") for key, figure in figures.items()]


def frontier_drawing(reports: Sequence[EvalReport]) -> Drawing | None:
    """Several runs against each other; None where there are not several."""
    if len(reports) < 2:
        return None
    figure = frontier_figure(reports)
    figure.set_size_inches(WIDE, HIGH)
    return drawing(figure, "frontier")


def drawing(figure: Figure, name: str) -> Drawing:
    """A figure, told by the title of its first axes to who does not see it."""
    title = figure.axes[0].get_title(loc="left")
    return Drawing(name=name, svg=inline_svg(figure, name=name, label=title))


_HIGH = 4.4
"""Inches: of figures that stand in one row."""


def connector_drawings(
    report: ConnectorReport | None, connections: Connections | None, *, place: int
) -> list[Drawing]:
    """What the evaluation and the reading of one connector show."""
    found: dict[str, Figure] = {}
    if report:
        found["explained"] = explained_figure(report)
        found["weights"] = weights_figure(report)
    if connections and connections.reading.effects:
        found["effects"] = effects_figure(connections.reading.effects)
    for figure in found.values():
        figure.set_size_inches(WIDE, _HIGH)
    return [drawing(figure, f"w{place}-{key}") for key, figure in found.items()]


def connector_curves(curves: Path | None, *, place: int) -> list[Drawing]:
    """The curves of a training; none without them.

    Raises:
        CheckpointError: metrics.jsonl is damaged.
    """
    if curves is None:
        return []
    return [drawing(figure, f"w{place}-{key}") for key, figure in curve_figures(curves).items()]


def frontier_drawings(reports: Sequence[ConnectorReport]) -> list[Drawing]:
    """Several connectors against each other; none where there are not several."""
    if len(reports) < 2:
        return []
    figures = {"weights-fvu": connector_frontier_figure(reports)}
    if any(report.ce_clean is not None for report in reports):
        figures["weights-recovered"] = recovered_figure(reports)
    return [drawing(figure, name) for name, figure in figures.items()]
