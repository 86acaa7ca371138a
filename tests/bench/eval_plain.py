"""A coder's evaluation as one writes it down: hooks, whole forwards, sums in float64.

Nothing of `pipeline` is used. It is what `saepipe eval` is timed against and compared with, for
ReLU coders at `mlp_out` of Pythia's kind of model. Where SAELens defines a number otherwise, its
own is given beside ours, under SAELens' name.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Edit = Callable[[Tensor], Tensor]


def log_probs(model, layer: int, tokens: Tensor, edit: Edit | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[contexts ctx_len vocab]`, and what the MLP of a layer gave."""
    seen: list[Tensor] = []

    def hook(_module, _args, out: Tensor) -> Tensor | None:
        seen.append(out)
        return None if edit is None else edit(out)

    handle = model.gpt_neox.layers[layer].mlp.register_forward_hook(hook)
    try:
        logits = model(tokens, use_cache=False).logits
    finally:
        handle.remove()
    return logits.log_softmax(-1), seen[0]


@torch.no_grad()
def evaluate_plain(
    model, tokens: Tensor, weights: Mapping[str, Tensor], *, layer: int, batch_size: int
) -> dict[str, float]:
    """Every metric of one coder.

    Args:
        model: `GPTNeoXForCausalLM`, in the precision to compute in.
        tokens: `[contexts ctx_len]`.
        weights: W_enc, b_enc, W_dec, b_dec.
        layer: of whose MLP the output is spliced.
        batch_size: contexts a forward.
    """
    w = {name: tensor.to(model.dtype) for name, tensor in weights.items()}
    batches = tokens.split(batch_size)
    mean = sum(log_probs(model, layer, b)[1].flatten(0, 1).double().sum(0) for b in batches)
    mean = mean / tokens.numel()

    sums: dict[str, float] = {}
    active: list[Tensor] = []

    def add(name: str, values: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + values.double().sum().item()

    for batch in batches:
        clean, acts = log_probs(model, layer, batch)
        x = acts.flatten(0, 1)
        z = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        x_hat = z @ w["W_dec"] + w["b_dec"]
        edits: dict[str, Edit] = {
            "patched": lambda out, x_hat=x_hat: x_hat.view_as(out),
            "zero": torch.zeros_like,
            "mean": lambda out: mean.to(out).expand_as(out),
        }
        passes = {"clean": clean}
        for name, edit in edits.items():
            passes[name] = log_probs(model, layer, batch, edit)[0]
        for name, logp in passes.items():
            add(f"ce_{name}", -logp[:, :-1].gather(-1, batch[:, 1:, None]))
        for name in ("patched", "zero"):
            kl = (clean.exp() * (clean - passes[name])).sum(-1)
            add(f"kl_{name}", kl[:, :-1])
            add(f"saelens_kl_{name}", kl)  # the last position of a context, too
        product, norm, norm_hat = (x * x_hat).sum(-1), x.norm(dim=-1), x_hat.norm(dim=-1)
        add("error", (x - x_hat).square())
        add("spread", (x.double() - mean).square())
        add("square", x_hat.square())
        add("product", product)
        add("cosine", product / norm / norm_hat)
        add("l2_ratio", norm_hat / norm)
        add("saelens_bias", x_hat.square().sum().double() / product.sum().double())  # a batch
        add("l1", z)
        active.append(z > 0)

    fired = torch.cat(active)
    return (
        _losses(sums, n=tokens[:, 1:].numel(), n_tokens=tokens.numel(), n_batches=len(batches))
        | _sparsity(fired)
        | _geometry(w["W_enc"].double(), w["W_dec"].double(), dead=~fired.any(0))
    )


def _losses(
    sums: Mapping[str, float], *, n: int, n_tokens: int, n_batches: int
) -> dict[str, float]:
    """What is a ratio of sums over tokens or predictions."""
    clean, patched, zero, mean = (sums[f"ce_{k}"] / n for k in ("clean", "patched", "zero", "mean"))
    kl, kl_zero = sums["kl_patched"] / n, sums["kl_zero"] / n
    return {
        "ce_clean": clean,
        "ce_patched": patched,
        "ce_zero": zero,
        "ce_mean": mean,
        "loss_recovered": (zero - patched) / (zero - clean),
        "loss_recovered_mean": (mean - patched) / (mean - clean),
        "kl": kl,
        "kl_zero": kl_zero,
        "kl_recovered": 1 - kl / kl_zero,
        "perplexity_clean": math.exp(clean),
        "perplexity_patched": math.exp(patched),
        "perplexity_difference": math.exp(patched) - math.exp(clean),
        "explained_variance": 1 - sums["error"] / sums["spread"],
        "mse": sums["error"] / n_tokens,
        "cosine": sums["cosine"] / n_tokens,
        "relative_bias": sums["square"] / sums["product"],
        "l2_ratio": sums["l2_ratio"] / n_tokens,
        "l1": sums["l1"] / n_tokens,
        "saelens_kl": sums["saelens_kl_patched"] / n_tokens,
        "saelens_kl_zero": sums["saelens_kl_zero"] / n_tokens,
        "saelens_kl_recovered": 1 - sums["saelens_kl_patched"] / sums["saelens_kl_zero"],
        "saelens_relative_bias": sums["saelens_bias"] / n_batches,
    }


def _sparsity(fired: Tensor) -> dict[str, float]:
    """Of `[tokens d_sae]`, which latents are above zero where."""
    l0, density = fired.sum(1).double(), fired.double().mean(0)
    return {
        "l0": l0.mean().item(),
        **{f"l0_q{round(100 * q):02}": l0.quantile(q).item() for q in QUANTILES},
        "n_dead": int((density == 0).sum()),
        "n_rare": int((density < 1e-6).sum()),
        "n_frequent": int((density > 0.1).sum()),
    }


def _geometry(W_enc: Tensor, W_dec: Tensor, *, dead: Tensor) -> dict[str, float]:
    """Of the dictionary's directions."""
    rows, columns = W_dec / W_dec.norm(dim=1, keepdim=True), W_enc / W_enc.norm(dim=0)
    cosines = (rows @ rows.T).fill_diagonal_(-1)
    metrics = {
        "encoder_decoder_cosine_median": (rows * columns.T).sum(1).quantile(0.5).item(),
        "max_cosine_mean": cosines.amax(1).mean().item(),
    }
    if dead.any():
        centre = W_dec[dead].mean(0)
        to_dead = rows @ (centre / centre.norm())
        metrics["dead_cosine_mean"] = to_dead[dead].mean().item()
        metrics["alive_cosine_mean"] = to_dead[~dead].mean().item()
    return metrics
