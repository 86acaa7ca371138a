"""What an architecture is: an activation, a loss, and the gradient that its SAEs learn by.

Gradients are written out by hand: the activations' part of a step is then a few products of whole
matrices, or of the active pairs alone, with every large temporary reused. Tests hold them to the
formulas of the papers, differentiated numerically in float64.

With B rows, `r = 2/B (x_hat - x)` is the gradient of the mean squared error at the output, and
`r_b . W_dec_i` what it means to latent `i` of row `b`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.config.architectures import ArchConfig, Penalised, Revived
from pipeline.errors import ConfigError
from pipeline.sae.active_pairs import Latents, Scratch, Values
from pipeline.sae.arriving import Arriving
from pipeline.sae.dead import AuxK
from pipeline.sae.select import Picked

Params = Mapping[str, Tensor]
"""Of M SAEs, the members first: `E` `[M, F, d]` (rows are latents: the transpose of `W_enc`),
`b_enc` `[M, F]`, `W_dec` `[M, F, d]`, `b_dec` `[M, d]`, and what an architecture adds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a step starts from, and where its gradients go."""

    x: Float[Tensor, "B d"]
    centred: Float[Tensor, "M B d"]
    """`x - b_dec` of each member."""
    params: Params
    grads: Params
    """Of the shapes of `params`; overwritten. `b_enc` takes the gradient of the pre-activations
    summed over rows, whether or not an architecture trains `b_enc`."""
    coefficient: Float[Tensor, " M"]
    """Of the sparsity penalty."""
    scratch: Scratch = field(default_factory=Scratch)
    watched: bool = False
    """Whether the host will ask how much was active."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The loss of each member, in named parts of which `total` is the sum, and what was active."""

    recon: Float[Tensor, " M"]
    """Mean over rows of `||x - x_hat||^2`."""
    sparsity: Float[Tensor, " M"]
    """The penalty, its coefficient included."""
    aux: Float[Tensor, " M"]
    """All else that is minimised: AuxK, the gate's reconstruction, nested dictionaries."""
    sums: Float[Tensor, "M F"]
    """Of each latent over rows."""
    counts: Float[Tensor, "M F"]
    """Rows in which each latent was active."""
    residual: Float[Tensor, "M B d"]
    """`x_hat - x`."""
    density: Arriving | None = None
    """Share of all pairs that were active, `[M]`, sent to the host before gradients are computed;
    None where no one asked, or it was not sent."""

    @property
    def total(self) -> Float[Tensor, " M"]:
        """What is minimised."""
        return self.recon + self.sparsity + self.aux

    @property
    def l1(self) -> Float[Tensor, " M"]:
        """Mean over rows of `||z||_1`."""
        return self.sums.sum(-1) / self.residual.shape[1]


