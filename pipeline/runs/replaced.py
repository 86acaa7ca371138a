"""A model that was replaced since, under the name that a store or a run knows it by."""

from contextlib import suppress

from pipeline.errors import ModelError
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
    """Whether two fingerprints are known, and of different weights or texts."""
    return "" not in (was, now) and was != now


def replaced_note(harvested: Provenance, model: str, fingerprint: str) -> tuple[str, ...]:
    """That the model of this name and fingerprint is not the one a store is of; or nothing."""
    if model != harvested.model or not is_another(harvested.model_fingerprint, fingerprint):
        return ()
    return (f"the weights of {model} have changed since its store was harvested",)
