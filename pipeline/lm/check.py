"""Whether a model, loaded as far as its sites need, computes what transformers' own does.

A few tokens go through both. Held to each other are the activations at the sites; the stream before
each layer and transformers' `hidden_states`; and the stream after a layer and the sum of what its
branches add. The largest difference, relative to the largest value, must be small in the numbers
that the model computes in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.device import bytes_free
from pipeline.errors import ModelError
from pipeline.lm.hooks import HookedModel, capture, reading
from pipeline.lm.model import LanguageModel
from pipeline.lm.other import load_first_layers
from pipeline.lm.sites import KINDS, LayerSite
from pipeline.lm.weights import Weights

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Of 16 bits a sum of three is good to their precision alone."""
_ROOM = 3
"""Times the weights that were read: transformers' own copy of them, its head, and room to load."""


def why_unchecked(lm: LanguageModel) -> str:
    """Why it would take more downloads or memory than there are; empty where it takes none."""
    files = {*Weights.locate(lm.files).file_of.values()}
    if lacking := sum(not lm.files.is_here(file) for file in files):
        return f"{lacking} of its weight files were not needed for this, and are not here"
    held = sum(p.nbytes for p in lm.module.parameters() if not p.is_meta)
    free = bytes_free(lm.device)
    if free is not None and free < _ROOM * held:
        return "there is too little memory free"
    return ""


@torch.no_grad()
def check(lm: LanguageModel, sites: Sequence[LayerSite]) -> float:
    """The largest relative difference.

    Args:
        lm: As `load_for_sites` gives it for these sites.
        sites: What is to be harvested of it.

    Raises:
        ModelError: it is larger than it may be.
    """
    shape, last = lm.shape, max(sites).layer  # what follows the layer is not compared
    dtype = next(p.dtype for p in lm.module.parameters() if not p.is_meta)
    plain = load_first_layers(lm.files, last + 1, device=lm.device, dtype=dtype)
    body = plain.base_model if shape.family.inside is None else plain.get_decoder()
    theirs = HookedModel(body, shape=shape, name=lm.name, prefix=lm.prefix)
    generator = torch.Generator().manual_seed(0)
    length = min(16, lm.n_positions)
    tokens = torch.randint(lm.n_vocab, (2, length), generator=generator).to(lm.device)
    before = [LayerSite(layer, KINDS["resid_pre"]) for layer in range(last + 1)]
    sums = _sums(lm, last)
    with reading(lm, [*dict.fromkeys((*sites, *before))]) as read:
        try:
            ours = read(tokens)
        except (AssertionError, RuntimeError) as error:
            raise _wrong(lm, f"what runs before {max(sites)} was not read: {error}") from error
    with capture(theirs, [*dict.fromkeys((*sites, *before, *sums))]) as acts:
        told = theirs.body(
            input_ids=tokens, use_cache=False, output_hidden_states=True
        ).hidden_states
    worst, tolerance = 0.0, TOLERANCE[dtype]
    held: list[tuple[str, Tensor, Tensor]] = [(str(one), ours[one], acts[one]) for one in sites]
    if shape.family.parts:  # Mamba's, whose layers have none, are those after each layer
        held += [(str(one), ours[one], told[one.layer]) for one in before]
    if sums:
        first, *added, after = (acts[one] for one in sums)
        name = f"the sum up to {sums[-1]}"
        held.append((name, torch.stack([first, *added]).float().sum(0), after))
    for name, x, wanted in held:
        difference = _difference(x, wanted)
        if not difference <= tolerance:
            raise _wrong(
                lm, f"{name} differs from transformers' own by {difference:.1e} of its largest "
                f"value, and {tolerance:.0e} is what rounding may do"
            )  # fmt: skip
        worst = max(worst, difference)
    return worst


def _sums(lm: LanguageModel, layer: int) -> list[LayerSite]:
    """The stream before a layer, what is added to it, and the stream after it."""
    kinds = [kind.name for kind in lm.shape.kinds()]
    wanted = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    if not {*wanted} <= {*kinds} or lm.shape.family.norms_stream:
        return []
    return [LayerSite(layer, KINDS[name]) for name in wanted]


def _difference(x: Tensor, wanted: Tensor) -> float:
    if x.shape != wanted.shape:
        return float("inf")
    size = wanted.float().abs().max()
    return float((x.float() - wanted.float()).abs().max() / size.clamp_min(1e-30))


def _wrong(lm: LanguageModel, what: str) -> ModelError:
    its = lm.shape.family.model_class
    return ModelError(
        f"{lm.name} is not computed as its {its} does it: {what}; harvest a "
        f"module by its path, as saepipe sites {lm.name} --modules lists them"
    )
