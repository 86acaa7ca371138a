"""What a process that died has left behind is gone after the next one, whichever that is.

Each operation is filmed once; every state that a kill could leave is then given to every kind of
process that may come next.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import pytest

from actstore.errors import StoreError
from actstore.ledger import read_journal
from actstore.reader import ActStore, peek
from actstore.removal import remove_store
from actstore.repair import repairing
from actstore.settle import settled
from actstore.verify import verify
from actstore.writer import ActWriter
from tests.helpers.crashing import Tree, filmed, plant, tree_of
from tests.helpers.slow import cases
from tests.helpers.stores import add_site, column, make_spec, shard_of, write_store

OLD, NEW = "mlp_out.1", "resid_pre.0"
BOTH = make_spec(widths={OLD: 2, NEW: 3}, shard_rows=24)
ALONE = replace(BOTH, sites=BOTH.sites[:1])


def write(path: Path, *, n_rows: int = 32, stop: int | None = None) -> None:
    write_store(path, ALONE, n_rows=n_rows, stop=stop, whole=BOTH)


def add(path: Path, *, stop: int | None = None) -> None:
    """Unless that was done before."""
    try:
        add_site(path, NEW, whole=BOTH, stop=stop)
    except StoreError as error:
        assert f"has the site {NEW} already" in str(error)


def extend(path: Path) -> None:
    write(path, n_rows=56)


def mend(path: Path) -> None:
    findings = verify(path)
    with repairing(path, findings) as repair:
        for k in repair.lost:
            repair.restore(shard_of(repair.spec, k, repair.rows_in(k), whole=BOTH))


def flip(file: Path) -> None:
    file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))


def nothing(path: Path) -> None:
    """There is no store yet."""


def one_short_shard(path: Path) -> None:
    write(path, n_rows=8)


def committed_to_its_short_end(path: Path) -> None:
    write(path, stop=2)


def extended_to_another_short_end(path: Path) -> None:
    write(path)
    write(path, n_rows=40, stop=2)


def damaged(path: Path) -> None:
    write(path)
    group = path / "data.zarr"
    for name in (f"{OLD}/c/0/0", f"{OLD}/c/1/0", "token_id/c/1", "position/zarr.json"):
        flip(group / name)
    flip(group / "summary-1" / "shard_bytes" / "c" / "0" / "0")


def extended_and_given_a_site_half_way(path: Path) -> None:
    write(path)
    add(path, stop=1)
    write(path, n_rows=80, stop=3)


OPERATIONS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "writing": (nothing, write),
    "writing, longer": (committed_to_its_short_end, extend),
    "extension": (write, extend),
    "extension, longer": (extended_to_another_short_end, extend),
    "addition": (one_short_shard, add),
    "repair": (damaged, mend),
    "removal": (extended_and_given_a_site_half_way, remove_store),
}
"""From what to begin, and what is killed."""


def require_no_more_than_a_store_has(path: Path) -> None:
    tree = tree_of(path)
    must, may = files_of_a_store(path)
    files = {name for name, data in tree.items() if data is not None}
    assert must - files == set()
    assert files - must - may == set()
    for folder in {name for name, data in tree.items() if data is None}:
        held = any(name.startswith(f"{folder}/") for name in must | may)
        assert held or folder.split("/")[-1] in ("c", "moments"), folder


def files_of_a_store(path: Path) -> tuple[set[str], set[str]]:
    """What a store has, whether or not something of it is unfinished; and what it may have."""
    there, entries = peek(path), read_journal(path)
    spec = there.spec
    n_kept = -(-there.n_rows // spec.shard_rows) if there.state == "complete" else 0
    must = {"LOCK", "journal.jsonl", "data.zarr/zarr.json"}
    may = {f"data.zarr/{name}/zarr.json" for name in spec.arrays}
    must |= {f"moments/{entry.shard}" for entry in entries[-2:]}
    flat = {"token_id", "context_id", "position", "document_id"}
    for k in range(max(n_kept, len(entries))):
        files = {f"{name}/c/{k}" + ("" if name in flat else "/0") for name in spec.arrays}
        must |= {f"data.zarr/{file}" for file in files} if k < n_kept else set()
        if k < len(entries) and entries[k].generation > there.generation:
            must |= {f"{'staging' if k < n_kept else 'data.zarr'}/{file}" for file in files}
    summary = f"summary-{there.generation}"
    if there.state == "complete":
        must |= may
    else:
        summary = "summary-1"  # of an addition that its own next writer will complete
    if (path / "data.zarr" / summary / "zarr.json").exists():
        must |= {f"data.zarr/{summary}/zarr.json"}
        numbers = {"shard_rows": "c/0", "shard_bytes": "c/0/0", "shard_crc32c": "c/0/0"}
        numbers |= {f"{kind}.{s.name}": "c/0" for kind in ("mean", "var") for s in spec.sites}
        for name, chunk in numbers.items():
            must |= {f"data.zarr/{summary}/{name}/{file}" for file in ("zarr.json", chunk)}
    if (path / "adding/data.zarr/zarr.json").exists():
        for names, more in zip((must, may), files_of_a_store(path / "adding"), strict=True):
            names |= {f"adding/{name}" for name in more}
    return must, may


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A folder as the kill of an operation left it."""

    path: Path
    operation: Callable[[Path], None]
    done: Tree
    """What the operation comes to."""

    def is_complete(self) -> bool:
        there = peek(self.path)
        return there is not None and there.state == "complete"


