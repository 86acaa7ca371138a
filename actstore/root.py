"""The root of a store: the one file whose replacement makes a generation complete."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actstore.errors import StoreError
from actstore.files import write_json
from actstore.manifest import Manifest
from actstore.metadata import array_document, root_document
from actstore.summary import Summary, summary_name

GROUP = "data.zarr"


def peek(path: Path) -> Manifest | None:
    """What the store at `path` says of itself, by one small file; None if there is none yet.

    Raises:
        StoreError: If there is something else, another version, or a damaged root.
    """
    document = read_root(path)
    return None if document is None else manifest_of(path, document)


def read_root(path: Path) -> dict[str, Any] | None:
    """The root's zarr.json; None if there is none."""
    root = path / GROUP / "zarr.json"
    try:
        document = json.loads(root.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{root} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{root} is damaged: it is not JSON") from error
    if not isinstance(document, dict):
        raise StoreError(f"{root} is damaged: it is not a Zarr group")
    return document


def manifest_of(path: Path, document: Mapping[str, Any]) -> Manifest:
    """The manifest in a root's document.

    Raises:
        StoreError: If it is not of this version, or was altered.
    """
    root = path / GROUP / "zarr.json"
    try:
        return Manifest.from_attributes(document["attributes"])
    except (TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{root} is damaged: {error}") from error
    except StoreError as error:
        raise StoreError(f"{path} cannot be used: {error}") from error


def being_extended(path: Path, manifest: Manifest) -> StoreError | None:
    """What to tell of a store that is between the first and the last step of an extension."""
    if not (path / GROUP / summary_name(manifest.generation + 1) / "zarr.json").exists():
        return None
    return StoreError(
        f"{path} is just being extended; try again in a moment, or if its writer died, "
        "go on with the extension"
    )


def write_root(path: Path, manifest: Manifest, summary: Summary | None = None) -> None:
    """Replace the root; with a summary it carries the documents of every node of the group.

    Raises:
        OSError: If the disk is full or fails.
    """
    nodes = None if summary is None else documents_of(manifest, summary)
    write_json(path / GROUP / "zarr.json", root_document(manifest, nodes))


def documents_of(manifest: Manifest, summary: Summary) -> dict[str, Any]:
    """The zarr.json of every node of a complete store, by path from the root."""
    spec, group = manifest.spec, summary_name(manifest.generation)
    arrays = {name: array_document(spec, name, manifest.n_rows) for name in spec.arrays}
    inner = {f"{group}/{name}".rstrip("/"): d for name, d in summary.documents().items()}
    return {**arrays, **inner}
