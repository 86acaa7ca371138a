"""Rows of activations in files of others, written as their own libraries write them."""

import json
from pathlib import Path

import numpy as np

N_CONTEXTS, CTX_LEN, WIDTH = 30, 8, 16
N_ROWS = N_CONTEXTS * CTX_LEN


def made_rows(*, n: int = N_ROWS, width: int = WIDTH, dtype: str = "float32", seed: int = 0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, width)) + 0.5).astype(dtype)


def made_tokens(*, n: int = N_ROWS, ctx_len: int = CTX_LEN, seed: int = 1):
    return np.random.default_rng(seed).integers(0, 500, (n // ctx_len, ctx_len), dtype=np.int32)


def bits_of(rows):
    """The upper half of float32: bfloat16, cut and not rounded."""
    return (rows.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def save_dataset(
    path: Path, rows, tokens=None, *, hook: str = "blocks.1.hook_mlp_out", files: int = 2
) -> Path:
    """What SAELens' CacheActivationsRunner makes: a context an entry, saved by `datasets`."""
    from datasets import Array2D, Dataset, Features, Sequence, Value

    contexts = rows.reshape(-1, CTX_LEN, rows.shape[1])
    kinds = {hook: Array2D(shape=contexts.shape[1:], dtype=str(rows.dtype))}
    columns = {hook: contexts}
    if tokens is not None:
        kinds["token_ids"] = Sequence(Value("int32"), length=CTX_LEN)
        columns["token_ids"] = tokens
    made = Dataset.from_dict(columns, features=Features(kinds))
    made.save_to_disk(path, num_shards=files)
    return path


def save_saev(path: Path, acts, *, per_shard: int, cls_token: bool = True) -> Path:
    """Shards as saev writes them: mapped at their full size, the last one not filled.

    Args:
        path: The folder.
        acts: `[examples, layers, tokens, width]`.
        per_shard: Examples of a file.
        cls_token: Whether the first token of an example is one.
    """
    path.mkdir()
    n, n_layers, n_tokens, width = acts.shape
    told = {
        "family": "clip", "ckpt": "hf-hub:org/vit", "layers": list(range(3, 3 + n_layers)),
        "content_tokens_per_example": n_tokens - cls_token, "cls_token": cls_token,
        "d_model": width, "n_examples": n, "max_tokens_per_shard": per_shard * n_layers * n_tokens,
        "data": "gASVnothing", "dataset": "/images", "pixel_agg": "majority", "dtype": "float32",
        "protocol": "2.1",
    }  # fmt: skip
    (path / "metadata.json").write_text(json.dumps(told))
    shards = []
    for number, start in enumerate(range(0, n, per_shard)):
        some = acts[start : start + per_shard]
        file = path / f"acts{number:06}.bin"
        shape = (per_shard, n_layers, n_tokens, width)
        mapped = np.memmap(file, mode="w+", dtype=np.float32, shape=shape)
        mapped[: len(some)] = some
        mapped.flush()
        shards.append({"name": file.name, "n_examples": len(some)})
    (path / "shards.json").write_text(json.dumps(shards))
    return path
