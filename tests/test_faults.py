"""What can happen to a store, done to real files and real processes."""

import random
import resource
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from actstore import ledger
from actstore.errors import StoreError
from actstore.reader import ActStore, peek
from actstore.verify import verify
from actstore.writer import ActWriter
from tests.stores import column, contexts, files_of, make_spec, shard_of, write_store

WRITE = """
import sys
from pathlib import Path
from tests.stores import make_spec, write_store
print("ready", flush=True)
sys.stdin.readline()
write_store(Path(sys.argv[1]), make_spec(), n_rows=int(sys.argv[2]))
"""


def killed_after(seconds: float, path: Path, n_rows: int) -> None:
    command = [sys.executable, "-c", WRITE, str(path), str(n_rows)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"ready\n"
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
        time.sleep(seconds)
        writer.kill()


def test_a_writer_may_be_killed_at_any_moment(tmp_path):
    """20 kills of a writer that begins, goes on and extends; then the rows are all there."""
    rng = random.Random(0)
    path, spec = tmp_path / "s", make_spec()
    for i in range(20):
        n_rows = 840 * (1 + i // 5)
        killed_after(rng.uniform(0, 0.3), path, n_rows)
        told = peek(path)
        if told is not None and told.state == "complete":
            store = ActStore.open(path) if not _finishing(path, told) else None
            if store is not None:
                acts, _, _ = contexts(spec, 0, 1)
                here = column(store, "context_id") == 0
                order = np.argsort(column(store, "position")[here])
                first = column(store, "mlp_out.1")[here][order]
                np.testing.assert_array_equal(first, acts["mlp_out.1"][0])
    extended = ActStore.open(write_store(path, spec, n_rows=4000))
    whole = ActStore.open(write_store(tmp_path / "whole", spec, n_rows=4000))
    assert extended.fingerprint == whole.fingerprint
    assert verify(path) == []
    assert not list(path.rglob("*.partial"))


def _finishing(path: Path, told) -> bool:
    return (path / "data.zarr" / f"summary-{told.generation + 1}" / "zarr.json").exists()


class Crash(BaseException):
    """The process ends here: nothing after it runs, and nothing is cleaned up."""


@pytest.mark.parametrize("first", [None, 200], ids=["first writing", "extension"])
def test_a_crash_between_any_two_steps_of_finishing_is_made_good(tmp_path, monkeypatch, first):
    spec = make_spec()
    whole = ActStore.open(write_store(tmp_path / "whole", spec, n_rows=400))
    for n in count():
        path = tmp_path / str(n)
        if first:
            write_store(path, spec, n_rows=first)
        write_store(path, spec, n_rows=400, stop=7)
        if not _crashed_finishing(path, spec, monkeypatch, n):
            break
        _old_new_or_refused(path, first)
        for _ in range(2):
            assert ActStore.open(write_store(path, spec, n_rows=400)).fingerprint == (
                whole.fingerprint
            )
        assert not (path / "staging").exists()
    assert n > 15


def _crashed_finishing(path, spec, monkeypatch, n) -> bool:
    """Finish, but crash before the n-th rename or removal; whether it came to that."""
    steps = count()

    def crashing(real):
        def step(*args):
            if next(steps) >= n:  # nothing happens after a crash
                raise Crash
            return real(*args)

        return step

    with ActWriter.create_or_resume(path, spec, n_rows=400) as writer, monkeypatch.context() as m:
        m.setattr(Path, "replace", crashing(Path.replace))
        m.setattr(ledger, "remove", crashing(ledger.remove))
        try:
            writer.finish()
        except Crash:
            return True
    return False


def _old_new_or_refused(path, first) -> None:
    try:
        store = ActStore.open(path)
    except StoreError as error:
        wanted = "is just being extended" if first else "is not finished"
        assert wanted in str(error)
    else:
        assert store.n_rows in (first, 400)
        assert len(column(store, "mlp_out.1")) == store.n_rows


def test_every_file_of_the_group_is_watched(make_store):
    """A bit flipped, an end cut off, all of it gone: each is refused, and found by `verify`."""
    path = make_store()
    rng = random.Random(0)
    assert verify(path) == []
    for name, whole in files_of(path).items():
        file = path / "data.zarr" / name
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        for damaged in (bytes(flipped), whole[:-1], b"", None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            with pytest.raises(StoreError):
                _read_everything(path)
            findings = verify(path)
            assert findings, name
            if "/c/" in name and not name.startswith("summary"):
                array, _, shard, *_ = name.split("/")
                assert [(f.array, f.shard) for f in findings] == [(array, int(shard))]
            file.write_bytes(whole)
    assert verify(path) == []


def _read_everything(path: Path) -> None:
    store = ActStore.open(path)
    for name in store.spec.arrays:
        column(store, name)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: f.unlink(), "cannot be read: No such file or directory"),
        (lambda f: f.write_bytes(b""), r"has 0 bytes, not \d+"),
        (lambda f: f.write_bytes(f.read_bytes()[:-7]), r"has \d+ bytes, not \d+"),
    ],
    ids=["missing", "emptied", "truncated"],
)
def test_a_shard_that_is_not_whole_is_refused_by_name(make_store, damage, told):
    path = make_store()
    damage(path / "data.zarr" / "mlp_out.1" / "c" / "2" / "0")
    with pytest.raises(StoreError, match=rf"mlp_out.1, shard 2: .*/c/2/0 {told}; restore"):
        ActStore.open(path)


