"""A page about an experiment: chapters with words, tables and pictures, as whoever made it says."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from pipeline.plots.style import as_png
from pipeline.report.figures import inline_svg
from pipeline.report.render import PageView, Part, Tile

_LARGEST_SVG = 400_000
"""Characters; a figure of more shapes than that becomes an image of dots."""
_TYPES = {b"\x89PNG": "png", b"GIF8": "gif", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with a name and a cell a column."""

    title: str = ""
    columns: Sequence[str]
    """Names of the cells; that of the rows has none."""
    rows: Mapping[str, Sequence[str]]
    """By name, which may end with a definition after a line break."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """Something to look at."""

    content: Figure | bytes | Markup
    """A figure of `pipeline.plots.style`, a PNG, GIF or JPEG file, or one of these drawn."""
    title: str
    """Short: also told to readers who do not see the picture."""
    caption: str = ""
    wide: bool = False
    """It takes the page's whole width."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Chapter:
    """What stands under one heading: words, then tables, then pictures, then formulas."""

    title: str
    words: Sequence[str] = ()
    """Paragraphs."""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    formulas: Sequence[str] = ()
    """Lines to be read letter by letter, as equations are."""


@dataclass(frozen=True, kw_only=True)
class ExperimentView(Part):
    """All of them."""

    template: ClassVar[str] = "experiment.html"
    chapters: Mapping[str, Chapter]
    """By id; what their pictures hold is drawn."""

    @property
    def sections(self) -> dict[str, str]:
        """Each chapter."""
        return {key: chapter.title for key, chapter in self.chapters.items()}


def experiment_view(
    title: str, *, kind: str, lead: str, tiles: Sequence[Tile], chapters: Sequence[Chapter]
) -> PageView:
    """The page with these chapters."""
    shown: dict[str, Chapter] = {}
    for i, chapter in enumerate(chapters, start=1):
        words = re.findall(r"[a-z0-9]+", chapter.title.lower())
        pictures = [
            replace(picture, content=_drawn(picture, name=f"c{i}-{place}"))
            for place, picture in enumerate(chapter.pictures, start=1)
        ]
        shown["-".join([f"c{i}", *words])] = replace(chapter, pictures=pictures)
    part = ExperimentView(chapters=shown)
    return PageView(kind=kind, title=title, lead=lead, tiles=tiles, parts=[part])


def _drawn(picture: Picture, *, name: str) -> Markup:
    """A figure as shapes; what has too many of them as dots, as are images."""
    content = picture.content
    if isinstance(content, Figure):
        svg = inline_svg(content, name=name, label=picture.title)
        if len(svg) <= _LARGEST_SVG:
            return svg
        content = as_png(content)
    if isinstance(content, Markup):
        return content
    kind = next(kind for start, kind in _TYPES.items() if content.startswith(start))
    source = f"data:image/{kind};base64,{b64encode(content).decode()}"
    return Markup('<img alt="{}" src="{}">').format(escape(picture.title), source)
