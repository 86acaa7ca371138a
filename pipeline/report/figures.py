"""Figures as parts of a page: SVG whose text is text, and whose colours are the page's own.

A strict Content-Security-Policy blocks style attributes, so that each becomes the presentation
attributes it stands for.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from pipeline.finetune.fold import is_folded
from pipeline.finetune.run import FinetunedRun
from pipeline.plots.style import BLUE, GRAY, GRID, INK, RED, as_svg
from pipeline.plots.training import curve_figures
from pipeline.runs.belongs import is_file_of
from pipeline.runs.curves import METRICS, read_curves
from pipeline.runs.folder import RunFolder
from pipeline.runs.imported import imported, origin_of
from pipeline.runs.names import public

COLORS = {
    "#ffffff": "card", INK: "ink", GRAY: "muted", GRID: "line", BLUE: "blue", RED: "red",
    "#2f855a": "green", "#b7791f": "gold", "#6b46c1": "violet", "#0987a0": "cyan",
}  # fmt: skip
"""What figures are drawn in, and the variable of the style sheet that takes its place."""

_MATH_FONT = "'DejaVu Sans', Verdana, sans-serif"  # formulas are set letter by letter, for this one
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_NUMBER = re.compile(r"-?\d+\.\d+")


def inline_svg(figure: Figure, *, name: str, label: str) -> Markup:
    """An `<svg>` element, the same bytes for the same figure in the colours of our style.

    Its ids start with the name, which no other has; who does not see it is told the label.
    """
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        root = ElementTree.fromstring(as_svg(figure))
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {value[1:] for value in values if value.startswith("#")}
    used |= set(_REFERENCE.findall("\n".join(values)))
    for element in [*root.iter()]:
        for child in [*element]:  # what the root's attributes stand for
            if _local(child.tag) in ("metadata", "style"):
                element.remove(child)
        _adopt(element, used=used, prefix=name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {
        "role": "img", "aria-label": label, "fill": "var(--ink)",
        "stroke-linejoin": "round", "stroke-linecap": "butt",
    }  # fmt: skip
    return Markup(ElementTree.tostring(root, encoding="unicode"))


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


Drawings = Mapping[str, Markup]
"""Figures of a page, by names that are unique in it."""


def drawings(
    figures: Mapping[str, Figure], *, prefix: str = "", size: tuple[float, float] | None = None
) -> Drawings:
    """Figures, each told by the title of its first axes to who does not see it.

    The prefix comes before their names. A size is in inches.
    """
    found = dict[str, Markup]()
    for key, figure in figures.items():
        if size is not None:
            figure.set_size_inches(*size)
        name, label = prefix + key, figure.axes[0].get_title(loc="left")
        found[name] = inline_svg(figure, name=name, label=label)
    return found


def curves_of(run: RunFolder | FinetunedRun) -> Path | None:
    """Its curves, if there are any, and they are its own."""
    curves = run.path / METRICS
    return curves if _there(curves) and is_file_of(curves, run.curves_sha256) else None


def curves_lost(run: RunFolder | FinetunedRun) -> str:
    """What a page says where a complete run no longer has all of its curves; else nothing."""
    curves = run.path / METRICS
    if not _there(curves) and is_folded(run.path):
        return "It was folded from a fine-tuning, and has no curves of its own."
    if not _there(curves) and (told := imported(run.path)) is not None:
        return f"It was {public(origin_of(told))}, and has no curves."
    if not _there(curves):
        return f"{METRICS} is lost, and with it the curves of this training."
    if not is_file_of(curves, run.curves_sha256):
        return f"{METRICS} is not that of this run."
    tuned = isinstance(run, FinetunedRun)
    n_steps = run.report.n_steps if tuned else run.config.n_steps(run.provenance.n_rows)
    lines = [*read_curves(curves)]
    last = int(lines[-1]["step"]) if lines else 0
    return f"{curves.name} ends at step {last:,} of {n_steps:,}." if last < n_steps else ""


def _there(curves: Path) -> bool:
    return curves.exists() and curves.stat().st_size > 0


def curve_drawings(curves: Path | None, *, prefix: str) -> Drawings:
    """The curves of a training; none without them."""
    return drawings(curve_figures(curves) if curves else {}, prefix=prefix)