def test_a_flipped_bit_is_refused_by_name_and_found(make_store):
    path = make_store()
    file = path / "data.zarr" / "mlp_out.1" / "c" / "1" / "0"
    data = bytearray(file.read_bytes())
    data[-200] ^= 16  # in the last of 8 chunks
    file.write_bytes(data)
    store = ActStore.open(path)
    store.shard("mlp_out.1", 0)
    with pytest.raises(
        StoreError, match=r"mlp_out.1, shard 1: .* is damaged in chunk 7: its bytes"
    ):
        store.shard("mlp_out.1", 1)
    (found,) = verify(path)
    assert (found.array, found.shard, found.chunk, found.path) == ("mlp_out.1", 1, 7, file)
    data[-200] ^= 16
    data[-10] ^= 1  # in the index
    file.write_bytes(data)
    with pytest.raises(StoreError, match="its index does not match its checksum"):
        ActStore.open(path).shard("mlp_out.1", 1)


def test_a_shard_replaced_by_another_is_found(make_store):
    """Its chunks are whole and its size may be equal: only the store's own checksum knows."""
    path = make_store(codec="raw")
    shards = [path / "data.zarr" / "mlp_out.1" / "c" / k / "0" for k in "01"]
    shards[0].write_bytes(shards[1].read_bytes())
    (found,) = verify(path)
    assert (found.shard, found.chunk) == (0, None)
    assert found.what == "it is not the file that was written, though each of its chunks is whole"


def test_a_file_cut_short_while_the_store_is_open_is_an_error(make_store):
    store = ActStore.open(make_store())
    file = store.path / "data.zarr" / "mlp_out.1" / "c" / "0" / "0"
    store.shard("mlp_out.1", 0)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StoreError, match="is shorter than it was"):
        store.shard("mlp_out.1", 0)
    file.unlink()
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        ActStore.open(store.path)


