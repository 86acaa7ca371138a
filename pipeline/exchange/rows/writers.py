"""Rows of a site written into formats of others, part after part: one entry of a table a format."""

import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from jaxtyping import Int32, Int64, Shaped
from numpy.lib import format as npy

from actstore.files import partial_of, sync_file, write_all, write_json
from pipeline.config.rows import ExportFormat
from pipeline.exchange.rows.columnar import FACTS
from pipeline.exchange.rows.flat import SAFETENSORS
from pipeline.exchange.rows.values import storage_of
from pipeline.lm.names import hook_of

FILE_BYTES = 2**29
"""Of a file of Arrow, about: as `datasets` cuts them."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is written."""

    site: str
    n_contexts: int
    ctx_len: int
    width: int
    dtype: str
    has_tokens: bool
    facts: Mapping[str, str]
    """What else is known, for a format that has a place for it."""

    @property
    def n_rows(self) -> int:
        """Of all contexts."""
        return self.n_contexts * self.ctx_len

    @property
    def storage(self) -> np.dtype:
        """Of the rows."""
        return storage_of(self.dtype)

    @property
    def n_bytes(self) -> int:
        """Of rows and ids, before any compression."""
        return self.n_rows * (self.width * self.storage.itemsize + 12)


Write = Callable[
    [
        Shaped[np.ndarray, "contexts ctx_len width"],
        Int32[np.ndarray, "contexts ctx_len"],
        Int64[np.ndarray, "contexts ctx_len"],
    ],
    None,
]
"""Takes the next contexts: rows, token ids, document ids."""


class _Places:
    """A file whose arrays grow side by side, each at its own place."""

    def __init__(self, fd: int, places: Mapping[str, int]) -> None:
        self._fd = fd
        self._places = dict(places)

    def put(self, name: str, values: Shaped[np.ndarray, "..."]) -> None:
        os.lseek(self._fd, self._places[name], os.SEEK_SET)
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        write_all(self._fd, [data])
        self._places[name] += len(data)


