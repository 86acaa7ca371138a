"""The forward passes of an evaluation, each made once for all the runs that can share it."""

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from pipeline.cross_entropy import slices
from pipeline.evaluate.fidelity import Prediction, Reconstruction
from pipeline.evaluate.sparsity import Sparsity
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.sums import exact, zeros
from pipeline.families import Site
from pipeline.model import LanguageModel
from pipeline.sites import capture, reading, splice
from pipeline.splicing import Coder

# Several of one collection differ in size, so these name no shape to a type checker.
Tokens = Tensor
"""`[contexts ctx_len]` token ids."""
Mean = Tensor
"""`[width]` in float64."""

OnTokens = Callable[[int], None]
"""Told the number of tokens done."""


@final
class Measured:
    """What is summed about one coder's view of the activations."""

    def __init__(self, coder: Coder, mean: Float64[Tensor, " d_in"]) -> None:
        self._coder = coder
        self.reconstruction = Reconstruction(mean, device=coder.W_dec.device)
        self.sparsity = Sparsity(coder.d_sae, device=coder.W_dec.device)

    def add(
        self, acts: Float[Tensor, "contexts ctx_len d_in"]
    ) -> Float[Tensor, "contexts ctx_len d_in"]:
        """Take in some activations and give their reconstruction, in the model's precision."""
        rows = acts.flatten(0, 1)
        x_hat = torch.empty_like(rows)
        for part in slices(len(rows)):
            x = rows[part].float()
            z = self._coder.encode(x)
            reconstructed = self._coder.decode(z)
            self.sparsity.add(z)
            self.reconstruction.add(x, reconstructed)
            x_hat[part] = reconstructed.to(x_hat.dtype)
        return x_hat.view_as(acts)


@torch.no_grad()
def site_means(
    lm: LanguageModel,
    batches: Sequence[Tokens],
    sites: Sequence[Site],
    on_tokens: OnTokens,
) -> dict[Site, Mean]:
    """Mean activation of each site over all tokens; nothing above the last site runs."""
    sums = {site: zeros(lm.width(site), device=lm.device) for site in sites}
    n_tokens = 0
    with reading(lm, sites) as read:
        for tokens in batches:
            for site, acts in read(tokens).items():
                sums[site] += exact(acts.flatten(0, 1)).sum(0)
            n_tokens += tokens.numel()
            on_tokens(n_tokens)
    return {site: total / n_tokens for site, total in sums.items()}


@torch.no_grad()
def measure(
    lm: LanguageModel,
    batches: Sequence[Tokens],
    subjects: Sequence[Subject],
    means: Mapping[Site, Mean],
    on_tokens: OnTokens,
) -> tuple[Prediction, tuple[Measured, ...]]:
    """Losses of every pass, and what each coder made of the activations of the clean one.

    The edited passes are named `zero SITE`, `mean SITE` and `patched I`, I a subject's index.
    """
    measured = tuple(Measured(subject.coder, means[subject.site]) for subject in subjects)
    patched = [f"patched {i}" for i in range(len(subjects))]
    ablated = [f"{how} {site}" for site in means for how in ("zero", "mean")]
    prediction = Prediction([*ablated, *patched], diverging=patched, device=lm.device)
    n_tokens = 0
    for tokens in batches:
        with capture(lm, list(means)) as acts:
            clean = lm.hidden(tokens)
        edits: dict[str, tuple[Site, Tensor]] = {}
        for site, mean in means.items():
            edits[f"zero {site}"] = site, torch.zeros_like(acts[site])
            edits[f"mean {site}"] = site, mean.to(acts[site]).expand_as(acts[site])
        for name, subject, sums in zip(patched, subjects, measured, strict=True):
            edits[name] = subject.site, sums.add(acts[subject.site])
        edited = {name: _spliced(lm, tokens, *edit) for name, edit in edits.items()}
        prediction.add(lm, clean, edited, tokens)
        n_tokens += tokens.numel()
        on_tokens(n_tokens)
    return prediction, measured


def _spliced(
    lm: LanguageModel,
    tokens: Int[Tensor, "contexts ctx_len"],
    site: Site,
    value: Float[Tensor, "contexts ctx_len width"],
) -> Float[Tensor, "contexts ctx_len d_model"]:
    """Last hidden states with `value` at the site; what comes before the site is as it was."""
    with splice(lm, {site: lambda _: value}):
        return lm.hidden(tokens)
