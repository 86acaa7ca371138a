"""A model that was replaced or moved since, under the name that a store or a run knows it by."""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.fingerprints import scheme_of
from pipeline.lm.hub import ModelFiles
from pipeline.runs.folder import Provenance


def fingerprint_at_hand(model: str, revision: str) -> str:
    """Of the model that this name leads to from here; empty where none is, or none is read."""
    if not model:
        return ""
    with suppress(ModelError, OSError):
        return ModelFiles(model, revision or "main").fingerprint()
    return ""


def is_another(was: str, now: str) -> bool:
    """Whether two fingerprints are known, and of different weights or texts.

    Those of two schemes are not compared.
    """
    return "" not in (was, now) and scheme_of(was) == scheme_of(now) and was != now


def has_weights_of(files: ModelFiles, harvested: Provenance) -> bool | None:
    """Whether a model is the one that a store is of, whatever its name; None if that is unknown."""
    was = harvested.model_fingerprint
    with suppress(ModelError, OSError):
        return files.fingerprint_like(was) == was if was else None
    return None


def replaced_note(harvested: Provenance, files: ModelFiles) -> tuple[str, ...]:
    """That a model of its name is not the one a store is of; or nothing."""
    if files.name != harvested.model or has_weights_of(files, harvested) is not False:
        return ()
    return (f"the weights of {files.name} have changed since its store was harvested",)


@contextmanager
def moving_told(run: Path, *, named: str | None) -> Generator[None]:
    """Where a run's own model, not one that was `named`, cannot be used: say how to name it.

    Raises:
        ModelError: it cannot.
    """
    try:
        yield
    except ModelError as error:
        if named is not None:
            raise
        raise ModelError(
            f"{error}: it is the one that {run.name} was trained on; if it was moved, name it "
            "with --model"
        ) from error
