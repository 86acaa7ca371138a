"""A fixed sample of a store's rows, for what need not look at all of them."""

from collections.abc import Generator
from contextlib import closing

import torch
from torch import Tensor

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.stream import as_tensor

SAMPLE_ROWS = 2**16
BLOCK_ROWS = 2**12


def sample_rows(
    store: ActStore,
    *,
    sites: tuple[str, ...],
    metadata: tuple[str, ...] = (),
    n_rows: int = SAMPLE_ROWS,
    seed: int = 0,
) -> Generator[dict[str, Tensor], None, None]:
    """Rows of the sites as float32, with their metadata, block by block.

    They come from chunks all over the store, the same for the same seed. A store that has no more
    than `n_rows` gives each of its rows once.

    Raises:
        StoreError: while iterating, if bytes of the store were altered.
    """
    n_rows = min(n_rows, store.n_rows)
    size = min(n_rows, BLOCK_ROWS)
    batches = Batches(
        store=store, sites=sites, batch_size=size, seed=seed, window_rows=n_rows, metadata=metadata
    )
    with closing(batches.start_at(0)) as stream:
        for start in range(0, n_rows, size):
            block = {name: values[: n_rows - start] for name, values in next(stream).items()}
            yield {
                name: as_tensor(values).float() if name in sites else torch.from_numpy(values)
                for name, values in block.items()
            }
