"""Whether what others made can be of a site of a model, by its config.json alone.

Torch-free where sites are of layers.
"""

from collections.abc import Mapping

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.asked import sites_asked
from pipeline.lm.hub import ModelFiles


def held_to_model(
    model: str, widths: Mapping[str, int], *, revision: str, told: bool, what: str
) -> str:
    """Hold widths to those of a model's sites; why that cannot be done, empty where it was.

    A model of the hub that is out of reach, or that brings code of its own, cannot be asked.

    Args:
        model: As it is named.
        widths: Of the rows that are to be of each site, by its name.
        revision: Of the model.
        told: Somebody has named the model now, and can name another: what is no model is refused.
        what: What messages say is so wide: `rows of acts.npy are`.

    Raises:
        ConfigError: it has no such site, or one of another width.
        ModelError: the name that was told is none of a model.
    """
    files = ModelFiles(model, revision)
    try:
        asked = sites_asked([*widths], files)
    except ModelError as error:
        if told and _is_none(files):
            raise
        return str(error)
    for width, (site, its) in zip(widths.values(), asked.widths.items(), strict=True):
        if its != width:
            raise ConfigError(
                f"{what} {width} wide, and {site} of {model} is {its}: name the --model or --site "
                "that they are of"
            )
    return ""


def _is_none(files: ModelFiles) -> bool:
    """Whether the name is of a path, and no folder with a config.json is there."""
    try:
        return files.folder is not None and files.find("config.json") is None
    except ModelError:
        return True
