"""SAELens' side of rows.py, in an environment of its own: its reader, and its writer.

    python tests/interop/rows_saelens.py FOLDER

Of each FOLDER/DTYPE.npz it opens the cache FOLDER/DTYPE, which saepipe exported, holds what its
ActivationsStore gives to the arrays, and has its CacheActivationsRunner write FOLDER/DTYPE.theirs.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Array2D, Features, Sequence, Value
from sae_lens.cache_activations_runner import CacheActivationsRunner
from sae_lens.training.activations_store import ActivationsStore

HOOK, BATCH = "blocks.1.hook_mlp_out", 5


def read(cache: Path, acts: np.ndarray, tokens: np.ndarray) -> None:
    """Hold the cache to these rows of contexts."""
    n, ctx_len, width = acts.shape
    store = ActivationsStore(
        model=None, dataset=None, streaming=False, hook_name=HOOK, hook_head_index=None,
        context_size=ctx_len, d_in=width, n_batches_in_buffer=2, total_training_tokens=n * ctx_len,
        store_batch_size_prompts=BATCH, train_batch_size_tokens=BATCH, prepend_bos=False,
        normalize_activations="none", device=torch.device("cpu"), dtype=str(acts.dtype),
        cached_activations_path=str(cache),
    )  # fmt: skip
    for start in range(0, n, BATCH):
        found, ids = store.get_raw_llm_batch()
        expected = acts[start : start + BATCH].reshape(-1, width)
        np.testing.assert_array_equal(found.numpy(), expected)
        np.testing.assert_array_equal(ids.numpy(), tokens[start : start + BATCH].reshape(-1))


def write(folder: Path, acts: np.ndarray, tokens: np.ndarray) -> None:
    """Cache these rows as its runner does, in two buffers; the model alone is left out."""
    n, ctx_len, width = acts.shape
    runner = CacheActivationsRunner.__new__(CacheActivationsRunner)
    runner.context_size = ctx_len
    runner.cfg = SimpleNamespace(hook_name=HOOK, n_seq_in_buffer=n // 2, d_in=width)
    runner.features = Features({
        HOOK: Array2D(shape=(ctx_len, width), dtype=str(acts.dtype)),
        "token_ids": Sequence(Value(dtype="int32"), length=ctx_len),
    })  # fmt: skip
    parts, folder_of_parts = np.split(np.arange(n), 2), folder / ".tmp_shards"
    folder_of_parts.mkdir(parents=True)
    for i, part in enumerate(parts):
        rows = torch.from_numpy(acts[part].reshape(-1, width))
        ids = torch.from_numpy(tokens[part].reshape(-1))
        shard = runner._create_shard((rows, ids))
        shard.save_to_disk(str(folder_of_parts / f"shard_{i:05d}"), num_shards=1)
    runner._consolidate_shards(folder_of_parts, folder, copy_files=False)


def main() -> None:
    folder = Path(sys.argv[1])
    for held in sorted(folder.glob("*.npz")):
        arrays, cache = np.load(held), folder / held.stem
        read(cache, arrays["acts"], arrays["tokens"])
        write(cache.with_suffix(".theirs"), arrays["acts"], arrays["tokens"])
        print(f"{held.stem}: SAELens reads what saepipe exported")


if __name__ == "__main__":
    main()
