"""Text by way of `datasets`: streamed from the hub, or from a folder that it saved.

`datasets` takes a second to import and is not needed for the embedded text or for files, so it
is imported where it is used. No code that comes with a dataset is ever run: one that only has a
loading script is read from the Parquet files that the hub converts it to.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, final

from pipeline.errors import PipelineError, TextError
from pipeline.fingerprints import NOW, scheme_of
from pipeline.hub.explained import explained
from pipeline.text.columns import Column, text_columns, text_of
from pipeline.text.files import files_fingerprint
from pipeline.text.source import TextSource

_TIMEOUT = 10.0  # seconds until the hub counts as unreachable
_CONVERTED = "refs/convert/parquet"


@final
class HubText(TextSource):
    """One split of a dataset of the hub, at the commit that its main branch has now."""

    def __init__(self, dataset: str, *, config: str | None, split: str, column: Column) -> None:
        self.name = f"{dataset}{f':{config}' if config else ''}@{split}"
        self._id = dataset
        self._config = config
        self._split = split
        self._column = column

    def fingerprint(self) -> str:
        """The commit."""
        return f"commit:{self._commit}"

    def documents(self, start: int = 0) -> Iterator[str]:
        """The documents from number `start` on; `datasets` skips those before."""
        with self._explained():
            dataset = self._open()
            if dataset.column_names is not None:
                columns = text_columns(dataset.column_names, self._column, where=self.name)
                dataset = dataset.select_columns(list(columns))
            for number, record in enumerate(dataset.skip(start), start=start + 1):
                yield text_of(record, self._column, where=f"{self.name} record {number}")

    @cached_property
    def _commit(self) -> str:
        from huggingface_hub import HfApi

        with self._explained():
            return HfApi().dataset_info(self._id, timeout=_TIMEOUT).sha or "unknown"

    def _open(self) -> Any:  # noqa: ANN401 its class is imported late
        """The streamed dataset."""
        commit = self._commit
        datasets = _import_datasets()
        try:
            return datasets.load_dataset(
                self._id, self._config, split=self._split, revision=commit, streaming=True
            )
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
        files = f"{self._converted_config()}/{self._split}/*.parquet"
        return datasets.load_dataset(
            self._id,
            revision=_CONVERTED,
            data_files={self._split: files},
            split=self._split,
            streaming=True,
        )

    def _converted_config(self) -> str:
        """The configuration asked for, or the only one."""
        from huggingface_hub import HfApi

        files = HfApi().list_repo_files(self._id, repo_type="dataset", revision=_CONVERTED)
        there = sorted({file.partition("/")[0] for file in files if file.endswith(".parquet")})
        if self._config is None and len(there) == 1:
            return there[0]
        if self._config not in there:
            raise TextError(
                f"{self._id} has the configurations {', '.join(there)}: "
                f"name one, as --text {self._id}:{there[0] if there else 'CONFIG'}@{self._split}"
            )
        return self._config

    def _explained(self) -> AbstractContextManager[None]:
        return dataset_explained(self._id, name=self.name, raises=TextError)


@contextmanager
def dataset_explained(dataset: str, *, name: str, raises: type[PipelineError]) -> Generator[None]:
    """Turn what the hub's clients raise about a dataset into one line; it is read by this name."""
    from huggingface_hub import errors

    with explained(f"dataset {dataset}", raises=raises):
        try:
            yield
        except (errors.HFValidationError, errors.LocalEntryNotFoundError):
            raise
        except (FileNotFoundError, ValueError, RuntimeError) as error:
            raise raises(f"dataset {name} cannot be read: {_first_line(error)}") from error


@final
class SavedText(TextSource):
    """A dataset in a folder, as `save_to_disk` leaves it."""

    def __init__(self, path: Path, *, name: str, split: str | None, column: Column) -> None:
        self.name = name
        self._path = path
        self._split = split
        self._column = column

    def fingerprint(self) -> str:
        """SHA-256 over name, size and content of every file, as `pipeline.fingerprints` says."""
        return self._fingerprint(NOW)

    def fingerprint_like(self, stored: str) -> str:
        """The fingerprint, made the way that a stored one was."""
        return self._fingerprint(scheme_of(stored))

    def _fingerprint(self, scheme: str) -> str:
        files = sorted(path for path in self._path.rglob("*") if path.is_file())
        return files_fingerprint(files, root=self._path, scheme=scheme)

    def documents(self, start: int = 0) -> Iterator[str]:
        """The documents from number `start` on; those before are not read."""
        dataset = self._chosen()
        columns = text_columns(dataset.column_names, self._column, where=self.name)
        if start >= len(dataset):
            return
        records = dataset.select_columns(list(columns)).skip(start)
        for number, record in enumerate(records, start=start + 1):
            yield text_of(record, self._column, where=f"{self.name} record {number}")

    def _chosen(self) -> Any:  # noqa: ANN401 its class is imported late
        """The dataset, or the split of it that is asked for."""
        try:
            saved: Any = _import_datasets().load_from_disk(str(self._path))
        except (OSError, ValueError, KeyError) as error:
            raise TextError(f"{self._path} cannot be read: {_first_line(error)}") from error
        splits = list(saved) if isinstance(saved, Mapping) else None
        if splits is None and self._split is None:
            return saved
        if splits is None:
            raise TextError(f"{self._path} has no splits: leave out @{self._split}")
        if self._split not in splits:
            asked = f"no split {self._split!r} but" if self._split else "several splits,"
            raise TextError(
                f"{self._path} has {asked} {', '.join(splits)}: "
                f"name one, as --text {self._path}@{splits[0] if splits else 'SPLIT'}"
            )
        return saved[self._split]


def is_saved(path: Path) -> bool:
    """Whether `datasets` saved this folder."""
    whole = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    return whole or (path / "dataset_dict.json").is_file()


def _import_datasets() -> ModuleType:
    import datasets

    datasets.disable_progress_bars()
    return datasets


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
