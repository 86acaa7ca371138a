"""A coder in its place inside a language model."""

from pathlib import Path

from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.families import Site
from pipeline.model import LanguageModel
from pipeline.sae.coder import SparseCoder
from pipeline.sites import Edit
from pipeline.tuned import TunedCoder

Coder = SparseCoder | TunedCoder


def splicer(coder: Coder) -> Edit:
    """The edit that puts a coder's reconstruction in the place of the activations."""

    def edit(x: Tensor) -> Tensor:
        return coder(x.float()).to(x.dtype)

    return edit


def check_fits(lm: LanguageModel, site: Site, *, d_in: int, ctx_len: int, run: Path) -> None:
    """Refuse a model that a coder cannot be spliced into.

    Raises:
        ConfigError: the model lacks the site, its width differs, or its context is too short.
    """
    lm.shape.check(site, name=lm.name)
    if lm.width(site) != d_in:
        raise ConfigError(
            f"{run} is a coder of {d_in} dimensions, but {site} of {lm.name} has "
            f"{lm.width(site)}: choose the model or the site it was trained on"
        )
    if ctx_len > lm.shape.n_positions:
        raise ConfigError(
            f"contexts of {ctx_len} tokens do not fit into {lm.name}, which takes "
            f"{lm.shape.n_positions}"
        )
