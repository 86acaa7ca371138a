"""SAELens' training on rows of a file, in an environment that has it.

    PYTHON peer_train_saelens.py ROWS.npy ARCH F BATCH STEPS [--l1 0.5,1,2,4 | --k 16,32,64,128]

ARCH: relu-april (its `standard`: penalty weighted by decoder norms, rows of any norm), topk,
batchtopk; it has no unit-norm ReLU. The rest of the configuration is SAELens' default: Adam,
gradients clipped to norm 1, AuxK with coefficient 1, TopK on activations times decoder norms.

Its `SAETrainer` is given batches of the file: no language model, no store.
"""

import os

import torch
from peer_train_common import Feed, Weights, agrees, arguments, report, swept

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled")
ARCHS = ("relu-april", "topk", "batchtopk")


def config_of(args, value: float, width: int):
    """The SAE's configuration."""
    import sae_lens

    common = {"d_in": width, "d_sae": args.d_sae, "device": "cpu"}
    match args.arch:
        case "relu-april":
            return sae_lens.StandardTrainingSAEConfig(
                l1_coefficient=value, l1_warm_up_steps=args.l1_warmup, **common
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
        "b_enc": sae.b_enc * norm,
        "W_dec": (sae.W_dec.T / norm).T,
        "b_dec": sae.b_dec,
    }
    if hasattr(sae, "topk_threshold"):
        weights["threshold"] = sae.topk_threshold
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
        rate, weights = feed.rate(args.steps), weights_of(sae)
        report(feed, args, value, weights, rate)
        k = None if args.arch == "relu-april" else int(value)
        x = next(iter(feed))
        with torch.no_grad():
            agrees(weights, sae(x), x, args.arch, k)


def main() -> None:
    args = arguments(__doc__, ARCHS).parse_args()
    torch.set_num_threads(args.threads)
    train_rows(args)


if __name__ == "__main__":
    main()
