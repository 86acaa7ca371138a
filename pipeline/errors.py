"""What the user can get wrong, or run into."""


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
    """What a model produced cannot be used: activations that are not finite."""


class CheckpointError(PipelineError):
    """A run directory is missing, unfinished or damaged."""
