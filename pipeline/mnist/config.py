"""Everything the experiment can be told; it is written beside its result."""

from pathlib import Path
from typing import Literal

from pipeline.config.checks import require_not_negative, require_positive, require_seed
from pipeline.config.settings import settings
from pipeline.config.stages import Device
from pipeline.errors import ConfigError


@settings
class MnistConfig:
    """One run of the experiment."""

    out: Path
    images: str = "digits"
    """digits, a hub dataset as ylecun/mnist, or the path of IDX files."""

    hidden: int = 64
    """Neurons of each of the three hidden layers."""
    epochs: int = 20
    """Passes over the images while the classifier learns."""
    lr: float = 1e-3
    """Of the classifier; it falls linearly to zero."""
    weight_decay: float = 0.5
    """Of the classifier, decoupled (AdamW)."""
    dropout: float = 0.2
    """Share of hidden neurons left out at random while the classifier learns: what does not hang on
    any one neuron survives the errors of a simulation."""
    batch_size: int = 64
    """Images a step of the classifier."""

    expansion: int = 4
    """Features a neuron."""
    sae_l1: float = 0.6
    """Of the SAEs, in units of their layer's root mean square."""
    sae: Literal["tied", "relu"] = "relu"
    """Which of them the connectors lie between."""
    sae_steps: int = 400
    """Few: SAEs that learn for longer reconstruct better, by features that take more weights to
    connect."""
    sae_lr: float = 1e-3
    """Learning rate of the SAEs."""

    connect_l1: tuple[float, ...] = (0.003, 0.005, 0.01, 0.02)
    """Of the connectors, one of each a value, in units of both layers' root mean squares."""
    chosen_l1: float = 0.005
    """The one that stands for them in figures and in the comparison."""
    connect_epochs: int = 30
    """Passes over the images while the connectors learn; their weights are kept after each."""
    connect_lr: float = 3e-3
    """Learning rate of the connectors."""
    threshold: float = 0.1
    """Weights whose size is above it are counted, as S2 does; the others are then cut."""

    seed: int = 0
    """Random seed."""
    device: Device = "auto"
    """That computes; auto takes cuda, else mps, else cpu."""

    def __post_init__(self) -> None:
        require_positive(
            self, "hidden", "epochs", "lr", "batch_size", "expansion", "sae_steps", "sae_lr",
            "connect_epochs", "connect_lr", "threshold",
        )  # fmt: skip
        require_not_negative(self, "weight_decay", "sae_l1")
        require_seed(self, "seed")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if len(set(self.connect_l1)) < len(self.connect_l1) or min(self.connect_l1, default=-1) < 0:
            told = ", ".join(f"{l1:g}" for l1 in self.connect_l1) or "none"
            raise ConfigError(f"connect_l1 takes values of at least 0, each once, got {told}")
        if self.chosen_l1 not in self.connect_l1:
            told = ", ".join(f"{l1:g}" for l1 in self.connect_l1)
            raise ConfigError(
                f"chosen_l1 must be one of connect_l1 ({told}), got {self.chosen_l1:g}"
            )
