"""SAELens' side of harvest.py; runs in an environment of its own, which has sae-lens.

    prepare TOKENS_FOLDER N             a tokenised dataset of at least N random tokens
    harvest TOKENS_FOLDER MODEL N OUT   CacheActivationsRunner on layer 1's MLP, in float32

The runner writes whole buffers: the buffer is sized so that it writes N rows, no more.
"""

import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled")
CTX_LEN, WIDTH, BATCH = 128, 512, 8


def prepare(folder: str, n_tokens: str) -> None:
    """Random ids below 3072, as many contexts as are needed."""
    import numpy as np
    from datasets import Dataset

    shape = (int(n_tokens) // CTX_LEN + 64, CTX_LEN)
    ids = np.random.default_rng(0).integers(3072, size=shape)
    Dataset.from_dict({"input_ids": ids.tolist()}).save_to_disk(folder)


def harvest(folder: str, model: str, n_tokens: str, out: str) -> None:
    """One pass; as many rows as asked for must be there afterwards."""
    from datasets import load_from_disk
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    n = int(n_tokens)
    config = CacheActivationsRunnerConfig(
        dataset_path=folder, model_name=model, model_class_name="AutoModelForCausalLM",
        hook_name="gpt_neox.layers.1.mlp", d_in=WIDTH, context_size=CTX_LEN, training_tokens=n,
        model_batch_size=BATCH, new_cached_activations_path=out, shuffle=False, device="cpu",
        buffer_size_gb=n // 4 * WIDTH * 4 / 1e9, streaming=False, prepend_bos=False,
    )  # fmt: skip
    runner = CacheActivationsRunner(config, override_dataset=load_from_disk(folder))
    rows = len(runner.run()) * CTX_LEN
    if rows != n:
        raise SystemExit(f"asked for {n} rows, got {rows}")


if __name__ == "__main__":
    {"prepare": prepare, "harvest": harvest}[sys.argv[1]](*sys.argv[2:])
