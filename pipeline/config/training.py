"""Everything a training can be told; it is written beside its run."""

from dataclasses import field
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.config.architectures import ArchConfig, TopKConfig
from pipeline.config.checks import (
    parse_duration,
    require_fraction,
    require_not_negative,
    require_positive,
    require_seed,
)
from pipeline.config.settings import Count, Length, settings
from pipeline.config.stages import Device, Precision
from pipeline.errors import ConfigError

Switch = Literal["auto", "on", "off"]
Resample = Literal["none", "random", "worst"]
Normalize = Literal["none", "rms"]
BDecStart = Literal["mean", "median", "zero"]
WDecStart = Literal["rows", "random"]
Rectify = Literal["relu", "linear"]
Outputs = Literal["alive", "all"]
ConnectorStart = Literal["random", "weights", "regression"]


@settings
class LoopConfig:
    """What every training is told. Durations are `10k steps`, `5M` (tokens) or `20%` of it.

    What is None is left open: `pipeline.config.defaults` settles it before a run begins.
    """

    KIND: ClassVar[str]
    """Of the runs that it makes."""

    store: Path
    out: Path
    tokens: Count | None = None
    """Rows to train on; None means one pass over the store; more than it holds repeats it."""
    batch_size: Count | None = None
    """Rows per step."""
    seed: int = 0
    """Of the weights, and of what resampling draws."""
    order_seed: int = 0
    """Of the order of rows."""

    lr: float | None = None
    lr_warmup: Length = "0"
    """The learning rate rises linearly for so long."""
    lr_decay: Length = "0"
    """And falls linearly to zero over so long at the end."""
    beta1: float = 0.9
    """Of Adam: decay of the mean of the gradient."""
    beta2: float = 0.999
    """Of Adam: decay of the mean of its square."""
    clip: float = 1.0
    """Largest norm of the gradient of all weights; 0 does not clip.

    The first gradients are hundreds of times as long as later ones. Unclipped they stay in Adam's
    second moment for a thousand steps, in which little is learned.
    """
    ema: float | None = None
    """Decay of the moving average of the weights that is saved in their place; None saves them."""
    l1_warmup: Length = "0"
    """The sparsity penalty rises linearly for so long."""

    device: Device = "auto"
    """That computes; auto takes cuda, else mps, else cpu."""
    precision: Precision = "auto"
    """Of the large products; weights stay fp32. auto is fp32 on a CPU, bf16 on a GPU that has it.
    """
    sparse: Switch = "auto"
    """Compute only what active latents need; auto does where it is faster."""
    window_rows: Count = 2**18
    """Rows in memory that batches are drawn from; two windows are held at a time."""
    threads: int | None = None
    """Threads that decode the store; None lets the machine decide."""
    checkpoint_every: int = 20_000
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        require_positive(
            self, "lr", "tokens", "batch_size", "window_rows", "threads", "checkpoint_every",
            "log_every",
        )  # fmt: skip
        require_seed(self, "seed", "order_seed")
        require_not_negative(self, "clip")
        require_fraction(self, "ema", "beta2")
        if not 0 <= self.beta1 < 1:
            raise ConfigError(f"beta1 must be at least 0 and below 1, got {self.beta1}")
        for name in ("lr_warmup", "lr_decay", "l1_warmup"):
            parse_duration(getattr(self, name))
        if self.precision == "fp16":
            raise ConfigError("precision fp16 overflows in training: type --precision bf16 or fp32")

    @property
    def rows_per_step(self) -> int:
        """`batch_size`, once it is settled."""
        assert self.batch_size is not None
        return self.batch_size

    @property
    def peak_lr(self) -> float:
        """`lr`, once it is settled."""
        assert self.lr is not None
        return self.lr

    def n_steps(self, n_rows: int) -> int:
        """Steps that see `tokens` of a store's rows, rounded up; one pass is in whole batches."""
        if self.tokens is None:
            return max(1, n_rows // self.rows_per_step)
        return -(-self.tokens // self.rows_per_step)


@settings
class TrainConfig(LoopConfig):
    """One training of a sparse autoencoder."""

    KIND: ClassVar[str] = "sae"

    site: str | None = None
    """None means the store's only site."""
    arch: ArchConfig = field(default_factory=TopKConfig)
    expansion: float | int = 4
    """`d_sae / d_in`, which need not be whole."""

    batch_size: Count | None = None
    """Rows per step; None means 1024, and in short runs fewer, for the sake of steps."""
    lr: float | None = None
    """Of Adam; None goes by both widths, the number of rows, and that of rows a step."""
    lr_warmup: Length = "5%"
    lr_decay: Length = "60%"

    project: bool = False
    """Also take out of the gradient what is parallel to each row of a unit-norm dictionary."""
    hold: Length = "0"
    """Where l1 is adjusted, it first stays as it is for so long."""
    dead_window: Length | None = None
    """A latent silent for so long counts as dead; None means 1M rows, or in short runs less."""
    revive_after: Length | None = None
    """A latent silent for so long is helped, by AuxK and `revive`; None means `dead_window`, or
    where that is open, too, 0.3 % of the run."""
    revive: float = 1.0
    """Its bias (of JumpReLU, its threshold) moves by so many learning rates a step until it is
    active, where there is AuxK by 0.3 times as many; 0 leaves it to AuxK, where there is one. After
    ten times `revive_after`, of the peak rate, however far learning has slowed down."""
    resample: Resample = "none"
    """Give dead latents new weights: random ones, or towards the worst reconstructed rows."""
    resample_every: Length = "10k steps"
    """How often that is done."""
    resample_window: Length = "5k steps"
    """Those silent for so long are resampled."""

    normalize: Normalize = "rms"
    """rms scales activations to a mean square of 1; the SAE that is saved takes them as they are.
    """
    b_dec_start: BDecStart = "mean"
    """The decoder's bias: the mean of the site, the geometric median of some rows, or zero."""
    w_dec_start: WDecStart = "rows"
    """Directions half towards rows of the store and half random, or random alone."""
    exclude_positions: tuple[int, ...] = ()
    """Rows at these positions of their contexts are not trained on; 0 is where BOS would be."""
    exclude_tokens: tuple[int, ...] = ()
    """Nor rows of these token ids."""
    exclude_norms: float | None = None
    """Nor rows whose norm is above so many times the median."""

    stack: Switch = "auto"
    """Compute equally shaped members of a sweep at once; auto measures which is faster."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "expansion", "exclude_norms")
        require_not_negative(self, "revive")
        for name in ("hold", "dead_window", "revive_after", "resample_every", "resample_window"):
            if (duration := getattr(self, name)) is not None:
                parse_duration(duration)
        if self.expansion == int(self.expansion):  # 8.0 and 8 are one config
            object.__setattr__(self, "expansion", int(self.expansion))

    def d_sae(self, d_in: int) -> int:
        """Latents of an SAE of a site of this width."""
        return max(1, round(self.expansion * d_in))


@settings
class ConnectConfig(LoopConfig):
    """One training of a connector: latents of one SAE to those of another, of the same store."""

    KIND: ClassVar[str] = "connector"

    batch_size: Count = 1024
    lr: float = 1e-3
    """Learning rate of Adam."""
    clip: float = 0.0
    """As above; a shorter gradient would make the penalty, which is no part of it, count for more.
    """
    ends: tuple[Path, Path]
    """Runs of the SAE whose latents are read, and of the one whose latents are predicted."""
    activation: Rectify = "relu"
    """`z2 = relu(z1 W + b)`, or without the relu."""
    bias: bool = True
    """Whether `b` is learned; without, it is zero."""
    l1: float = 0.01
    """Times the sum of all `|W|`, beside the mean over rows of the squared error's sum."""
    proximal: bool = True
    """Shrink weights to exactly zero instead of following the penalty's gradient."""
    outputs: Outputs = "alive"
    """Latents of the second SAE to predict: those active on any of a sample of rows, or all."""
    start: ConnectorStart = "regression"
    """Ridge regression over a sample of rows, random weights, or `E2 W D1` of the layer between.

    An output whose prediction is below zero on all rows is not learned any more: from random
    weights that happens to many.
    """
    layer: Path | None = None
    """safetensors with the `weight` `[out, in]` and `bias` of the layer between, for `weights`;
    None takes the linear map that best predicts the second site from the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "l1")
        if self.ends[0] == self.ends[1]:
            raise ConfigError(f"a connector needs two runs, got {self.ends[0]} twice")
