import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actstore.errors import NonFiniteError, StoreError
from actstore.ledger import JOURNAL
from actstore.manifest import StoreSpec
from actstore.moments import as_float
from actstore.reader import ActStore, peek
from actstore.shardwriter import write_files
from actstore.verify import verify
from actstore.writer import ActWriter
from tests.helpers.refusals import refused
from tests.helpers.stores import (
    TWO_SITES,
    contexts,
    files_of,
    flip,
    make_spec,
    require_right_rows,
    require_same_store,
    shard_file,
    shard_of,
    write_store,
)


def test_rows_come_back_with_their_tokens(tmp_path):
    spec = make_spec(widths=TWO_SITES)
    store = ActStore.open(write_store(tmp_path / "s", spec, n_rows=200))
    require_right_rows(store)
    tokens = contexts(spec, 0, 25)[1]
    np.testing.assert_array_equal(store.tokens(np.array([24, 0, 24])), tokens[[24, 0, 24]])


def test_resuming_after_any_shard_gives_the_same_bytes(tmp_path):
    spec = make_spec(widths=TWO_SITES)
    whole = files_of(write_store(tmp_path / "whole", spec, n_rows=200))
    for stop in range(5):
        path = tmp_path / f"stopped-{stop}"
        write_store(path, spec, n_rows=200, stop=stop)
        with ActWriter.create_or_resume(path, spec, n_rows=200) as writer:
            assert writer.next_shard == stop
            assert writer.cursor == ({"context": min(25, 8 * stop)} if stop else None)
            assert writer.n_rows_committed == min(200, 64 * stop)
        assert files_of(write_store(path, spec, n_rows=200)) == whole


def test_appending_in_any_pieces_gives_the_same_bytes(tmp_path):
    spec = make_spec(widths=TWO_SITES)
    whole = files_of(write_store(tmp_path / "whole", spec, n_rows=200))
    for size in (1, 3, 8, 25):
        path = tmp_path / f"by-{size}"
        with ActWriter.create_or_resume(path, spec, n_rows=200) as writer:
            for i in range(0, 25, size):
                acts, tokens, documents = contexts(spec, i, min(25, i + size))
                writer.append(acts, tokens=tokens, document_id=documents)
            writer.finish()
        assert files_of(path) == whole


@pytest.mark.parametrize(
    ("first", "then", "codec"),
    [(64, 128, "lz4"), (200, 264, "lz4"), (8, 200, "lz4"), (200, 800, "bitround:2")],
)
def test_extending_gives_the_content_of_writing_at_once(tmp_path, first, then, codec):
    spec = make_spec(widths=TWO_SITES, codec=codec)
    path = write_store(tmp_path / "s", spec, n_rows=first)
    require_same_store(
        write_store(path, spec, n_rows=then), write_store(tmp_path / "once", spec, n_rows=then)
    )
    assert peek(path).generation == 2


def test_an_interrupted_extension_goes_on(tmp_path):
    spec = make_spec()
    whole = ActStore.open(write_store(tmp_path / "whole", spec, n_rows=400))
    for stop in range(3, 8):
        path = write_store(tmp_path / f"s{stop}", spec, n_rows=200)
        write_store(path, spec, n_rows=400, stop=stop)
        assert ActStore.open(path).n_rows == 200
        assert peek(path).n_rows == 200
        with ActWriter.create_or_resume(path, spec, n_rows=400) as writer:
            assert writer.next_shard == stop
        assert ActStore.open(write_store(path, spec, n_rows=400)).fingerprint == whole.fingerprint


def test_a_complete_store_asked_for_no_more_has_nothing_to_write(tmp_path):
    spec = make_spec()
    path = write_store(tmp_path / "s", spec, n_rows=200)
    before = files_of(path)
    for n_rows in (8, 200):
        with ActWriter.create_or_resume(path, spec, n_rows=n_rows) as writer:
            assert (writer.next_shard, writer.n_rows_committed) == (writer.n_shards, 200)
            assert writer.finish().n_rows == 200
    assert files_of(path) == before


