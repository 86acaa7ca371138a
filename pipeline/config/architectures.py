"""The architectures that can be trained: one config each, told apart by `kind`.

A config says what may be set, and names the class that computes (`pipeline.sae.architecture`),
which is imported when it is needed: configs never bring torch. To add an architecture, write both,
and name the config once: at the end of this file; or with `@register`, where it is; or, in a
package of its own, as an entry point that is installed with it:

    [project.entry-points."saepipe.architectures"]
    mine = "my_package.my_architecture:MyConfig"
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, Literal, TypeVar

from pipeline.config.checks import require_fraction, require_not_negative, require_positive
from pipeline.errors import ConfigError, NoSuchArchitectureError

InputNorm = Literal["none", "layer_norm", "constant_norm"]
"""What an SAE does to each row before it is encoded, and undoes behind it."""
L0 = 32
"""Active latents of a row, where no one asks for another number."""


@dataclass(frozen=True, kw_only=True)
class ArchConfig:
    """What every architecture's config is."""

    kind: str = ""
    made_by: ClassVar[str] = ""
    """Its `Architecture`, as `module:class`."""
    l0_as: ClassVar[str] = "l0"
    """The setting that says how many latents of a row are to be active, which `--l0` sets."""

    def __post_init__(self) -> None:
        """Check what was set; those that inherit call each other."""

    @classmethod
    def kinds(cls) -> Mapping[str, "type[ArchConfig]"]:
        """What a config of any architecture may be, by `kind`."""
        return ARCHS

    @property
    def shape(self) -> "ArchConfig":
        """Equal for those whose SAEs can learn in one stack."""
        return self

    @property
    def settled(self) -> "ArchConfig":
        """The same, with nothing left open."""
        return self

    @property
    def untied(self) -> "ArchConfig":
        """What computes the same with an encoder of its own, where this one's is its dictionary."""
        return self

    def __str__(self) -> str:
        knobs = {f: getattr(self, f.name) for f in fields(self) if f.name != "kind"}
        said = [(f.name, x) for f, x in knobs.items() if f.name == self.l0_as or x != f.default]
        return " ".join([self.kind, *(f"{name}={x}" for name, x in said if x is not None)])

    def _whole(self, name: str) -> None:
        """Let 16.0 and 16 be one config."""
        value = getattr(self, name)
        if value is not None and value == int(value):
            object.__setattr__(self, name, int(value))


@dataclass(frozen=True, kw_only=True)
class Penalised(ArchConfig):
    """What kinds with a penalty share: it is adjusted to what is asked for, or it is told."""

    penalty_as: ClassVar[str]
    """The setting that is the penalty; with a number to arrive at, where it starts."""
    l0: float | int | None = None
    """Active latents of a row to arrive at; 32 where neither a penalty nor `target` is told."""
    target: float | None = None
    """As `l0`, but the share of latents."""

    def __post_init__(self) -> None:
        require_not_negative(self, self.penalty_as)
        require_positive(self, "l0")
        require_fraction(self, "target")
        self._whole("l0")
        if self.l0 is not None and self.target is not None:
            raise ConfigError(
                f"l0 {self.l0} and target {self.target} say the same thing: give one of them"
            )
        if self.penalty == 0 and (self.l0 is not None or self.target is not None):
            raise ConfigError(
                f"{self.penalty_as} is 0, and to arrive at so many latents multiplies it: type "
                f"--set arch.{self.penalty_as}=X with X above 0, or leave it out"
            )
        super().__post_init__()

    @property
    def penalty(self) -> float | None:
        """Told, or None for one that is found."""
        return getattr(self, self.penalty_as)

    @property
    def shape(self) -> ArchConfig:
        """Members of a stack may differ in their penalties."""
        return replace(self, l0=None, target=None, **{self.penalty_as: 0.0})

    @property
    def settled(self) -> ArchConfig:
        """With the number of latents that everyone means who names none."""
        asked = (self.l0, self.penalty, self.target)
        return replace(self, l0=L0) if asked == (None, None, None) else self

    def wanted(self, *, d_sae: int) -> float | None:
        """The share of latents to be active; None where the penalty is what is asked for."""
        return self.target if self.l0 is None else self.l0 / d_sae


@dataclass(frozen=True, kw_only=True)
class PenalisedByL1(Penalised):
    """Of these, the kinds whose latents cost by their size."""

    penalty_as: ClassVar = "l1"
    l1: float | None = None
    """The penalty; with a number to arrive at, where it starts. None finds a start by itself."""


@dataclass(frozen=True, kw_only=True)
class Revived(ArchConfig):
    """What kinds share whose dead latents AuxK revives."""

    k_aux: int | None = None
    """Dead latents that it revives per row; None means `k`, or 32 where there is none; 0 none.

    Many at once learn to share what is left over, and are active on nothing alone.
    """
    aux_coefficient: float = 1 / 8
    """What their reconstruction of the error counts, beside that of the row."""

    def __post_init__(self) -> None:
        require_not_negative(self, "k_aux", "aux_coefficient")

    @property
    def revived(self) -> int:
        """Dead latents that are revived per row."""
        if not self.aux_coefficient:
            return 0
        return max(1, round(getattr(self, "k", L0))) if self.k_aux is None else self.k_aux


@dataclass(frozen=True, kw_only=True)
class Competing(Revived):
    """What kinds share whose latents compete."""

    l0_as: ClassVar[str] = "k"
    k: float | int = L0
    """Active latents of a row; on average over the rows, and maybe 1.5, for all kinds but topk."""

    def __post_init__(self) -> None:
        require_positive(self, "k")
        super().__post_init__()
        self._whole("k")


