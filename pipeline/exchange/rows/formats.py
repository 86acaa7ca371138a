"""Which format a source is of, and its columns of rows: one entry of a table a format.

A folder's files follow one another in natural order, `part-2` before `part-10`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, DataError
from pipeline.exchange.rows.columnar import open_arrow, open_parquet, require_plain_dataset
from pipeline.exchange.rows.flat import (
    is_saev,
    open_npy,
    open_raw,
    open_saev,
    open_safetensors,
    unreadable,
)
from pipeline.exchange.rows.values import Joined, Opened, Values

Columns = dict[str, Values]


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """What must be said of files that say nothing of themselves."""

    shape: tuple[int, ...] = ()
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """How files of a kind are opened."""

    suffixes: tuple[str, ...]
    open: Callable[[Path, RawFile], tuple[Columns, Mapping[str, str]]]
    """A file -> its columns of rows, and what else it tells."""


FORMATS: dict[str, Format] = {
    "npy": Format(
        suffixes=(".npy",),
        open=lambda path, raw: (open_npy(path, bits=raw.dtype == "bfloat16"), {}),
    ),
    "safetensors": Format(suffixes=(".safetensors",), open=lambda path, _: open_safetensors(path)),
    "parquet": Format(suffixes=(".parquet",), open=lambda path, _: open_parquet(path)),
    "arrow": Format(suffixes=(".arrow", ".feather"), open=lambda path, _: (open_arrow(path), {})),
}
"""By name; saev's folders and raw files are told by other signs."""

OTHERS = {
    ".npz": "np.load it and save its rows with np.save",
    ".pt": "torch.load it and save its rows with safetensors",
    ".pth": "torch.load it and save its rows with safetensors",
    ".pkl": "save its rows with np.save: opening it would run what it holds",
}
"""What is not read, and how to make of it what is."""
_BESIDE = {".json", ".md", ".txt", ".yaml", ".yml", ".lock", ".gitattributes", ""}
"""Of files that tell about the others."""


def open_rows(path: Path, *, raw: RawFile | None = None) -> Opened:
    """Open a file or a folder of rows; nothing but headers is read.

    Args:
        path: Where they are.
        raw: Of a file of nothing but numbers, which; its dtype also makes bfloat16 of the 16-bit
            integers of a `.npy`.

    Raises:
        ConfigError: there is nothing, or of no format that is read.
        DataError: a file is damaged, or files do not fit one another.
    """
    raw = raw or RawFile()
    try:
        if path.is_dir() and is_saev(path):
            return open_saev(path).stamped()
        files = _files(path)
        name = _format_of(files, path, raw=raw)
        opened = [_opened(name, file, raw) for file in files]
    except OSError as error:
        raise unreadable(Path(error.filename or path), error.strerror or error) from error
    columns = _joined([columns for columns, _ in opened], files, path)
    return Opened(format=name, files=files, columns=columns, said=opened[0][1]).stamped()


def _opened(name: str, file: Path, raw: RawFile) -> tuple[Columns, Mapping[str, str]]:
    if name == "raw":
        return {"": open_raw(file, raw.shape, str(raw.dtype))}, {}
    return FORMATS[name].open(file, raw)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"{path} is not there: give a file of rows, or a folder of them")
    if not path.is_dir():
        return [path]
    if (path / "data.zarr").exists():
        raise ConfigError(f"{path} is an activation store already: train from it as it is")
    require_plain_dataset(path)
    found = [
        file for file in path.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() not in _BESIDE
    ]  # fmt: skip
    if not found:
        inner = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        hint = f": name one of its folders, as {path / inner[0]}" if inner else ""
        raise ConfigError(f"{path} holds no file of rows{hint}")
    return sorted(found, key=natural)


def natural(path: Path) -> list[tuple[int, str]]:
    """Numbers in a name count as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _format_of(files: Sequence[Path], path: Path, *, raw: RawFile) -> str:
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) > 1:
        raise ConfigError(
            f"{path} holds files of several kinds ({', '.join(sorted(suffixes))}): give one, or a "
            "folder of one kind"
        )
    (suffix,) = suffixes
    for name, form in FORMATS.items():
        if suffix in form.suffixes:
            if raw.shape:
                raise ConfigError(f"{files[0]} says its own shape: leave out --shape")
            return name
    if raw.shape and raw.dtype:
        return "raw"
    if suffix in OTHERS:
        raise ConfigError(f"{files[0]} is of a kind that is not read: {OTHERS[suffix]}")
    if raw.shape:
        raise ConfigError(f"{files[0]} does not say its numbers: type --dtype fp32, say")
    kinds = ", ".join(suffix for form in FORMATS.values() for suffix in form.suffixes)
    raise ConfigError(
        f"{files[0]} is none of {kinds}: of a file of nothing but numbers say --shape WIDTH and "
        "--dtype fp32, say"
    )


def _joined(opened: Sequence[Columns], files: Sequence[Path], path: Path) -> Columns:
    names = list(opened[0])
    for columns, file in zip(opened, files, strict=True):
        if list(columns) != names:
            raise DataError(
                f"{file} holds {', '.join(columns) or 'nothing'}, and {files[0]} "
                f"{', '.join(names) or 'nothing'}: import one kind of rows at a time"
            )
    return {
        name: Joined.of([columns[name] for columns in opened], name=f"{name} of {path}".strip())
        for name in names
    }
