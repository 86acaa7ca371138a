"""What commands in several files share: an argument, an option, and where their results go."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

if TYPE_CHECKING:  # it brings rich, and --help must not wait for that
    from pipeline.terminal.screen import Screen

JsonOut = Annotated[
    str | None, Option("--json", help="Write the result as JSON there; - is stdout.")
]
Store = Annotated[Path, Argument(help="NAME.actstore.")]


def screen_of(json: str | None = None) -> "Screen":
    """Where results go; made inside of commands, since it brings rich."""
    from pipeline.terminal.screen import Screen

    return Screen(json=json)
