"""What can happen to a store, done to real files and real processes."""

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actstore.batches import Batches
from actstore.errors import StoreError
from actstore.reader import ActStore, peek
from actstore.summary import GROUP, being_extended
from actstore.verify import verify
from actstore.writer import ActWriter
from tests.helpers.crashing import files_up_to, nursery
from tests.helpers.slow import slow
from tests.helpers.stores import (
    column,
    files_of,
    flip,
    make_spec,
    require_right_rows,
    shard_file,
    shard_of,
    write_store,
)


@pytest.fixture(scope="module")
def killed_after():
    with nursery("tests.actstore.test_faults:write_small") as killed_after:
        yield killed_after


def write_small(path: Path, n_rows: int) -> None:
    write_store(path, make_spec(), n_rows=n_rows)


def test_a_writer_may_be_killed_at_any_moment(tmp_path, killed_after, request):
    """One store that is begun, gone on with and extended, by writers each of which is killed."""
    rng = random.Random(0)
    path, spec = tmp_path / "s", make_spec()
    kills, n_rows, seconds = 0, 200, 0.03
    allowed, met, wanted = set[int](), set[str](), request.config.getoption("--kills")
    while kills < wanted or (len(met) < 2 and kills < 20 * wanted):  # a busy machine kills late
        before, _ = peek(path), allowed.add(n_rows)
        killed = killed_after(rng.uniform(0, seconds), path, n_rows)
        kills += killed
        seconds *= 1.5 if killed else 0.5  # so that about every second writer is killed
        if killed and before is not None:
            met.add(before.state)
        allowed &= _right_or_refused(path, allowed)
        n_rows += 0 if killed and rng.random() < 0.7 else 8 * rng.randrange(1, 12)
    extended = write_store(path, spec, n_rows=n_rows)
    _right_or_refused(path, {n_rows})
    whole = ActStore.open(write_store(tmp_path / "whole", spec, n_rows=n_rows))
    assert ActStore.open(extended).fingerprint == whole.fingerprint
    assert verify(path) == []
    assert not list(path.rglob("*.partial"))
    assert met == {"writing", "complete"}


def _right_or_refused(path: Path, allowed: set[int]) -> set[int]:
    """Every row is the right one, and there are as many as there may be; how many may be next."""
    try:
        store = ActStore.open(path)
    except StoreError as error:
        assert re.search("there is no|is not finished|is just being extended", str(error))
        return allowed
    assert store.n_rows in allowed
    require_right_rows(store)
    next_is_certain = being_extended(path, store.manifest) is not None
    return allowed if next_is_certain else {store.n_rows}


def test_every_file_of_the_group_is_watched(make_store):
    """A bit flipped, an end cut off, a hole, all gone or another's: refused, and found."""
    path, other = make_store(n_rows=96), make_store(n_rows=96, name="other", seed=1)
    rng = random.Random(0)
    foreign = files_of(other)
    for name, whole in files_of(path).items():
        file = path / "data.zarr" / name
        flip(file, rng.randrange(len(whole)), rng.randrange(8))
        damaged = [file.read_bytes(), whole[:-1], b"", bytes(len(whole)), None]
        if foreign[name] not in (whole, foreign["zarr.json"]):  # by that root, all else is wrong
            damaged.append(foreign[name])
        for data in damaged:
            file.unlink()
            if data is not None:
                file.write_bytes(data)
            with pytest.raises(StoreError) as refused:
                _read_everything(path)
            (found,) = verify(path)
            if "/c/" in name and not name.startswith("summary"):
                array, _, shard, *_ = name.split("/")
                assert (found.array, found.shard, found.path) == (array, int(shard), file)
                what = (
                    r"is damaged( in chunk \d+)?: |is not the file that was written"
                    r"|cannot be read: No such|has \d+ bytes, not"
                )
                mend = f"get it back: saepipe store verify {path} --repair"
                told = rf"{array}, shard {shard}: {file} ({what}).*; {mend}"
                assert re.search(told, str(refused.value))
            else:
                assert file.is_relative_to(found.path)
                told = f"{found.path} {found.what}"
                assert str(file) in told or told.endswith("is not that of this store")
            file.write_bytes(whole)
    assert verify(path) == []


