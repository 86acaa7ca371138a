"""Which positions of a text a forward pass is of, while a model goes on with it: by counting."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pipeline.config.stages import Where


class Positions:
    """How many of the positions of the pass at hand are the prompt's.

    With a cache, a pass begins where the one before it ended; without one, each begins at the
    first position. Outside of a generation all positions are the prompt's.
    """

    def __init__(self) -> None:
        self._n_prompt: int | None = None
        self._start = self._seen = 0

    @contextmanager
    def counted(self, body: nn.Module, *, n_prompt: int) -> Generator[None]:
        """Within the block, the passes of `body` are those of one generation."""

        def before(_: object, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            ids = given.get("input_ids", args[0] if args else None)
            tokens = given["inputs_embeds"] if ids is None else ids
            told = (*args, *given.values())  # what names a cache changed with transformers 5
            cached = any(hasattr(one, "get_seq_length") for one in told)
            self._start = self._seen if cached else 0
            self._seen = self._start + tokens.shape[1]

        self._n_prompt, self._start, self._seen = n_prompt, 0, 0
        hook = body.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
            self._n_prompt = None

    def edited(self, where: Where, n: int) -> slice:
        """Of the `n` positions of the pass at hand, those to be edited."""
        if where == "all":
            return slice(0, n)
        of_prompt = n if self._n_prompt is None else self._n_prompt - self._start
        cut = min(max(of_prompt, 0), n)
        return slice(0, cut) if where == "prompt" else slice(cut, n)
