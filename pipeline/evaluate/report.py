"""What an evaluation says: plain numbers, ready for JSON. Definitions are with each family."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Stage = Literal["mean", "losses"]


@dataclass(frozen=True, kw_only=True)
class EvalProgress:
    """How far an evaluation is; counts start again with each model and text."""

    stage: Stage
    n_done: int
    """Tokens of this stage that are done."""
    n_tokens: int


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """One run, evaluated inside one language model on one text. Losses are nats per prediction."""

    run: Path
    site: str
    arch: str
    d_in: int
    d_sae: int
    model: str
    """The language model the coder was spliced into."""
    trained_on_model: str
    """The language model whose activations the coder was trained on."""
    text: str
    precision: str
    """Of the language model; the coder always computes in float32."""
    ctx_len: int
    n_tokens: int
    """Tokens whose activations were read: whole contexts, every position."""
    n_predictions: int
    """Predictions whose losses were summed: `ctx_len - 1` of each context."""
    ce_clean: float
    ce_patched: float
    ce_zero: float
    ce_mean: float
    """With the site replaced by its mean over this same text."""
    loss_recovered: float | None
    """Against zero ablation; None where that costs nothing, as for every ratio here."""
    loss_recovered_mean: float | None
    """Against mean ablation."""
    kl: float
    l0: float
    l1: float
    explained_variance: float | None
    mse: float
    cosine: float
    relative_bias: float | None
    n_dead: int
    """Latents above zero on none of the `n_tokens`."""
    frac_dead: float
    dead_cosine_mean: float | None
    """Mean over dead latents of the cosine with the mean dead row; None without dead."""
    alive_cosine_mean: float | None
    """The same over living latents; None without dead or without living ones."""
    dead_cosine: tuple[float, ...] | None
    """Per latent, what the two means are taken over."""
    density: tuple[float, ...]
    """Per latent, the fraction of the `n_tokens` on which it is above zero."""
    notes: tuple[str, ...]
    """What a reader of these numbers must know, one sentence each."""
