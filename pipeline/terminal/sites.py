"""`saepipe sites MODEL`: what can be harvested of it, a line a kind of site or module."""

from collections.abc import Sequence
from typing import Annotated

from typer import Argument, Option

from pipeline.lm.listing import ListedSite, sites as list_sites
from pipeline.tables import Column, Table
from pipeline.terminal.arguments import JsonOut, TrustCode, screen_of


def sites(
    model: Annotated[str, Argument(help="Hub id, local folder, or builtin.")] = "builtin",
    revision: Annotated[str, Option(help="Branch, tag or commit.")] = "main",
    modules: Annotated[bool, Option("--modules", help="And modules by their paths.")] = False,
    trust_remote_code: TrustCode = False,
    json: JsonOut = None,
) -> None:
    """The sites of a model, their widths and other names, from its config.json alone."""
    screen = screen_of(json)
    found = list_sites(
        model, revision=revision, modules=modules, trust_remote_code=trust_remote_code
    )
    screen.draw(sites_table(model, found))
    screen.emit(found)


def sites_table(model: str, found: Sequence[ListedSite]) -> Table:
    """A line a kind of site, and a line a module."""
    kinds = [one for one in found if one.hook]
    heads = ("site", "width", *(("module", "TransformerLens") if kinds else ()))
    rows = [
        [one.site, f"{one.width:,}", one.module if one.hook else "", one.hook][: len(heads)]
        for one in found
    ]
    sections = [part for part in (rows[: len(kinds)], rows[len(kinds) :]) if part]
    columns = [Column(head=head, align="right" if head == "width" else "left") for head in heads]
    return Table(title=f"sites of {model}", columns=columns, sections=sections, ruled=False)