def _read_everything(path: Path) -> None:
    store = ActStore.open(path)
    for name in store.spec.arrays:
        column(store, name)


def test_a_shard_replaced_by_another_is_found(make_store):
    """Its chunks are whole and its size may be equal: only the store's own checksum knows."""
    path = make_store(codec="raw")
    first, second = (shard_file(path, "mlp_out.1", k) for k in range(2))
    first.write_bytes(second.read_bytes())
    with pytest.raises(StoreError, match="shard 0: .* is not the file that was written"):
        _read_everything(path)
    (found,) = verify(path)
    assert (found.shard, found.chunk) == (0, None)
    assert found.what == "it is not the file that was written, though each of its chunks is whole"


CUT_WHILE_MAPPED = """
import os, sys, threading
from pathlib import Path
import numpy as np
from actstore.errors import StoreError
from actstore.reader import ActStore
store, sites = ActStore.open(Path(sys.argv[1])), ("mlp_out.1",)
old = [store.shard("mlp_out.1", k) for k in range(store.n_shards)]
turn = threading.Barrier(5, timeout=60)  # no thread is inside a chunk while the file is cut
refused = []
def read():
    for _ in range(4):
        turn.wait()
        for k, rows in enumerate(old):
            try:
                assert np.array_equal(store.shard("mlp_out.1", k), rows)
            except StoreError as error:
                refused.append((k, str(error)))
        turn.wait()
threads = [threading.Thread(target=read, daemon=True) for _ in range(4)]
for thread in threads: thread.start()
for size in (None, 5000, 100, 0):
    if size is not None:
        os.truncate(store._arrays["mlp_out.1"].path(1), size)
    turn.wait(), turn.wait()
    assert len(refused) == (0 if size is None else 4), refused
    assert all(k == 1 and "is shorter than it was" in told for k, told in refused), refused
    refused.clear()
for thread in threads: thread.join()
sys.exit(7)
"""


def test_threads_that_read_a_file_as_it_is_cut_outlive_it(make_store):
    """A bus error would end the process by a signal."""
    path = make_store(shard_rows=2048, n_rows=6000)
    command = [sys.executable, "-c", CUT_WHILE_MAPPED, str(path)]
    assert subprocess.run(command, check=False).returncode == 7


@pytest.mark.parametrize(
    ("limit", "where"),
    [(1500, r"c/0/0"), (6000, r"journal\.jsonl|writing"), (12_000, r"zarr\.json")],
    ids=["in a shard", "in the journal", "while finishing"],
)
def test_a_full_disk_is_survived(tmp_path, limit, where):
    spec, path = make_spec(), tmp_path / "s"
    n_rows = 64 * (20 if limit == 6000 else 4)
    whole = files_of(write_store(tmp_path / "whole", spec, n_rows=n_rows))
    told = "could not be written: File too large.*; what was"
    with files_up_to(limit), pytest.raises(StoreError, match=told):
        write_store(path, spec, n_rows=n_rows)
    assert not list(path.rglob("*.partial"))
    committed = len((path / "journal.jsonl").read_bytes().splitlines())
    assert committed == {1500: 0, 12_000: 4}.get(limit, committed)
    with ActWriter.create_or_resume(path, spec, n_rows=n_rows) as writer:
        assert writer.next_shard == committed
    assert files_of(write_store(path, spec, n_rows=n_rows)) == whole


