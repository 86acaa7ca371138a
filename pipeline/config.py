"""Everything a run can be told. A config is a value: frozen, comparable, written beside its run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
StoreDtype = Literal["bf16", "fp16", "fp32"]


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """One harvest: which model reads which text, and what of it is kept."""

    out: Path
    model: str = "builtin"
    """Hub id, local folder, or `builtin` for the embedded model."""
    revision: str = "main"
    text: str = "builtin"
    text_column: str = "text"
    sites: tuple[str, ...] = ()
    tokens: int = 1_000_000
    """Rows to store per site; rounded up to whole contexts."""
    ctx_len: int = 128
    batch_size: int | None = None
    """Contexts per forward pass; None lets the device decide."""
    device: Device = "auto"
    precision: Precision = "auto"
    """Of the model's weights and arithmetic; auto is fp32 on a CPU, bf16 on a GPU that has it."""
    dtype: StoreDtype = "bf16"
    codec: str = "lz4"
    """lz4, zstd, raw, or the lossy bitround:N, which keeps N bits of mantissa."""
    seed: int = 0
    """Of the order of rows inside a shard."""
    shard_rows: int | None = None
    """Rows per shard; None means about 64 MiB of the widest site."""

    def __post_init__(self) -> None:
        _positive(self, "tokens", "ctx_len", "batch_size", "shard_rows")
        if len(set(self.sites)) < len(self.sites):
            raise ConfigError(f"a site is named twice in {', '.join(self.sites)}")


@dataclass(frozen=True, kw_only=True)
class ReluConfig:
    """ReLU latents under an L1 penalty: `||x - x_hat||^2 + l1 * ||z||_1`."""

    kind: Literal["relu"] = "relu"
    l1: float = 1e-3

    def __post_init__(self) -> None:
        if self.l1 < 0:
            raise ConfigError(f"l1 must not be negative, got {self.l1}")


@dataclass(frozen=True, kw_only=True)
class TopKConfig:
    """Keep the `k` largest latents of each row (Gao et al. 2024, arXiv 2406.04093)."""

    kind: Literal["topk"] = "topk"
    k: int = 32

    def __post_init__(self) -> None:
        _positive(self, "k")


ArchConfig = ReluConfig | TopKConfig
Arch = Literal["relu", "topk"]
ARCHS: dict[Arch, type[ArchConfig]] = {"relu": ReluConfig, "topk": TopKConfig}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    store: Path
    out: Path
    site: str | None = None
    """None means the store's only site."""
    arch: ArchConfig = field(default_factory=ReluConfig)
    expansion: int = 4
    """`d_sae / d_in`."""
    lr: float = 1e-4
    tokens: int | None = None
    """Rows to train on; None means one pass over the store; more than it holds repeats it."""
    batch_size: int = 1024
    """Rows per step."""
    seed: int = 0
    """Of the weights and of the order of rows."""
    device: Device = "auto"
    window_rows: int = 2**18
    """Rows in memory that batches are drawn from; two windows are held at a time."""
    threads: int | None = None
    """Threads that decode the store; None lets the machine decide."""
    checkpoint_every: int = 20_000
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    dead_window: int = 1_000_000
    """A latent silent for this many rows counts as dead."""

    def __post_init__(self) -> None:
        _positive(
            self, "expansion", "lr", "tokens", "batch_size", "window_rows", "threads",
            "checkpoint_every", "log_every", "dead_window",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One evaluation of one or more runs."""

    runs: tuple[Path, ...]
    model: str | None = None
    """Another model than the one the store was harvested from; None means that one."""
    text: str | None = None
    """None means held-out text: the embedded one for the embedded text, WikiText-103 otherwise."""
    text_column: str = "text"
    tokens: int = 100_000
    batch_size: int = 8
    device: Device = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        _positive(self, "tokens", "batch_size")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Learn one scale `c` and one bias `d` per latent, everything else frozen."""

    run: Path
    out: Path
    text: str = "builtin:arithmetic"
    text_column: str = "text"
    model: str | None = None
    """Another model to transplant the coder into; None means its own."""
    site: str | None = None
    """Another site to transplant the coder to; None means its own."""
    lr: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 8
    """Contexts per step."""
    epochs: int = 10
    steps_per_epoch: int = 200
    ctx_len: int = 128
    heldout_contexts: int = 64
    """Contexts kept apart to measure the loss before and after."""
    seed: int = 0
    device: Device = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        _positive(
            self, "lr", "batch_size", "epochs", "steps_per_epoch", "ctx_len", "heldout_contexts"
        )
