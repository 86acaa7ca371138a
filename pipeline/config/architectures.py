"""The architectures that can be trained: one config each, told apart by `kind`."""

from dataclasses import dataclass
from typing import Literal

from pipeline.config.checks import require_not_negative, require_penalty, require_positive


@dataclass(frozen=True, kw_only=True)
class _Penalised:
    """What kinds with an L1 penalty share."""

    l1: float = 1e-3
    target: float | None = None
    """Share of latents to be active; l1 is then adjusted until it is. None leaves l1 alone."""

    def __post_init__(self) -> None:
        require_penalty(self)


@dataclass(frozen=True, kw_only=True)
class _Competing:
    """What kinds share whose latents compete."""

    k: int = 32
    """Active latents of a row; on average over the rows for all kinds but topk."""
    k_aux: int | None = None
    """Dead latents that AuxK revives per row; None means half the input width, 0 none."""
    aux_coefficient: float = 1 / 32

    def __post_init__(self) -> None:
        require_positive(self, "k")
        require_not_negative(self, "k_aux", "aux_coefficient")


@dataclass(frozen=True, kw_only=True)
class ReluConfig(_Penalised):
    """ReLU latents, dictionary rows of unit norm, `||x - x_hat||^2 + l1 * ||z||_1`."""

    kind: Literal["relu"] = "relu"


@dataclass(frozen=True, kw_only=True)
class ReluAprilConfig(_Penalised):
    """`||x - x_hat||^2 + l1 * sum_i z_i ||W_dec_i||`, rows of any norm.

    Anthropic, "Update on how we train SAEs", April 2024.
    """

    kind: Literal["relu-april"] = "relu-april"


@dataclass(frozen=True, kw_only=True)
class TiedConfig(_Penalised):
    """`relu` whose encoder is its dictionary transposed, without `b_dec`.

    Cunningham et al. 2023, arXiv 2309.08600.
    """

    kind: Literal["tied"] = "tied"


@dataclass(frozen=True, kw_only=True)
class GatedConfig(_Penalised):
    """One path decides which latents are active, another how much; l1 is that of the first.

    Rajamanoharan et al. 2024, arXiv 2404.16014.
    """

    kind: Literal["gated"] = "gated"


@dataclass(frozen=True, kw_only=True)
class TopKConfig(_Competing):
    """Keep the `k` largest latents of each row (Gao et al. 2024, arXiv 2406.04093)."""

    kind: Literal["topk"] = "topk"


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(_Competing):
    """Keep the `k * rows` largest latents of each batch (Bussmann et al. 2024, arXiv 2412.06410).

    The smallest kept value, averaged over batches, is the threshold that takes the batch's place
    once the SAE is trained.
    """

    kind: Literal["batchtopk"] = "batchtopk"


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(_Competing):
    """BatchTopK whose first latents must reconstruct alone (Bussmann et al. 2025, 2503.17547)."""

    kind: Literal["matryoshka"] = "matryoshka"
    prefixes: int = 5
    """Nested dictionaries, each half of the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "prefixes")


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
    bandwidth: float = 0.5
    """Of the kernel that lets the threshold feel its neighbourhood, in root mean squares of x."""
    threshold: float = 0.7
    """Where every threshold starts, in the same unit: it can only move by about `lr` of itself a
    step, so that where it starts is where a short run ends."""

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
