"""Everything a run can be told. A config is a value: frozen, comparable, written beside its run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.archs import ArchConfig, ReluConfig
from pipeline.checks import require_fraction, require_not_negative, require_positive
from pipeline.errors import ConfigError
from pipeline.span import parse_span

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
StoreDtype = Literal["bf16", "fp16", "fp32"]
Switch = Literal["auto", "on", "off"]
Resample = Literal["none", "random", "worst"]
Normalize = Literal["none", "rms"]
BDecStart = Literal["mean", "median", "zero"]

SPANS = ("lr_warmup", "lr_decay", "l1_warmup", "hold", "dead_window", "resample_every",
         "resample_window")  # fmt: skip
"""Settings of TrainConfig that are lengths of training."""


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
        require_positive(self, "tokens", "ctx_len", "batch_size", "shard_rows")
        if len(set(self.sites)) < len(self.sites):
            raise ConfigError(f"a site is named twice in {', '.join(self.sites)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Lengths are spans: `10k steps`, `5M` (tokens) or `20%` of the run."""

    store: Path
    out: Path
    site: str | None = None
    """None means the store's only site."""
    arch: ArchConfig = field(default_factory=ReluConfig)
    expansion: int = 4
    """`d_sae / d_in`."""
    tokens: int | None = None
    """Rows to train on; None means one pass over the store; more than it holds repeats it."""
    batch_size: int = 1024
    """Rows per step."""
    seed: int = 0
    """Of the weights, and of what resampling draws."""
    order_seed: int = 0
    """Of the order of rows."""

    lr: float = 1e-4
    lr_warmup: str = "0"
    """The learning rate rises linearly for so long."""
    lr_decay: str = "0"
    """And falls linearly to zero over so long at the end."""
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float = 1.0
    """Largest norm of the gradient of all weights; 0 does not clip.

    The first gradients are hundreds of times as long as later ones. Unclipped they stay in Adam's
    second moment for a thousand steps, in which little is learned.
    """
    project: bool = False
    """Also take out of the gradient what is parallel to each row of a unit-norm dictionary."""
    ema: float | None = None
    """Decay of the moving average of the weights that is saved in their place; None saves them."""
    l1_warmup: str = "0"
    """The sparsity penalty rises linearly for so long."""
    hold: str = "5M"
    """With a target, l1 stays as it is for so long, and is then adjusted."""

    dead_window: str = "1M"
    """A latent silent for so long counts as dead."""
    resample: Resample = "none"
    """Give dead latents new weights: random ones, or towards the worst reconstructed rows."""
    resample_every: str = "10k steps"
    resample_window: str = "5k steps"
    """Those silent for so long are resampled."""

    normalize: Normalize = "none"
    """rms scales activations to a mean square of 1; the coder that is saved takes them as they are.
    """
    b_dec_start: BDecStart = "mean"
    exclude_positions: tuple[int, ...] = ()
    """Rows at these positions of their contexts are not trained on; 0 is where BOS would be."""
    exclude_tokens: tuple[int, ...] = ()
    """Nor rows of these token ids."""
    exclude_norms: float | None = None
    """Nor rows whose norm is above so many times the median."""

    device: Device = "auto"
    precision: Precision = "auto"
    """Of the large products; weights stay fp32. auto is fp32 on a CPU, bf16 on a GPU that has it.
    """
    sparse: Switch = "auto"
    """Compute only what active latents need; auto does where it is faster."""
    stack: Switch = "auto"
    """Compute equally shaped members of a sweep at once; auto measures which is faster."""
    window_rows: int = 2**18
    """Rows in memory that batches are drawn from; two windows are held at a time."""
    threads: int | None = None
    """Threads that decode the store; None lets the machine decide."""
    checkpoint_every: int = 20_000
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        require_positive(
            self, "expansion", "lr", "tokens", "batch_size", "window_rows", "threads",
            "exclude_norms", "checkpoint_every", "log_every",
        )  # fmt: skip
        require_not_negative(self, "clip")
        require_fraction(self, "ema", "beta2")
        if not 0 <= self.beta1 < 1:
            raise ConfigError(f"beta1 must be at least 0 and below 1, got {self.beta1}")
        for name in SPANS:
            parse_span(getattr(self, name))
        if self.precision == "fp16":
            raise ConfigError("precision fp16 overflows in training: type --precision bf16 or fp32")


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
    as_trained: bool = False
    """Leave as they are, and do not count, the rows that training left out."""
    layers: tuple[int, ...] = ()
    """Also splice each coder, alone, into these layers."""
    n_worst: int = 10
    """Contexts to name whose loss a coder raises most."""
    n_bootstrap: int = 1000
    """Resamplings of the contexts that intervals are made of; 0 makes none."""
    seed: int = 0
    """Of the resampling."""
    batch_size: int = 8
    device: Device = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        require_positive(self, "tokens", "batch_size")
        require_not_negative(self, "n_worst", "n_bootstrap")
        if any(layer < 0 for layer in self.layers):
            raise ConfigError(f"layers start at 0, got {min(self.layers)}")


FeatureOrder = Literal["frequency", "max", "index", "random"]


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """What every feature of a run fires on: one pass over the store it was trained from."""

    run: Path
    store: Path | None = None
    """None means the one it was trained from."""
    tokens: int | None = None
    """Rows to read, in whole contexts from the store's first; None means all."""
    n_top: int = 12
    """Contexts with the largest activations, a feature."""
    n_spread: int = 16
    """Contexts drawn at random from all in which it is active, a feature."""
    n_values: int = 128
    """Tokens drawn at random from all on which it is active, a feature."""
    seed: int = 0
    """Of what is drawn."""
    device: Device = "auto"

    def __post_init__(self) -> None:
        require_positive(self, "tokens", "n_top", "n_spread", "n_values")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A page about one or more runs."""

    runs: tuple[Path, ...]
    out: Path
    n_features: int = 200
    """Features a run to show, evenly by frequency among those that are alive."""

    def __post_init__(self) -> None:
        require_positive(self, "n_features")


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
        require_positive(
            self, "lr", "batch_size", "epochs", "steps_per_epoch", "ctx_len", "heldout_contexts"
        )