def test_progress_of_verification_reaches_the_end(make_store):
    path = make_store()
    told: list[tuple[int, int]] = []
    verify(path, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == ActStore.open(path).n_bytes
    assert len(told) == 4 * 6 and told == sorted(told)


def test_what_cannot_be_verified_is_told(tmp_path):
    (nothing,) = verify(tmp_path / "nowhere")
    assert "there is no activation store" in nothing.what
    path = write_store(tmp_path / "s", make_spec(), n_rows=200, stop=1)
    (unfinished,) = verify(path)
    assert "is not finished" in unfinished.what


@pytest.mark.parametrize(
    ("limit", "where"),
    [(1500, r"c/0/0"), (6000, r"journal\.jsonl|writing"), (12_000, r"zarr\.json")],
    ids=["in a shard", "in the journal", "while finishing"],
)
def test_a_full_disk_is_survived(tmp_path, limit, where):
    """No file may grow beyond the limit: the system refuses the write that would."""
    spec, path = make_spec(), tmp_path / "s"
    n_rows = 64 * (20 if limit == 6000 else 4)
    whole = files_of(write_store(tmp_path / "whole", spec, n_rows=n_rows))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(StoreError, match="could not be written: File too large; what was"):
            write_store(path, spec, n_rows=n_rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
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


def test_a_torn_or_altered_journal_goes_back_to_its_last_whole_line(tmp_path):
    spec = make_spec()
    whole = files_of(write_store(tmp_path / "whole", spec, n_rows=256))
    for i, damage in enumerate(
        (
            lambda lines: b"".join(lines[:-1]) + lines[-1][:-30],
            lambda lines: b"".join(lines[:2]) + lines[2].replace(b'"rows":64', b'"rows":63'),
            lambda lines: b"".join(lines[:2]) + b"\0" * 100,
        )
    ):
        path = write_store(tmp_path / str(i), spec, n_rows=256, stop=3)
        journal = path / "journal.jsonl"
        journal.write_bytes(damage(journal.read_bytes().splitlines(keepends=True)))
        with ActWriter.create_or_resume(path, spec, n_rows=256) as writer:
            assert writer.next_shard == 2
        assert files_of(write_store(path, spec, n_rows=256)) == whole


def test_a_committed_shard_that_was_lost_is_written_again(tmp_path):
    spec = make_spec()
    path = write_store(tmp_path / "s", spec, n_rows=256, stop=3)
    (path / "data.zarr" / "mlp_out.1" / "c" / "2" / "0").unlink()
    with ActWriter.create_or_resume(path, spec, n_rows=256) as writer:
        assert writer.next_shard == 2
    assert verify(write_store(path, spec, n_rows=256)) == []


def test_a_damaged_store_is_not_extended(tmp_path):
    spec = make_spec()
    path = write_store(tmp_path / "s", spec, n_rows=200)
    journal = (path / "journal.jsonl").read_bytes()
    (path / "journal.jsonl").unlink()
    with pytest.raises(StoreError, match="cannot be extended: shard 0 or its line in the journal"):
        ActWriter.create_or_resume(path, spec, n_rows=400)
    (path / "journal.jsonl").write_bytes(journal)
    (path / "data.zarr" / "token_id" / "c" / "1").unlink()
    with pytest.raises(StoreError, match="cannot be extended: shard 1 or"):
        ActWriter.create_or_resume(path, spec, n_rows=400)


def test_every_commit_is_synced_before_its_line(tmp_path, monkeypatch):
    """Files first, then their folders, then the line: the order that a power cut respects."""
    import os

    synced: list[str] = []

    def record(fd):
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))

    spec, path = make_spec(), tmp_path / "s"
    with ActWriter.create_or_resume(path, spec, n_rows=64) as writer:
        monkeypatch.setattr(os, "fsync", record)
        monkeypatch.setattr(os, "fdatasync", record)
        writer.write_shard(shard_of(spec, 0, 64))
    root = f"{path}/data.zarr"
    line = synced.index(f"{path}/journal.jsonl")
    for name in spec.arrays:
        file = f"{name}/c/0/0" if name in ("context_tokens", "mlp_out.1") else f"{name}/c/0"
        assert synced.index(f"{root}/{file}.partial") < line
        assert max(i for i, s in enumerate(synced) if s == f"{root}/{name}/c") < line
    assert synced.index(f"{path}/moments/0.partial") < line
    assert synced[line:] == [f"{path}/journal.jsonl"]
