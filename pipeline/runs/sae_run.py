"""The run of a sparse autoencoder: its weights are `sae.safetensors`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from actstore.files import write_json
from pipeline.config.serialization import to_json
from pipeline.config.training import TrainConfig
from pipeline.errors import CheckpointError
from pipeline.runs.folder import (
    RUN,
    Provenance,
    RunDocument,
    load_tensors,
    read_document,
    save_tensors,
)
from pipeline.sae.sae import SAE

CODER = "sae.safetensors"


@dataclass(frozen=True, kw_only=True)
class _Document(RunDocument):
    """run.json."""

    kind: Literal["sae"] = "sae"
    config: TrainConfig
    store: Provenance
    sha256: str = ""
    """Of sae.safetensors; empty until the run is complete."""
    failure: str = ""
    """Why training stopped for good."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run on disk."""

    path: Path
    config: TrainConfig
    """As it ran: the site named, the paths absolute."""
    provenance: Provenance
    sha256: str = ""
    failure: str = ""
    """Why it will never be complete."""

    @staticmethod
    def open(path: Path) -> "Run":
        """A complete run.

        Raises:
            CheckpointError: there is no run at `path`, or it is unfinished or damaged.
        """
        run = _read(path)
        if run.failure:
            raise CheckpointError(f"{path} was never finished: {run.failure}")
        if not run.finished:
            raise CheckpointError(
                f"{path} is an unfinished run: finish it with saepipe train "
                f"{run.provenance.path} --out {path} --resume and the options it began with"
            )
        return run

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        return bool(self.sha256)

    @property
    def origins(self) -> Mapping[str, tuple[Path, str]]:
        """The store."""
        return {"store": (self.provenance.path, self.provenance.fingerprint)}

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.config.expansion * self.provenance.d_in

    def load_sae(self, device: torch.device) -> SAE:
        """The finished coder in float32, every byte checked.

        Raises:
            CheckpointError: sae.safetensors is missing or damaged.
        """
        coder = self.blank_sae()
        coder.load_state_dict(
            load_tensors(
                self.path / CODER, sha256=self.sha256, advice="train again into another --out"
            )
        )
        return coder.to(device)

    def blank_sae(self) -> SAE:
        """A coder of this run's shape and architecture, its parameters still to be loaded."""
        source = self.provenance
        return SAE(self.config.arch, d_in=source.d_in, d_sae=self.d_sae, site=source.site)

    def finish(self, coder: SAE) -> "Run":
        """Write the finished coder, and only then call the run complete.

        Raises:
            OSError: the disk is full or fails.
        """
        run = replace(self, sha256=save_tensors(self.path / CODER, coder.state_dict()))
        run.write()
        return run

    def fail(self, why: str) -> None:
        """Keep word that training diverged: going on would only lead there again.

        Raises:
            OSError: the disk is full or fails.
        """
        replace(self, failure=why).write()

    def write(self) -> None:
        """Write run.json.

        Raises:
            OSError: the disk is full or fails.
        """
        document = _Document(
            config=self.config, store=self.provenance, sha256=self.sha256, failure=self.failure
        )
        write_json(self.path / RUN, to_json(document))

    def reread(self) -> "Run":
        """The run that is in this one's folder.

        Raises:
            CheckpointError: its run.json is damaged.
        """
        return _read(self.path)


def _read(path: Path) -> Run:
    document = read_document(path, _Document, named="sae", made_by="saepipe train")
    return Run(
        path=path,
        config=document.config,
        provenance=document.store,
        sha256=document.sha256,
        failure=document.failure,
    )
