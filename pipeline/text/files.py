""".txt .md .jsonl .json .parquet and folders of them; a table of formats.

Where in a record its text stands.

Text in local files: .txt and .md, .jsonl, .jsonl.gz, .json, .parquet, or a folder of them.

A document is a record, or a text file; a text file beyond 1 MiB is several, cut at line ends.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import cast, final

import pyarrow
import pyarrow.parquet as parquet

from pipeline.errors import TextError
from pipeline.text.source import TextSource

QUESTION = ("context", "completion")
"""Columns of a question and its answer (EleutherAI/arithmetic): read as one text."""


def text_columns(columns: Iterable[str], column: str, *, where: str) -> tuple[str, ...]:
    """The columns whose texts, one after the other, are the document.

    Args:
        columns: Those that are there.
        column: The one asked for.
        where: Names the source in the error.

    Raises:
        TextError: neither the one asked for nor question and answer are there.
    """
    there = tuple(columns)
    if column in there:
        return (column,)
    if column == "text" and set(QUESTION) <= set(there):
        return QUESTION
    listed = ", ".join(repr(name) for name in there) or "none"
    raise TextError(
        f"{where} has no column {column!r}; its columns are {listed}: "
        'name the one with text in a --config file, as text_column = "..."'
    )


def text_of(record: object, column: str, *, where: str) -> str:
    """The document of a record, or of a plain string; empty where the record says null.

    Raises:
        TextError: the record has no such column, or something else than text in it.
    """
    if isinstance(record, str):
        return record
    if not isinstance(record, Mapping):
        raise TextError(f"{where} is neither a record nor a string but {_kind(record)}")
    fields = cast("Mapping[str, object]", record)
    values = [fields[name] for name in text_columns(fields, column, where=where)]
    for value in values:
        if value is not None and not isinstance(value, str):
            raise TextError(f"{where} holds {_kind(value)} where text is expected")
    return "".join(value for value in values if isinstance(value, str))


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


PIECE_CHARACTERS = 1 << 20
"""About where a long text file is cut."""

_SAMPLE = 1 << 16  # bytes hashed at each end of a file: a whole hash would read gigabytes
_KINDS = {".txt", ".md", ".jsonl", ".jsonl.gz", ".json", ".parquet"}
_ABOUT_THE_DATA = {"README", "SOURCE", "LICENSE", "LICENCE", "NOTICE"}


@final
class FileText(TextSource):
    """The documents of one file, or of a folder's files in the order of their names."""

    def __init__(self, path: Path, *, name: str, column: str) -> None:
        self.name = name
        self._root = path
        self._column = column
        self._paths = _usable_files(path)

    def fingerprint(self) -> str:
        """SHA-256 over name, size and both ends (64 KiB) of every file."""
        return files_fingerprint(self._paths, root=self._root)

    def documents(self, start: int = 0) -> Iterator[str]:
        """The documents from number `start` on; what comes before is counted, not parsed."""
        for path in self._paths:
            if start and path is not self._paths[-1]:
                n = _count(path)
                if start >= n:
                    start -= n
                    continue
            yield from _documents(path, self._column, start)
            start = 0


def files_fingerprint(paths: list[Path], *, root: Path) -> str:
    """SHA-256 over name below `root`, size and both ends of every file."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root) if path != root else path.name}:{size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return f"sha256:{digest.hexdigest()}"


def _usable_files(path: Path) -> list[Path]:
    """The file itself, or the folder's, at any depth.

    Raises:
        TextError: there is no file of a known kind.
    """
    kinds = ", ".join(sorted(_KINDS))
    if not path.is_dir():
        if _kind_text_files(path) not in _KINDS:
            raise TextError(f"{path} is not of a kind that can be read: {kinds}, or a folder")
        return [path]
    found = sorted(below for below in path.rglob("*") if _is_data(below, path))
    if not found:
        raise TextError(f"{path} holds no file of a kind that can be read: {kinds}")
    return found


def _is_data(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    about = path.name.partition(".")[0].upper() in _ABOUT_THE_DATA
    return path.is_file() and not hidden and not about and _kind_text_files(path) in _KINDS


def _kind_text_files(path: Path) -> str:
    """How the name ends: `.jsonl.gz` is one kind."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _count(path: Path) -> int:
    """Number of documents in a file."""
    with _explained(path):
        match _kind_text_files(path):
            case ".parquet":
                with parquet.ParquetFile(path) as file:
                    return int(file.metadata.num_rows)
            case ".json":
                return len(_listed(path))
            case ".jsonl" | ".jsonl.gz":
                return sum(1 for _ in _lines(path))
            case _:
                return sum(1 for _ in _pieces(path))


def _documents(path: Path, column: str, start: int) -> Iterator[str]:
    """The documents of a file from number `start` on."""
    with _explained(path):
        match _kind_text_files(path):
            case ".parquet":
                yield from _parquet_documents(path, column, start)
            case ".json":
                for number, record in enumerate(_listed(path)[start:], start=start + 1):
                    yield text_of(record, column, where=f"{path} record {number}")
            case ".jsonl" | ".jsonl.gz":
                for number, line in islice(_lines(path), start, None):
                    where = f"{path} line {number}"
                    yield text_of(_parsed(line, where=where), column, where=where)
            case _:
                yield from islice(_pieces(path), start, None)


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """What goes wrong in a file becomes one line that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path} is not UTF-8 text ({error.reason}): convert it, for example with iconv"
        ) from error
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise TextError(f"{path} cannot be read, it may be damaged: {reason}") from error


def _pieces(path: Path) -> Iterator[str]:
    """A text file whole, or cut at the first line end after every 1 MiB."""
    with path.open(encoding="utf-8-sig") as file:
        while piece := file.read(PIECE_CHARACTERS):
            yield piece + file.readline(PIECE_CHARACTERS)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, content) of each line that is not blank."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield number, line


def _listed(path: Path) -> list[object]:
    content = _parsed(path.read_bytes(), where=str(path))
    if not isinstance(content, list):
        raise TextError(
            f"{path} is not a list of records or strings: give --text the file that holds the text"
        )
    return cast("list[object]", content)


def _parsed(content: bytes, *, where: str) -> object:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise TextError(f"{where} is not valid JSON: {error}") from error


def _parquet_documents(path: Path, column: str, start: int) -> Iterator[str]:
    """Row group by row group; those before `start` are not read."""
    with parquet.ParquetFile(path) as file:
        columns = text_columns(file.schema_arrow.names, column, where=str(path))
        groups = list(range(file.num_row_groups))
        while groups and start >= (n := int(file.metadata.row_group(groups[0]).num_rows)):
            start -= n
            del groups[0]
        rows = (
            row
            for batch in file.iter_batches(row_groups=groups, columns=list(columns))
            for row in batch.to_pylist()
        )
        for row in islice(rows, start, None):
            yield text_of(row, column, where=str(path))
