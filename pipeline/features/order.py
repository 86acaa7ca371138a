"""In which order features are looked at."""

from typing import assert_never

import numpy as np
from jaxtyping import Int64

from pipeline.config import FeatureOrder
from pipeline.features.files import FeatureSet


def ordered(features: FeatureSet, by: FeatureOrder, *, seed: int = 0) -> Int64[np.ndarray, " n"]:
    """All features: the most frequent first, the largest first, by number, or at random.

    Equals stand by number. The dead come last, but for `index`.
    """
    match by:
        case "frequency":
            return np.lexsort((features.index, -features.n_active))
        case "max":
            return np.lexsort((features.index, -features.max))
        case "index":
            return features.index
        case "random":
            shuffled = np.random.default_rng(seed).permutation(len(features))
            return shuffled[np.argsort(features.n_active[shuffled] == 0, kind="stable")]
        case _:
            assert_never(by)
