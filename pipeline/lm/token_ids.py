"""What a model may be run on, and the token ids in it."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pipeline.errors import ConfigError

Text = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | np.ndarray | Tensor
"""One text or several of equally many tokens; as text, or as token ids."""


def is_texts(text: Text) -> bool:
    """Whether it is several texts, not token ids."""
    return isinstance(text, list | tuple) and bool(text) and all(isinstance(t, str) for t in text)


def id_lists(ids: object) -> list[np.ndarray]:
    """Token ids of each text."""
    if isinstance(ids, Tensor):
        ids = ids.cpu().numpy()
    try:
        if not isinstance(ids, list | tuple | np.ndarray):
            raise TypeError  # noqa: TRY301 - as the arrays do
        several = len(ids) > 0 and np.ndim(ids[0]) > 0
        found = [np.asarray(one) for one in (ids if several else [ids])]
    except (TypeError, ValueError):
        found = [np.zeros(())]
    if any(one.ndim != 1 or (one.size and one.dtype.kind not in "iu") for one in found):
        raise ConfigError(
            "the model runs on text, or on token ids as [position] or [batch, position], got "
            f"{type(ids).__name__} of something else"
        )
    return found