def test_a_failure_in_the_background_reaches_the_next_call(tmp_path, monkeypatch):
    spec, path = make_spec(), tmp_path / "s"
    with (
        pytest.raises(StoreError, match="could not be written: No space left on device"),
        ActWriter.create_or_resume(path, spec, n_rows=6400) as writer,
    ):
        writer.write_shard(shard_of(spec, 0, 64))

        def full(fd, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("actstore.shardwriter.write_all", full)
        for k in range(1, 100):
            writer.write_shard(shard_of(spec, k, 64))
    monkeypatch.undo()
    with ActWriter.create_or_resume(path, spec, n_rows=6400) as writer:
        assert writer.next_shard <= 1


@pytest.mark.parametrize(
    "altered",
    [
        lambda line: line[:-30],
        lambda line: line.replace(b'"context":24', b'"context":25'),
        lambda line: bytes(100),
        None,
    ],
    ids=["torn", "altered", "zeros", "no file"],
)
def test_a_shard_whose_line_or_file_was_lost_is_written_again(tmp_path, make_store, altered):
    path = write_store(tmp_path / "s", make_spec(), n_rows=256, stop=3)
    if altered is None:
        shard_file(path, "mlp_out.1", 2).unlink()
    else:
        *lines, last = (path / "journal.jsonl").read_bytes().splitlines(keepends=True)
        (path / "journal.jsonl").write_bytes(b"".join([*lines, altered(last)]))
    with ActWriter.create_or_resume(path, make_spec(), n_rows=256) as writer:
        assert writer.next_shard == 2
    whole = make_store(n_rows=256, name="whole")
    assert files_of(write_store(path, make_spec(), n_rows=256)) == files_of(whole)


def test_a_damaged_store_is_not_extended(tmp_path):
    spec = make_spec()
    path = write_store(tmp_path / "s", spec, n_rows=200)
    journal = (path / "journal.jsonl").read_bytes()
    (path / "journal.jsonl").unlink()
    with pytest.raises(StoreError, match="cannot be extended: shard 0 or its line in the journal"):
        ActWriter.create_or_resume(path, spec, n_rows=400)
    (path / "journal.jsonl").write_bytes(journal)
    shard_file(path, "token_id", 1).unlink()
    with pytest.raises(StoreError, match="cannot be extended: shard 1 or"):
        ActWriter.create_or_resume(path, spec, n_rows=400)


def flipped(file: Path) -> None:
    flip(file, 9)


def made_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("file", "damaged", "told"),
    [
        ("token_id/zarr.json", made_a_folder, "zarr.json is no file"),
        ("token_id/c/3", made_a_folder, "c/3 is no file"),
        ("context_tokens/c/3/0", made_a_folder, "c/3/0 cannot be read"),
        ("context_tokens/c/3/0", flipped, "c/3/0 is damaged"),
        ("context_tokens/c/3/0", Path.unlink, "c/3/0 cannot be read"),
    ],
)
def test_an_extension_that_could_not_be_completed_changes_nothing(tmp_path, file, damaged, told):
    path = write_store(tmp_path / "s", make_spec(), n_rows=200)
    damaged(path / GROUP / file)
    before, journal = files_of(path), (path / "journal.jsonl").read_bytes()
    with pytest.raises(StoreError, match=told):
        ActWriter.create_or_resume(path, make_spec(), n_rows=400)
    assert (files_of(path), (path / "journal.jsonl").read_bytes()) == (before, journal)


def test_every_commit_is_synced_before_its_line(tmp_path, monkeypatch):
    """Files first, then their folders, then the line: the order that a power cut respects."""
    synced: list[str] = []

    def record(fd):
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))

    spec, path = make_spec(), tmp_path / "s"
    with ActWriter.create_or_resume(path, spec, n_rows=64) as writer:
        monkeypatch.setattr(os, "fsync", record)
        monkeypatch.setattr(os, "fdatasync", record)
        writer.write_shard(shard_of(spec, 0, 64))
    line = synced.index(f"{path}/journal.jsonl")
    for name in spec.arrays:
        folder = f"{path}/data.zarr/{name}/c"
        assert synced.index(f"{shard_file(path, name, 0)}.partial") < line
        assert max(i for i, s in enumerate(synced) if s == folder) < line
    assert synced.index(f"{path}/moments/0.partial") < line
    assert synced[line:] == [f"{path}/journal.jsonl"]


