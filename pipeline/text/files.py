"""Text in local files, or a folder of them: `FORMATS` is the table of those that can be read.

A document is a record, or a text file; a text file beyond 1 MiB is several, cut at line ends.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast, final

import pyarrow
import pyarrow.parquet as parquet

from pipeline.errors import TextError
from pipeline.fingerprints import FIRST, NOW, ends_of, parts_of_text, scheme_of
from pipeline.text.columns import Column, text_columns, text_of
from pipeline.text.source import TextSource

PIECE_CHARACTERS = 1 << 20
"""About where a long text file is cut."""
_ABOUT_THE_DATA = {"README", "SOURCE", "LICENSE", "LICENCE", "NOTICE"}


@final
class FileText(TextSource):
    """The documents of one file, or of a folder's files in the order of their names."""

    def __init__(self, path: Path, *, name: str, column: Column) -> None:
        self.name = name
        self._root = path
        self._column = column
        self._paths = _usable_files(path)
        for plain in (one for one in self._paths if FORMATS[_suffix(one)] is _PLAIN):
            column.require_records(str(plain), what="plain text")

    def fingerprint(self) -> str:
        """SHA-256 over name, size and content of every file, as `pipeline.fingerprints` says."""
        return files_fingerprint(self._paths, root=self._root)

    def fingerprint_like(self, stored: str) -> str:
        """The fingerprint, made the way that a stored one was."""
        return files_fingerprint(self._paths, root=self._root, scheme=scheme_of(stored))

    def documents(self, start: int = 0) -> Iterator[str]:
        """The documents from number `start` on; what comes before is counted, not parsed."""
        for path in self._paths:
            form = FORMATS[_suffix(path)]
            with _explained(path):
                if start and path is not self._paths[-1]:
                    n = form.count(path)
                    if start >= n:
                        start -= n
                        continue
                yield from form.read(path, self._column, start)
            start = 0


def _usable_files(path: Path) -> list[Path]:
    """The file itself, or the folder's, at any depth."""
    suffixes = ", ".join(sorted(FORMATS))
    if not path.is_dir():
        if _suffix(path) not in FORMATS:
            raise TextError(f"{path} is not of a kind that can be read: {suffixes}, or a folder")
        return [path]
    found = sorted(below for below in path.rglob("*") if _is_data(below, path))
    if not found:
        raise TextError(f"{path} holds no file of a kind that can be read: {suffixes}")
    return found


def _is_data(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    about = path.name.partition(".")[0].upper() in _ABOUT_THE_DATA
    return path.is_file() and not hidden and not about and _suffix(path) in FORMATS


def _suffix(path: Path) -> str:
    """How the name ends: `.jsonl.gz` is one kind."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def looks_like_a_file(path: Path) -> bool:
    """Whether a name ends as that of a text file does, be there one or not."""
    return path.suffix.lower() in {Path(f"x{suffix}").suffix for suffix in FORMATS}


def files_fingerprint(paths: list[Path], *, root: Path, scheme: str = NOW) -> str:
    """SHA-256 over name below `root`, size, and what the scheme covers of every file."""
    digest, total = hashlib.sha256(), sum(path.stat().st_size for path in paths)
    for path in paths:
        name = path.relative_to(root) if path != root else path.name
        digest.update(os.fsencode(f"{name}:{path.stat().st_size}\n"))
        for part in [ends_of(path)] if scheme == FIRST else parts_of_text(path, total=total):
            digest.update(part)
    return f"{scheme}{digest.hexdigest()}"


_CONVERT = "convert it, for example with iconv"


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """What goes wrong in a file becomes one line that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text ({error.reason}): {_CONVERT}") from error
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise TextError(f"{path} cannot be read, it may be damaged: {reason}") from error


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a kind of file is read. Whatever OSError and the like say becomes one line."""

    read: Callable[[Path, Column, int], Iterator[str]]
    """Path, column with the text, and number of the first document -> documents."""
    count: Callable[[Path], int]
    """How many documents a file holds; it need not parse them."""


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


def _read_lines(path: Path, column: Column, start: int) -> Iterator[str]:
    for number, line in islice(_lines(path), start, None):
        where = f"{path} line {number}"
        yield text_of(_parsed(line, where=where), column, where=where)


def _listed(path: Path) -> list[object]:
    content = _parsed(path.read_bytes(), where=str(path))
    if not isinstance(content, list):
        raise TextError(
            f"{path} is not a list of records or strings: give --text the file that holds the text"
        )
    return cast("list[object]", content)


def _read_list(path: Path, column: Column, start: int) -> Iterator[str]:
    for number, record in enumerate(_listed(path)[start:], start=start + 1):
        yield text_of(record, column, where=f"{path} record {number}")


def _parsed(content: bytes, *, where: str) -> object:
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise TextError(f"{where} is not UTF-8 text ({error.reason}): {_CONVERT}") from error
    except (ValueError, RecursionError) as error:  # also a number too long, or lists too deep
        raise TextError(f"{where} is not valid JSON: {error}") from error


def _read_parquet(path: Path, column: Column, start: int) -> Iterator[str]:
    """Row group by row group; those before `start` are not read."""
    with parquet.ParquetFile(path) as file:
        columns = text_columns(file.schema_arrow.names, column, where=str(path))
        groups, first = list(range(file.num_row_groups)), 0
        while groups and start - first >= (n := int(file.metadata.row_group(groups[0]).num_rows)):
            first += n
            del groups[0]
        rows = (
            row
            for batch in file.iter_batches(row_groups=groups, columns=list(columns))
            for row in batch.to_pylist()
        )
        for number, row in enumerate(islice(rows, start - first, None), start=start + 1):
            yield text_of(row, column, where=f"{path} record {number}")


def _count_parquet(path: Path) -> int:
    with parquet.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


_PLAIN = Format(
    read=lambda path, _, start: islice(_pieces(path), start, None),
    count=lambda path: sum(1 for _ in _pieces(path)),
)
_LINES = Format(read=_read_lines, count=lambda path: sum(1 for _ in _lines(path)))

FORMATS = {
    ".txt": _PLAIN,
    ".md": _PLAIN,
    ".jsonl": _LINES,
    ".jsonl.gz": _LINES,
    ".json": Format(read=_read_list, count=lambda path: len(_listed(path))),
    ".parquet": Format(read=_read_parquet, count=_count_parquet),
}
"""By how the name of a file ends, in lower case."""
