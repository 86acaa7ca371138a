"""SAEBench's core evaluation of a run, beside `saepipe eval` of the same tokens.

    PYTHON tests/interop/saebench_core.py RUN TOKENS.npy MODEL

runs in an environment of its own, which has sae-bench and saepipe (`saebench.sh` makes it). MODEL
is a folder with a GPT-NeoX model; TOKENS are contexts of it. It prints one line of JSON.
"""

import json
import os
import sys
import warnings

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled")
warnings.simplefilter("ignore")


def main() -> None:
    run, tokens_at, model_at = sys.argv[1:]
    import numpy as np
    import torch
    from datasets import Dataset
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import calculate_misc_metrics, run_evals
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
    from sae_lens.training.activations_store import ActivationsStore

    from pipeline.exchange.saebench import saebench
    from tests.bench.peer_eval_saelens import make_model

    tokens, batch = np.load(tokens_at), 8
    n_batches = len(tokens) // batch
    sae = saebench(run, device="cpu")
    _, sae, _ = load_and_format_sae("saepipe", sae, "cpu")
    sae = sae.to(device="cpu", dtype=torch.float32)
    model = make_model("HookedTransformer", model_at, sae.cfg.hook_name)
    store = ActivationsStore.from_sae(
        model, sae, Dataset.from_dict({"input_ids": tokens.tolist()}), streaming=False,
        context_size=tokens.shape[1], store_batch_size_prompts=batch, total_tokens=len(tokens),
    )  # fmt: skip
    config = CoreEvalConfig(
        batch_size_prompts=batch, n_eval_reconstruction_batches=n_batches,
        n_eval_sparsity_variance_batches=n_batches, compute_kl=True, compute_ce_loss=True,
        compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
    )  # fmt: skip
    metrics, features = run_evals(sae, store, model, config)
    found = {name: value for group in metrics.values() for name, value in group.items()}
    found |= calculate_misc_metrics(features)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
