"""Where an SAE is from that was imported: imported.json, beside the run.json of its run."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.serialization import from_json
from pipeline.errors import CheckpointError, ConfigError
from pipeline.lm.sites import Site

IMPORTED = "imported.json"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """imported.json."""

    format: int = 1
    saepipe: str
    source: str
    """A folder, a file, or a repository of the hub, as it was named."""
    library: str
    """Whose format it was found in."""
    checksum: str
    """Of the files it was read from."""
    hook: str = ""
    """The place it is from, in the words of who wrote it."""
    asked: tuple[str, ...] = ()
    """What was said of it that its files do not say: `site=mlp_out.3`."""
    notes: tuple[str, ...] = ()
    sha256: str
    """Of the weights as they are now."""


def imported(run: Path) -> Imported | None:
    """Where the SAE in a folder was imported from; None where it was not.

    Raises:
        CheckpointError: its file is damaged.
    """
    try:
        return from_json(Imported, json.loads((run / IMPORTED).read_bytes()), where=IMPORTED)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{run / IMPORTED} is damaged ({error}): put a copy back, or import it into another "
            "--out"
        ) from error


def origin_of(told: Imported) -> str:
    """Where one was imported from, in words."""
    return f"imported from {told.source}, of {told.library}"


def site_named(name: str, run: Path) -> Site:
    """The site of a run in a language model, by its name.

    Raises:
        ConfigError: there is none, or it is none of a model.
    """
    return Site.parse(require_site(name, run))


def require_site(name: str, run: Path) -> str:
    """The name of a run's site, whatever its store calls it.

    Raises:
        ConfigError: there is none, as of an SAE that was imported and did not say it.
    """
    if name:
        return name
    told = imported(run)
    hook = f" (it was at {told.hook!r})" if told and told.hook else ""
    source = told.source if told else "SOURCE"
    raise ConfigError(
        f"{run} does not say at which site it belongs{hook}: say it with saepipe import {source} "
        "--site KIND.LAYER --out OTHER, and name OTHER in its place"
    )