@contextmanager
def _created(path: Path) -> Generator[int]:
    """A new file, that survives a power cut once it is whole."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        yield fd
        sync_file(fd)
    finally:
        os.close(fd)


# --- npy ---------------------------------------------------------------------------------------


@contextmanager
def write_npy(path: Path, content: Content) -> Generator[Write]:
    """Rows as `[rows, width]`, and beside them token ids as `[contexts, ctx_len]`."""
    shapes = {"rows": ((content.n_rows, content.width), content.storage)}
    tokens = None
    if content.has_tokens:
        shapes["tokens"] = ((content.n_contexts, content.ctx_len), np.dtype("<i4"))
        named = Path(str(path).removesuffix(".partial")).with_suffix(".tokens.npy")
        tokens = partial_of(named)
    with _created(path) as fd:
        rows = _Places(fd, {"rows": _npy_header(fd, *shapes["rows"])})
        if tokens is None:
            yield lambda acts, _tokens, _documents: rows.put("rows", acts)
            return
        with _created(tokens) as beside:
            ids = _Places(beside, {"tokens": _npy_header(beside, *shapes["tokens"])})

            def write(acts: Any, tokens: Any, _documents: Any) -> None:  # noqa: ANN401
                rows.put("rows", acts)
                ids.put("tokens", tokens)

            yield write


def _npy_header(fd: int, shape: tuple[int, ...], dtype: np.dtype) -> int:
    with os.fdopen(os.dup(fd), "wb") as file:
        told = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(file, told)
        return file.tell()


# --- safetensors -------------------------------------------------------------------------------


@contextmanager
def write_safetensors(path: Path, content: Content) -> Generator[Write]:
    """`SITE` as `[contexts, ctx_len, width]`, `token_ids` and `document_id` as the first two."""
    short = {long: name for name, long in SAFETENSORS.items()}
    shape = [content.n_contexts, content.ctx_len]
    arrays = {content.site: ([*shape, content.width], content.dtype)}
    if content.has_tokens:
        arrays |= {"document_id": (shape, "int64"), "token_ids": (shape, "int32")}
    header, end, starts = dict[str, Any](), 0, dict[str, int]()
    header["__metadata__"] = dict(content.facts)
    # The widest numbers come first, so that each array begins where its numbers may.
    order = sorted(arrays, key=lambda name: -storage_of(arrays[name][1]).itemsize)
    for name in order:
        dims, dtype = arrays[name]
        start, end = end, end + int(np.prod(dims, dtype=object)) * storage_of(dtype).itemsize
        header[name] = {"dtype": short[dtype], "shape": dims, "data_offsets": [start, end]}
        starts[name] = start
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with _created(path) as fd:
        write_all(fd, [len(text).to_bytes(8, "little"), text])
        file = _Places(fd, {name: 8 + len(text) + start for name, start in starts.items()})

        def write(acts: Any, tokens: Any, documents: Any) -> None:  # noqa: ANN401
            file.put(content.site, acts)
            if content.has_tokens:
                file.put("token_ids", tokens)
                file.put("document_id", documents)

        yield write


# --- Parquet -----------------------------------------------------------------------------------


def _numbers(dtype: str) -> Any:  # noqa: ANN401 - a type of Arrow
    return {"float16": pa.float16(), "float32": pa.float32()}[dtype]


@contextmanager
def write_parquet(path: Path, content: Content) -> Generator[Write]:
    """A row of activations a row, in a list of fixed size, beside the ids of its token."""
    columns = [pa.field(content.site, pa.list_(_numbers(content.dtype), content.width))]
    if content.has_tokens:
        columns += [pa.field("token_id", pa.int32()), pa.field("document_id", pa.int64())]
    columns += [pa.field("context_id", pa.int64()), pa.field("position", pa.int32())]
    schema = pa.schema(columns, metadata={FACTS: json.dumps(dict(content.facts))})
    first = 0
    # Numbers of activations repeat too seldom for a dictionary, and hardly compress without a
    # shuffle of their bits, which Parquet has under its name of a split into streams of bytes.
    with parquet.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=False,
        use_byte_stream_split=True,
    ) as file:  # fmt: skip

        def write(acts: Any, tokens: Any, documents: Any) -> None:  # noqa: ANN401
            nonlocal first
            n, ctx_len = tokens.shape
            arrays: list[Any] = [
                pa.FixedSizeListArray.from_arrays(pa.array(acts.reshape(-1)), content.width)
            ]
            if content.has_tokens:
                arrays += [pa.array(tokens.reshape(-1)), pa.array(documents.reshape(-1))]
            contexts = np.repeat(np.arange(first, first + n), ctx_len)
            arrays += [pa.array(contexts), pa.array(np.tile(np.arange(ctx_len, dtype=np.int32), n))]
            file.write_batch(pa.record_batch(arrays, schema=schema))
            first += n

        yield write
    _sync(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- SAELens' cache ----------------------------------------------------------------------------


@contextmanager
def write_arrow(path: Path, content: Content) -> Generator[Write]:
    """A folder as `datasets` saves one: the hook's column of contexts, and `token_ids`."""
    from datasets import Array2D, DatasetInfo, Features, Sequence, Value

    hook = hook_of(content.site)
    shape = (content.ctx_len, content.width)
    kinds: dict[str, Any] = {hook: Array2D(shape=shape, dtype=content.dtype)}
    if content.has_tokens:
        kinds["token_ids"] = Sequence(Value("int32"), length=content.ctx_len)
    features = Features(kinds)
    schema, context_bytes = features.arrow_schema, content.n_bytes // content.n_contexts
    per_file = max(1, FILE_BYTES // context_bytes)
    n_files, done, stream = -(-content.n_contexts // per_file), 0, _Streams(path, schema)
    path.mkdir(parents=True)

    def write(acts: Any, tokens: Any, _documents: Any) -> None:  # noqa: ANN401
        nonlocal done
        while len(acts):
            if done % per_file == 0:
                stream.next(f"data-{done // per_file:05d}-of-{n_files:05d}.arrow")
            n = min(per_file - done % per_file, len(acts))
            arrays = [_array_2d(acts[:n], schema.field(0).type)]
            if content.has_tokens:
                ids = pa.array(tokens[:n].reshape(-1))
                arrays.append(pa.FixedSizeListArray.from_arrays(ids, content.ctx_len))
            stream.write(pa.record_batch(arrays, schema=schema))
            acts, tokens, done = acts[n:], tokens[n:], done + n

    try:
        yield write
    finally:
        stream.close()
    told = asdict(DatasetInfo(features=features))
    write_json(path / "dataset_info.json", {name: told[name] for name in sorted(told)})
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in stream.names],
        "_fingerprint": content.facts["store"][:16],
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
        "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    write_json(path / "state.json", state)


def _array_2d(acts: Shaped[np.ndarray, "contexts ctx_len width"], kind: Any) -> Any:  # noqa: ANN401
    n, ctx_len, width = acts.shape
    rows = pa.ListArray.from_arrays(
        pa.array(np.arange(0, n * ctx_len * width + 1, width, dtype=np.int32)),
        pa.array(acts.reshape(-1)),
    )
    contexts = pa.ListArray.from_arrays(
        pa.array(np.arange(0, n * ctx_len + 1, ctx_len, dtype=np.int32)), rows
    )
    return pa.ExtensionArray.from_storage(kind, contexts)


class _Streams:
    """Files of Arrow, one after another."""

    def __init__(self, folder: Path, schema: Any) -> None:  # noqa: ANN401 - of Arrow
        self.names: list[str] = []
        self._folder, self._schema = folder, schema
        self._file: Any = None
        self._stream: Any = None

    def next(self, name: str) -> None:
        self.close()
        self.names.append(name)
        self._file = pa.OSFile(str(self._folder / name), "wb")
        self._stream = pa.ipc.new_stream(self._file, self._schema)

    def write(self, batch: Any) -> None:  # noqa: ANN401 - of Arrow
        self._stream.write_batch(batch)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._file.close()
            self._stream = None
            _sync(self._folder / self.names[-1])


WRITERS: Mapping[ExportFormat, Callable[[Path, Content], AbstractContextManager[Write]]] = {
    "npy": write_npy,
    "safetensors": write_safetensors,
    "parquet": write_parquet,
    "arrow": write_arrow,
}
SUFFIX: Mapping[ExportFormat, str] = {
    "npy": ".npy",
    "safetensors": ".safetensors",
    "parquet": ".parquet",
    "arrow": "",
}
"""How the name of a file ends; a folder's may end as it likes."""
