"""What an import is going to do: which columns are of which sites, and as what they are kept.

Read are headers, a sample of the bytes that tells a source from another, and the first rows, which
tell how all compress. Torch-free.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from actstore.codec import encode, kept_bits, rounded
from actstore.manifest import StoreSpec
from pipeline.config.rows import NAMES, ImportConfig
from pipeline.disk import nearest_there, why_unwritable
from pipeline.errors import ConfigError, DataError
from pipeline.exchange.rows.formats import RawFile, open_rows
from pipeline.exchange.rows.values import (
    FLOATS,
    INTEGERS,
    Opened,
    Values,
    as_stored,
    blocks,
    keeps_bits,
)
from pipeline.lm.paths import site_of
from pipeline.lm.widths import held_to_model
from pipeline.progress import size
from pipeline.stores import NO_TOKENS, TOKENS
from pipeline.tables import many
from pipeline.text.files import files_fingerprint

TOKEN_COLUMNS = ("token_ids", "token_id", "tokens", "input_ids")
DOCUMENT_COLUMN = "document_id"


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """What is read, and the store that it becomes."""

    config: ImportConfig
    spec: StoreSpec
    n_rows: int
    opened: Sequence[Opened]
    """The source, and the file of tokens."""
    sites: Mapping[str, Values]
    tokens: Values | None
    documents: Values | None
    notes: tuple[str, ...]
    """What people should know of the rows."""

    @cached_property
    def n_bytes(self) -> int:
        """Of the rows before they are compressed."""
        width = sum(site.width for site in self.spec.sites)
        return self.n_rows * width * self.spec.storage.itemsize

    @cached_property
    def bytes_on_disk(self) -> int:
        """Of the rows as they will be kept: an estimate, by how the first ones compress."""
        spec, taken, left = self.spec, 0, 0
        kept = kept_bits(spec.codec)
        row_bytes = sum(v.itemsize * int(v.width or 1) for v in self.sites.values())
        first = next(blocks(0, self.n_rows, row_bytes=row_bytes))
        for values in self.sites.values():
            rows = np.ascontiguousarray(as_stored(values.read(*first), spec.dtype))
            payload, _ = encode(rows if kept is None else rounded(rows, keep=kept), spec.codec)
            taken, left = taken + rows.nbytes, left + len(payload)
        return round(self.n_bytes * left / taken)

    @cached_property
    def bytes_free(self) -> int:
        """On the disk where the store will be."""
        return shutil.disk_usage(nearest_there(self.config.out)).free

    def require_room(self, *, n_rows_there: int) -> None:
        """Refuse what the disk has no room for, but for the rows that are there already.

        Raises:
            ConfigError: it has not.
        """
        needed = self.bytes_on_disk * (1 - n_rows_there / self.n_rows)
        if needed > self.bytes_free:
            raise ConfigError(
                f"{self.config.out} needs about {size(needed)}, "
                f"{size(needed - self.bytes_free)} more than the {size(self.bytes_free)} that its "
                "disk has free: make room, choose another --out, or keep less with --dtype bf16 or "
                "--codec bitround:N"
            )

    @property
    def format(self) -> str:
        """Of the source."""
        return self.opened[0].format

    def require_unchanged(self) -> None:
        """Raise DataError where a file is not as it was when the plan was made."""
        for opened in self.opened:
            opened.require_unchanged()


def make_plan(config: ImportConfig) -> ImportPlan:
    """Look at a source and at what is asked for.

    Raises:
        ConfigError: it is not said which rows of what these are, or what is said cannot be.
        DataError: a file is damaged, holds no rows, or does not fit another.
    """
    if config.out.suffix != ".actstore" and not config.out.exists():
        raise ConfigError(f"a store is a folder NAME.actstore: type --out {config.out}.actstore")
    raw = RawFile(shape=config.shape, dtype=config.numbers)
    opened = [open_rows(config.source, raw=raw)]
    sites = _sites(config, opened[0])
    tokens, documents = _token_column(opened[0]), opened[0].columns.get(DOCUMENT_COLUMN)
    if documents is not None and documents.dtype not in INTEGERS:
        documents = None
    if config.tokens_file is not None:
        opened.append(open_rows(config.tokens_file))
        tokens = _only_integers(opened[1], config.tokens_file)
    beside = [ids for ids in (tokens, documents) if ids is not None]
    n_rows, ctx_len = _rows_and_contexts(config, [*sites.values(), *beside], opened[0])
    (given,) = {values.dtype for values in sites.values()}
    stored, lost = _stored_as(given, config)
    said = opened[0].said
    model = config.model or said.get("model", "")
    revision = config.revision if config.model else said.get("revision", "main")
    notes = [*lost, *_held_to_model(config, sites)]
    if tokens is None:
        notes.append(
            "there are no token ids: SAEs train, features have no contexts to show; give them "
            "with --tokens-file, if there are any"
        )
    spec = StoreSpec.of(
        widths={site: int(values.width or 1) for site, values in sites.items()},
        ctx_len=ctx_len,
        dtype=stored,
        codec=config.codec,
        shard_rows=config.shard_rows,
        source=_source(
            config, opened, sites, given, model, revision, has_tokens=tokens is not None
        ),
    )
    spec.require_sensible(n_rows)
    if why := why_unwritable(nearest_there(config.out)):
        raise ConfigError(f"{config.out} cannot be written ({why}): choose another --out")
    return ImportPlan(
        config=config, spec=spec, n_rows=n_rows, opened=opened, sites=sites, tokens=tokens,
        documents=documents, notes=tuple(notes),
    )  # fmt: skip


def _source(
    config: ImportConfig,
    opened: Sequence[Opened],
    sites: Mapping[str, Values],
    given: str,
    model: str,
    revision: str,
    *,
    has_tokens: bool,
) -> dict[str, object]:
    """Where the rows are from: equal ones give equal stores."""
    named = {"model": model, "revision": revision} if model else {}
    told: dict[str, object] = {
        **named,
        "imported_from": str(config.source.resolve()),
        "imported_format": opened[0].format,
        "imported_files": len(opened[0].files),
        "imported_bytes": opened[0].n_bytes,
        "imported_fingerprint": _fingerprint(opened[0], config.source),
        "imported_dtype": given,
        "imported_columns": [_name_of(values, opened[0]) for values in sites.values()],
    }
    if config.tokens_file is not None:
        told["tokens_from"] = str(config.tokens_file.resolve())
        told["tokens_fingerprint"] = _fingerprint(opened[1], config.tokens_file)
    return told if has_tokens else {**told, TOKENS: NO_TOKENS}


def _name_of(values: Values, opened: Opened) -> str:
    return next(name for name, column in opened.columns.items() if column is values)


def _fingerprint(opened: Opened, source: Path) -> str:
    try:
        return files_fingerprint([*opened.files], root=source)
    except OSError as error:
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror}") from error


# --- which columns are of which sites ----------------------------------------------------------


def _sites(config: ImportConfig, opened: Opened) -> dict[str, Values]:
    columns = {n: v for n, v in opened.columns.items() if v.dtype in FLOATS and v.width is not None}
    if not columns:
        has = "; ".join(f"{n or 'it'} is of {v.dtype}" for n, v in opened.columns.items())
        raise DataError(f"{config.source} holds no rows of activations ({has or 'no numbers'})")
    for name in config.columns:
        if name not in columns:
            raise ConfigError(
                f"{config.source} has no column {name!r} of activations: it has {_list(columns)}"
            )
    names = list(config.columns or columns)
    ours = {name: site_of(name) for name in names}
    if config.sites and len(config.sites) == len(names):
        chosen = dict(zip(config.sites, names, strict=True))
    elif config.sites:
        by_site = {site: name for name, site in ours.items() if site}
        if not set(config.sites) <= by_site.keys():
            raise ConfigError(
                f"{config.source} has {many(len(names), 'column')} of activations "
                f"({_list(names)}), and {', '.join(config.sites)} were named: name a --site for "
                "each, or choose with --column"
            )
        chosen = {site: by_site[site] for site in config.sites}
    else:
        nameless = [name for name in names if not ours[name]]
        if nameless:
            what = f"what {_list(nameless)} of {config.source} is of"
            if nameless == [""]:
                what = f"what the rows of {config.source} are of"
            raise ConfigError(f"it is not said {what}: name the site, as in --site mlp_out.3")
        chosen = {ours[name]: name for name in names}
    if len(chosen) < len(config.sites or names):
        raise ConfigError(f"a site is named twice: {', '.join(config.sites or map(str, chosen))}")
    found = {site: columns[name] for site, name in chosen.items()}
    kinds = {values.dtype for values in found.values()}
    if len(kinds) > 1:
        raise ConfigError(
            f"columns of {config.source} are of {', '.join(sorted(kinds))}: a store holds one "
            "dtype, so choose with --column"
        )
    return found


def _list(names: object) -> str:
    listed = [str(name) for name in names]  # pyright: ignore[reportGeneralTypeIssues]
    return ", ".join([*listed[:8], *(["..."] if len(listed) > 8 else [])])


def _token_column(opened: Opened) -> Values | None:
    for name in TOKEN_COLUMNS:
        values = opened.columns.get(name)
        if values is not None and values.dtype in INTEGERS:
            return values
    return None


def _only_integers(opened: Opened, path: Path) -> Values:
    named = _token_column(opened)
    if named is not None:
        return named
    found = [values for values in opened.columns.values() if values.dtype in INTEGERS]
    if len(found) != 1:
        raise DataError(
            f"{path} holds {many(len(found), 'column')} of integers: expected token ids alone, or "
            f"in a column {' or '.join(TOKEN_COLUMNS)}"
        )
    return found[0]


def _rows_and_contexts(
    config: ImportConfig, columns: Sequence[Values], opened: Opened
) -> tuple[int, int]:
    first, *others = columns
    for other in others:
        if other.n_rows != first.n_rows:
            raise DataError(
                f"{other.words} holds {other.n_rows:,} rows, and {first.words} {first.n_rows:,}"
            )
    lengths = {values.ctx_len for values in (first, *others)} - {None}
    told = opened.said.get("ctx_len", "")
    if len(lengths) > 1:
        raise DataError(
            f"contexts are of {' and of '.join(map(str, sorted(filter(None, lengths))))} rows in "
            f"{config.source} and its tokens"
        )
    of_shape = next(iter(lengths), None) or (int(told) if told.isdecimal() else None)
    if None not in (of_shape, config.ctx_len) and of_shape != config.ctx_len:
        raise ConfigError(
            f"{config.source} is of contexts of {of_shape} rows, and --ctx-len says "
            f"{config.ctx_len}: leave it out"
        )
    ctx_len = config.ctx_len or of_shape or 1
    if first.n_rows % ctx_len:
        raise ConfigError(
            f"{config.source} holds {first.n_rows:,} rows, which are no whole contexts of "
            f"{ctx_len}: see to --ctx-len"
        )
    return first.n_rows, ctx_len


# --- as what they are kept, and whether that can be ----------------------------------------------


def _stored_as(given: str, config: ImportConfig) -> tuple[str, tuple[str, ...]]:
    """The dtype of the store, and a note where bits are lost."""
    asked = config.numbers
    stored = "float32" if "float64" in (asked or given,) else asked or given
    if keeps_bits(given, stored):
        return stored, ()
    why = "" if asked == stored else ", the most that a store holds"
    return stored, (f"{given} is rounded to {stored}{why}",)


def _held_to_model(config: ImportConfig, sites: Mapping[str, Values]) -> tuple[str, ...]:
    """Hold sites and widths to the model that was named; a note where it is not at hand."""
    if not config.model:
        return ()
    widths = {
        known: int(values.width or 1) for name, values in sites.items() if (known := site_of(name))
    }
    why_not = held_to_model(
        config.model, widths, revision=config.revision, told=True,
        what=f"rows of {config.source} are",
    )  # fmt: skip
    return (f"the rows were not held to the model: {why_not}",) if why_not else ()


def plan_words(plan: ImportPlan) -> str:
    """What an import is going to do, in a line."""
    short = {long: name for name, long in NAMES.items()}[plan.spec.dtype]
    return (
        f"{', '.join(plan.sites)} from {plan.config.source} ({plan.format}): {plan.n_rows:,} rows "
        f"a site, {size(plan.opened[0].n_bytes)} to read, about {size(plan.bytes_on_disk)} of "
        f"{short} to write, {size(plan.bytes_free)} free"
    )
