"""`saepipe store`: each command does one thing to stores, and tells what came of it.

Tables are 80 columns wide where the screen is a pipe. What brings torch is imported inside of
functions: only a repair needs a language model.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.errors import StoreError
from actstore.manifest import Manifest
from actstore.removal import find_stores, removable, require_unlinked
from actstore.verify import Finding, verify
from pipeline.config.stages import Device
from pipeline.errors import ConfigError
from pipeline.progress import Progress, short, size
from pipeline.stores import known_folders
from pipeline.tables import Column, Table, cell, many
from pipeline.terminal.lines import removal_line
from pipeline.terminal.screen import Screen
from pipeline.terminal.store_facts import listed


def finding_line(finding: Finding) -> str:
    """One finding: where, how many rows, what, and in which file."""
    numbers = {"shard": finding.shard, "chunk": finding.chunk}
    place = [f"{name} {number}" for name, number in numbers.items() if number is not None]
    if finding.rows is not None:
        place.append(many(finding.rows[1] - finding.rows[0], "row"))
    head = ", ".join([finding.array or "store", *place])
    file = "" if str(finding.path) in finding.what else f" ({finding.path})"
    return f"{head}: {finding.what}{file}"


def damage_words(findings: Sequence[Finding]) -> str:
    """What is lost in total: a row that several findings name is one row."""
    shards = {finding.shard for finding in findings if finding.shard is not None}
    if not shards:
        return f"{many(len(findings), 'finding')}, none of them in rows"
    return f"{many(len(shards), 'shard')}, {many(rows_lost(findings), 'row')}"


def rows_lost(findings: Iterable[Finding]) -> int:
    """Rows of the store of which anything cannot be read."""
    lost = end = 0
    for start, stop in sorted(finding.rows for finding in findings if finding.rows is not None):
        lost += max(0, stop - max(start, end))
        end = max(end, stop)
    return lost


Found = Sequence[tuple[Path, Manifest | str]]


def stores_table(folder: Path, found: Found) -> Table:
    """The stores below a folder, a line each."""
    names = ("store\nmodel", "state", "rows\na site", "sites", "kept as")
    rows: list[list[str]] = []
    for path, told in found:
        if isinstance(told, str):
            continue
        spec = told.spec
        place = path if path == folder else path.relative_to(folder)
        model = spec.source.get("model", "")
        sites = "\n".join(site.name for site in spec.sites)
        kept = f"{spec.dtype}\n{spec.codec}"
        rows.append([f"{place}\n{model}".strip(), told.state, cell(told.n_rows), sites, kept])
    return Table(
        title=f"stores in {folder}",
        columns=[Column(head=name, folds=True) for name in names],
        sections=[rows],
        ruled=False,
    )


def store_tables(facts: Mapping[str, Any]) -> list[Table]:
    """What `store info` tells: of the store as a whole, and of each site if it is complete."""
    return [_whole(facts), *([_sites(facts)] if "statistics" in facts else [])]


def _whole(facts: Mapping[str, Any]) -> Table:
    return Table(
        title=facts["path"],
        columns=[Column(), Column(folds=True)],
        sections=[[[name, words] for name, words in _lines(facts).items()]],
        ruled=False,
    )


def _lines(facts: Mapping[str, Any]) -> dict[str, str]:
    source, path = dict(facts["source"]), facts["path"]
    model, revision = source.pop("model", "unknown"), source.pop("revision", None)
    text, column = source.pop("text", "unknown"), source.pop("text_column", None)
    rows = f"{facts['n_rows']:,}"
    if "n_rows_safe" in facts:
        began = "store import" if "imported_from" in source else "harvest"
        state = f"not finished: go on with the same saepipe {began} that began it"
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
    return f"{words[:24]}…" if re.fullmatch("(sha256(-2)?:)?[0-9a-f]{40,}", words) else words


def _sites(facts: Mapping[str, Any]) -> Table:
    """Statistics, a line a site."""
    names, fidelity = (
        ["on disk", "of raw", "norm of\nmean", "total\nvariance"],
        facts["fidelity"] or {},
    )
    if fidelity:
        names += ["rounding, of\nvariance", "of worst\ncoordinate"]
    rows: list[list[str]] = []
    for site, told in facts["statistics"].items():
        lost = fidelity.get(site, {}).values()
        rows.append([
            site, size(told["bytes"]), f"{told['bytes'] / told['raw']:.3f}",
            short(told["mean_norm"]), short(told["variance"]), *(f"{x:.2e}" for x in lost),
        ])  # fmt: skip
    numbers = [Column(head=name, align="right") for name in names]
    return Table(columns=[Column(head="site", folds=True), *numbers], sections=[rows], ruled=False)


if TYPE_CHECKING:
    from pipeline.harvest.repair import RepairReport


def run_list(folder: Path | None, *, screen: Screen) -> list[object]:
    """Show which stores are in a folder and in all its folders; gives what JSON is to hold."""
    result: list[object] = []
    for place in [folder] if folder else known_folders() or [Path()]:
        found = find_stores(place)
        if found:
            screen.draw(stores_table(place, found))
        else:
            screen.say(f"no store in {place}")
        for path, told in found:
            if isinstance(told, str):
                screen.say(f"{path}: {told}")
            result.append(listed(path, told))
    return result


def run_verify(path: Path, *, screen: Screen) -> list[Finding]:
    """Check every byte, and say what is wrong, a line a finding."""
    with screen.progress("verify") as show:

        def tell(done: int, total: int) -> None:
            show(Progress(stage="verify", done=done, total=total, unit="B"))

        findings = verify(path, on_progress=tell)
    for finding in findings:
        if finding.path == path:
            raise StoreError(finding.what)  # there is no whole store to check
        screen.say(finding_line(finding))
    return findings


def run_repair(
    path: Path,
    findings: Sequence[Finding],
    *,
    device: Device,
    batch_size: int | None,
    screen: Screen,
) -> "RepairReport":
    """Harvest again what is damaged."""
    from pipeline.harvest.repair import repair

    with screen.progress("repair") as show:
        done = repair(path, findings, device=device, batch_size=batch_size, on_progress=show)
    shards, files = many(len(done.shards), "shard"), many(len(done.files), "file")
    screen.say(f"repair    {shards}, {many(done.rows, 'row')}, {files} of {path}")
    return done


def require_whole(path: Path, findings: Sequence[Finding], *, screen: Screen) -> None:
    """End a check: raise StoreError if something was found."""
    if findings:
        raise StoreError(
            f"{path} is damaged ({damage_words(findings)}); "
            f"get it back: saepipe store verify {path} --repair"
        )
    screen.say(f"verify    every byte of {path} is as it was written")


def announce_removal(path: Path, *, ask: bool, screen: Screen) -> None:
    """Say what will go; raise where links lead to it, or nobody can be asked whether it shall."""
    what = removable(path)
    require_unlinked(path, known_folders())
    screen.say(removal_line(what))
    if ask and not sys.stdin.isatty():
        raise ConfigError(f"there is nobody to ask: saepipe store rm {path} --yes")
