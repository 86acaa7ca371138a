"""The stages of `saepipe store`: each does one thing to stores, and tells what came of it.

What brings torch is imported inside of them: only a repair needs a language model.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.catalog import find_stores
from actstore.errors import StoreError
from actstore.removal import removable
from actstore.verify import Finding, verify
from pipeline.config import Device
from pipeline.errors import ConfigError
from pipeline.reuse import known_folders
from pipeline.terminal.damage import damage_words, finding_line
from pipeline.terminal.lines import removal_line, repair_line
from pipeline.terminal.screen import Screen
from pipeline.terminal.store_facts import listed
from pipeline.terminal.store_tables import stores_table

if TYPE_CHECKING:
    from pipeline.repair import RepairReport


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
    with screen.progress("verify", "B") as show:
        findings = verify(path, on_progress=lambda done, total: show(done, total, ""))
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
    from pipeline.repair import repair

    with screen.progress("repair", "rows") as show:
        repaired = repair(
            path,
            findings,
            device=device,
            batch_size=batch_size,
            on_progress=lambda done, total: show(done, total, ""),
        )
    screen.say(repair_line(repaired, path))
    return repaired


def require_whole(path: Path, findings: Sequence[Finding], *, screen: Screen) -> None:
    """End a check.

    Raises:
        StoreError: something was found.
    """
    if findings:
        raise StoreError(
            f"{path} is damaged ({damage_words(findings)}); "
            f"get it back: saepipe store verify {path} --repair"
        )
    screen.say(f"verify    every byte of {path} is as it was written")


def announce_removal(path: Path, *, ask: bool, screen: Screen) -> None:
    """Say what will go.

    Raises:
        StoreError: it is no store.
        ConfigError: it is to be asked whether to remove it, and there is nobody to ask.
    """
    screen.say(removal_line(removable(path)))
    if ask and not sys.stdin.isatty():
        raise ConfigError(f"there is nobody to ask: saepipe store rm {path} --yes")
