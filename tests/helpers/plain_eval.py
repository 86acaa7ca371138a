"""An evaluation in float64, all tokens at once, by hooks and formulas of its own."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from pipeline.lm.tokenizer import load_tokenizer
from pipeline.sae.sae import SAE
from tests.helpers.tiny import CTX_LEN

# Of float32 products and their logarithms, in another order on another CPU: 16 roundings of a mean
# cross-entropy, whose terms lie near each other; more of sums of squares and small divergences.
LOSS, OTHER = 1e-6, 1e-5
NEAR = 1e-5  # a row this near a threshold may be counted on one CPU and not on another


def contexts_of(model: Path, text: str, *, n: int) -> torch.Tensor:
    """The first contexts of a text of one document."""
    ids = load_tokenizer(str(model)).encode([Path(text).read_text()])[0]
    return torch.tensor(ids)[: n * CTX_LEN].view(-1, CTX_LEN)


def leave_out(run: Path, **excluded: object) -> Path:
    """Make a run one whose training left out these rows."""
    document = json.loads((run / "run.json").read_text())
    document["config"] |= excluded
    (run / "run.json").write_text(json.dumps(document))
    return run


def rows_left(
    tokens: torch.Tensor, x: torch.Tensor, *, positions=(), token_ids=(), norms=None
) -> torch.Tensor:
    """Which rows training would have kept, one by one."""
    limit = math.inf
    if norms is not None:
        lengths = sorted(x.norm(dim=-1).flatten().tolist())
        limit = norms * lengths[(len(lengths) - 1) // 2]
        assert all(abs(length - limit) > NEAR * limit for length in lengths)
    return torch.tensor(
        [
            [
                p not in positions and int(t) not in token_ids and row.norm() <= limit
                for p, (t, row) in enumerate(zip(context, rows, strict=True))
            ]
            for context, rows in zip(tokens, x, strict=True)
        ]
    )


class PlainModel:
    """A model of Pythia's kind, whose MLP outputs can be replaced."""

    def __init__(self, model: Path, tokens: torch.Tensor) -> None:
        self.lm = transformers.GPTNeoXForCausalLM.from_pretrained(model).double().eval()
        self.tokens = tokens

    def run(self, layer: int, edit=None) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's MLP output as it was, and log-probabilities `[contexts ctx-1 vocab]`."""
        seen: list[torch.Tensor] = []

        def hook(module, args, out):
            seen.append(out)
            return None if edit is None else edit(out)

        handle = self.lm.gpt_neox.layers[layer].mlp.register_forward_hook(hook)
        with torch.no_grad():
            logits = self.lm(self.tokens).logits[:, :-1]
        handle.remove()
        return seen[0], logits - logits.logsumexp(-1, keepdim=True)

    def nll(self, logp: torch.Tensor) -> torch.Tensor:
        """Of each prediction, `[contexts ctx-1]`."""
        return -logp.gather(-1, self.tokens[:, 1:, None])[..., 0]


