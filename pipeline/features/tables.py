"""The Parquet files of `RUN/features/`, each held to its checksum when it is read."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from pipeline.errors import CheckpointError

FOLDER, FACTS = "features", "features.json"
TABLES = ("features", "examples", "samples", "tokens")


class Tables(dict[str, Any]):
    """Tables by name, read when they are asked for."""

    def __init__(self, run: Path, sha256: dict[str, str]) -> None:
        super().__init__()
        self._run, self._sha256 = run, sha256

    def __missing__(self, name: str) -> Any:  # noqa: ANN401 - pyarrow is not typed
        file = f"{name}.parquet"
        try:
            data = (self._run / FOLDER / file).read_bytes()
            if hashlib.sha256(data).hexdigest() != self._sha256.get(name):
                raise ValueError(f"its checksum does not match {FACTS}")  # noqa: TRY301
            self[name] = parquet.read_table(pyarrow.BufferReader(data)).combine_chunks()
        except (OSError, ValueError) as error:  # what pyarrow raises is one of these
            raise damaged(self._run, file, error) from error
        return self[name]


def damaged(run: Path, file: str, error: Exception) -> CheckpointError:
    """One line about a file of `RUN/features`."""
    return CheckpointError(
        f"{run / FOLDER / file} is missing or damaged ({error}): find the features again with "
        f"saepipe features {run}"
    )
