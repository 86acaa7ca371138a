"""What a peer's loss and its gradients are, for given weights and rows, in float64.

    PYTHON peer_losses.py saelens|dictionary_learning|sparsify IN.npz OUT.npz

PYTHON is of the peer's environment. IN holds `x` [B, d]; W_enc [d, F], b_enc [F], W_dec [F, d]
(unit rows for all but relu-april and gated), b_dec [d]; `l1` and `k`; `aux_coefficient`; and, for
the cases that need them, b_gate, r_mag, b_mag; `threshold` [F] with `l0`, `bandwidth` and
`coefficient`; `widths` of nested prefixes, the last F. Every mask `dead...` [F] adds a case of the
TopK kinds with AuxK, `topk.dead...`.

OUT holds, by CASE/PART, the value of each part, and by CASE/PART/WEIGHT its gradient, in our names
and shapes: the peer's parameters are a differentiable function of our weights, through which its
gradients are pulled back. CASE/dead is the mask that AuxK went by. Parts are as the peer scales
them, coefficient included; `total` is what it calls backward on, before it projects or clips. With
B rows, e = x - x_hat, mean over rows, sums over coordinates, c and s the scales of AuxK:

    SAELens (sl)          recon                 penalty
    relu-april            mean ||e||^2          l1 mean sum_i z_i ||W_dec_i||
    gated                 mean ||e||^2          l1 mean sum_i gate_i ||W_dec_i||;
                                                aux: mean ||x - x_gate||^2, nothing frozen
    topk, batchtopk       mean ||e||^2          c s mean ||e - e_aux||^2, s = min(2 n_dead / d, 1)
    matryoshka            mean ||e||^2          as topk, of the whole dictionary;
                                                nested: sum of the other prefixes' mean ||e_g||^2
    jumprelu              mean ||e||^2          c mean L0

    dictionary_learning (dl)
    relu                  mean ||e||^2          l1 mean sum_i z_i
    relu-april            mean ||e||^2          l1 mean sum_i z_i ||W_dec_i||
    gated                 (recon_aux: both)     l1 mean sum_i gate_i;
                                                aux: mean ||x - x_gate||^2, W_dec, b_dec frozen
    topk, batchtopk       mean ||e||^2          c mean ||e - e_aux||^2 / mean ||e - mean e||^2
    matryoshka            G^-2 sum_g mean ||e_g||^2 (weights 1 / G, then a mean)   as topk
    jumprelu              mean ||e||^2          c (mean L0 / l0 - 1)^2

    sparsify (sp): topk   sum e^2 / V           c s sum (e - e_aux)^2 / V, V = sum (x - mean x)^2

What the formulas do not say:

- AuxK: k_aux = min(d // 2, n_dead), e taken as given. dictionary_learning takes what fired in this
  very batch out of the dead, and computes in float32. SAELens lets a dead latent's pre-activation
  count when it is negative; the others take relu(pre).
- sparsify's encoder drops the gradient of its pre-activations: AuxK trains W_dec alone.
- SAELens' TopK kinds rank pre ||W_dec_i|| and decode with unit rows: the same thing for unit rows,
  and the norm cancels from every gradient.
- jumprelu, with K the box of width e about the threshold t: dz/dt = -t/e K, dL0/dt = -1/e K, and
  the step tells W_enc nothing. dictionary_learning takes L0 of z, not of pre: what is below t is 0
  there, so only the upper half of the box counts (and every inactive latent whose t < e/2). Its
  encoder does not subtract b_dec; b_enc takes that up here, and the gradients are pulled back.
- The threshold is a plain parameter in both: its logarithm's gradient is `threshold` times this.
"""

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", SPARSIFY_DISABLE_TRITON="1")
Weights = Mapping[str, Tensor]
Parts = dict[str, Tensor]
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "b_gate", "r_mag", "b_mag", "threshold")


