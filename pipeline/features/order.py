"""In which order features are looked at."""

from typing import Literal, assert_never, get_args

import numpy as np
from jaxtyping import Int64

from pipeline.errors import ConfigError
from pipeline.features.files import FeatureSet

Order = Literal["frequency", "max", "index", "random"]
ORDERS: tuple[Order, ...] = get_args(Order)


def ordered(features: FeatureSet, by: Order, *, seed: int = 0) -> Int64[np.ndarray, " n"]:
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


def parse_order(text: str) -> Order:
    """An order by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    for order in ORDERS:
        if text == order:
            return order
    raise ConfigError(f"features are sorted by {', '.join(ORDERS)}, got {text!r}")
