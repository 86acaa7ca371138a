"""Memory that is taken once and used at every step."""

import torch
from torch import Tensor


class Scratch:
    """Large temporaries by name.

    Fresh memory of tens of megabytes costs more than what is written to it: the system zeroes every
    page of it at its first use.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(
        self, name: str, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Uninitialised memory of this shape; what an earlier `take` of the name gave is reused."""
        n = 1
        for size in shape:
            n *= size
        held = self._held.get(name)
        if held is None or held.numel() < n or held.dtype != dtype or held.device != device:
            held = torch.empty(n, dtype=dtype, device=device)
            self._held[name] = held
        return held[:n].view(shape)