def test_asking_an_unfinished_store_for_more_or_less_changes_its_target(tmp_path):
    spec = make_spec()
    for first, stop, then in ((200, 4, 400), (200, 2, 264), (400, 3, 100), (400, 2, 155)):
        path = tmp_path / f"{first}-{stop}-{then}"
        write_store(path, spec, n_rows=first, stop=stop)
        got = ActStore.open(write_store(path, spec, n_rows=then))
        n_rows = max(-(-then // 8) * 8, 64 * stop if first == 400 else 0)  # whole contexts
        whole = write_store(tmp_path / f"{path.name}-whole", spec, n_rows=n_rows)
        assert files_of(path) == files_of(whole)
        assert got.n_rows == n_rows


def test_a_source_that_ends_early_makes_a_shorter_store(tmp_path):
    spec = make_spec()
    path = tmp_path / "s"
    with ActWriter.create_or_resume(path, spec, n_rows=1000) as writer:
        writer.write_shard(shard_of(spec, 0, 64))
        writer.write_shard(shard_of(spec, 1, 24))
        with pytest.raises(StoreError, match="must be the last"):
            writer.write_shard(shard_of(spec, 2, 64))
        manifest = writer.finish(source_exhausted=True)
    assert manifest.source_exhausted and manifest.n_rows == 88
    assert peek(path) == manifest
    assert ActStore.open(path).n_rows == 88
    whole = write_store(tmp_path / "whole", spec, n_rows=88)
    assert ActStore.open(whole).fingerprint == manifest.fingerprint


def test_an_extension_that_finds_nothing_new_leaves_the_rows_as_they_were(tmp_path):
    """And says that there is no more, so that nobody has to look again."""
    spec = make_spec()
    path = write_store(tmp_path / "s", spec, n_rows=200)
    before = files_of(path)["mlp_out.1/c/3/0"]
    for _ in range(2):
        with ActWriter.create_or_resume(path, spec, n_rows=400) as writer:
            assert writer.finish(source_exhausted=True).n_rows == 200
        store = ActStore.open(path)
        assert (store.n_rows, store.manifest.source_exhausted) == (200, True)
        assert store.manifest.generation == 2
        assert files_of(path)["mlp_out.1/c/3/0"] == before
    assert ActStore.open(write_store(path, spec, n_rows=400)).n_rows == 400


def test_an_extension_from_another_text_is_refused(tmp_path):
    spec = make_spec()
    path = write_store(tmp_path / "s", spec, n_rows=200)
    with (
        pytest.raises(StoreError, match="no longer gives the tokens it gave for shard 3"),
        ActWriter.create_or_resume(path, spec, n_rows=256) as writer,
    ):
        shard = shard_of(spec, 3, 64)
        writer.write_shard(replace(shard, tokens=shard.tokens + 1))
        writer.finish()
    assert ActStore.open(path).n_rows == 200


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("codec", ["lz4", "bitround:2"])
def test_an_extension_from_another_model_is_refused_and_one_that_rounds_otherwise_is_not(
    tmp_path, dtype, codec
):
    """The rows of a shard that is written again, longer, are held to those that are there."""
    spec = make_spec(widths=TWO_SITES, dtype=dtype, codec=codec)

    def extended(name: str, change: float) -> Path:
        path = write_store(tmp_path / name, spec, n_rows=200)
        shard, rng = shard_of(spec, 3, 64), np.random.default_rng(0)
        rows = as_float(shard.acts["resid.0"]).astype(np.float32)
        rows *= 1 + change * rng.standard_normal(rows.shape)
        rows[:2] *= 1e3  # be they huge, a few rows decide nothing
        acts = rows.view(np.uint32) >> 16 if dtype == "bfloat16" else rows
        with ActWriter.create_or_resume(path, spec, n_rows=256) as writer:
            acts = {**shard.acts, "resid.0": acts.astype(spec.storage)}
            writer.write_shard(replace(shard, acts=acts))
            writer.finish()
        return path

    assert ActStore.open(extended("same", 0.01)).n_rows == 256
    with refused(StoreError, r"no longer gives the rows of resid\.0 it gave for shard 3; write"):
        extended("other", 0.6)
    assert ActStore.open(tmp_path / "other").n_rows == 200
    assert not verify(tmp_path / "other")


def test_an_extension_of_a_shard_that_is_damaged_changes_nothing(tmp_path):
    spec = make_spec()
    path = write_store(tmp_path / "s", spec, n_rows=200)
    flip(shard_file(path, "mlp_out.1", 3), 40)
    before = files_of(path), (path / JOURNAL).read_bytes()
    with refused(StoreError, "damaged.*saepipe store verify .* --repair"):
        write_store(path, spec, n_rows=256)
    assert (files_of(path), (path / JOURNAL).read_bytes()) == before


def test_finishing_too_early_is_refused(tmp_path):
    spec = make_spec()
    with ActWriter.create_or_resume(tmp_path / "s", spec, n_rows=200) as writer:
        writer.write_shard(shard_of(spec, 0, 64))
        with pytest.raises(StoreError, match="holds 64 of 200 rows"):
            writer.finish()
    with (
        ActWriter.create_or_resume(tmp_path / "empty", spec, n_rows=200) as writer,
        pytest.raises(StoreError, match="the source gave no whole context"),
    ):
        writer.finish(source_exhausted=True)


@pytest.mark.parametrize(
    ("shard_rows", "n_rows", "told"),
    [
        (10**12, 64, "makes shards of 37,252.9 GiB a site, which a writer holds in memory: leave"),
        (8, 10**6, "makes 125,000 shards, each a file of every array: leave it out, for 262,144 a"),
    ],
)
def test_shards_of_absurd_sizes_are_refused(tmp_path, shard_rows, n_rows, told):
    spec = StoreSpec.of(widths={"x": 3}, ctx_len=8, dtype="float32", shard_rows=shard_rows)
    with pytest.raises(StoreError, match=told):
        ActWriter.create_or_resume(tmp_path / "s", spec, n_rows=n_rows)
    assert not (tmp_path / "s").exists()


def test_another_spec_is_refused_and_the_difference_named(tmp_path):
    source = {"model": "EleutherAI/x", "revision": {"name": "main"}}
    path = write_store(tmp_path / "s", make_spec(source=source), n_rows=64)
    for change, told in [
        ({"seed": 3}, r"\(seed: 0 there, 3 now\)"),
        ({"codec": "raw"}, r"\(codec: lz4 there, raw now\)"),
        ({"widths": {"mlp_out.2": 16}}, r"\(sites: mlp_out.1 16 there, mlp_out.2 16 now\)"),
        ({"source": {**source, "model": "y"}}, r"\(source.model: EleutherAI/x there, y now\)"),
        (
            {"source": {**source, "revision": {"name": "step0"}, "text": "z"}},
            r"\(source.revision.name: main there, step0 now; source.text: absent there, z now\)",
        ),
    ]:
        with pytest.raises(StoreError, match=told):
            ActWriter.create_or_resume(path, make_spec(**{"source": source, **change}), n_rows=64)


def test_a_folder_of_something_else_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with refused(StoreError, "is a folder with config.json in it, and no store: choose another"):
        ActWriter.create_or_resume(tmp_path / "model", make_spec(), n_rows=40)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_sources_that_are_equal_as_json_are_equal(tmp_path):
    path = write_store(tmp_path / "s", make_spec(source={"sites": ("a", "b")}), n_rows=64)
    write_store(path, make_spec(source={"sites": ["a", "b"]}), n_rows=128)


def test_a_second_writer_is_refused_and_told_who_writes_until_that_one_is_dead(tmp_path):
    spec = make_spec()
    held = (
        "import sys; from pathlib import Path; from actstore.files import writing\n"
        "with writing(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "s"
    path.mkdir()
    command = [sys.executable, "-c", held, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        told = f"is being written by process {other.pid} on {socket.gethostname()}"
        with pytest.raises(StoreError, match=told):
            ActWriter.create_or_resume(path, spec, n_rows=64)
        other.kill()
    assert json.loads((path / "LOCK").read_text())["pid"] == other.pid
    assert peek(path) is None
    with ActWriter.create_or_resume(path, spec, n_rows=64):
        assert (peek(path).state, peek(path).n_rows, peek(path).spec) == ("writing", 64, spec)
        assert json.loads((path / "LOCK").read_text())["pid"] == os.getpid()
        with pytest.raises(StoreError, match=f"by process {os.getpid()} on"):
            ActWriter.create_or_resume(path, spec, n_rows=64)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found_and_not_stored(tmp_path, value):
    spec = make_spec(widths=TWO_SITES, dtype="float32")
    path = tmp_path / "s"
    with (
        pytest.raises(NonFiniteError, match="resid.0 is not finite in context 11, position 5") as e,
        ActWriter.create_or_resume(path, spec, n_rows=200) as writer,
    ):
        writer.write_shard(shard_of(spec, 0, 64))
        bad = shard_of(spec, 1, 64)
        order = bad.acts["resid.0"]
        clean = contexts(spec, 11, 12)[0]["resid.0"][0, 5]
        order[np.flatnonzero((order == clean).all(1))[0], 7] = value
        writer.write_shard(bad)
        writer.finish()
    assert (e.value.site, e.value.context_id, e.value.position) == ("resid.0", 11, 5)
    with ActWriter.create_or_resume(path, spec, n_rows=200) as writer:
        assert writer.next_shard == 1


def test_shards_that_do_not_fit_are_refused(tmp_path):
    spec = make_spec()
    good = shard_of(spec, 0, 64)
    rows = good.acts["mlp_out.1"]
    bad = {
        "got shard 1": shard_of(spec, 1, 64),
        r"expected \(64, 16\) uint16, got \(64, 15\)": replace(
            good, acts={"mlp_out.1": rows[:, :15]}
        ),
        "got .* float32": replace(good, acts={"mlp_out.1": rows.astype(np.float32)}),
        "expected rows of mlp_out.1, got x": replace(good, acts={"x": rows}),
        "shall hold 64 rows, got 128": shard_of(replace(spec, shard_rows=128), 0, 128),
        "expected tokens and document ids": replace(
            good, tokens=good.tokens.reshape(4, 16), document_id=good.document_id.reshape(4, 16)
        ),
    }
    with ActWriter.create_or_resume(tmp_path / "s", spec, n_rows=200) as writer:
        for message, shard in bad.items():
            with pytest.raises(StoreError, match=message):
                writer.write_shard(shard)
        with pytest.raises(StoreError, match="more rows were given"):
            acts, tokens, _ = contexts(spec, 0, 26)
            writer.append(acts, tokens=tokens)


def test_a_writer_holds_no_more_shards_than_its_queue(tmp_path, monkeypatch):
    spec, gate, taken = make_spec(), threading.Event(), []

    def gated(*args):
        gate.wait()
        return write_files(*args)

    monkeypatch.setattr("actstore.writer.write_files", gated)
    with ActWriter.create_or_resume(tmp_path / "s", spec, n_rows=320, queue=2) as writer:

        def feed():
            for k in range(5):
                writer.write_shard(shard_of(spec, k, 64))
                taken.append(k)

        thread = threading.Thread(target=feed)
        thread.start()
        thread.join(0.3)
        assert taken == [0, 1]
        gate.set()
        thread.join()
        assert writer.finish().n_rows == 320


def test_a_system_that_writes_less_than_it_is_given_is_asked_again(tmp_path, monkeypatch):
    real = os.writev

    def some(fd, parts):
        return real(fd, [bytes(parts[0])[:7]]) if len(parts) % 2 else real(fd, parts[:2])

    whole = files_of(write_store(tmp_path / "whole", make_spec(), n_rows=200))
    monkeypatch.setattr(os, "writev", some)
    assert files_of(write_store(tmp_path / "s", make_spec(), n_rows=200)) == whole
