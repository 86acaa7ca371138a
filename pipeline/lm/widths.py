"""Whether what others made can be of a site of a model, by its config.json alone. Torch-free."""

from collections.abc import Mapping

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.families import Shape
from pipeline.lm.hub import ModelFiles
from pipeline.lm.sites import Site


def held_to_model(
    model: str, widths: Mapping[Site, int], *, revision: str, told: bool, what: str
) -> str:
    """Hold widths to those of a model's sites; why that cannot be done, empty where it was.

    A model of the hub that is out of reach, or of a family that is not known, cannot be asked.

    Args:
        model: As it is named.
        widths: Of the rows that are to be of each site.
        revision: Of the model.
        told: Somebody has named the model now, and can name another: what is no model is refused.
        what: What messages say is so wide: `rows of acts.npy are`.

    Raises:
        ConfigError: it has no such site, or one of another width.
        ModelError: the name that was told is none of a model.
    """
    files = ModelFiles(model, revision)
    try:
        shape = Shape.of(files.config, name=model)
    except ModelError as error:
        if told and _is_none(files):
            raise
        return str(error)
    for site, width in widths.items():
        shape.check(site, name=model)
        if shape.width(site) != width:
            raise ConfigError(
                f"{what} {width} wide, and {site} of {model} is {shape.width(site)}: name the "
                "--model or --site that they are of"
            )
    return ""


def _is_none(files: ModelFiles) -> bool:
    """Whether the name is of a path, and no folder with a config.json is there."""
    try:
        return files.folder is not None and files.find("config.json") is None
    except ModelError:
        return True
