"""Gradient checkpointing: layers above a site keep their input alone, and are computed twice."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.lm.hooks import HookedModel
from pipeline.lm.sites import Site


@contextmanager
def checkpointed(model: HookedModel, *, above: Site) -> Generator[None]:
    """Within the block, each layer after that of the site is run again in the backward pass.

    The gradient is the same, on a CPU to the bit. The layer of the site itself keeps what it
    computes: an edit is made once.
    """
    first = above.of_layer("--checkpointing").layer
    layers = model.body.get_submodule(model.shape.family.layers)
    assert isinstance(layers, nn.ModuleList)
    with ExitStack() as stack:
        for layer in layers[first + 1 :]:
            run = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            stack.callback(delattr, layer, "forward")  # the class has its own
            layer.forward = run
        yield
