"""The files of a model: a local folder, a repository of the hub, or the embedded default."""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.fingerprints import FIRST, NOW, ends_of, parts_of_weights, scheme_of
from pipeline.hub.explained import explained, network_error

# The few names on the hub without an owner.
_SINGLE_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
_TIMEOUT = 10.0  # seconds until the hub counts as unreachable
BUILTIN = "builtin"


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file of a model holds.

    Raises:
        ModelError: it holds none.
    """
    try:
        told: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(told, dict):
        raise ModelError(f"{path} must hold settings by name, and holds a {type(told).__name__}")
    return told


@dataclass(frozen=True)
class ModelFiles:
    """Files by name, downloaded one by one and only when asked for."""

    name: str
    """Hub id, local folder, or `builtin`."""
    revision: str = "main"

    @cached_property
    def folder(self) -> Path | None:
        """The local folder, or None for a repository of the hub."""
        if self.name == BUILTIN:
            return builtin_model_path()
        path = Path(self.name).expanduser()
        if path.is_dir():
            return path
        looks_local = self.name.startswith((".", "/", "~")) or self.name.count("/") != 1
        if path.exists() or (looks_local and self.name not in _SINGLE_NAMES):
            raise ModelError(
                f"model {self.name!r} is neither a folder with config.json nor a hub id like "
                "EleutherAI/pythia-70m-deduped"
            )
        return None

    def find(self, filename: str) -> Path | None:
        """The local path of a file, downloaded if it must be; None when the model has no such.

        Raises:
            ModelError: it cannot be reached, or is no file.
        """
        if self.folder is not None:
            path = self.folder / filename
            if os.path.lexists(path) and not path.is_file():
                raise ModelError(f"{path} is no file, or a link to none: put it back")
            return path if path.is_file() else None
        return self._download(filename)

    def is_here(self, filename: str) -> bool:
        """Whether a file need not be downloaded."""
        if self.folder is not None:
            return (self.folder / filename).is_file()
        return (self.need("config.json").parent / filename).is_file()

    def need(self, filename: str) -> Path:
        """The local path of a file that every model has."""
        path = self.find(filename)
        if path is None:
            raise ModelError(f"model {self.name} has no {filename}")
        return path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return read_object(self.need("config.json"))

    def fingerprint(self) -> str:
        """What identifies the weights: the commit on the hub, a digest of a local folder.

        The digest covers config.json whole, and what `pipeline.fingerprints` says of each weight
        file: it changes when a tensor was retrained.
        """
        return self._fingerprint(NOW)

    def fingerprint_like(self, stored: str) -> str:
        """The fingerprint, made the way that a stored one was."""
        return self._fingerprint(scheme_of(stored))

    def _fingerprint(self, scheme: str) -> str:
        if self.folder is None:  # …/snapshots/<commit>/config.json
            return f"commit:{self.need('config.json').parent.name}"
        digest = hashlib.sha256(self.need("config.json").read_bytes())
        for path in sorted(self.folder.glob("*.safetensors")):
            digest.update(f"{path.name}:{path.stat().st_size}".encode())
            for part in [ends_of(path)] if scheme == FIRST else parts_of_weights(path):
                digest.update(part)
        return f"{scheme}{digest.hexdigest()}"

    def _download(self, filename: str) -> Path | None:
        from huggingface_hub import errors, hf_hub_download

        with explained(self._what, raises=ModelError):
            try:
                path = hf_hub_download(
                    self.name, filename, revision=self.revision, local_files_only=self._offline
                )
            except errors.LocalEntryNotFoundError:
                if self._offline and filename != "config.json" and self._is_cached:
                    return None  # what a cached model lacks, it lacked when it was fetched
                raise
            except errors.EntryNotFoundError:
                return None
        return Path(path)

    @property
    def _what(self) -> str:
        return f"model {self.name} (revision {self.revision})"

    @cached_property
    def _is_cached(self) -> bool:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.name, "config.json", revision=self.revision)
        return isinstance(cached, str)

    @cached_property
    def _offline(self) -> bool:
        """Asked once, without retries: who has no network should know at once."""
        from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

        if constants.HF_HUB_OFFLINE:
            return True
        url = hf_hub_url(self.name, "config.json", revision=self.revision)
        with explained(self._what, raises=ModelError):
            try:
                get_hf_file_metadata(url, timeout=_TIMEOUT)
            except errors.HfHubHTTPError:
                raise
            except network_error():
                return True
        return False


def builtin_model_path() -> Path:
    """Folder of the embedded model: beside the package in a wheel, in `data/` in a checkout."""
    package = Path(__file__).parent.parent
    places = (package / "embedded" / "tiny-pythia", package.parent / "data" / "tiny-pythia")
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ModelError(
        f"the embedded model is not in {places[0]} nor in {places[1]}: install saepipe again, "
        "or name a model of your own with --model"
    )