@dataclass(frozen=True, kw_only=True)
class ReluConfig(PenalisedByL1):
    """ReLU latents, dictionary rows of unit norm, `||x - x_hat||^2 + l1 * ||z||_1`."""

    kind: Literal["relu"] = "relu"
    made_by: ClassVar = "pipeline.sae.relu:ReluArchitecture"


@dataclass(frozen=True, kw_only=True)
class ReluAprilConfig(PenalisedByL1):
    """`||x - x_hat||^2 + l1 * sum_i z_i ||W_dec_i||`, rows of any norm.

    Anthropic, "Update on how we train SAEs", April 2024.
    """

    kind: Literal["relu-april"] = "relu-april"
    made_by: ClassVar = "pipeline.sae.relu:ReluAprilArchitecture"


@dataclass(frozen=True, kw_only=True)
class TiedConfig(PenalisedByL1):
    """`relu` whose encoder is its dictionary transposed, without `b_dec`.

    Cunningham et al. 2023, arXiv 2309.08600.
    """

    kind: Literal["tied"] = "tied"
    made_by: ClassVar = "pipeline.sae.relu:TiedArchitecture"

    @property
    def untied(self) -> ReluConfig:
        """`relu`."""
        return ReluConfig(l0=self.l0, target=self.target, l1=self.l1)


@dataclass(frozen=True, kw_only=True)
class GatedConfig(PenalisedByL1, Revived):
    """One path decides which latents are active, another how much; l1 is that of the first.

    Rajamanoharan et al. 2024, arXiv 2404.16014.
    """

    kind: Literal["gated"] = "gated"
    made_by: ClassVar = "pipeline.sae.gated:GatedArchitecture"


@dataclass(frozen=True, kw_only=True)
class TopKConfig(Competing):
    """Keep the `k` largest latents of each row (Gao et al. 2024, arXiv 2406.04093)."""

    kind: Literal["topk"] = "topk"
    made_by: ClassVar = "pipeline.sae.topk:TopKArchitecture"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k != int(self.k):
            raise ConfigError(
                f"topk keeps a whole number of latents of each row, got k = {self.k}: type --arch "
                "batchtopk for so many on average"
            )


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(Competing):
    """Keep the `k * rows` largest latents of each batch (Bussmann et al. 2024, arXiv 2412.06410).

    Once the SAE is trained, a threshold takes the batch's place: it is fitted to let `k` latents of
    a row through, on average over rows of the store.
    """

    kind: Literal["batchtopk"] = "batchtopk"
    made_by: ClassVar = "pipeline.sae.topk:BatchTopKArchitecture"


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(Competing):
    """BatchTopK whose first latents must reconstruct alone (Bussmann et al. 2025, 2503.17547)."""

    kind: Literal["matryoshka"] = "matryoshka"
    made_by: ClassVar = "pipeline.sae.matryoshka:MatryoshkaArchitecture"
    prefixes: int = 5
    """Nested dictionaries, each half of the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "prefixes")


@dataclass(frozen=True, kw_only=True)
class JumpReluConfig(Penalised, Revived):
    """`z = pre * (pre > threshold)`, a threshold per latent, `||x - x_hat||^2 + coefficient * L0`.

    Rajamanoharan et al. 2024, arXiv 2407.14435. Towards an `l0`, all thresholds are scaled by one
    factor at the end, so that so many latents of a row are active on average over rows of the
    store.
    """

    kind: Literal["jumprelu"] = "jumprelu"
    made_by: ClassVar = "pipeline.sae.jumprelu:JumpReluArchitecture"
    penalty_as: ClassVar = "coefficient"
    coefficient: float | None = None
    """What an active latent costs, in mean squared norms of a row, so that it suits activations of
    any scale; with a number to arrive at, where it starts. None finds a start by itself."""
    bandwidth: float = 0.5
    """Of the kernel that lets the threshold feel its neighbourhood, in root mean squares of x."""
    threshold: float | None = None
    """Where every threshold starts, in the same unit; None is a tenth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "bandwidth", "threshold")


Config = TypeVar("Config", bound=ArchConfig)


class Architectures(Mapping[str, type[ArchConfig]]):
    """Configs by kind: ours, registered ones, and those of other packages, imported on demand."""

    def __init__(self, *configs: type[ArchConfig]) -> None:
        self._here: dict[str, type[ArchConfig]] = {config.kind: config for config in configs}

    def register(self, config: type[Config]) -> type[Config]:
        """Let a config be asked for by its kind; a decorator."""
        self._here[config.kind] = config
        return config

    def __getitem__(self, kind: str) -> type[ArchConfig]:
        if kind not in self._here:
            entry = self._elsewhere[kind]
            try:
                self._here[kind] = entry.load()
            except (ImportError, AttributeError) as error:
                raise NoSuchArchitectureError(
                    f"the architecture {kind} cannot be imported from {entry.value}: {error}",
                    kind=kind,
                ) from error
        return self._here[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._here, *self._elsewhere)))

    def __len__(self) -> int:
        return len({*self._here, *self._elsewhere})

    @cached_property
    def _elsewhere(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group="saepipe.architectures")}


ARCHS = Architectures(
    ReluConfig,
    ReluAprilConfig,
    TiedConfig,
    GatedConfig,
    TopKConfig,
    BatchTopKConfig,
    MatryoshkaConfig,
    JumpReluConfig,
)
register = ARCHS.register
