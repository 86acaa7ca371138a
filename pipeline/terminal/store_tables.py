"""Stores on the screen, 80 columns wide where it is a pipe."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from actstore.manifest import Manifest
from pipeline.terminal.words import cell, short, size

Found = Sequence[tuple[Path, Manifest | str]]


def stores_table(folder: Path, found: Found) -> Table:
    """The stores below a folder, a line each."""
    title = Text(f"stores in {folder}")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in ("store\nmodel", "state", "rows\na site", "sites", "kept as"):
        table.add_column(name, overflow="fold")
    for path, told in found:
        if isinstance(told, str):
            continue
        spec = told.spec
        place, model = _place(path, folder), spec.source.get("model", "")
        sites = "\n".join(site.name for site in spec.sites)
        kept = f"{spec.dtype}\n{spec.codec}"
        row = (f"{place}\n{model}".strip(), told.state, cell(told.n_rows), sites, kept)
        table.add_row(*map(Text, row))
    return table


def _place(path: Path, folder: Path) -> str:
    """Where a store lies, seen from the folder that was searched."""
    return str(path) if path == folder else str(path.relative_to(folder))


def store_tables(facts: Mapping[str, Any]) -> list[Table]:
    """What `store info` tells: of the store as a whole, and of each site if it is complete."""
    return [_whole(facts), *([_sites(facts)] if "statistics" in facts else [])]


def _whole(facts: Mapping[str, Any]) -> Table:
    title = Text(facts["path"])
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in _lines(facts).items():
        table.add_row(name, Text(words))
    return table


def _lines(facts: Mapping[str, Any]) -> dict[str, str]:
    source, path = dict(facts["source"]), facts["path"]
    model, revision = source.pop("model", "unknown"), source.pop("revision", None)
    text, column = source.pop("text", "unknown"), source.pop("text_column", None)
    rows = f"{facts['n_rows']:,}"
    if "n_rows_safe" in facts:
        state = "not finished: go on with the same saepipe harvest that began it"
        rows = f"{facts['n_rows_safe']:,} safe on disk of {rows} wanted"
    else:
        state = f"complete, generation {facts['generation']}"
    ended = "; the text ended there" if facts["source_exhausted"] else ""
    lines = {
        "state": state,
        "model": f"{model} at {revision}" if revision else str(model),
        "text": f"{text}, column {column}" if column not in (None, "text") else str(text),
        "sites": ", ".join(f"{name} ({width:,} wide)" for name, width in facts["sites"].items()),
        "rows a site": rows + ended,
        "contexts": f"{facts['n_contexts']:,} of {facts['ctx_len']:,} tokens",
        "shards": f"{facts['n_shards']:,} of up to {facts['shard_rows']:,} rows, "
        f"in chunks of {facts['chunk_rows']:,}; order by seed {facts['seed']}",
        "kept as": f"{facts['dtype']}, {facts['codec']}",
    }
    if facts.get("adding"):
        lines["being added"] = (
            f"{', '.join(facts['adding'])}: not finished, go on with the harvest that asked for it"
        )
    if "statistics" in facts:
        lines |= {
            "on disk": f"{size(facts['n_bytes'])}; the sites {size(facts['site_bytes'])} "
            f"of {size(facts['raw_bytes'])} raw, ratio {facts['ratio']:.3f}",
            "checks": f"{facts['checks']}; hold every byte to them: saepipe store verify {path}",
            "fingerprint": facts["fingerprint"],
        }
    told = {name.replace("_", " "): _brief(value) for name, value in source.items()}
    return {**lines, **told, **lines}  # a source may use our words, and does not change them


def _brief(value: object) -> str:
    """A value of the source; of a fingerprint as much as tells two apart."""
    words = cell(value)
    return f"{words[:24]}…" if re.fullmatch("(sha256:)?[0-9a-f]{40,}", words) else words


def _sites(facts: Mapping[str, Any]) -> Table:
    """Statistics, a line a site."""
    table = Table(box=None, pad_edge=False)
    table.add_column("site", overflow="fold")
    for name in ("on disk", "of raw", "norm of\nmean", "total\nvariance"):
        table.add_column(name, justify="right")
    fidelity = facts["fidelity"] or {}
    if fidelity:
        table.add_column("rounding, of\nvariance", justify="right")
        table.add_column("of worst\ncoordinate", justify="right")
    for site, told in facts["statistics"].items():
        lost = fidelity.get(site, {}).values()
        table.add_row(
            site, size(told["bytes"]), f"{told['bytes'] / told['raw']:.3f}",
            short(told["mean_norm"]), short(told["variance"]), *(f"{x:.2e}" for x in lost),
        )  # fmt: skip
    return table
