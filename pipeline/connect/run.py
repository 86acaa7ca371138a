"""The run of a connector: its weights are `connector.safetensors`, its SAEs stay where they are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from actstore.files import write_json
from actstore.reader import ActStore
from pipeline.config.serialization import to_json
from pipeline.config.training import ConnectConfig
from pipeline.connect.connector import Connector, End, SAEPair
from pipeline.errors import CheckpointError, ConfigError
from pipeline.runs.folder import (
    RUN,
    Provenance,
    RunDocument,
    kind_of,
    load_tensors,
    read_document,
    save_tensors,
)
from pipeline.runs.sae_run import Run

CONNECTOR = "connector.safetensors"


@dataclass(frozen=True, kw_only=True)
class _Document(RunDocument):
    """run.json."""

    kind: Literal["connector"] = "connector"
    config: ConnectConfig
    store: Provenance
    source: End
    target: End
    sha256: str = ""
    """Of connector.safetensors; empty until the run is complete."""
    failure: str = ""
    """Why training stopped for good."""


@dataclass(frozen=True, kw_only=True)
class ConnectorRun:
    """The training of a connector on disk."""

    path: Path
    config: ConnectConfig
    """As it ran: the paths absolute."""
    provenance: Provenance
    """Of the site whose latents are predicted."""
    source: End
    target: End
    sha256: str = ""
    failure: str = ""
    """Why it will never be complete."""

    @staticmethod
    def open(path: Path) -> "ConnectorRun":
        """A complete run.

        Raises:
            CheckpointError: there is no connector at `path`, or it is unfinished or damaged.
        """
        run = _read(path)
        if run.failure:
            raise CheckpointError(f"{path} was never finished: {run.failure}")
        if not run.finished:
            raise CheckpointError(
                f"{path} is an unfinished run: finish it with saepipe train "
                f"{run.provenance.path} --connect {run.source.run}:{run.target.run} --out {path} "
                "--resume and the options it began with"
            )
        return run

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        return bool(self.sha256)

    @property
    def origins(self) -> Mapping[str, tuple[Path, str]]:
        """The store and both SAEs."""
        return {
            "store": (self.provenance.path, self.provenance.fingerprint),
            "SAE to read": (self.source.run, self.source.sha256),
            "SAE to predict": (self.target.run, self.target.sha256),
        }

    def load_connector(self, device: torch.device) -> Connector:
        """The finished connector in float32, every byte checked.

        Raises:
            CheckpointError: connector.safetensors is missing or damaged.
        """
        tensors = load_tensors(
            self.path / CONNECTOR, sha256=self.sha256, advice="train again into another --out"
        )
        connector = Connector(tensors["W"], tensors["b"], activation=self.config.activation)
        return connector.to(device).requires_grad_(False)

    def load_pair(self, device: torch.device) -> SAEPair:
        """The SAEs it lies between.

        Raises:
            CheckpointError: one is gone, damaged, or was trained anew.
        """
        source, target = (_opened(self.path, end) for end in (self.source, self.target))
        return load_pair(source, target, device=device)

    def finish(self, connector: Connector) -> "ConnectorRun":
        """Write the finished connector, and only then call the run complete.

        Raises:
            OSError: the disk is full or fails.
        """
        run = replace(self, sha256=save_tensors(self.path / CONNECTOR, connector.state_dict()))
        run.write()
        return run

    def fail(self, why: str) -> None:
        """Keep word that training diverged.

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
            config=self.config,
            store=self.provenance,
            source=self.source,
            target=self.target,
            sha256=self.sha256,
            failure=self.failure,
        )
        write_json(self.path / RUN, to_json(document))

    def reread(self) -> "ConnectorRun":
        """The run that is in this one's folder.

        Raises:
            CheckpointError: its run.json is damaged, or it is another kind of run.
        """
        return _read(self.path)


def is_connector(path: Path) -> bool:
    """Whether the run at `path`, if there is one, says that it is a connector."""
    return kind_of(path) == "connector"


def blank_connector_run(store: ActStore, config: ConnectConfig) -> ConnectorRun:
    """The run of a config, before anything is trained or written.

    Raises:
        ConfigError: a site of the SAEs is not in the store, or has another width.
        CheckpointError: one of the SAEs' runs cannot be used.
    """
    ends = tuple(path.resolve() for path in config.ends)
    layer = config.layer and config.layer.resolve()
    source, target = (Run.open(path) for path in ends)
    for run in (source, target):
        site, d_in = run.provenance.site, run.provenance.d_in
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


def load_pair(source: Run, target: Run, *, device: torch.device) -> SAEPair:
    """Two SAEs, ready to encode, and the rows that either was not trained on.

    Raises:
        CheckpointError: the weights of one are missing or damaged.
    """
    return SAEPair(
        source=source.load_sae(device).requires_grad_(False),
        target=target.load_sae(device).requires_grad_(False),
        sites=(source.provenance.site, target.provenance.site),
    )


def _opened(path: Path, end: End) -> Run:
    try:
        run = Run.open(end.run)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is a connector between SAEs, and {error}") from error
    if run.sha256 != end.sha256:
        raise CheckpointError(
            f"{end.run} was trained anew since the connector {path} was: train that again, into "
            "another --out"
        )
    return run


def _read(path: Path) -> ConnectorRun:
    document = read_document(path, _Document, named="connector", made_by="saepipe train --connect")
    return ConnectorRun(
        path=path,
        config=document.config,
        provenance=document.store,
        source=document.source,
        target=document.target,
        sha256=document.sha256,
        failure=document.failure,
    )
