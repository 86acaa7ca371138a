"""One shard, from the text to the host's memory."""

from collections.abc import Callable

from pipeline.forward import Forward
from pipeline.plan import HarvestPlan
from pipeline.shard_buffer import FilledShard, ShardBuffer
from pipeline.tokens import ContextStream

OnFilled = Callable[[int], None]
"""Told the contexts of the shard that went through the model so far."""


def fill_shard(
    plan: HarvestPlan,
    index: int,
    n_contexts: int,
    *,
    forward: Forward,
    stream: ContextStream,
    on_filled: OnFilled | None = None,
) -> FilledShard | None:
    """Compute shard `index` from the next `n_contexts` contexts of the text.

    Returns:
        The shard, shorter if the text ended inside it; None if the text had ended before.
    """
    buffer = ShardBuffer(plan, index=index, n_contexts=n_contexts, device=forward.device)
    while buffer.n_filled < n_contexts:
        wanted = min(forward.batch_size, n_contexts - buffer.n_filled)
        contexts = stream.take(wanted)
        for acts in forward(contexts.tokens):
            buffer.add(acts)
        buffer.note(contexts)
        if on_filled is not None:
            on_filled(buffer.n_filled)
        if len(contexts.tokens) < wanted:
            break
    return buffer.finish(cursor=stream.cursor) if buffer.n_filled else None
