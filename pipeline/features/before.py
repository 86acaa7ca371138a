"""What features of a fine-tuned SAE did before: at the same tokens, in the SAE as it was."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64

from actstore.reader import ActStore
from pipeline.features.feature import Examples
from pipeline.features.files import FeatureSet
from pipeline.finetune.meaning import Moved
from pipeline.finetune.run import FinetunedRun, is_finetuned
from pipeline.sae.sae import SAE


@dataclass(frozen=True, kw_only=True, eq=False)
class Before:
    """One feature."""

    c: float
    """The scale that was learned."""
    d: float
    """And the bias."""
    moved: Moved | None
    """What its change does, if it is among those that were looked at when the run was made."""
    top: Float32[np.ndarray, " n"]
    """Its activation without them, at the token of each of its top contexts."""
    spread: Float32[np.ndarray, " m"]
    """And of each of those drawn at random."""


def before_tuning(features: FeatureSet, indices: Sequence[int]) -> dict[int, Before]:
    """Of some features of a fine-tuned run; nothing of other runs.

    Raises:
        ConfigError: the store that the features were found in is not to be found.
        StoreError: it is damaged.
        CheckpointError: a file of the run is damaged.
    """
    if not indices or not is_finetuned(features.run):
        return {}
    run = FinetunedRun.open(features.run)
    tuned, meaning, store = run.sae, run.meaning(), features.open_store()
    known = {} if meaning is None else meaning.features
    found: dict[int, Before] = {}
    for index in indices:
        feature = features.feature(index)
        top, spread = (
            _activations(store, features.facts.site, tuned.sae, index, examples)
            for examples in (feature.top, feature.spread)
        )
        found[index] = Before(
            c=tuned.c[index].item(), d=tuned.d[index].item(), moved=known.get(index), top=top,
            spread=spread,
        )  # fmt: skip
    return found


@torch.no_grad()
def _activations(
    store: ActStore, site: str, sae: SAE, index: int, examples: Examples
) -> Float32[np.ndarray, " n"]:
    """Of one feature, at the token that each example is about."""
    if not len(examples):
        return np.empty(0, np.float32)
    rows = _rows(store, site, examples.context, examples.position)
    return sae.encode(rows)[:, index].numpy()


def _rows(
    store: ActStore, site: str, context: Int64[np.ndarray, " n"], position: Int32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n width"]:
    ids, place = np.unique(context, return_inverse=True)
    contexts = store.contexts(ids, sites=[site])
    picked = zip(place.tolist(), position.tolist(), strict=True)
    return np.stack([contexts[i].acts[site][at] for i, at in picked]).astype(np.float32)
