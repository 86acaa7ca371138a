"""Direct logit attribution: which tokens a feature promotes and suppresses by what it writes.

A feature that is active by `z` adds `z W_dec[f]` at its site, and what is written to the residual
stream stays in it up to the end: `(z / s) W_U (g * C W_dec[f])` is what reaches the logits, where
`C` subtracts the mean over coordinates (where the final norm is a LayerNorm; an RMSNorm has none),
`g` is what the final norm multiplies by (its weight, or one more), `s` the root mean square that it
divides by, and `W_U` the unembedding, times the number that a model multiplies its logits by, if it
does. For `mlp_act` and `attn_z` the way there goes through the MLP's or the attention's output
matrix first.

Reported is `W_U (g * C W_dec[f])`, the change of each logit for an activation of 1 where `s` is 1.
Left out are the division by `s`, which depends on the token and scales all of a token's logits
alike; every bias, which the feature does not change; the cap that some models (Gemma 2) put on
their logits, which keeps their order; and whatever the layers after the site make of the feature
(Elhage et al. 2021, "A mathematical framework for transformer circuits": the direct path;
nostalgebraist 2020, "the logit lens").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.lm.families import Shape
from pipeline.lm.hub import ModelFiles
from pipeline.lm.sites import LayerSite, Site
from pipeline.lm.weights import Weights

IGNORED = (
    "logits by the direct path alone: the final norm's division, biases, a cap of logits, and what "
    "later layers make of a feature are ignored"
)
N_TOKENS = 10
_CELLS = 2**24
"""Logits in memory at once: 64 MiB."""


Ranked = tuple[Int64[Tensor, "d_sae n"], Float32[Tensor, "d_sae n"]]
"""Of each feature tokens, the most extreme first, and their values."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """The linear way from a site to the logits."""

    out: Float32[Tensor, "d_model d_in"] | None
    """From the site to the residual stream; None where the site writes to it."""
    centered: bool
    scale: Float32[Tensor, " d_model"]
    unembedding: Float32[Tensor, "n_vocab d_model"]

    def logits(self, rows: Float[Tensor, "n d_in"]) -> Float32[Tensor, "n n_vocab"]:
        """What each of these rows, written at the site, adds to every logit, times the norm."""
        written = rows.float() if self.out is None else rows.float() @ self.out.T
        if self.centered:
            written = written - written.mean(-1, keepdim=True)
        return (written * self.scale) @ self.unembedding.T


def has_path(model: str, site: Site, *, revision: str) -> bool:
    """Whether there is a linear way from a site to the logits; config.json tells."""
    if not isinstance(site, LayerSite):
        return False
    shape = Shape.of(ModelFiles(model, revision).config, name=model)
    return not shape.family.no_path_from(site.kind)


def load_path(model: str, site: Site, *, revision: str, n_vocab: int, device: torch.device) -> Path:
    """The way from a site to the logits of the first `n_vocab` tokens, its weights alone read."""
    files = ModelFiles(model, revision)
    if not isinstance(site, LayerSite):
        raise ConfigError(f"{site} is a module, whose way to the logits is not known")
    shape = Shape.of(files.config, name=model)
    shape.check(site, name=model)
    family = shape.family
    if why_not := family.no_path_from(site.kind):
        raise ConfigError(f"{site} has no linear way to the logits: {why_not}")
    norm = f"{family.prefix}.{family.final_norm}.weight"
    head = f"{family.prefix}.{family.embeddings[0]}.weight" if shape.tied else "lm_head.weight"
    part = site.kind.through
    out = part and f"{family.prefix}.{family.path(site.layer, part)}.weight"
    wanted = [norm, head, *([out] if out else [])]
    loaded = Weights.locate(files).load(wanted, family=family, device=device, dtype=torch.float32)
    matrix = loaded[out] if out else None
    return Path(
        out=matrix.T if matrix is not None and family.transposed else matrix,
        centered=family.centered,
        scale=(loaded[norm] + family.unit_offset) * shape.logit_scale,
        unembedding=loaded[head][:n_vocab],
    )


@torch.no_grad()
def attribute(path: Path, W_dec: Float[Tensor, "d_sae d_in"]) -> dict[str, Ranked]:
    """The tokens that each row of a dictionary raises and lowers most: `promoted`, `suppressed`."""
    width = path.scale if path.out is None else path.out.T
    if W_dec.shape[1] != len(width):
        raise ConfigError(f"features write {W_dec.shape[1]} values, the site has {len(width)}")
    n = min(N_TOKENS, len(path.unembedding))
    blocks: dict[str, list[tuple[Tensor, Tensor]]] = {"promoted": [], "suppressed": []}
    for rows in W_dec.detach().split(max(1, _CELLS // len(path.unembedding))):
        logits = path.logits(rows)
        for end, found in blocks.items():
            best = logits.topk(n, largest=end == "promoted")
            found.append((best.indices.cpu(), best.values.cpu()))
    return {end: _joined(found) for end, found in blocks.items()}


def _joined(blocks: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    indices, values = zip(*blocks, strict=True)
    return torch.cat(indices), torch.cat(values)
