"""SAELens' training on rows of a file, or from its own cache, in an environment that has it.

    PYTHON peer_train_saelens.py ROWS.npy ARCH F BATCH STEPS [--l1 0.5,1,2,4 | --k 16,32,64,128]
    PYTHON peer_train_saelens.py CACHE    ARCH F BATCH STEPS --model MODEL --tokens FOLDER

ARCH: relu-april (its `standard`: penalty weighted by decoder norms, rows of any norm), gated,
jumprelu (--l1 is its penalty on L0), topk, batchtopk; it has no unit-norm ReLU. The rest of the
configuration is SAELens' default: Adam, gradients clipped to norm 1, AuxK with coefficient 1, TopK
on activations times decoder norms.

The first form is its `SAETrainer` on batches of the file: no language model, no store. The second
is what its users run: `LanguageModelSAETrainingRunner` on a cache that `peer_saelens.py harvest`
wrote (MODEL and FOLDER are those of that harvest), once per value, in the one process.
"""

import json
import os
import time

import torch
from peer_train_common import Feed, Weights, arguments, each, report, seconds, swept

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled")
ARCHS = ("relu-april", "gated", "jumprelu", "topk", "batchtopk")
CTX_LEN, SITE = 128, "gpt_neox.layers.1.mlp"


def config_of(args, value: float, width: int):
    """The SAE's configuration."""
    import sae_lens

    common = {"d_in": width, "d_sae": args.d_sae, "device": "cpu"}
    match args.arch:
        case "relu-april":
            return sae_lens.StandardTrainingSAEConfig(
                l1_coefficient=value, l1_warm_up_steps=args.l1_warmup, **common
            )
        case "gated":
            return sae_lens.GatedTrainingSAEConfig(
                l1_coefficient=value, l1_warm_up_steps=args.l1_warmup, **common
            )
        case "jumprelu":
            return sae_lens.JumpReLUTrainingSAEConfig(
                l0_coefficient=value, l0_warm_up_steps=args.l1_warmup, **common
            )
        case "topk":
            return sae_lens.TopKTrainingSAEConfig(k=int(value), **common)
        case _:
            return sae_lens.BatchTopKTrainingSAEConfig(k=int(value), **common)


def weights_of(sae) -> Weights:
    """In our names. Latents that were scaled by decoder norms have them folded in."""
    norm = sae.W_dec.norm(dim=-1) if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False) else 1
    weights = {
        "W_enc": sae.W_enc * norm,
        "b_enc": sae.b_enc * norm if hasattr(sae, "b_enc") else torch.zeros(sae.cfg.d_sae),
        "W_dec": (sae.W_dec.T / norm).T,
        "b_dec": sae.b_dec,
    }
    if hasattr(sae, "topk_threshold"):
        weights["threshold"] = sae.topk_threshold
    weights |= {
        name: getattr(sae, name)
        for name in ("threshold", "b_gate", "r_mag", "b_mag")
        if hasattr(sae, name)
    }
    if not sae.cfg.apply_b_dec_to_input:
        name = "b_enc" if hasattr(sae, "b_enc") else "b_gate"
        weights[name] = weights[name] + sae.b_dec @ sae.W_enc
    return {name: tensor.detach() for name, tensor in weights.items()}


def make_sae(args, value: float, width: int):
    from sae_lens.registry import get_sae_training_class

    torch.manual_seed(args.seed)
    config = config_of(args, value, width)
    return get_sae_training_class(config.architecture())[0](config)


def train_rows(args) -> None:
    """Its trainer, one value after another, each from the file's first batch."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    feed = Feed(args)
    for value in swept(args):
        config = SAETrainerConfig(
            total_training_samples=args.steps * args.batch, train_batch_size_samples=args.batch,
            lr=args.lr, lr_end=args.lr / 10, lr_warm_up_steps=args.warmup,
            lr_decay_steps=args.decay,
        )  # fmt: skip
        sae = make_sae(args, value, feed.width)
        SAETrainer(cfg=config, sae=sae, data_provider=iter(feed)).fit()
        report(feed, args, value, weights_of(sae), feed.rate(args.steps), sae)


def train_cache(args) -> None:
    """Its runner on its own cache; prints its seconds and the process's so far."""
    from datasets import load_from_disk
    from sae_lens import (
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
    )

    tokens = load_from_disk(args.tokens)
    width = int(load_from_disk(str(args.rows)).features[SITE].shape[-1])
    for value in swept(args):
        started = time.perf_counter()
        config = LanguageModelSAERunnerConfig(
            sae=config_of(args, value, width), model_name=args.model, hook_name=SITE,
            model_class_name="AutoModelForCausalLM", dataset_path=args.tokens, streaming=False,
            is_dataset_tokenized=True, context_size=CTX_LEN, prepend_bos=False,
            use_cached_activations=True, cached_activations_path=str(args.rows),
            training_tokens=args.steps * args.batch, train_batch_size_tokens=args.batch,
            store_batch_size_prompts=8, n_batches_in_buffer=64, device="cpu", seed=args.seed,
            lr=args.lr, lr_warm_up_steps=args.warmup, lr_decay_steps=args.decay,
            logger=LoggingConfig(log_to_wandb=False), checkpoint_path=None, output_path=None,
        )  # fmt: skip
        torch.manual_seed(args.seed)
        LanguageModelSAETrainingRunner(config, override_dataset=tokens).run()
        told = {"arch": args.arch, "value": value, "run_s": time.perf_counter() - started}
        told["seconds"] = seconds()
        print(json.dumps(told), flush=True)


def main() -> None:
    parser = arguments(__doc__, ARCHS)
    parser.add_argument("--model", help="With a cache: the language model's folder.")
    parser.add_argument("--tokens", help="With a cache: the tokenised dataset.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for one in each(args):
        (train_cache if args.rows.is_dir() else train_rows)(one)


if __name__ == "__main__":
    main()
