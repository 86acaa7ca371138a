"""One step of learning on tensors that hold no memory, to see how much it would take.

The model, the SAE and the step are the real ones, run under torch's fake tensors: each operator
tells the shapes it would give, and nothing is computed. Storages are counted while they live.
"""

import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # its name is documented
from torch.utils._pytree import tree_leaves

from pipeline.lm.checkpointing import checkpointed
from pipeline.lm.cross_entropy import backward_cross_entropy
from pipeline.lm.hooks import in_float, splice
from pipeline.lm.model import LanguageModel
from pipeline.lm.sites import Site
from pipeline.sae.sae import TunedSAE

ENOUGH = 2048
"""Tokens beyond which memory grows evenly: steps of more than twice as many are not rehearsed."""


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """Bytes that a step takes beside the weights."""

    kept: int
    """When the forward pass is over: what the backward pass needs of it."""
    peak: int
    """At most, that included."""


class Living(TorchDispatchMode):
    """Counts the bytes of what operators make, while it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = set[int]()

    def known(self, tensors: Iterable[Tensor]) -> int:
        """Count these no more, which were there before; gives their bytes."""
        before = self.now
        for tensor in tensors:
            self._count(tensor)
        found, self.now, self.peak = self.now - before, before, before
        return found

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes()  # pyright: ignore[reportPrivateUsage]
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += n_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, n_bytes)

    def _gone(self, key: int, n_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= n_bytes

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self._count(one)
        return made


@torch.enable_grad()
def rehearse(
    lm: LanguageModel,
    make: Callable[[], Mapping[Site, TunedSAE]],
    *,
    device: torch.device,
    batch_size: int,
    ctx_len: int,
    keep_error: bool,
    checkpointing: bool,
) -> Rehearsed:
    """A step of these; the model's tensors are changed into those of the device's kind.

    Args:
        lm: As `outline_model` makes it.
        make: The SAEs, each at its site, called where tensors hold no memory.
        device: That the step is for.
        batch_size: Contexts of a step.
        ctx_len: Tokens of a context.
        keep_error: What the SAE does not explain is put back.
        checkpointing: Layers above the first site are computed twice.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Torch has fakes of the kernels of these two.
    where = device if device.type == "cuda" else torch.device("cpu")
    with FakeTensorMode():
        tuned = make()
        edits = {
            site: in_float(coder.with_error if keep_error else coder)
            for site, coder in tuned.items()
        }
        modules = lm.module, *tuned.values()
        for module in modules:
            _faked(module, where)

        def step(n_contexts: int) -> Rehearsed:
            living = Living()
            living.known([tensor for module in modules for tensor in _tensors(module)])
            again = checkpointed(lm, above=min(edits)) if checkpointing else nullcontext()
            with living, again, splice(lm, edits):
                tokens = torch.zeros(n_contexts, ctx_len, dtype=torch.int32, device=where)
                hidden = lm.hidden(tokens)
                kept = living.now
                backward_cross_entropy(lm, hidden, tokens)
            for coder in tuned.values():
                coder.c.grad = coder.d.grad = None
            return Rehearsed(kept=kept, peak=living.peak)

        some = -(-ENOUGH // ctx_len)
        if batch_size <= 2 * some:
            return step(batch_size)
        one, two = step(some), step(2 * some)
        more = (batch_size - some) / some
        return Rehearsed(
            kept=round(one.kept + more * (two.kept - one.kept)),
            peak=round(one.peak + more * (two.peak - one.peak)),
        )


def _tensors(module: nn.Module) -> Generator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _faked(module: nn.Module, device: torch.device) -> None:
    """Give a module tensors of the device's kind in place of those it has."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        like = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        if isinstance(tensor, nn.Parameter):
            like = nn.Parameter(like, requires_grad=tensor.requires_grad)
        return made.setdefault(id(tensor), like)

    for part in module.modules():
        for table in (part._parameters, part._buffers):  # pyright: ignore[reportPrivateUsage]
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = fake(tensor)  # pyright: ignore[reportArgumentType]