class Given:
    """What IN holds."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        self.x = torch.from_numpy(arrays["x"]).double()
        self.weights = {name: torch.from_numpy(arrays[name]).double() for name in NAMES}
        self.dead = {n: torch.from_numpy(a) for n, a in arrays.items() if n.startswith("dead")}
        self.numbers = {n: a.item() for n, a in arrays.items() if a.ndim == 0}
        self.widths = arrays["widths"].tolist()
        self.d_sae, self.d_in = self.weights["W_dec"].shape

    def masks(self, *, has_aux: bool) -> dict[str, Tensor | None]:
        """Suffixes of cases: no dead latents, then for AuxK every mask."""
        masks = self.dead if has_aux else {}
        return {"": None} | {f".{name}": mask for name, mask in masks.items()}


class Answers(dict[str, np.ndarray]):
    """What OUT will hold."""

    def add(
        self,
        case: str,
        given: Given,
        module: nn.Module,
        mapping: Callable[[Weights], dict[str, Tensor]],
        parts: Callable[[], Parts],
    ) -> None:
        """Parts of a peer's loss and their gradients, its parameters being such of our weights."""
        leaves = {name: w.clone().requires_grad_() for name, w in given.weights.items()}
        mapped = mapping(leaves)
        params = dict(module.named_parameters())
        mapped = {name: mapped[name] for name in params if name in mapped}
        if params.keys() != mapped.keys():
            raise SystemExit(f"{case} has parameters {sorted(params)}, mapped are {sorted(mapped)}")
        for name, param in params.items():
            param.data = mapped[name].detach().clone()
        for part, value in parts().items():
            self[f"{case}/{part}"] = value.detach().numpy()
            if value.grad_fn is None:  # a part that is not there is a constant zero
                continue
            grads = torch.autograd.grad(
                value, list(params.values()), retain_graph=True, materialize_grads=True
            )
            ours = torch.autograd.grad(
                list(mapped.values()), list(leaves.values()), list(grads),
                retain_graph=True, materialize_grads=True, allow_unused=True,
            )  # fmt: skip
            for name, grad in zip(leaves, ours, strict=True):
                self[f"{case}/{part}/{name}"] = grad.numpy()


def plain(*names: str) -> Callable[[Weights], dict[str, Tensor]]:
    """Parameters that bear our names and shapes."""
    return lambda w: {name: w[name] for name in names}


STANDARD = ("W_enc", "b_enc", "W_dec", "b_dec")
GATED = ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec")

# --- SAELens -------------------------------------------------------------------------------------


def saelens_cases(given: Given) -> dict[str, tuple[object, tuple[str, ...], bool]]:
    """By case: its configuration, its parameters, whether it has AuxK."""
    import sae_lens

    n = given.numbers
    base = {"d_in": given.d_in, "d_sae": given.d_sae, "dtype": "float64", "device": "cpu"}
    topk = base | {"k": int(n["k"]), "aux_loss_coefficient": n["aux_coefficient"]}
    relu = sae_lens.StandardTrainingSAEConfig(l1_coefficient=n["l1"], **base)
    gated = sae_lens.GatedTrainingSAEConfig(l1_coefficient=n["l1"], **base)
    jump = sae_lens.JumpReLUTrainingSAEConfig(
        jumprelu_sparsity_loss_mode="step",
        jumprelu_bandwidth=n["bandwidth"], l0_coefficient=n["coefficient"], **base,
    )  # fmt: skip
    nested = sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(matryoshka_widths=given.widths, **topk)
    return {
        "relu-april": (relu, STANDARD, False),
        "gated": (gated, GATED, False),
        "jumprelu": (jump, (*STANDARD, "threshold"), False),
        "topk": (sae_lens.TopKTrainingSAEConfig(**topk), STANDARD, True),
        "batchtopk": (sae_lens.BatchTopKTrainingSAEConfig(**topk), STANDARD, True),
        "matryoshka": (nested, STANDARD, True),
    }


def saelens_parts(sae, given: Given, dead: Tensor | None) -> Parts:
    """Its losses by our names."""
    from sae_lens.saes.sae import TrainStepInput

    coefficients = {name: c.value for name, c in sae.get_coefficients().items()}
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=given.x, coefficients=coefficients, dead_neuron_mask=dead,
            n_training_steps=0, is_logging_step=False,
        )
    )  # fmt: skip
    ours = {
        "mse_loss": "recon",
        "l1_loss": "sparsity",
        "l0_loss": "sparsity",
        "auxiliary_reconstruction_loss": "aux",
    }
    nested = [value for name, value in output.losses.items() if name.startswith("inner_mse")]
    parts = {ours[name]: value for name, value in output.losses.items() if name in ours}
    if nested:
        parts["nested"] = torch.stack(nested).sum()
    return parts | {"total": output.loss}


def saelens(given: Given, answers: Answers) -> None:
    from sae_lens.registry import get_sae_training_class

    for case, (config, names, has_aux) in saelens_cases(given).items():
        for suffix, dead in given.masks(has_aux=has_aux).items():
            sae = get_sae_training_class(config.architecture())[0](config)
            parts = partial(saelens_parts, sae, given, dead)
            answers.add(case + suffix, given, sae, plain(*names), parts)
            if dead is not None:
                answers[f"{case}{suffix}/dead"] = dead.numpy()


# --- dictionary_learning -------------------------------------------------------------------------


def linear(others: Mapping[str, str]) -> Callable[[Weights], dict[str, Tensor]]:
    """Of linear layers, whose weights are transposes, and others by our names."""
    return lambda w: {
        "encoder.weight": w["W_enc"].T,
        "decoder.weight": w["W_dec"].T,
        **{theirs: w[ours] for theirs, ours in others.items()},
    }


