"""What every feature fires on: one pass over a store, each row encoded once.

Memory does not grow with the store: two shards, two blocks of latents, and the entries that are
kept (`Leaders`), about 300 bytes for each of a feature's contexts.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch
from jaxtyping import Float32
from torch import Tensor

from actstore.reader import ActStore
from pipeline.config import FeaturesConfig
from pipeline.features.contexts import Contexts, contexts_of
from pipeline.features.found import Found, Scan
from pipeline.splicing import Coder
from pipeline.stream import as_tensor

BLOCK = {"cpu": 2**22}
"""Latents in memory at once, as many as whole contexts give, and at least one context."""
GPU_BLOCK = 2**25


@torch.inference_mode()
def scan(
    config: FeaturesConfig,
    store: ActStore,
    site: str,
    coder: Coder,
    *,
    on_tokens: Callable[[int], None] | None = None,
) -> Scan:
    """Read the store's first contexts, as many as `config.tokens` needs, and encode them in fp32.

    Args:
        config: How much is read, and how much kept.
        store: With a site of the coder's width.
        site: That one.
        coder: On its device.
        on_tokens: Told the number of tokens done.

    Raises:
        StoreError: bytes of the store were altered.
        DataError: an activation of a feature is not finite.
    """
    ctx_len, device = store.spec.ctx_len, coder.W_dec.device
    wanted = store.n_rows if config.tokens is None else config.tokens
    n_contexts = min(store.n_contexts, -(-wanted // ctx_len))
    per_block = max(1, BLOCK.get(device.type, GPU_BLOCK) // (ctx_len * coder.d_sae))
    found = Found(config, d_sae=coder.d_sae, ctx_len=ctx_len)
    with (
        ThreadPoolExecutor(1, "saepipe-keep") as keeper,  # one block is kept, the next encoded
        closing(contexts_of(store, site, n_contexts=n_contexts)) as shards,
    ):
        kept = keeper.submit(int)
        for contexts in shards:
            for start in range(0, len(contexts), per_block):
                block = slice(start, start + per_block)
                x = _activations(contexts, block, device)
                z = coder.encode(x).unflatten(0, (-1, ctx_len))
                kept.result()
                if on_tokens is not None:
                    on_tokens(found.n_tokens)
                tokens = contexts.tokens[block]
                kept = keeper.submit(found.add, z, tokens, first=contexts.first + start)
        kept.result()
    if on_tokens is not None:
        on_tokens(found.n_tokens)
    return found.result()


def _activations(
    contexts: Contexts, block: slice, device: torch.device
) -> Float32[Tensor, "rows d_in"]:
    """Activations of some contexts, one token after another."""
    rows = contexts.acts[contexts.rows[block].reshape(-1)]
    return as_tensor(rows).to(device).float()