def says_complete(killed: Killed) -> None:
    assert settled(killed.path) == peek(killed.path)
    if killed.is_complete():
        require_no_more_than_a_store_has(killed.path)
        assert killed.operation is mend or verify(killed.path, threads=1) == []


def goes_on(killed: Killed) -> None:
    if killed.operation is not remove_store:
        killed.operation(killed.path)
    elif peek(killed.path) is None:  # begin another in its place
        killed.path.mkdir(exist_ok=True)
        write(killed.path)
        require_no_more_than_a_store_has(killed.path)
        return
    else:
        return
    assert tree_of(killed.path) == killed.done


def asks_for_less(killed: Killed) -> None:
    if killed.is_complete():
        spec = peek(killed.path).spec
        try:
            with ActWriter.create_or_resume(killed.path, spec, n_rows=8, threads=1):
                pass
        except StoreError as error:  # it has joined the sites that waited
            assert "holds another store" in str(error)
        require_no_more_than_a_store_has(killed.path)


def repairs(killed: Killed) -> None:
    if killed.is_complete():
        try:
            with repairing(killed.path, []):
                require_no_more_than_a_store_has(killed.path)
        except StoreError as error:
            assert "is just being extended" in str(error)


def removes(killed: Killed) -> None:
    if (killed.path / "LOCK").exists():
        remove_store(killed.path)
        assert not killed.path.exists()


def rows_of(path: Path) -> dict[str, bytes]:
    """All that a reader finds; nothing if it is told to wait."""
    try:
        store = ActStore.open(path)
        return {name: column(store, name).tobytes() for name in store.spec.arrays}
    except StoreError as error:
        assert re.search("there is no|not finished|being extended|damaged|get it back", str(error))
        return {}


def require_no_damage_found(path: Path, operation: Callable[[Path], None]) -> None:
    """Nothing that a kill leaves of a complete store is told to be damage."""
    there = peek(path)
    if there is not None and there.state == "complete" and operation is not mend:
        for finding in verify(path, threads=1):
            assert "is just being extended" in finding.what


ALIKE = re.compile(
    r"(?<=/)(token_id|context_id|position|document_id|context_tokens|mlp_out\.1)(?=/|$)"
    r"|(?<=/c/\d)/0|(?<=\.partial/).*|(?<=/summary-\d/).*/.*"
)
"""Which of several equal things a path is of: arrays, or what grows or goes as a whole."""
SAYING = ("data.zarr/zarr.json", "journal.jsonl")


def telling(film: list[Tree]) -> Iterator[Tree]:
    """One state of each kind: it does not matter which of the equal things come or go first."""
    seen = set[frozenset[tuple[str, bytes | None]]]()
    for tree in film:
        said = {name: data for name, data in tree.items() if name.endswith(SAYING)}
        kind = frozenset((ALIKE.sub("*", f"/{name}"), said.get(name)) for name in tree)
        if kind not in seen or len(film) < 60:
            yield tree
        seen.add(kind)


COMERS = (says_complete, goes_on, asks_for_less, repairs, removes)


@pytest.mark.parametrize("comers", cases({"in turn": 1, "each": len(COMERS)}, fast={"in turn"}))
@pytest.mark.parametrize("begin_and_operation", OPERATIONS.values(), ids=OPERATIONS)
def test_whoever_comes_next_leaves_what_a_store_has_and_nothing_else(
    begin_and_operation, comers, tmp_path
):
    """Each state is met by all who may come next, or by one of them after another."""
    begin, operation = begin_and_operation
    path = tmp_path / "s"
    begin(path)
    before = rows_of(path)
    with filmed(path) as film:
        operation(path)
    after = rows_of(path)
    turn = cycle(COMERS)
    for state in telling(film):
        for i, comes_next in enumerate(islice(turn, comers)):
            shutil.rmtree(path, ignore_errors=True)
            plant(state, path)
            if i == 0:
                assert rows_of(path) in (before, after, {})
                assert operation is not remove_store or state is film[0] or peek(path) is None
                require_no_damage_found(path, operation)
            comes_next(Killed(path=path, operation=operation, done=film[-1]))
    assert len(film) > 30


@pytest.mark.parametrize("content", [b"\x93\x17 noise", b"[1, 2]\n", b'{"shard":0}\n'])
def test_a_journal_that_was_altered_is_no_leftover_nor_are_the_moments_it_tells_of(
    tmp_path, content
):
    """It may come back from a backup, even where the store is one short shard."""
    path = tmp_path / "s"
    one_short_shard(path)
    (path / "journal.jsonl").write_bytes(content)
    before = tree_of(path)
    assert settled(path).state == "complete"
    assert tree_of(path) == before