def uncentred(w: Weights) -> dict[str, Tensor]:
    """Of an encoder that does not subtract `b_dec`."""
    weights = {name: w[name] for name in (*STANDARD, "threshold")}
    return weights | {"b_enc": w["b_enc"] - w["b_dec"] @ w["W_enc"]}


def dictionary_learning_cases(given: Given) -> dict[str, tuple[object, ...]]:
    """By case: its trainer, settings, the attribute that scales its penalty, its parameters."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
    from dictionary_learning.trainers.top_k import TopKTrainer

    n = given.numbers
    l1 = {"l1_penalty": n["l1"], "sparsity_warmup_steps": None}
    topk = {"k": int(n["k"]), "auxk_alpha": n["aux_coefficient"]}
    jump = {
        "bandwidth": n["bandwidth"], "target_l0": n["l0"], "sparsity_penalty": n["coefficient"],
        "sparsity_warmup_steps": None,
    }  # fmt: skip
    sizes = np.diff([0, *given.widths])
    nested = topk | {"group_fractions": (sizes / given.d_sae).tolist()}
    of_relu = linear({"encoder.bias": "b_enc", "bias": "b_dec"})
    of_topk = linear({"encoder.bias": "b_enc", "b_dec": "b_dec"})
    of_gated = linear(
        {"decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
    )
    return {
        "relu": (StandardTrainer, l1, "l1_penalty", of_relu),
        "relu-april": (StandardTrainerAprilUpdate, l1, "l1_penalty", of_relu),
        "gated": (GatedSAETrainer, l1, "l1_penalty", of_gated),
        "jumprelu": (JumpReluTrainer, jump, "sparsity_coefficient", uncentred),
        "topk": (TopKTrainer, topk, "auxk_alpha", of_topk),
        "batchtopk": (BatchTopKTrainer, topk, "auxk_alpha", of_topk),
        "matryoshka": (MatryoshkaBatchTopKTrainer, nested, "auxk_alpha", plain(*STANDARD)),
    }


def set_dead(trainer, dead: Tensor | None) -> None:
    """Silent for as long as makes them dead; without a mask none is."""
    if dead is not None:
        never = trainer.dead_feature_threshold
        trainer.num_tokens_since_fired = torch.where(dead, never, 0)


def dictionary_learning(given: Given, answers: Answers) -> None:
    """Its loss is one number, linear in the penalty's coefficient: the parts are differences."""
    for case, (make, settings, scale, mapping) in dictionary_learning_cases(given).items():
        trainer = make(
            steps=10, activation_dim=given.d_in, dict_size=given.d_sae, layer=0, lm_name="none",
            warmup_steps=0, device="cpu", **settings,
        )  # fmt: skip
        trainer.ae.double()
        coefficient = getattr(trainer, scale)
        for suffix, dead in given.masks(has_aux=scale == "auxk_alpha").items():

            def parts(trainer=trainer, dead=dead, scale=scale, case=case, c=coefficient) -> Parts:
                found = []
                for value in (c, 0.0):
                    setattr(trainer, scale, value)
                    set_dead(trainer, dead)
                    found.append(trainer.loss(given.x, step=0))
                setattr(trainer, scale, c)
                penalty = "aux" if scale == "auxk_alpha" else "sparsity"
                rest = "recon_aux" if case == "gated" else "recon"
                return {"total": found[0], rest: found[1], penalty: found[0] - found[1]}

            answers.add(case + suffix, given, trainer.ae, mapping, parts)
            if dead is not None:
                left = trainer.num_tokens_since_fired >= trainer.dead_feature_threshold
                answers[f"{case}{suffix}/dead"] = left.numpy()


# --- sparsify ------------------------------------------------------------------------------------


def sparsify(given: Given, answers: Answers) -> None:
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    config = SparseCoderConfig(num_latents=given.d_sae, k=int(given.numbers["k"]))
    coder = SparseCoder(given.d_in, config, dtype=torch.float64)

    def mapping(w: Weights) -> dict[str, Tensor]:
        return {
            "encoder.weight": w["W_enc"].T,
            "encoder.bias": w["b_enc"],
            "W_dec": w["W_dec"],
            "b_dec": w["b_dec"],
        }

    for suffix, dead in given.masks(has_aux=True).items():

        def parts(dead=dead) -> Parts:
            out = coder(given.x, dead_mask=dead)
            aux = given.numbers["aux_coefficient"] * out.auxk_loss
            return {"recon": out.fvu, "aux": aux, "total": out.fvu + aux}

        answers.add(f"topk{suffix}", given, coder, mapping, parts)
        if dead is not None:
            answers[f"topk{suffix}/dead"] = dead.numpy()


if __name__ == "__main__":
    peer, source, target = sys.argv[1:]
    answers = Answers()
    {"saelens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}[peer](
        Given(Path(source)), answers
    )
    np.savez(target, **answers)
