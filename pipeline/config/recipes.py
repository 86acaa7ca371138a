"""Named trainings: settings that others published, a TOML file each, in the folder of that name.

A file's first comment says whose they are. It names every setting in which they differ from our
defaults, so that it means the same when those change, and leaves open what its source does.
"""

from collections.abc import Mapping
from importlib.resources import files

from pipeline.config.serialization import load_toml, meant
from pipeline.errors import ConfigError

PUBLISHED = files("pipeline.config") / "published"


def recipes() -> dict[str, str]:
    """What each recipe is, by its name."""
    found = sorted(PUBLISHED.iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        .partition("\n")[0]
        .removeprefix("# ")
        for file in found
    }


def recipe(name: str) -> Mapping[str, object]:
    """The settings of a recipe.

    Raises:
        ConfigError: there is none of this name.
    """
    known = recipes()
    if name not in known:
        hint = meant(name, known) or f": there are {', '.join(known)}"
        raise ConfigError(f"there is no recipe {name!r}{hint}")
    return load_toml(PUBLISHED / f"{name}.toml")
