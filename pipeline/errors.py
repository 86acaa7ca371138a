"""What the user can get wrong, or run into."""


class PipelineError(Exception):
    """The parent of every error here: its message is one line a user can act on."""


class ConfigError(PipelineError):
    """A setting is impossible, alone or together with another."""


class ModelError(PipelineError):
    """A language model cannot be found, reached, loaded, or is of an unknown family."""


class TextError(PipelineError):
    """A text source cannot be found, reached or read, or holds no text."""


class DataError(PipelineError):
    """What a model produced cannot be used: activations that are not finite."""


class CheckpointError(PipelineError):
    """A run directory is missing, unfinished or damaged."""
