"""What the user can get wrong, or run into.

Messages are written as for the command line, `raise --tokens`; who calls a verb of Python hears of
its settings instead, and what both read, notes in reports, is written in those.
"""

import re

FLAGS = ("resume", "as_trained", "checkpointing", "private", "fold", "dry_run")
"""Settings whose options have no value."""
_OPTION = re.compile(r"saepipe [^;:)]*|(?<![^\s(])--(set (?:\S*[\w%])|[a-z][a-z0-9-]*)")


def in_settings(message: str) -> str:
    """A message about options with the settings that they are of; commands to type stay."""

    def setting(found: re.Match[str]) -> str:
        if (option := found[1]) is None:
            return found[0]
        name = option.removeprefix("set ") if " " in option else option.replace("-", "_")
        return f"`{name}=True`" if name in FLAGS else f"`{name}`"

    return _OPTION.sub(setting, message)


class PipelineError(Exception):
    """The parent of every error here: its message is one line a user can act on."""


class ConfigError(PipelineError):
    """A setting is impossible, alone or together with another."""


class NoSuchArchitectureError(ConfigError):
    """An architecture is of a package that is not installed, or of none.

    Attributes:
        kind: Its name.
    """

    def __init__(self, told: str, *, kind: str) -> None:
        super().__init__(told)
        self.kind = kind

    def of(self, path: object) -> "CheckpointError":
        """What it means to whoever opens an SAE of it, from the folder `path`."""
        return CheckpointError(
            f"{path} has the architecture {self.kind!r}, which nothing that is installed here "
            f"brings: install the package that it was trained with ({self})"
        )


class ModelError(PipelineError):
    """A language model cannot be found, reached, loaded, or is of an unknown family."""


class TextError(PipelineError):
    """A text source cannot be found, reached or read, or holds no text."""


class DataError(PipelineError):
    """What a model produced or a file holds cannot be used, as rows that are not finite."""


class HubError(PipelineError):
    """The hub cannot be reached, has no such repository, or refuses what it is asked for."""


class CheckpointError(PipelineError):
    """A run directory is missing, unfinished or damaged."""
