"""What every reader gives: an SAE of another library as ours computes it, and where it belongs.

Ours takes `b_dec` from its input. One that does not is made ours by its other bias:

    x W_enc + b_enc = (x - b_dec) W_enc + (b_enc + b_dec W_enc)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.config.architectures import (
    ARCHS,
    ArchConfig,
    BatchTopKConfig,
    GatedConfig,
    InputNorm,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    ReluConfig,
)
from pipeline.errors import CheckpointError, ConfigError

GATES = ("b_gate", "r_mag", "b_mag")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What whoever imports says of an SAE whose files do not."""

    arch: str = ""
    k: int | None = None
    centred: bool = True
    """Whether `b_dec` is taken from the input, of files that do not say."""

    def __post_init__(self) -> None:
        if self.arch and self.arch not in ARCHS:
            raise ConfigError(f"arch must be one of {', '.join(ARCHS)}, got {self.arch!r}")
        if self.k is not None and self.k < 1:
            raise ConfigError(f"k must be at least 1, got {self.k}")

    @property
    def options(self) -> Mapping[str, str]:
        """What was said, and the option that says it."""
        said = {"arch": bool(self.arch), "k": self.k is not None, "centred": not self.centred}
        return {n: "uncentred" if n == "centred" else n for n, it in said.items() if it}


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignSAE:
    """An SAE, its parameters as `SAE.state_dict()` has them, in float32."""

    arch: ArchConfig
    tensors: Mapping[str, Tensor]
    site: str = ""
    """Empty where it does not say, or where we have no such site."""
    hook: str = ""
    """The place, in the words of who wrote it."""
    model: str = ""
    text: str = ""
    ctx_len: int | None = None
    input_norm: InputNorm = "none"
    notes: tuple[str, ...] = ()

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.tensors["W_dec"].shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.tensors["W_dec"].shape[0]


@dataclass(kw_only=True, eq=False)
class Weights:
    """Matrices and biases as they are found, made fit for ours step by step, in float64."""

    source: object
    """What messages call the file."""
    W_enc: Tensor
    """`[d_in, d_sae]`."""
    W_dec: Tensor
    """`[d_sae, d_in]`: rows are the dictionary."""
    b_enc: Tensor | None = None
    """None of a gated one, and of one without; zero then."""
    b_dec: Tensor | None = None
    """None is zero."""
    threshold: Tensor | None = None
    """One, or one a latent."""
    gates: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """`GATES` of a gated one."""

    def __post_init__(self) -> None:
        for name in ("W_enc", "W_dec"):
            given: Any = getattr(self, name)
            if not isinstance(given, Tensor) or given.ndim != 2:
                got = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
                raise CheckpointError(
                    f"{self.source}: {name} is {got}, and an SAE's is a matrix: crosscoders and "
                    "what reads several layers cannot be imported"
                )
        F, d = self.W_dec.shape
        if self.W_enc.shape != (d, F):
            raise CheckpointError(
                f"{self.source}: its encoder reads {self.W_enc.shape[0]} values into "
                f"{self.W_enc.shape[1]} latents, and its decoder writes {F} latents into {d}: an "
                "SAE's agree (a transcoder's need not, and cannot be imported)"
            )
        self.b_enc = torch.zeros(F) if self.b_enc is None else self.b_enc
        self.b_dec = torch.zeros(d) if self.b_dec is None else self.b_dec
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            setattr(self, name, self._numbers(name, getattr(self, name)))
        wanted = {"b_enc": (F,), "b_dec": (d,)}
        for name, shape in wanted.items():
            self._require(name, getattr(self, name), shape)
        self.gates = {name: self._numbers(name, gate) for name, gate in self.gates.items()}
        for name, gate in self.gates.items():
            self._require(name, gate, (F,))
        if self.threshold is not None:
            self.threshold = self._numbers("threshold", self.threshold)
            if self.threshold.ndim:
                self._require("threshold", self.threshold, (F,))

    def _numbers(self, name: str, given: object) -> Tensor:
        if not isinstance(given, Tensor) or given.is_complex():
            raise CheckpointError(f"{self.source}: {name} is no tensor of real numbers")
        numbers = given.detach().double()
        if not bool(torch.isfinite(numbers.float()).all()):
            raise CheckpointError(f"{self.source}: {name} has values that are not finite")
        return numbers

    def _require(self, name: str, given: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(given.shape) != shape:
            raise CheckpointError(
                f"{self.source}: {name} is {list(given.shape)}, and {list(shape)} fits its matrices"
            )

    def require_widths(self, said: Mapping[str, object], settings: object) -> None:
        """Hold `d_in` and `d_sae` of settings, where they say them, to the matrices.

        Raises:
            CheckpointError: they are others.
        """
        for name, n in zip(("d_sae", "d_in"), self.W_dec.shape, strict=True):
            if said.get(name) not in (None, n):
                raise CheckpointError(
                    f"{settings} says {name} {said[name]!r}, and the matrices of {self.source} "
                    f"have {n}: put the file back that belongs to them"
                )

    def shift_input(self, shift: Tensor) -> None:
        """Add to all pre-activations what `shift` is to the encoder."""
        assert self.b_enc is not None
        by = shift @ self.W_enc
        self.b_enc = self.b_enc + by
        if self.gates:
            gates = dict(self.gates)
            gates["b_gate"] = gates["b_gate"] + by
            gates["b_mag"] = gates["b_mag"] + gates["r_mag"].exp() * by
            self.b_enc, self.gates = torch.zeros_like(self.b_enc), gates

    def centre(self) -> None:
        """Let one that takes its input as it is be one that takes `b_dec` from it."""
        assert self.b_dec is not None
        self.shift_input(self.b_dec)

    def centre_on(self, mean: Tensor) -> None:
        """Let one that was given `x - mean`, and gives that back, take `x`."""
        assert self.b_dec is not None
        self.b_dec = self.b_dec + self._numbers("the mean of its activations", mean)

    def scale_input(self, scale: float) -> None:
        """Let one that was given `scale x`, and gives that back, take `x`: latents stay."""
        assert self.b_dec is not None
        self.W_enc = self.W_enc * scale
        self.W_dec, self.b_dec = self.W_dec / scale, self.b_dec / scale

    def norms(self) -> Tensor:
        """Of the rows of the dictionary."""
        return self.W_dec.norm(dim=-1)

    def fold_norms(self, norms: Tensor) -> None:
        """Let latents be times as large as their rows are long, and the rows of unit length."""
        assert self.b_enc is not None
        if not bool((norms > 0).all()):
            raise CheckpointError(f"{self.source}: a row of its dictionary is zero")
        self.W_enc, self.b_enc = self.W_enc * norms, self.b_enc * norms
        self.W_dec = self.W_dec / norms[:, None]
        if self.threshold is not None:
            self.threshold = self.threshold * norms
        if self.gates:
            scaled = {name: self.gates[name] * norms for name in ("b_gate", "b_mag")}
            self.gates = {**self.gates, **scaled}

    def made(self, arch: ArchConfig) -> ForeignSAE:
        """The SAE.

        Raises:
            CheckpointError: what its architecture needs is not there.
        """
        F = len(self.W_dec)
        tensors = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec}
        tensors["b_dec"] = self.b_dec
        if isinstance(arch, GatedConfig):
            if missing := [name for name in GATES if name not in self.gates]:
                raise CheckpointError(f"{self.source}: a gated SAE needs {missing[0]}")
            tensors |= {f"activation.{name}": gate for name, gate in self.gates.items()}
        if isinstance(arch, BatchTopKConfig | MatryoshkaConfig | JumpReluConfig):
            if self.threshold is None:
                raise CheckpointError(f"{self.source}: a {arch.kind} SAE needs its threshold")
            one_each = isinstance(arch, JumpReluConfig)
            threshold = self.threshold.expand(F) if one_each else self.threshold
            tensors["activation.threshold"] = threshold
        if (k := getattr(arch, "k", 0)) > F:
            raise CheckpointError(f"{self.source}: k = {k} is above its {F} latents")
        return ForeignSAE(
            arch=arch,
            tensors={
                name: tensor.float().contiguous().clone()
                for name, tensor in tensors.items()
                if tensor is not None
            },
        )


