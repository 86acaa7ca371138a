"""Rows in columns of Arrow and Parquet: lists of numbers, or of lists of them where contexts are.

SAELens' caches are Arrow streams as `datasets` saves them: a context a row, of lists of lists.
"""

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from jaxtyping import Shaped

from pipeline.errors import DataError
from pipeline.exchange.rows.flat import unreadable
from pipeline.exchange.rows.values import FLOATS, INTEGERS, Values, shaped

STATE, SPLITS = "state.json", "dataset_dict.json"
FACTS = b"saepipe"
"""Key of the metadata of a schema that tells, as JSON, what an export knew."""
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""How a whole stream ends."""
_ENTRIES = 256  # of Parquet that are decoded at a time, at the least


@contextmanager
def told(path: Path) -> Generator[None]:
    """What pyarrow says of a damaged file, as one line."""
    try:
        yield
    except (OSError, pa.ArrowException, EOFError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def dense(array: Any, *, words: str) -> Shaped[np.ndarray, "..."]:  # noqa: ANN401 - of Arrow
    """Lists of equal lengths, of numbers, as one array.

    Raises:
        DataError: something is missing, or lengths differ.
    """
    dims = [len(array)]
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if array.null_count:
            raise DataError(f"{words} has places without a value: rows of activations have none")
        if pa.types.is_fixed_size_list(array.type):
            dims.append(array.type.list_size)
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            lengths = np.unique(np.diff(array.offsets.to_numpy()))
            if len(lengths) != 1:
                raise DataError(f"{words} has lists of {lengths[0]} and of {lengths[-1]} values")
            dims.append(int(lengths[0]))
        else:
            return array.to_numpy(zero_copy_only=False).reshape(dims)
        array = array.flatten()


def _number_of(kind: Any) -> str | None:  # noqa: ANN401 - a type of Arrow
    """The dtype of a column that may be rows of activations or ids; None for any other."""
    depth = 0
    while True:
        if isinstance(kind, pa.ExtensionType):
            kind = kind.storage_type
        if not (
            pa.types.is_list(kind) or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        ):  # fmt: skip
            break
        kind, depth = kind.value_type, depth + 1
    arrows = {"halffloat": "float16", "float": "float32", "double": "float64"}
    name = arrows.get(str(kind), str(kind))
    fits = (name in FLOATS and depth in (1, 2)) or (name in INTEGERS and depth in (0, 1))
    return name if fits else None


@dataclass(kw_only=True)
class Batches(Values):
    """A column of a table that is read batch by batch."""

    path: Path
    per_entry: int
    """Rows of an entry of the table: those of a context, or one."""

    def _rows(self, array: Any) -> Shaped[np.ndarray, "n ..."]:  # noqa: ANN401 - of Arrow
        found = dense(array, words=self.words)
        each = (self.ctx_len,) * (self.ctx_len is not None) + (self.width,) * (
            self.width is not None
        )
        if found.shape[1:] != each:
            raise DataError(
                f"{self.words} has lists of {' x '.join(map(str, found.shape[1:]))} values, and "
                f"of {' x '.join(map(str, each))} before"
            )
        return found.reshape(-1, *each[self.ctx_len is not None :])


def _described(first: Any, kind: str, n_entries: int, *, words: str) -> dict[str, Any]:  # noqa: ANN401
    """Rows, context length and width, by the first entry of a column."""
    dims = dense(first, words=words).shape[1:]
    n_rows, ctx_len, width = shaped((n_entries, *dims), kind, words=words)
    return {"n_rows": n_rows, "ctx_len": ctx_len, "width": width, "dtype": kind}


# --- Arrow -------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ArrowColumn(Batches):
    """Of a file that is mapped: what was read of it leaves memory again."""

    batches: Sequence[Any]
    starts: Sequence[int]
    """The first row of each batch, and the end."""
    name: str

    def read(self, start: int, stop: int) -> Shaped[np.ndarray, "n ..."]:
        """As `Values.read`."""
        found, number = list[np.ndarray](), int(np.searchsorted(self.starts, start, "right")) - 1
        while start < stop:
            first, end = self.starts[number], min(stop, self.starts[number + 1])
            entry, skip = divmod(start - first, self.per_entry)
            last = -(-(end - first) // self.per_entry)
            with told(self.path):
                column = self.batches[number].column(self.name)
                rows = self._rows(column.slice(entry, last - entry))
            found.append(rows[skip : skip + end - start])
            start, number = end, number + 1
        return found[0] if len(found) == 1 else np.concatenate(found)


def open_arrow(path: Path) -> dict[str, Values]:
    """The columns of numbers of an Arrow file, of either kind."""
    with told(path), path.open("rb") as file:
        head = file.read(6)
        if head != b"ARROW1":
            file.seek(-min(8, path.stat().st_size), 2)
            if file.read() != _END:
                raise unreadable(path, "a whole file of Arrow ends otherwise")
    with told(path):
        mapped = pa.memory_map(str(path))
        if head == b"ARROW1":
            reader = pa.ipc.open_file(mapped)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        else:
            batches = [*pa.ipc.open_stream(mapped)]
        batches = [batch for batch in batches if batch.num_rows]
        for batch in batches:
            batch.validate(full=True)
        columns = [(entry.name, entry.type) for batch in batches[:1] for entry in batch.schema]
    if not batches:
        raise DataError(f"{path} holds no rows")
    n_entries, found = sum(batch.num_rows for batch in batches), dict[str, Values]()
    for name, its_type in columns:
        kind, words = _number_of(its_type), f"{name} of {path}"
        if kind is None:
            continue
        told_of = _described(batches[0].column(name).slice(0, 1), kind, n_entries, words=words)
        per_entry = told_of["ctx_len"] or 1
        starts = np.cumsum([0, *(batch.num_rows * per_entry for batch in batches)]).tolist()
        found[name] = ArrowColumn(
            words=words, path=path, per_entry=per_entry, batches=batches, starts=starts,
            name=name, **told_of,
        )  # fmt: skip
    return found


def require_plain_dataset(path: Path) -> None:
    """Refuse a folder that `datasets` saved whose files are not its rows in their order.

    Raises:
        DataError: it holds splits, or an order beside the files.
    """
    if (path / SPLITS).is_file():
        raise DataError(f"{path} holds several splits: name the folder of one, as {path}/train")
    if (path / STATE).is_file():
        try:
            state = json.loads((path / STATE).read_bytes())
            shuffled = bool(state.get("_indices_data_files"))
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise unreadable(path / STATE, error) from error
        if shuffled:
            raise DataError(
                f"{path} was shuffled and keeps its order beside its files: save it anew, after "
                "dataset.flatten_indices()"
            )


# --- Parquet -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ParquetColumn(Batches):
    """Of a file that is decoded group by group, a few MiB at a time."""

    name: str
    groups: Sequence[int]
    """Entries of each row group."""
    at_once: int
    """Entries that are decoded together."""
    _place: int = -1
    _left: Any = ()
    _ahead: Iterator[Any] = field(default_factory=lambda: iter(()))

    def read(self, start: int, stop: int) -> Shaped[np.ndarray, "n ..."]:
        """As `Values.read`."""
        if start != self._place:
            self._seek(start)
        found, wanted = list[np.ndarray](), stop - start
        with told(self.path):
            while wanted:
                if not len(self._left):
                    self._left = self._rows(self._next().column(0))
                found.append(self._left[:wanted])
                self._left = self._left[len(found[-1]) :]
                wanted -= len(found[-1])
        self._place = stop
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _seek(self, row: int) -> None:
        entry, inside = divmod(row, self.per_entry)
        ends = np.cumsum(self.groups)
        group = int(np.searchsorted(ends, entry, "right"))
        skip = entry - int(ends[group] - self.groups[group])
        self._ahead = self._decoded(group)
        batch = self._next()
        while skip >= batch.num_rows:
            skip -= batch.num_rows
            batch = self._next()
        self._left = self._rows(batch.column(0).slice(skip))[inside:]

    def _next(self) -> Any:  # noqa: ANN401 - a batch of Arrow
        batch = next(self._ahead, None)
        if batch is None:
            raise unreadable(self.path, "it ends before the rows that its footer tells")
        return batch

    def _decoded(self, group: int) -> Iterator[Any]:
        with told(self.path), _parquet(self.path) as file:
            groups = list(range(group, file.num_row_groups))
            yield from file.iter_batches(self.at_once, row_groups=groups, columns=[self.name])


def _parquet(path: Path) -> Any:  # noqa: ANN401 - pyarrow is partly typed
    return parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)


def open_parquet(path: Path) -> tuple[dict[str, Values], dict[str, str]]:
    """The columns of numbers of a Parquet file, and what an export told with them."""
    found = dict[str, Values]()
    with told(path), _parquet(path) as file:
        n_entries, schema = file.metadata.num_rows, file.schema_arrow
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        if not n_entries or sum(groups) != n_entries:
            raise DataError(f"{path} holds no rows")
        for entry in schema:
            kind, words = _number_of(entry.type), f"{entry.name} of {path}"
            if kind is None:
                continue
            first = next(file.iter_batches(1, columns=[entry.name])).column(0)
            told_of = _described(first, kind, n_entries, words=words)
            per_entry = told_of["ctx_len"] or 1
            values = per_entry * (told_of["width"] or 1)
            found[entry.name] = ParquetColumn(
                words=words, path=path, per_entry=per_entry, name=entry.name, groups=groups,
                at_once=max(1, min(2**20 // values, 2**16)), **told_of,
            )  # fmt: skip
    return found, facts_in(schema.metadata)


def facts_in(metadata: Any) -> dict[str, str]:  # noqa: ANN401 - bytes by bytes, or None
    """What an export told in the metadata of a schema; nothing of another's."""
    try:
        said = json.loads((metadata or {}).get(FACTS, b"{}"))
        return {str(key): str(value) for key, value in said.items()}
    except (ValueError, AttributeError, RecursionError):
        return {}