class Activation(nn.Module, ABC):
    """Makes pre-activations sparse. Subclasses are final: compose, do not override."""

    @abstractmethod
    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents, none below zero, of these pre-activations."""

    def take_bias(self, b_enc: Float[Tensor, " d_sae"]) -> None:
        """Make this bias of its pre-activations part of its own, and zero, where it has some."""


class Architecture(ABC):
    """An architecture at one setting, for any number of SAEs of one shape that learn at once."""

    unit_norm: bool = True
    """Whether rows of `W_dec` are held at unit norm."""
    trained: tuple[str, ...] = ("E", "b_enc", "W_dec", "b_dec")
    """Names of the parameters that are learned. Of a `log_NAME`, the activation has the `NAME`."""
    starts: Mapping[str, float] = {"b_enc": 0.0}
    """Where the parameters with one value a latent start."""
    encoder_norm: float = 1.0
    decoder_norm: float = 1.0
    """Of columns of `W_enc` and rows of `W_dec` at the start."""

    share: float | None = None
    """The share of pairs that are active, where latents compete for that: pairs must then be
    picked even where all are computed. None where each latent decides for itself."""
    k_of_row: int | None = None
    """How many of a row are kept, where that is all that `pick` looks at."""
    coefficient: float = 0.0
    """Of the sparsity penalty, before warm-up and control."""
    fitted_l0: float | None = None
    """Active latents of a row, on average over rows of the store, to which `fit` brings an SAE."""
    begins_fitted: bool = False
    """Whether it is brought there before training, too, and not only after."""
    aux: AuxK | None = None
    """How dead latents are revived, beside their biases."""

    @abstractmethod
    def __init__(self, config: ArchConfig, *, d_in: int, d_sae: int, rms: float) -> None:
        """What this config means for these widths, and for rows of this root mean square.

        Raises:
            ConfigError: it cannot be had with so few latents; see `require_latents`.
        """

    @abstractmethod
    def activation(self) -> Activation:
        """A new one, at its start."""

    def fit(
        self,
        activation: Activation,
        b_enc: Float[Tensor, " d_sae"],
        blocks: Iterable[Float[Tensor, "_ d_sae"]],
        *,
        l0: float,
    ) -> None:
        """Let `l0` latents of a row be active, on average over these pre-activations."""
        raise NotImplementedError  # of those that have a `fitted_l0`

    @property
    def revival(self) -> float:
        """How fast biases of dead latents move: less beside AuxK, which brings most back better."""
        return 1.0 if self.aux is None else 0.3

    def revive(
        self, params: Params, dead: Bool[Tensor, "M F"], *, step: Float[Tensor, "M F"]
    ) -> None:
        """Make it a little easier for dead latents to be active, by one step in the unit of rows.

        Unlike AuxK's, this reaches latents whose activations would be too small to count; it is to
        any architecture what the loss on pre-activations of Conerly et al. 2025 ("Dictionary
        Learning Optimization Techniques") is to theirs.
        """
        params["b_enc"].addcmul_(dead.to(step), step)

    @abstractmethod
    def pick(self, pre: Float[Tensor, "M B F"], params: Params) -> Picked:
        """The pairs that have a part in the loss or its gradient."""

    @abstractmethod
    def learn(self, latents: Latents, problem: Problem) -> Parts:
        """Loss of these rows, its gradient written into `problem.grads`.

        `b_dec` is left to the caller, but for what the loss itself means to it: the sum of `r`.
        """


def architecture_of(config: ArchConfig, *, d_in: int, d_sae: int, rms: float = 1.0) -> Architecture:
    """The architecture that a config describes.

    Args:
        config: Says which, and its settings.
        d_in: Width of the activations.
        d_sae: Number of latents.
        rms: Root mean square of the activations, the unit of what JumpReLU is told.

    Raises:
        ConfigError: it needs more latents.
    """
    module, _, name = config.made_by.partition(":")
    return getattr(import_module(module), name)(config, d_in=d_in, d_sae=d_sae, rms=rms)


def aux_of(config: Revived) -> AuxK | None:
    """How dead latents of this config are revived; None without."""
    n = config.revived
    return AuxK(k=n, coefficient=config.aux_coefficient) if n else None


def require_latents(wanted: int | float, told: str, option: str, *, d_in: int, d_sae: int) -> None:
    """Raise ConfigError where more latents are `wanted`, as `told`, than there are."""
    if wanted > d_sae:
        raise ConfigError(
            f"{told} is above the number of latents, {d_sae} (the site's width is {d_in}): lower "
            f"{option} or raise --expansion"
        )


def require_l0(config: Penalised, *, d_in: int, d_sae: int) -> None:
    """Raise ConfigError where more latents are to be active than there are."""
    if config.l0 is not None:
        require_latents(config.l0, f"l0 = {config.l0:g}", "--l0", d_in=d_in, d_sae=d_sae)


def reconstruct(latents: Latents, z: Values, problem: Problem) -> Parts:
    """What `z` makes of the rows; nothing else costs anything yet."""
    counts, sums = latents.counts(z), latents.by_latent(z)
    density = sent(counts, n_rows=len(problem.x)) if problem.watched else None
    residual = residual_of(latents, z, problem)
    recon = mean_square(residual)
    zero = torch.zeros_like(recon)
    return Parts(
        recon=recon,
        sparsity=zero,
        aux=zero.clone(),
        sums=sums,
        counts=counts,
        residual=residual,
        density=density,
    )


def sent(counts: Float[Tensor, "M F"], *, n_rows: int) -> Arriving:
    """The share of all pairs of each member that were active, on its way to the host."""
    return Arriving(counts.sum(-1) / (n_rows * counts.shape[1]))


def residual_of(latents: Latents, z: Values, problem: Problem) -> Float[Tensor, "M B d"]:
    """`x_hat - x`."""
    x_hat = latents.decode(z, problem.params["W_dec"])
    return x_hat.add_(problem.params["b_dec"][:, None]).sub_(problem.x)


def mean_square(residual: Float[Tensor, "M B d"]) -> Float[Tensor, " M"]:
    """Mean over rows of the squared norm."""
    norm = torch.linalg.vector_norm(residual, dim=(1, 2))
    return norm.square() / residual.shape[1]


def backward(
    latents: Latents,
    z: Values,
    residual: Float[Tensor, "M B d"],
    problem: Problem,
    *,
    base: Float[Tensor, "M F"] | None = None,
) -> None:
    """Write the gradients of a squared error through rectified latents.

    `base` is what else the loss has for each unit of a latent.
    """
    grads = problem.grads
    r = problem.scratch.take(
        "r", tuple(residual.shape), dtype=residual.dtype, device=residual.device
    )
    torch.mul(residual, 2 / len(problem.x), out=r)
    latents.outer(z, r, grads["W_dec"])
    d_pre = masked(latents.pull(r, problem.params["W_dec"], base=base), z)
    latents.outer(d_pre, problem.centred, grads["E"])
    grads["b_enc"].copy_(latents.by_latent(d_pre))
    torch.sum(r, 1, out=grads["b_dec"])


def masked(d_z: Values, z: Values) -> Values:
    """`d_z` in its own memory, zero where `z` is not above zero."""
    return torch.ops.aten.threshold_backward.grad_input(d_z, z, 0, grad_input=d_z)


ROUNDING = 1e-12
"""What subtracting a mean in float32 leaves of equal rows, as a share of their squares, at most."""


@torch.no_grad()
def measure(x: Float[Tensor, "B d"], parts: Parts) -> dict[str, Float[Tensor, " M"]]:
    """Losses, sparsity and explained variance of each member.

    `explained_variance` is `1 - sum ||x - x_hat||^2 / sum ||x - mean||^2` with the mean of *this*
    batch; evaluation uses one mean over its whole set. Rows that are all equal, or differ by no
    more than rounding, have none: it is not finite then.
    """
    spread = (x - x.mean(0)).square().sum()
    spread = torch.where(spread > ROUNDING * x.square().sum(), spread, 0.0)
    unexplained = parts.recon * len(x) / spread
    return {
        "loss": parts.total,
        "recon": parts.recon,
        "sparsity": parts.sparsity,
        "aux": parts.aux,
        "l0": parts.counts.sum(-1) / len(x),
        "l1": parts.l1,
        "explained_variance": 1 - unexplained,
    }