def told(sae: ForeignSAE, *, notes: tuple[str, ...] = (), **about: Any) -> ForeignSAE:  # noqa: ANN401
    """The same, with what is known about it."""
    known = {name: value for name, value in about.items() if value}
    return replace(sae, notes=(*sae.notes, *notes), **known)


def length_of(said: object) -> int | None:
    """The length of contexts that settings say; None where that can be none."""
    return said if type(said) is int and 0 < said < 2**63 else None


def relu_like(norms: Tensor) -> ArchConfig:
    """`relu` where the dictionary's rows have length 1, else `relu-april`: they compute alike."""
    unit = torch.allclose(norms, torch.ones_like(norms), rtol=1e-3)
    return ReluConfig() if unit else ReluAprilConfig()


def topk_like(kind: type[ArchConfig], k: object, *, source: object, **others: Any) -> ArchConfig:  # noqa: ANN401
    """`topk` and its kin with this `k`.

    Raises:
        CheckpointError: that is no `k`.
    """
    number = k.item() if isinstance(k, Tensor) and k.numel() == 1 else k
    try:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"k must be a number, got {type(number).__name__}")  # noqa: TRY301
        return kind(k=int(number) if number == int(number) else number, **others)  # pyright: ignore[reportCallIssue]
    except (ConfigError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def matryoshka_like(
    k: object, groups: list[int], *, d_sae: int, source: object
) -> tuple[ArchConfig, tuple[str, ...]]:
    """Nested dictionaries, and a note where theirs are not halves of each other."""
    prefixes = max(1, min(len(groups), d_sae.bit_length()))
    halves = [d_sae >> i for i in range(prefixes - 1, -1, -1)]
    ends = [sum(groups[: i + 1]) for i in range(len(groups))]
    arch = topk_like(MatryoshkaConfig, k, source=source, prefixes=prefixes)
    if ends == halves or not groups:
        return arch, ()
    listed = ", ".join(map(str, ends))
    return arch, (
        f"its nested dictionaries have {listed} latents, where ours are each half of the next: "
        "only training knows of them",
    )


def one_of(kinds: Mapping[str, type[ArchConfig]], kind: str, *, source: object) -> str:
    """A kind that we have.

    Raises:
        CheckpointError: we have none such, with why.
    """
    if kind in kinds:
        return kind
    why = {
        "transcoder": "it writes to another place than it reads",
        "crosscoder": "it reads several places at once",
        "matching_pursuit": "its latents are picked one after another, each by what the last left",
        "temporal": "it looks at several tokens at once",
        "abstopk": "its latents may be negative",
        "groupmax": "its latents compete in groups",
    }
    reason = next((words for name, words in why.items() if name in kind.lower()), "")
    known = ", ".join(kinds)
    raise CheckpointError(
        f"{source}: its architecture {kind!r} cannot be imported: {reason or f'known are {known}'}"
    )
