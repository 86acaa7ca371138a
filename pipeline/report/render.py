"""From what stands in a page to its bytes: one file that asks nobody for anything.

A page has a head, and parts that follow each other. A kind of run brings its own: an `Exhibit`, its
part, a template and a script.
"""

import json
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from pipeline.features.feature import BEFORE
from pipeline.report.tables import number
from pipeline.runs.folder import Provenance, RunFolder
from pipeline.runs.names import typed
from pipeline.text.token_text import visible


class Part(ABC):
    """Plain values, for the template that shows them."""

    template: ClassVar[str]
    """The file that shows it, `PACKAGE/FILE`; without a package it is one of this room's."""
    scripts: ClassVar[Sequence[str]] = ()
    """The files that bring it to life, in their order, named alike."""

    @property
    @abstractmethod
    def sections(self) -> Mapping[str, str]:
        """What the reader can go to: id, and name in the bar."""

    @property
    def data(self) -> Mapping[str, object]:
        """For the scripts, as `json.dumps` takes it."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the few numbers in front."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Exhibit(ABC):
    """One run that a page is about, with what lies in its folder."""

    noun: ClassVar[str]
    """What such a run is, in a word or two: `connector`."""
    title: ClassVar[str]
    """What sort of page one about such runs is."""

    name: str
    """The end of its path that tells it from the others."""
    path: Path
    run: RunFolder

    @property
    def provenance(self) -> Provenance:
        """The activations that it was trained on."""
        return self.run.provenance

    @property
    def command(self) -> str:
        """What finds its features."""
        return f"saepipe features {typed(self.path)}"

    @property
    @abstractmethod
    def headline(self) -> str:
        """The title of a page about it alone."""

    @property
    @abstractmethod
    def tiles(self) -> Sequence[Tile]:
        """The few numbers in front of that page; none where there are none."""

    @classmethod
    @abstractmethod
    def gather(cls, path: Path, name: str, *, n_features: int) -> "Exhibit":
        """What is known of the run in a folder."""

    @staticmethod
    @abstractmethod
    def part(exhibits: Sequence[Any]) -> Part:
        """The part about several of its kind."""


@dataclass(frozen=True, kw_only=True)
class PageView:
    """The page."""

    kind: str
    """What sort of page it is, above the title."""
    title: str
    lead: str
    tiles: Sequence[Tile] = ()
    parts: Sequence[Part]

    @property
    def data(self) -> dict[str, object]:
        """For the scripts: that of all parts, and how many tokens stand before an example's."""
        return {"before": BEFORE} | {k: v for part in self.parts for k, v in part.data.items()}

    @property
    def scripts(self) -> list[str]:
        """Those of all parts, each once."""
        return list(dict.fromkeys(["base.js", *(s for part in self.parts for s in part.scripts)]))

    @property
    def sections(self) -> list[tuple[str, str]]:
        """Those of all parts."""
        return [section for part in self.parts for section in part.sections.items()]


_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def render(view: PageView) -> bytes:
    """The page in UTF-8: the same for the same view.

    Whatever the templates print is made visible, then escaped: texts come from data sets. The
    policy lets nothing run but this page's own script, and nothing leave or enter the page.
    """
    style, script = _own("page.css"), _script(view.scripts)
    policy = "; ".join([
        "default-src 'none'", f"script-src '{_hash(script)}'", f"style-src '{_hash(style)}'",
        "img-src data:", "base-uri 'none'", "form-action 'none'",
    ])  # fmt: skip
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, loader=FunctionLoader(_own),
    )  # fmt: skip
    environment.filters["number"] = number
    page = environment.get_template("page.html").render(
        view=view, policy=policy, style=Markup(style), script=Markup(script),
        data=embedded_json(view.data),
    )  # fmt: skip
    return page.encode()


def embedded_json(value: object) -> Markup:
    """JSON that can stand inside of `<script>`: pure ASCII without `<`, `>` and `&`."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_ESCAPES))


def _shown(value: object) -> object:
    """What a template prints for a value: our own markup as it is, texts made visible."""
    return value if isinstance(value, Markup) else visible(str(value))


def _script(names: Sequence[str]) -> str:
    """These files as one script whose names nobody else sees."""
    return '"use strict";\n(() => {\n' + "\n".join(map(_own, names)) + "})();\n"


def _own(name: str) -> str:
    """A template, style sheet or script: of this room, or of the package before the slash."""
    package, _, file = name.rpartition("/")
    folder = "scripts" if file.endswith(".js") else "templates"
    home = files(package) if package else files("pipeline.report") / folder
    return home.joinpath(file).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """By which a Content-Security-Policy knows a script or a style sheet."""
    return f"sha256-{b64encode(sha256(content.encode()).digest()).decode()}"
