"""The architectures that can be trained: one config each, told apart by `kind`."""

from dataclasses import dataclass
from typing import Literal

from pipeline.checks import require_not_negative, require_penalty, require_positive


@dataclass(frozen=True, kw_only=True)
class ReluConfig:
    """ReLU latents, dictionary rows of unit norm, `||x - x_hat||^2 + l1 * ||z||_1`."""

    kind: Literal["relu"] = "relu"
    l1: float = 1e-3
    target: float | None = None
    """Share of latents to be active; l1 is then adjusted until it is. None leaves l1 alone."""

    def __post_init__(self) -> None:
        require_penalty(self)


@dataclass(frozen=True, kw_only=True)
class ReluAprilConfig:
    """`||x - x_hat||^2 + l1 * sum_i z_i ||W_dec_i||`, rows of any norm.

    Anthropic, "Update on how we train SAEs", April 2024.
    """

    kind: Literal["relu-april"] = "relu-april"
    l1: float = 1e-3
    target: float | None = None
    """As of relu."""

    def __post_init__(self) -> None:
        require_penalty(self)


@dataclass(frozen=True, kw_only=True)
class TiedConfig:
    """`relu` whose encoder is its dictionary transposed, without `b_dec`.

    Cunningham et al. 2023, arXiv 2309.08600.
    """

    kind: Literal["tied"] = "tied"
    l1: float = 1e-3
    target: float | None = None
    """As of relu."""

    def __post_init__(self) -> None:
        require_penalty(self)


@dataclass(frozen=True, kw_only=True)
class GatedConfig:
    """One path decides which latents are active, another how much.

    Rajamanoharan et al. 2024, arXiv 2404.16014.
    """

    kind: Literal["gated"] = "gated"
    l1: float = 1e-3
    """Of the gate's pre-activations."""
    target: float | None = None
    """As of relu."""

    def __post_init__(self) -> None:
        require_penalty(self)


@dataclass(frozen=True, kw_only=True)
class TopKConfig:
    """Keep the `k` largest latents of each row (Gao et al. 2024, arXiv 2406.04093)."""

    kind: Literal["topk"] = "topk"
    k: int = 32
    k_aux: int | None = None
    """Dead latents that AuxK revives per row; None means half the input width, 0 none."""
    aux_coefficient: float = 1 / 32

    def __post_init__(self) -> None:
        require_positive(self, "k")
        require_not_negative(self, "k_aux", "aux_coefficient")


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig:
    """Keep the `k * rows` largest latents of each batch (Bussmann et al. 2024, arXiv 2412.06410).

    The smallest kept value, averaged over batches, is the threshold that takes the batch's place
    once the coder is trained.
    """

    kind: Literal["batchtopk"] = "batchtopk"
    k: int = 32
    """On average over the rows."""
    k_aux: int | None = None
    """As of topk."""
    aux_coefficient: float = 1 / 32

    def __post_init__(self) -> None:
        require_positive(self, "k")
        require_not_negative(self, "k_aux", "aux_coefficient")


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig:
    """BatchTopK whose first latents must reconstruct alone (Bussmann et al. 2025, 2503.17547)."""

    kind: Literal["matryoshka"] = "matryoshka"
    k: int = 32
    """On average over the rows, of all latents."""
    prefixes: int = 5
    """Nested dictionaries, each half of the next."""
    k_aux: int | None = None
    """As of topk."""
    aux_coefficient: float = 1 / 32

    def __post_init__(self) -> None:
        require_positive(self, "k", "prefixes")
        require_not_negative(self, "k_aux", "aux_coefficient")


@dataclass(frozen=True, kw_only=True)
class JumpReluConfig:
    """`z = pre * (pre > threshold)`, a learned threshold per latent, towards a number of latents.

    Rajamanoharan et al. 2024, arXiv 2407.14435; the loss adds `coefficient * (L0 / l0 - 1)^2`.
    """

    kind: Literal["jumprelu"] = "jumprelu"
    l0: float = 32.0
    """Active latents to aim at."""
    coefficient: float = 1.0
    """In units of the mean squared norm of a row, so that it suits activations of any scale."""
    bandwidth: float = 0.05
    """Of the kernel that lets the threshold feel its neighbourhood, in root mean squares of x."""
    threshold: float = 0.05
    """Where every threshold starts, in the same unit."""

    def __post_init__(self) -> None:
        require_positive(self, "l0", "bandwidth", "threshold")
        require_not_negative(self, "coefficient")


ArchConfig = (
    ReluConfig
    | ReluAprilConfig
    | TiedConfig
    | GatedConfig
    | TopKConfig
    | BatchTopKConfig
    | MatryoshkaConfig
    | JumpReluConfig
)
Arch = Literal["relu", "relu-april", "tied", "gated", "topk", "batchtopk", "matryoshka", "jumprelu"]
ARCHS: dict[Arch, type[ArchConfig]] = {
    "relu": ReluConfig,
    "relu-april": ReluAprilConfig,
    "tied": TiedConfig,
    "gated": GatedConfig,
    "topk": TopKConfig,
    "batchtopk": BatchTopKConfig,
    "matryoshka": MatryoshkaConfig,
    "jumprelu": JumpReluConfig,
}