def plain_eval(
    model: Path, tokens: torch.Tensor, coder: SAE, **excluded: object
) -> dict[str, object]:
    """All the numbers, `inserted` by site, and of each of `contexts` losses, clean and spliced."""
    plain = PlainModel(model, tokens)
    acts, clean = plain.run(1)
    kept = rows_left(tokens, acts, **excluded)
    counted = kept[:, :-1]
    w = {name: p.detach().double() for name, p in coder.named_parameters()}

    def code(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = ((rows - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).clamp_min(0)
        return z, z @ w["W_dec"] + w["b_dec"]

    def nll_with(values, at: int = 1) -> torch.Tensor:
        def edit(out):
            return torch.where(kept[..., None], values(out), out)

        return plain.run(at, edit)[1]

    x = acts[kept]
    z, x_hat = code(x)
    patched = nll_with(lambda out: code(out)[1])
    zero, mean = nll_with(torch.zeros_like), nll_with(lambda out: x.mean(0).expand_as(out))

    def ce(logp: torch.Tensor) -> float:
        return plain.nll(logp)[counted].mean().item()

    def kl(logp: torch.Tensor) -> float:
        return (clean.exp() * (clean - logp)).sum(-1)[counted].mean().item()

    means = {
        "ce_clean": ce(clean),
        "ce_patched": ce(patched),
        "ce_zero": ce(zero),
        "ce_mean": ce(mean),
        "kl": kl(patched),
        "kl_zero": kl(zero),
    }
    before = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    assert before.abs().min() > NEAR, "another CPU may count other latents: choose another seed"
    return {
        "n_tokens": int(kept.sum()),
        "n_predictions": int(counted.sum()),
        **means,
        **ratios_of(means),
        "explained_variance": (1 - (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item(),
        "mse": (x - x_hat).pow(2).sum(1).mean().item(),
        "cosine": ((x * x_hat).sum(1) / x.norm(dim=1) / x_hat.norm(dim=1)).mean().item(),
        "relative_bias": (x_hat.pow(2).sum() / (x * x_hat).sum()).item(),
        "l2_ratio": (x_hat.norm(dim=1) / x.norm(dim=1)).mean().item(),
        **_of_latents(z, w),
        "inserted": {
            f"mlp_out.{at}": ce(nll_with(lambda out: code(out)[1], at)) for at in range(3)
        },
        "contexts": [
            (plain.nll(clean)[i][counted[i]].tolist(), plain.nll(patched)[i][counted[i]].tolist())
            for i in range(len(tokens))
        ],
    }


def ratios_of(n: Mapping[str, float]) -> dict[str, float | None]:
    """What is computed from mean losses and divergences."""
    return {
        "loss_recovered": _recovered(n["ce_zero"], n["ce_patched"], n["ce_clean"]),
        "loss_recovered_mean": _recovered(n["ce_mean"], n["ce_patched"], n["ce_clean"]),
        "kl_recovered": 1 - n["kl"] / n["kl_zero"],
        "perplexity_clean": math.exp(n["ce_clean"]),
        "perplexity_patched": math.exp(n["ce_patched"]),
        "perplexity_difference": math.exp(n["ce_patched"]) - math.exp(n["ce_clean"]),
    }


def _recovered(floor: float, found: float, ceiling: float) -> float | None:
    """None where ablation does no harm."""
    return (floor - found) / (floor - ceiling) if floor > ceiling else None


def assert_numbers_agree(found: Mapping[str, object], plain: Mapping[str, object]) -> None:
    """That the means and sums are those of a plain computation, and ratios those of the means.

    The room of a ratio may be as small as you like (ablating a layer may cost nothing), and then
    roundings of its means move it by any amount. So a ratio is compared with the same formula, in
    float64, of the means it was made of, and these with the plain computation's.
    """
    ratios = ratios_of(found)
    for name, expected in plain.items():
        if name in ratios:
            told = None if ratios[name] is None else pytest.approx(ratios[name], rel=1e-9)
            assert found[name] == told, name
        elif name == "explained_variance":  # one, less what is left of a sum
            assert 1 - found[name] == pytest.approx(1 - expected, rel=OTHER), name
        else:
            rel = LOSS if name.startswith("ce_") else OTHER
            assert found[name] == pytest.approx(expected, rel=rel), name


def worst_first(contexts: Sequence[tuple[list[float], list[float]]]) -> list[int]:
    """Contexts by how much their losses rise, from `plain_eval(...)["contexts"]`."""
    rises = [sum(patched) - sum(clean) for clean, patched in contexts]
    order = sorted(range(len(rises)), key=lambda i: -rises[i])
    room = 2 * LOSS * max(sum(losses) for both in contexts for losses in both)
    gaps = [rises[i] - rises[j] for i, j in itertools.pairwise(order)]
    assert min(gaps) > room, "another CPU may order them otherwise: choose another seed"
    return order


def _of_latents(z: torch.Tensor, w: dict[str, torch.Tensor]) -> dict[str, object]:
    active = z > 0
    dead, density = ~active.any(0), active.double().mean(0)
    rows = w["W_dec"] / w["W_dec"].norm(dim=1, keepdim=True)
    columns = w["W_enc"].T / w["W_enc"].T.norm(dim=1, keepdim=True)
    to_dead = rows @ (w["W_dec"][dead].mean(0) / w["W_dec"][dead].mean(0).norm())
    nearest = (rows @ rows.T - 2 * torch.eye(len(rows))).max(1).values
    return {
        "l0": active.double().sum(1).mean().item(),
        "l0_quantiles": tuple(
            np.quantile(active.sum(1).numpy(), (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
        ),
        "l1": z.abs().sum(1).mean().item(),
        "density": tuple(density.tolist()),
        "n_dead": int(dead.sum()),
        "frac_dead": dead.double().mean().item(),
        "n_rare": int((density < 1e-6).sum()),
        "n_frequent": int((density > 0.1).sum()),
        "dead_cosine_mean": to_dead[dead].mean().item(),
        "alive_cosine_mean": to_dead[~dead].mean().item(),
        "encoder_decoder_cosine": tuple((rows * columns).sum(1).tolist()),
        "encoder_decoder_cosine_median": float(np.median((rows * columns).sum(1).numpy())),
        "max_cosine": tuple(nearest.tolist()),
        "max_cosine_mean": nearest.mean().item(),
    }
