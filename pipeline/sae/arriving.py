"""Numbers that a GPU made, on their way to the host."""

from typing import Any, final

import torch
from torch import Tensor


@final
class Arriving:
    """The copy to the host of a tensor as it is now, which nothing waits for until it is read.

    Reading waits for the copy alone: what a GPU was given to do after it goes on meanwhile, so that
    it does not run out of work while the host prepares more. On a CPU it is the tensor itself.
    """

    def __init__(self, x: Tensor) -> None:
        self._host, self._arrived = x, None
        if x.device.type == "cuda":
            host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._host = host.copy_(x, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(x.device))

    def tolist(self) -> Any:  # noqa: ANN401 - as deep as the tensor
        """The numbers, as `Tensor.tolist` gives them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()
