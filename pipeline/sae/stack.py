"""M SAEs of one shape, stacked: their parameters, and the gradients of a step.

Every product of a step is made for all members at once, of whole matrices or, where few latents
are active, of the active pairs alone. Both give the same numbers to float tolerance.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline.config.training import Switch
from pipeline.errors import ConfigError
from pipeline.sae import narrow
from pipeline.sae.active_pairs import Dense, Latents, Pairs, Scratch, product
from pipeline.sae.architecture import Architecture, Parts, Problem
from pipeline.sae.kernels import kernels_for
from pipeline.sae.sae import SAE
from pipeline.sae.select import Picked, pairs_of

ACTIVATION = "activation."
LOG = "log_"
"""A parameter of that name is the logarithm of one of the activation's."""
BREAK_EVEN = {"cpu": (0.12, 0.18), "cuda": (0.01, 0.02)}
"""Share of active pairs below which the sparse path is taken, and above which it is left.

On CPUs both cost the same near 0.19 (2 cores, d 512, F 2048 and 8192, `tests/bench/train.py`). On
GPUs that is not measured but estimated: dense products are some 50 times cheaper there for every
byte that is gathered.
"""


class Stack:
    """SAEs that learn together.

    Args:
        params: Theirs, the members first, on their device; see `stacked`.
        arch: What they minimise.
        dtype: Of the large products; None means that of the parameters.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        arch: Architecture,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.arch = arch
        self.params = dict(params)
        if "E" not in arch.trained:  # tied: one memory for both
            self.params["E"] = self.params["W_dec"]
        self.grads = {name: torch.zeros_like(p) for name, p in self.params.items()}
        self.dtype = dtype or self.params["W_dec"].dtype
        self.kernels = kernels_for(self.params["W_dec"].device)
        self._scratch = Scratch()
        # Of sums in float32, of which few, the largest, count.
        self._narrow = (
            arch.k_of_row is not None
            and arch.k_of_row <= narrow.FEW * self.params["E"].shape[1]
            and self.dtype == torch.float32
            and self.params["W_dec"].device.type == "cpu"
            and narrow.fast()
        )

    def subset(self, members: Sequence[int]) -> "Stack":
        """Some of the members, in memory of their own."""
        params = {name: p[list(members)] for name, p in self.params.items()}
        return Stack(params, self.arch, dtype=self.dtype)

    @property
    def n_members(self) -> int:
        """How many SAEs there are."""
        return len(self.params["W_dec"])

    def starts_sparse(self, wanted: Switch) -> bool:
        """Whether to begin with the active pairs alone: where it is known how many those are.

        Raises:
            ConfigError: that was asked for, and there are no kernels for it.
        """
        if wanted == "on" and self.kernels is None:
            device = self.params["W_dec"].device.type
            raise ConfigError(
                f"sparse on was asked for, but there are no sparse kernels for {device} here "
                "(torch with MKL on a CPU, triton on CUDA): type --set sparse=auto"
            )
        if wanted == "auto" and self.arch.share is not None:
            return self.prefers_sparse(self.arch.share, now=False)
        return wanted == "on"

    def prefers_sparse(self, density: float, *, now: bool) -> bool:
        """Whether computing this share of all pairs alone is the faster way."""
        if self.kernels is None:
            return False
        enter, leave = BREAK_EVEN[self.params["W_dec"].device.type]
        return density < (leave if now else enter)

    def learn(
        self,
        x: Float[Tensor, "B d"],
        *,
        coefficient: Float[Tensor, " M"],
        dead: Bool[Tensor, "M F"] | None = None,
        sparse: bool = False,
        watched: bool = False,
    ) -> Parts:
        """The loss of a batch; its gradient is in `grads` until the next call.

        Args:
            x: Rows, at least one.
            coefficient: Of each member's sparsity penalty.
            dead: Latents that AuxK revives.
            sparse: Compute the active pairs alone; only where there are kernels.
            watched: Whether the host will ask how much was active.
        """
        to_revive = self._places_of(dead)  # here a GPU is waited for: before it has work
        b_dec, shape = self.params["b_dec"], (self.n_members, *x.shape)
        centred = self._scratch.take("centred", shape, dtype=b_dec.dtype, device=b_dec.device)
        torch.sub(x, b_dec[:, None], out=centred)
        if sparse and self._narrow:
            latents = self._largest(centred)
            revived = {m: self._pre_at(centred, m, at) for m, at in to_revive.items()}
        else:
            pre = self._pre(centred)
            # Before the pre-activations change in place.
            revived = {m: pre[m][:, at].to(centred.dtype) for m, at in to_revive.items()}
            latents = self._latents(pre, centred, sparse=sparse)
        problem = Problem(
            x=x,
            centred=centred,
            params=self.params,
            grads=self.grads,
            coefficient=coefficient,
            scratch=self._scratch,
            watched=watched,
        )
        parts = self.arch.learn(latents, problem)
        if self.arch.aux is not None:
            for m, places in to_revive.items():
                parts.aux[m] += self.arch.aux.learn(
                    revived[m],
                    places,
                    residual=parts.residual[m],
                    centred=centred[m],
                    params=member_of(self.params, m),
                    grads=member_of(self.grads, m),
                )
        self._finish_gradients()
        return parts

    def project(self) -> None:
        """Take out of the gradient what would only change the norm of dictionary rows."""
        W_dec, grad = self.params["W_dec"], self.grads["W_dec"]
        grad.addcmul_((grad * W_dec).sum(-1, keepdim=True), W_dec, value=-1)

    def clip(self, largest: float) -> None:
        """Shrink the gradient of each member whose norm is above `largest` to that norm."""
        norms = [
            torch.linalg.vector_norm(self.grads[name].flatten(1), dim=1)
            for name in self.arch.trained
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        shrink = (largest / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)
        if norm.device.type == "cpu" and bool((shrink == 1).all()):
            return  # on a GPU, waiting to know costs more than multiplying by one
        for name in self.arch.trained:
            grad = self.grads[name]
            grad.mul_(shrink.view(-1, *[1] * (grad.ndim - 1)))

    def renormalise(self) -> None:
        """Bring dictionary rows back to unit norm, where the architecture wants it."""
        if self.arch.unit_norm:
            to_unit_norm_(self.params["W_dec"])

    def _pre(self, centred: Float[Tensor, "M B d"]) -> Float[Tensor, "M B F"]:
        """Pre-activations of all pairs, in the dtype of the products."""
        E, b_enc = self.params["E"], self.params["b_enc"]
        shape = (*centred.shape[:2], E.shape[1])
        out = self._scratch.take("pre", shape, dtype=self.dtype, device=E.device)
        return product(centred.to(self.dtype), E.to(self.dtype).mT, base=b_enc, out=out)

    def _pre_at(
        self, centred: Float[Tensor, "M B d"], m: int, places: Int64[Tensor, " n"]
    ) -> Float[Tensor, "B n"]:
        """Pre-activations of some latents of a member."""
        E, b_enc = self.params["E"][m, places], self.params["b_enc"][m, places]
        return torch.addmm(b_enc, centred[m], E.T)

    def _places_of(self, dead: Bool[Tensor, "M F"] | None) -> dict[int, Int64[Tensor, " n"]]:
        """The latents that AuxK revives, of members that have any."""
        if self.arch.aux is None or dead is None:
            return {}
        found = {m: dead[m].nonzero()[:, 0] for m in range(len(dead))}
        return {m: places for m, places in found.items() if len(places)}

    def _latents(
        self, pre: Float[Tensor, "M B F"], centred: Float[Tensor, "M B d"], *, sparse: bool
    ) -> Latents:
        params = self.params
        if not sparse:
            if self.arch.share is not None:
                pre.mul_(self.arch.pick(pre, params).mask())
            return Dense(pre, scratch=self._scratch)
        assert self.kernels is not None
        picked = self.arch.pick(pre, params)
        if pre.dtype == params["E"].dtype:
            return Pairs(picked, picked.values(pre), kernels=self.kernels)
        return self._pairs(picked, centred)  # a narrow product only says which

    def _largest(self, centred: Float[Tensor, "M B d"]) -> Latents:
        """The largest of each row, by a narrow product."""
        E, k = self.params["E"], self.arch.k_of_row
        assert k is not None
        shape = (self.n_members, centred.shape[1], E.shape[1])

        def closely(latents: Int64[Tensor, "rows c"]) -> Float[Tensor, "rows c"]:
            return self._pairs(pairs_of(latents, shape), centred).pre.view(latents.shape)

        out = self._scratch.take("rough", shape, dtype=torch.bfloat16, device=E.device)
        latents, values = narrow.largest(
            centred, E, base=self.params["b_enc"], k=k, closely=closely, out=out
        )
        assert self.kernels is not None
        return Pairs(pairs_of(latents, shape), values.flatten(), kernels=self.kernels)

    def _pairs(self, picked: Picked, centred: Float[Tensor, "M B d"]) -> Pairs:
        """These pairs, with pre-activations computed for them alone."""
        assert self.kernels is not None
        pairs = Pairs(picked, centred.new_empty(0), kernels=self.kernels)
        pairs.pre = pairs.pull(centred, self.params["E"], base=self.params["b_enc"])
        return pairs

    def _finish_gradients(self) -> None:
        """What centring means to `b_dec`, and one gradient for a tied encoder."""
        grads = self.grads
        if "b_dec" in self.arch.trained:
            grads["b_dec"].sub_(product(grads["b_enc"][:, None], self.params["E"])[:, 0])
        if "E" not in self.arch.trained:
            grads["W_dec"].add_(grads["E"])


def to_unit_norm_(W_dec: Float[Tensor, "*members F d"]) -> None:
    """Divide each row by its norm, in place."""
    norm = torch.linalg.vector_norm(W_dec, dim=-1, keepdim=True)
    W_dec.div_(norm.clamp_min(torch.finfo(norm.dtype).tiny))


def stacked(saes: Sequence[SAE], arch: Architecture) -> dict[str, Tensor]:
    """The parameters of SAEs of one shape, copied, the members first."""
    every = [to_params(sae.state_dict(), arch) for sae in saes]
    return {name: torch.stack([params[name] for params in every]) for name in every[0]}


def member_of(tensors: Mapping[str, Tensor], m: int) -> dict[str, Tensor]:
    """What belongs to one member, in the same memory."""
    return {name: tensor[m] for name, tensor in tensors.items()}


def to_params(state: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """An SAE's state as the parameters that training works on, without the members' axis."""
    params = {name.removeprefix(ACTIVATION): p.detach().clone() for name, p in state.items()}
    params["E"] = params.pop("W_enc").T.contiguous()
    for name in arch.trained:
        if name.startswith(LOG):
            params[name] = params.pop(name.removeprefix(LOG)).log()
    return params


def to_state(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One member's parameters as the state of an SAE."""
    state = {"W_enc": params["E"].T}
    for name, p in params.items():
        if name in {"b_enc", "W_dec", "b_dec"}:
            state[name] = p
        elif name.startswith(LOG):
            state[ACTIVATION + name.removeprefix(LOG)] = p.exp()
        elif name != "E":
            state[ACTIVATION + name] = p
    return state
