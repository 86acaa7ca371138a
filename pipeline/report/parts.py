"""A page, whatever it is about: a head, and parts that follow each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable


@runtime_checkable
class Part(Protocol):
    """Plain values, for the template that shows them."""

    template: ClassVar[str]
    """The file beside `page.html` that shows it."""
    scripts: ClassVar[Sequence[str]]
    """The files beside it that bring it to life, in their order."""

    @property
    def sections(self) -> Mapping[str, str]:
        """What the reader can go to: id, and name in the bar."""
        ...


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the few numbers in front."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, kw_only=True)
class PageView:
    """The page."""

    kind: str
    """What sort of page it is, above the title."""
    title: str
    lead: str
    tiles: Sequence[Tile] = ()
    parts: Sequence[Part]
    data: Mapping[str, object] = field(default_factory=dict[str, object])
    """For the scripts."""

    @property
    def scripts(self) -> list[str]:
        """Those of all parts, each once."""
        return list(dict.fromkeys(["base.js", *(s for part in self.parts for s in part.scripts)]))

    @property
    def sections(self) -> list[tuple[str, str]]:
        """Those of all parts."""
        return [section for part in self.parts for section in part.sections.items()]
