"""The run of a connector: its weights are `connector.safetensors`, its SAEs stay where they are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor

from actstore.reader import ActStore
from pipeline.config.training import ConnectConfig
from pipeline.connect.connector import Connector, End, Ends, SAEPair
from pipeline.errors import CheckpointError, ConfigError
from pipeline.runs.belongs import RUN
from pipeline.runs.folder import Provenance, RunFolder
from pipeline.runs.imported import require_site
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import metadata_inside


@final
@dataclass(frozen=True, kw_only=True)
class ConnectorRun(RunFolder):
    """The training of a connector on disk. `provenance` is that of the site it predicts."""

    KIND: ClassVar[str] = "connector"
    WEIGHTS: ClassVar[str] = "connector.safetensors"
    MADE_BY: ClassVar[str] = "saepipe train --connect"

    config: ConnectConfig
    source: End
    target: End

    @property
    def origins(self) -> Mapping[str, tuple[Path, str]]:
        """The store and both SAEs."""
        return {
            "store": (self.provenance.path, self.provenance.fingerprint),
            "SAE to read": (self.source.run, self.source.sha256),
            "SAE to predict": (self.target.run, self.target.sha256),
        }

    @property
    def ends(self) -> Ends:
        """Both SAEs."""
        return self.source, self.target

    @property
    def command(self) -> str:
        """The command that began it, without its options."""
        ends = f"{self.source.run}:{self.target.run}"
        return f"saepipe train {self.provenance.path} --connect {ends}"

    def __repr__(self) -> str:
        what = f"{self.source.run} to {self.target.run}"
        ends = "" if self.finished else ", unfinished"
        return f"ConnectorRun({self.path}: {what}, l1={self.config.l1:g}{ends})"

    def _metadata(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """What the weights do not tell."""
        return {"activation": self.config.activation}

    def load_connector(self, device: torch.device) -> Connector:
        """The finished connector in float32, every byte checked.

        Raises:
            CheckpointError: connector.safetensors is missing or damaged, or does not fit run.json.
        """
        tensors, activation = self.trained(), self.config.activation
        own = metadata_inside(self.path / self.WEIGHTS).get("activation", activation)
        if own != activation:
            raise CheckpointError(
                f"{self.path / RUN} does not fit {self.WEIGHTS} (activation {activation}, it says "
                f"{own}): put a copy back, or train again into another --out"
            )
        connector = Connector(tensors["W"], tensors["b"], activation=activation)
        return connector.to(device).requires_grad_(False)

    def load_pair(self, device: torch.device) -> SAEPair:
        """The SAEs it lies between.

        Raises:
            CheckpointError: one is gone, damaged, or was trained anew.
        """
        source, target = (_opened(self.path, end) for end in self.ends)
        return load_pair(source, target, device=device)


def blank_connector_run(store: ActStore, config: ConnectConfig) -> ConnectorRun:
    """The run of a config, before anything is trained or written.

    Raises:
        ConfigError: an SAE does not say its site, or that is not in the store, or has another
            width there.
        CheckpointError: one of the SAEs' runs cannot be used.
    """
    layer = config.layer and config.layer.resolve()
    source, target = (SAERun.open(path.resolve()) for path in config.ends)
    for run in (source, target):
        site, d_in = require_site(run.provenance.site, run.path), run.provenance.d_in
        if run.input_norm != "none":
            raise ConfigError(
                f"{run.path} normalises each row ({run.input_norm}), so that what its latents "
                "write depends on it: connectors lie between SAEs that take rows as they are"
            )
        if site not in store.sites:
            raise ConfigError(
                f"{run.path} is about {site}, and {store.path} holds {', '.join(store.sites)}: "
                f"a connector needs both sites in one store: add it with saepipe harvest --site "
                f"{site}"
            )
        if store.width(site) != d_in:
            raise ConfigError(
                f"{run.path} is an SAE of {d_in} dimensions, and {site} of {store.path} has "
                f"{store.width(site)}: choose the store of the model that it was trained on"
            )
    return ConnectorRun(
        path=config.out,
        config=replace(config, ends=(source.path, target.path), layer=layer),
        provenance=Provenance.of(store, site=target.provenance.site),
        source=End.of(source),
        target=End.of(target),
    )


def load_pair(source: SAERun, target: SAERun, *, device: torch.device) -> SAEPair:
    """Two SAEs, ready to encode."""
    return SAEPair(
        source=source.load_sae(device).requires_grad_(False),
        target=target.load_sae(device).requires_grad_(False),
        sites=(source.provenance.site, target.provenance.site),
    )


def _opened(path: Path, end: End) -> SAERun:
    try:
        run = SAERun.open(end.run)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is a connector between SAEs, and {error}") from error
    if run.sha256 != end.sha256:
        raise CheckpointError(
            f"{end.run} was trained anew since the connector {path} was: train that again, into "
            "another --out"
        )
    return run


def n_outputs(run: Path) -> int:
    """How many features a connector predicts.

    Raises:
        CheckpointError: there is no complete run.
    """
    return ConnectorRun.open(run).target.d_sae
