"""The run of a sparse autoencoder: its weights are `sae.safetensors`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch

from pipeline.config.training import TrainConfig
from pipeline.runs.folder import RunFolder
from pipeline.sae.sae import SAE

CODER = "sae.safetensors"


@final
@dataclass(frozen=True, kw_only=True)
class SAERun(RunFolder):
    """The training of an SAE on disk."""

    KIND: ClassVar[str] = "sae"
    WEIGHTS: ClassVar[str] = CODER
    MADE_BY: ClassVar[str] = "saepipe train"

    config: TrainConfig
    """As it ran: the site named, the paths absolute."""

    @property
    def origins(self) -> Mapping[str, tuple[Path, str]]:
        """The store."""
        return {"store": (self.provenance.path, self.provenance.fingerprint)}

    @property
    def command(self) -> str:
        """The command that began it, without its options."""
        return f"saepipe train {self.provenance.path}"

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.config.expansion * self.provenance.d_in

    def load_sae(self, device: torch.device) -> SAE:
        """The finished SAE in float32, every byte checked.

        Raises:
            CheckpointError: sae.safetensors is missing or damaged.
        """
        coder = self.blank_sae()
        coder.load_state_dict(self.trained())
        return coder.to(device)

    def blank_sae(self) -> SAE:
        """An SAE of this run's shape and architecture, its parameters still to be loaded."""
        source = self.provenance
        return SAE(self.config.arch, d_in=source.d_in, d_sae=self.d_sae, site=source.site)
