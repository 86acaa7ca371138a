"""What commands in several files share: an argument, an option, and where their results go."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from pipeline.config.stages import Device, Precision

if TYPE_CHECKING:  # it brings rich, and --help must not wait for that
    from pipeline.terminal.screen import Screen

JsonOut = Annotated[
    str | None, Option("--json", help="Write the result as JSON there; - is stdout.")
]
Store = Annotated[Path, Argument(help="NAME.actstore.")]

ConfigFile = Annotated[Path | None, Option("--config", help="TOML file with further settings.")]
InPrecision = Annotated[Precision, Option(help="Numbers that the model computes in.")]
AnotherModel = Annotated[
    str | None, Option(help="Another model to splice into; default: the run's.")
]
OnDevice = Annotated[Device, Option(help="auto takes cuda, else mps, else cpu.")]
ContextLength = Annotated[int, Option(help="Tokens of a context.")]
TextColumn = Annotated[str, Option(help="Column that holds the text.")]
SpelledChats = Annotated[
    bool, Option("--chat-template", help="The column holds conversations: spell them so.")
]
TrustCode = Annotated[
    bool, Option("--trust-remote-code", help="Run the code that the model brings.")
]


def screen_of(json: str | None = None) -> "Screen":
    """Where results go; made inside of commands, since it brings rich."""
    from pipeline.terminal.screen import Screen

    return Screen(json=json)
