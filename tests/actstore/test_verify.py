"""What `verify` says, and does not say, of stores."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actstore import shardfile
from actstore.codec import CRC_BYTES
from actstore.ledger import Entry, read_journal, rewrite_journal
from actstore.reader import ActStore
from actstore.shardfile import index_bytes, parse_index
from actstore.summary import read_summary
from actstore.verify import verify
from actstore.writer import ActWriter
from tests.helpers.slow import slow
from tests.helpers.stores import (
    TWO_SITES,
    files_of,
    flip,
    make_spec,
    shard_file,
    write_store,
)


def edges_of_chunks(file: Path, *, slots: int, n_chunks: int) -> list[int]:
    """Where each chunk begins, and the last one ends."""
    data = file.read_bytes()
    index = parse_index(data[-index_bytes(slots) :], n_chunks=n_chunks, file_size=len(data))
    return [*index[:, 0].tolist(), int(index[-1].sum())]


@pytest.mark.parametrize("codec", ["lz4", slow("raw"), slow("zstd")])
def test_every_bit_of_a_shard_belongs_to_its_chunk_or_to_its_index(make_store, codec):
    path = make_store(codec=codec, n_rows=200)
    rng = random.Random(0)
    for shard, n_chunks in ((0, 8), (3, 1)):
        file = shard_file(path, "mlp_out.1", shard)
        whole = file.read_bytes()
        edges = edges_of_chunks(file, slots=8, n_chunks=n_chunks)
        places = rng.sample(range(len(whole)), 12)
        places += [e + d for e in edges for d in (-1, 0, -CRC_BYTES) if 0 <= e + d < len(whole)]
        for place in places:
            flip(file, place, rng.randrange(8))
            (found,) = verify(path)
            chunk = next((i for i, end in enumerate(edges[1:]) if place < end), None)
            assert (found.path, found.array) == (file, "mlp_out.1")
            assert (found.shard, found.chunk) == (shard, chunk)
            start = 64 * shard + 8 * (chunk or 0)
            lost = (start, start + 8) if chunk is not None else (64 * shard, min(200, start + 64))
            assert found.rows == lost
            file.write_bytes(whole)
    assert verify(path) == []


def test_rows_of_labels_are_lost_by_the_shard(make_store):
    path = make_store(n_rows=200)
    for name, shard, rows in (("position", 3, (192, 200)), ("context_tokens", 1, (64, 128))):
        file = shard_file(path, name, shard)
        whole = file.read_bytes()
        flip(file, 5)
        (found,) = verify(path)
        assert (found.chunk, found.rows) == (0, rows)
        file.unlink()
        (found,) = verify(path)
        assert (found.chunk, found.rows, found.what) == (None, rows, "it is missing")
        file.write_bytes(whole)


def test_findings_come_in_one_order_however_many_threads_look(make_store):
    path = make_store(n_rows=640, widths=TWO_SITES)
    rng = random.Random(0)
    for name in files_of(path):
        if "/c/" in name and rng.random() < 0.5 and not name.startswith("summary"):
            flip(path / "data.zarr" / name, rng.randrange(40))
    for name in ("position", "resid.0"):
        flip(path / "data.zarr" / name / "zarr.json", 50)
    flip(path / "journal.jsonl", 7)
    one = verify(path, threads=1)
    assert len(one) > 20
    arrays = {name: i for i, name in enumerate((*make_spec().arrays, "resid.0"))}
    shards = [(arrays[f.array], f.shard, f.chunk or 0) for f in one if f.shard is not None]
    assert shards == sorted(shards)
    for threads in (2, 5, 16, None):
        assert verify(path, threads=threads) == one


def test_progress_only_grows_and_reaches_the_end(make_store):
    path = make_store()
    told: list[tuple[int, int]] = []
    verify(path, threads=8, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == ActStore.open(path).n_bytes
    assert len(told) == 4 * 6 and told == sorted(told)


def test_what_cannot_be_verified_is_told(tmp_path):
    (nothing,) = verify(tmp_path / "nowhere")
    assert "there is no activation store" in nothing.what
    path = write_store(tmp_path / "s", make_spec(), n_rows=200, stop=1)
    (unfinished,) = verify(path)
    assert "is not finished" in unfinished.what
    write_store(path, make_spec(), n_rows=200)
    (path / "data.zarr" / "zarr.json").write_text("{")
    (damaged,) = verify(path)
    assert damaged.path == path / "data.zarr" / "zarr.json"


def test_chunks_of_any_size_are_read_whole(tmp_path, monkeypatch):
    """Files of many reads and of one, of chunks larger and smaller than a read."""
    spec = make_spec(widths={"mlp_out.1": 64, "resid.0": 3}, shard_rows=2048)
    path = write_store(tmp_path / "s", spec, n_rows=5000)
    for read, ahead in ((1, 1), (300, 4096), (20_000, 7), (10**9, 10**9)):
        monkeypatch.setattr(shardfile, "READ_BYTES", read)
        monkeypatch.setattr(shardfile, "AHEAD_BYTES", ahead)
        assert verify(path) == []
    file = shard_file(path, "mlp_out.1", 1)
    edges = edges_of_chunks(file, slots=8, n_chunks=8)
    for chunk in (0, 3, 7):
        flip(file, edges[chunk] + 9)
    assert [f.chunk for f in verify(path)] == [0, 3, 7]


def test_an_extension_that_took_back_its_only_line_and_died_is_no_damage(make_store):
    path = make_store(n_rows=40)
    (path / "journal.jsonl").write_bytes(b"")
    assert verify(path) == []


def test_a_bit_flipped_in_the_journal_is_found(make_store):
    path = make_store()
    journal = path / "journal.jsonl"
    whole = journal.read_bytes()
    rng = random.Random(0)
    for place in [*rng.sample(range(len(whole)), 30), len(whole) - 1]:
        flip(journal, place, rng.randrange(8))
        findings = verify(path)
        assert findings, place
        assert {f.path for f in findings} == {journal}
        assert "reads on, but cannot be extended" in findings[0].what
        ActStore.open(path).shard("mlp_out.1", 3)
        journal.write_bytes(whole)
    lines = whole.splitlines(keepends=True)
    for damaged, told in (
        (whole[:-30], "its last line is torn"),
        (whole[:-1], "its last line is torn"),
        (b"".join(lines[:2]), "it has no line for shard 2"),
        (b"".join([lines[0], *lines[2:]]), "it has no line for shard 1"),
        (b"", "it has no line for shard 0"),
        (lines[0] + b"\0" * 50 + b"\n" + b"".join(lines[1:]), "its line 2 was altered"),
    ):
        journal.write_bytes(damaged)
        assert {f.path for f in verify(path)} == {journal}
        assert told in verify(path)[0].what
    journal.unlink()
    (found,) = verify(path)
    assert (found.path, found.what.split(":")[0]) == (journal, "it is missing")
    journal.mkdir()
    (found,) = verify(path)
    assert (found.path, "it cannot be read: Is a directory" in found.what) == (journal, True)


def test_a_bit_flipped_in_the_moments_is_found(make_store):
    path = make_store()
    kept = sorted((path / "moments").iterdir())
    assert [file.name for file in kept] == ["2", "3"]
    rng = random.Random(0)
    for file in kept:
        whole = file.read_bytes()
        for place in rng.sample(range(len(whole)), 10):
            flip(file, place, rng.randrange(8))
            (found,) = verify(path)
            assert found.path == file and "does not match its checksum" in found.what
            file.write_bytes(whole)
        file.unlink()
        (found,) = verify(path)
        assert found.path == file and "it is missing" in found.what
        file.write_bytes(whole)


def test_a_journal_that_tells_of_other_bytes_is_found(make_store):
    path = make_store()
    entries = read_journal(path)
    for change in (
        {"rows": 56},
        {"files": {**entries[1].files, "position": [1, 2]}},
        {"files": {k: v for k, v in entries[1].files.items() if k != "position"}},
    ):
        told: list[Entry] = [entries[0], replace(entries[1], **change), *entries[2:]]
        rewrite_journal(path, told)
        (found,) = verify(path)
        assert "its line for shard 1 does not agree with the summary" in found.what
    rewrite_journal(path, [*entries[:2], replace(entries[1], rows=8), *entries[1:]])
    assert verify(path) == []  # a line that a later one replaces


def test_leftovers_are_no_damage(make_store):
    path = make_store()
    group = path / "data.zarr"
    for left in (
        group / "zarr.json.partial",
        group / "mlp_out.1" / "c" / "9" / "0",
        group / "mlp_out.1" / "c" / "2" / "0.partial",
        group / "position" / "c" / "77",
        group / "summary-0" / "zarr.json",
        path / "moments" / "17",
        path / "moments" / "3.partial",
        path / "adding" / "journal.jsonl",
        path / "notes.txt",
    ):
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"left over")
    assert verify(path) == []


def test_an_extension_that_found_nothing_new_is_no_damage(make_store):
    path = make_store()
    with ActWriter.create_or_resume(path, make_spec(), n_rows=400) as writer:
        writer.finish(source_exhausted=True)
    assert verify(path) == []


def test_a_store_that_is_extended_while_it_is_verified_is_whole(tmp_path, monkeypatch):
    """The short last shard's files are replaced under it: it looks again."""
    spec = make_spec()
    path = write_store(tmp_path / "s", spec, n_rows=200)
    n_rows = iter([264])

    def read_and_extend(*args):
        summary = read_summary(*args)
        for n in n_rows:
            write_store(path, spec, n_rows=n)
        return summary

    monkeypatch.setattr("actstore.verify.read_summary", read_and_extend)
    assert verify(path) == []
    assert ActStore.open(path).n_rows == 264


def test_without_its_summary_a_store_is_held_to_its_journal(make_store):
    path = make_store()
    shutil.rmtree(path / "data.zarr" / "summary-1")
    flip(shard_file(path, "mlp_out.1", 2), 9)
    summary, chunk = verify(path)
    assert summary.path == path / "data.zarr" / "summary-1"
    assert (chunk.array, chunk.shard, chunk.chunk) == ("mlp_out.1", 2, 0)
    assert chunk.rows == (128, 136)
    (path / "journal.jsonl").unlink()
    assert [f.path for f in verify(path)] == [path / "data.zarr" / "summary-1"]
