"""dictionary_learning's `trainSAE` on rows of a file, in an environment that has it.

    PYTHON peer_train_dictionary_learning.py ROWS.npy ARCH F BATCH STEPS [--l1 ... | --k ...]

ARCH: relu (StandardTrainer), relu-april (StandardTrainerAprilUpdate), gated, jumprelu (--l1 is the
L0 it aims at), topk, batchtopk. Several
values are its own sweep: trainers that take turns on each batch (`--apart`: one after another, each
from the file's first batch). What is not an option here is its default.
"""

import os

import torch
from peer_train_common import Feed, Weights, arguments, each, penalised, report, swept

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled")
ARCHS = ("relu", "relu-april", "gated", "jumprelu", "topk", "batchtopk")


def config_of(args, value: float, width: int) -> dict[str, object]:
    """The trainer's configuration; it wants no length of zero."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainers = {
        "relu": StandardTrainer,
        "relu-april": StandardTrainerAprilUpdate,
        "gated": GatedSAETrainer,
        "jumprelu": JumpReluTrainer,
        "topk": TopKTrainer,
        "batchtopk": BatchTopKTrainer,
    }
    config: dict[str, object] = {
        "trainer": trainers[args.arch], "steps": args.steps, "activation_dim": width,
        "dict_size": args.d_sae, "layer": 0, "lm_name": "none", "device": "cpu", "lr": args.lr,
        "warmup_steps": args.warmup, "seed": args.seed,
        "decay_start": args.steps - args.decay if args.decay else None,
    }  # fmt: skip
    if args.arch == "jumprelu":
        return config | {"target_l0": value, "sparsity_warmup_steps": args.l1_warmup or None}
    if penalised(args.arch):
        return config | {"l1_penalty": value, "sparsity_warmup_steps": args.l1_warmup or None}
    # its threshold starts to be measured at step 1000: later than a short run lasts
    return config | {"k": int(value), "threshold_start_step": min(1000, args.steps // 2)}


def weights_of(ae) -> Weights:
    """In our names: its linear layers hold transposes."""
    if type(ae).__name__ == "GatedAutoEncoder":
        return {
            "W_enc": ae.encoder.weight.detach().T,
            "b_enc": torch.zeros(len(ae.r_mag)),
            "W_dec": ae.decoder.weight.detach().T,
            "b_dec": ae.decoder_bias.detach(),
            "b_gate": ae.gate_bias.detach(),
            "r_mag": ae.r_mag.detach(),
            "b_mag": ae.mag_bias.detach(),
        }
    if type(ae).__name__ == "JumpReluAutoEncoder":  # it does not centre its input
        return {
            "W_enc": ae.W_enc.detach(),
            "b_enc": (ae.b_enc + ae.b_dec @ ae.W_enc).detach(),
            "W_dec": ae.W_dec.detach(),
            "b_dec": ae.b_dec.detach(),
            "threshold": ae.threshold.detach(),
        }
    weights = {
        "W_enc": ae.encoder.weight.T,
        "b_enc": ae.encoder.bias,
        "W_dec": ae.decoder.weight.T,
        "b_dec": ae.bias if hasattr(ae, "bias") else ae.b_dec,
    }
    if type(ae).__name__ == "BatchTopKSAE":
        weights["threshold"] = ae.threshold
    return {name: tensor.detach() for name, tensor in weights.items()}


def train(args, feed: Feed, values: list[float]) -> None:
    """These values at once; `trainSAE` keeps its trainers to itself, so they are caught here."""
    from dictionary_learning.training import trainSAE

    made = []

    def catching(trainer, **settings):
        made.append(trainer(**settings))
        return made[-1]

    configs = [config_of(args, value, feed.width) for value in values]
    for config in configs:
        config["trainer"] = lambda trainer=config["trainer"], **s: catching(trainer, **s)
    trainSAE(feed, configs, args.steps, device="cpu", save_dir=None)
    rate = feed.rate(args.steps) * len(values)
    for value, trainer in zip(values, made, strict=True):
        weights, batchless = weights_of(trainer.ae), args.arch == "batchtopk"
        report(feed, args, value, weights, rate, trainer.ae, batchless=batchless)


def main() -> None:
    parser = arguments(__doc__, ARCHS)
    parser.add_argument("--apart", action="store_true", help="One value after another.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    feed, values = Feed(args), swept(args)
    for one in each(args):
        for group in [[value] for value in values] if args.apart else [values]:
            train(one, feed, group)


if __name__ == "__main__":
    main()