def mounted(folder: Path, *options: str) -> None:
    """A small file system of its own; who may not mount skips the test."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "saepipe-test", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a file system: {error}")


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    mounted(folder, "size=1m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def only_free(disk: Path, n_bytes: int) -> Path:
    """Fill the disk but for so many bytes, by a file to be removed."""
    free = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - n_bytes)))
    return ballast


@pytest.mark.parametrize("first", [slow(0), 200], ids=["first writing", "extension"])
def test_a_disk_that_is_really_full_is_survived(disk, tmp_path, make_store, first):
    """Full in a shard, in the journal, in the summary, in the root: wherever the space ends."""
    spec, path = make_spec(), disk / "s"
    old = make_store(n_rows=first) if first else None
    whole = ActStore.open(make_store(n_rows=400, name="whole"))
    committed = set()
    for free in range(4096, 700_000, 4096 * (9 if first else 6)):
        if old:
            shutil.copytree(old, path)
        ballast = only_free(disk, free)
        try:
            write_store(path, spec, n_rows=400)
            break
        except StoreError as error:
            assert re.search("could not be written: No space left on device.*; what", str(error))
        assert not list(disk.rglob("*.partial"))
        try:
            assert ActStore.open(path).n_rows in (first, 400)
        except StoreError as error:
            assert not first or "is just being extended" in str(error)
        ballast.unlink()
        with ActWriter.create_or_resume(path, spec, n_rows=400) as writer:
            committed.add(writer.next_shard)
        assert ActStore.open(write_store(path, spec, n_rows=400)).fingerprint == whole.fingerprint
        assert verify(path) == []
        shutil.rmtree(path)
    else:
        pytest.fail("the disk was never large enough")
    assert min(committed) == first // 64 and max(committed) == 7 and len(committed) > 2


def test_a_read_only_disk_is_read_and_not_written(disk, tmp_path, saepipe):
    spec = make_spec()
    path = write_store(disk / "s", spec, n_rows=200)
    (path / "LOCK").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    require_right_rows(ActStore.open(path))
    assert verify(path) == []
    for command in ("info", "verify"):
        assert saepipe("store", command, path)[0] == 0
    for wanted in (200, 400):
        with pytest.raises(StoreError, match=r"could not be written: Read-only file system") as e:
            ActWriter.create_or_resume(path, spec, n_rows=wanted)
        assert "\n" not in str(e.value)


TWO_EPOCHS = """
import sys
from itertools import islice
from pathlib import Path
import numpy as np
from actstore.batches import Batches
from actstore.reader import ActStore
from tests.helpers.stores import column, contexts, make_spec
store = ActStore.open(Path(sys.argv[1]))
acts, tokens, _ = contexts(make_spec(), 0, 25)
old = acts["mlp_out.1"].reshape(200, 16)
batches = Batches(store=store, sites=store.sites, batch_size=10, seed=0, window_rows=16, threads=2)
stream = batches.start_at(0)
for epoch in range(2):
    seen = []
    for batch in islice(stream, store.n_rows // 10):
        seen.append(batch["mlp_out.1"])
        if len(seen) in (1, 5):
            print("reading", flush=True)
            sys.stdin.readline()
    seen = np.concatenate(seen)
    assert sorted(map(bytes, seen)) == sorted(map(bytes, old))
labels = tokens[column(store, "context_id"), column(store, "position")]
assert np.array_equal(column(store, "token_id"), labels)  # read for the first time
sys.exit(7)
"""


def test_a_reader_process_keeps_to_the_old_rows_while_the_store_is_extended(tmp_path):
    """A shard is written at each of its pauses; the last replaces a file that it reads."""
    spec = make_spec()
    path = write_store(tmp_path / "s", spec, n_rows=200)
    command = [sys.executable, "-c", TWO_EPOCHS, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as reader:
        for n_rows in (232, 400, 640, 680):
            assert reader.stdout.readline() == b"reading\n"
            write_store(path, spec, n_rows=n_rows)
            reader.stdin.write(b"go on\n")
            reader.stdin.flush()
        assert reader.wait() == 7
    assert ActStore.open(path).n_rows == 680


def test_paths_may_hold_spaces_and_any_letter(tmp_path, killed_after):
    spec, path = make_spec(), tmp_path / "a b" / "ünï 表.actstore"
    killed_after(0.02, path, 200)
    write_store(path, spec, n_rows=200)
    write_store(path, spec, n_rows=600)
    store = ActStore.open(path)
    require_right_rows(store)
    batches = Batches(store=store, sites=store.sites, batch_size=50, seed=0)
    assert next(batches.start_at(7))["mlp_out.1"].shape == (50, 16)
    assert verify(path) == []
    file = shard_file(path, "mlp_out.1", 1)
    flip(file, 30)
    (found,) = verify(path)
    assert found.path == file
    with pytest.raises(StoreError, match=re.escape(f"verify '{path}' --repair")):
        ActStore.open(path).shard("mlp_out.1", 1)
