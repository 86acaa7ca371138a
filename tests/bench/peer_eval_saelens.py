"""SAELens' side of eval.py; runs in an environment of its own, which has sae-lens.

    PYTHON peer_eval_saelens.py MODEL TOKENS.npy LAYER BATCH WEIGHTS.safetensors...

The model is a HookedTransformer, as is usual there. Everything is loaded once; then each line `N`
on stdin has the first N SAEs evaluated by `run_evals`, all metrics of all tokens, and is answered
by one line of JSON: seconds, and the metrics of each.
"""

import json
import os
import sys
import time
import warnings

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled")
warnings.simplefilter("ignore")


def make_model(path: str):
    """The local checkpoint; TransformerLens knows no way to load one by its path."""
    import transformers
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.loading_from_pretrained import convert_hf_model_config
    from transformer_lens.pretrained.weight_conversions import convert_neox_weights

    told = {"device": "cpu", "original_architecture": "HookedTransformer"}
    config = HookedTransformerConfig.from_dict(convert_hf_model_config(path) | told)
    model = HookedTransformer(config, transformers.AutoTokenizer.from_pretrained(path))
    theirs = transformers.GPTNeoXForCausalLM.from_pretrained(path)
    model.load_and_process_state_dict(
        convert_neox_weights(theirs, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()


def make_sae(path: str, hook: str, ctx_len: int):
    """A ReLU SAE of these weights."""
    import sae_lens
    from safetensors.torch import load_file

    weights = load_file(path)
    d_in, d_sae = weights["W_enc"].shape
    config = sae_lens.StandardSAEConfig(d_in=d_in, d_sae=d_sae, device="cpu")
    config.metadata.hook_name = hook
    config.metadata.context_size = ctx_len
    config.metadata.prepend_bos = False
    sae = sae_lens.StandardSAE(config)
    sae.load_state_dict(weights)
    return sae


def main() -> None:
    """Answer until stdin ends."""
    model_path, tokens_path, layer, batch_size, *saes_paths = sys.argv[1:]
    import numpy as np
    from datasets import Dataset
    from sae_lens import ActivationsStore
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    tokens = np.load(tokens_path)
    hook, batch = f"blocks.{layer}.hook_mlp_out", int(batch_size)
    model = make_model(model_path)
    saes = [make_sae(path, hook, tokens.shape[1]) for path in saes_paths]
    dataset = Dataset.from_dict({"input_ids": tokens.tolist()})
    n_batches = len(tokens) // batch
    config = get_eval_everything_config(batch, n_batches, n_batches)

    for line in sys.stdin:
        start = time.perf_counter()
        found = []
        for sae in saes[: int(line)]:
            store = ActivationsStore.from_sae(
                model, sae, dataset, context_size=tokens.shape[1], streaming=False,
                store_batch_size_prompts=batch, total_tokens=len(tokens),
            )  # fmt: skip
            metrics, features = run_evals(
                sae, store, model, ActivationScaler(), config, exclude_special_tokens=False
            )
            density = features["feature_density"]
            cosines = features["encoder_decoder_cosine_sim"]
            metrics["features"] = {
                "n_dead": sum(d == 0 for d in density),
                "encoder_decoder_cosine_median": float(np.median(cosines)),
            }
            found.append({k: v for group in metrics.values() for k, v in group.items()})
        print(json.dumps({"seconds": time.perf_counter() - start, "metrics": found}), flush=True)


if __name__ == "__main__":
    main()
