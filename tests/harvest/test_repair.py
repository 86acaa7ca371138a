"""Damage done to harvested stores, and mended by harvesting again what was lost."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actstore.errors import StoreError
from actstore.files import writing
from actstore.reader import ActStore, peek
from actstore.repair import repairing
from actstore.summary import write_root
from actstore.verify import verify
from pipeline.config.stages import HarvestConfig
from pipeline.errors import ConfigError, TextError
from pipeline.harvest.forward import FilledShard
from pipeline.harvest.harvest import harvest
from pipeline.harvest.repair import repair
from pipeline.text.files import FileText
from tests.helpers.crashing import files_up_to
from tests.helpers.harvests import harvest_config
from tests.helpers.refusals import refused
from tests.helpers.stores import files_of, flip, make_spec, shard_file, write_store
from tests.helpers.tiny import CTX_LEN, make_model, make_text


@pytest.fixture(scope="module")
def harvested(tmp_path_factory) -> Path:
    """A folder with a tiny model, a text and the store that came of them."""
    folder = tmp_path_factory.mktemp("harvested")
    harvest(harvest_config(folder))  # 4 shards, the last of 3 contexts
    return folder


def config_of(harvested: Path, out: Path, **settings) -> HarvestConfig:
    return harvest_config(harvested, model=harvested / "model", out=out, **settings)


@pytest.fixture
def store(harvested, tmp_path) -> Path:
    """A copy of that store, to be damaged."""
    return Path(shutil.copytree(harvested / "acts.actstore", tmp_path / "acts.actstore"))


def everything(path: Path) -> dict[str, bytes]:
    """Every file of a store but its lock."""
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "LOCK")
    return {str(p.relative_to(path)): p.read_bytes() for p in found}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def remove(file: Path) -> None:
    file.unlink() if file.is_file() else shutil.rmtree(file)


def replace_in(file: Path, old: bytes, new: bytes) -> None:
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new))


def mended(path: Path, **options):
    return repair(path, verify(path), device="cpu", **{"batch_size": 4, **options})


DAMAGE = {
    "a chunk": [("mlp_out.1/c/1/0", lambda f: flip(f, 40))],
    "an index": [("resid_pre.0/c/2/0", lambda f: flip(f, -20))],
    "a file removed": [("mlp_out.1/c/0/0", remove)],
    "a folder removed": [("mlp_out.1/c", remove)],
    "a file cut short": [("mlp_out.1/c/2/0", cut)],
    "a file emptied": [("mlp_out.1/c/2/0", lambda f: f.write_bytes(b""))],
    "labels": [("token_id/c/1", lambda f: flip(f, 30)), ("context_tokens/c/1/0", remove)],
    "the short last shard": [("mlp_out.1/c/3/0", cut), ("position/c/3", remove)],
    "several shards": [(f"resid_pre.0/c/{k}/0", remove) for k in range(4)],
    "a zarr.json": [("mlp_out.1/zarr.json", lambda f: flip(f, 30)), ("position/zarr.json", remove)],
    "the summary": [("summary-1/mean.mlp_out.1/c/0", lambda f: flip(f, 3))],
    "all of the summary": [("summary-1", remove)],
    "the summary and a shard": [("summary-1", remove), ("mlp_out.1/c/1/0", cut)],
    "all of an array": [("mlp_out.1", remove)],
    "the root's copies": [("zarr.json", lambda f: replace_in(f, b'"d_16"', b'"d_17"'))],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_was_damaged_is_put_back_byte_for_byte(store, damage):
    whole = everything(store)
    untouched = {name: (store / name).stat().st_ino for name in whole}
    for name, harm in damage:
        harm(store / "data.zarr" / name)
    harmed = everything(store)
    report = mended(store)
    assert everything(store) == whole
    assert verify(store) == []
    for name, inode in untouched.items():
        was_harmed = harmed.get(name) != whole[name] or "summary-1" in name
        assert was_harmed or (store / name).stat().st_ino == inode, name
    shard_files = {n for n in whole if "/c/" in n and "summary" not in n}
    put_back = {f.relative_to(store).as_posix() for f in report.files}
    assert put_back & shard_files == {n for n in shard_files if harmed.get(n) != whole[n]}
    lost = {int(n.split("/c/")[1].split("/")[0]) for n in put_back & shard_files}
    assert set(report.shards) == lost
    assert report.rows == sum(min(10, 33 - 10 * k) * CTX_LEN for k in lost)


def test_only_damaged_shards_are_harvested_and_progress_reaches_their_rows(store):
    report = repair(store, [])
    assert (report.shards, report.rows, report.files) == ((), 0, ())
    for k in (1, 3):
        remove(shard_file(store, "mlp_out.1", k))
    told = []
    report = mended(store, on_progress=told.append)
    assert (report.shards, report.rows) == ((1, 3), 13 * CTX_LEN)
    assert [p.done for p in told] == [CTX_LEN * n for n in (4, 8, 10, 13)]
    assert {(p.stage, p.total, p.unit) for p in told} == {("repair", 13 * CTX_LEN, "rows")}
    assert [f.parent.name for f in report.files] == ["1", "3"]


def test_a_repaired_store_can_be_extended(harvested, store):
    remove(shard_file(store, "mlp_out.1", 3))
    remove(store / "data.zarr" / "summary-1")
    mended(store)
    config = config_of(harvested, store, tokens=39 * CTX_LEN)
    harvest(config)
    whole = replace(config, out=store.parent / "whole" / "acts.actstore")  # none beside it
    harvest(whole)
    assert ActStore.open(store).fingerprint == ActStore.open(whole.out).fingerprint
    remove(shard_file(store, "mlp_out.1", 3))  # of the second generation
    remove(store / "data.zarr" / "summary-2")
    before = files_of(whole.out)
    mended(store)
    assert files_of(store)["mlp_out.1/c/3/0"] == before["mlp_out.1/c/3/0"]
    assert verify(store) == []


def unmended(path: Path, error: type[Exception], told: str) -> None:
    """A repair that changes nothing, and says why in one line."""
    before = everything(path)
    with refused(error, told):
        mended(path)
    assert everything(path) == before


def rewritten_source(path: Path, **change: str) -> None:
    """The store as one harvested from another source would be, its rows apart."""
    manifest = peek(path)
    spec = replace(manifest.spec, source={**manifest.spec.source, **change})
    summary = ActStore.open(path)._summary
    changed = replace(manifest, spec=spec, fingerprint=summary.fingerprint(spec))
    write_root(path, changed, summary)


def test_another_text_or_tokenizer_or_model_is_refused_by_name(store, tmp_path, harvested):
    file = shard_file(store, "mlp_out.1", 1)
    other = make_text(tmp_path / "other.txt", n_contexts=40, seed=1)
    model = shutil.copytree(harvested / "model", tmp_path / "model")
    make_model(model, seed=1)
    named = shutil.copytree(harvested / "model", tmp_path / "named")
    tokenizer = (named / "tokenizer.json").read_text()
    (named / "tokenizer.json").write_text(f"{tokenizer} ")
    for change, told in (
        ({"text": other}, "the text .*other.txt is not what it was .*text_fingerprint: sha"),
        ({"model": str(model)}, "the model .* is not what it was .*model_fingerprint"),
        ({"model": str(named)}, "the tokenizer of .* is not what it was .*tokenizer_fingerprint"),
    ):
        changed = Path(shutil.copytree(store, tmp_path / "changed"))
        rewritten_source(changed, **change)
        cut(changed / file.relative_to(store))
        unmended(changed, ConfigError, told)
        shutil.rmtree(changed)
    rewritten_source(store, text=str(tmp_path / "gone.txt"))
    cut(file)
    unmended(store, TextError, "there is no text")


def test_one_bit_of_one_activation_is_enough_to_refuse(store, monkeypatch):
    def off_by_a_bit(filled):
        filled.shard.acts["resid_pre.0"][77, 5] ^= np.uint16(1)
        return filled.shard

    monkeypatch.setattr(FilledShard, "wait", off_by_a_bit)
    cut(shard_file(store, "mlp_out.1", 2))
    unmended(
        store, StoreError, r"shard 2 of .* came out different .* in resid_pre\.0, so .*--batch-size"
    )


def test_a_text_that_ends_too_early_is_refused(store, tmp_path, monkeypatch):
    text = make_text(tmp_path / "short.txt", n_contexts=15)
    monkeypatch.setattr(FileText, "fingerprint_like", lambda self, stored: stored)
    rewritten_source(store, text=text)
    cut(shard_file(store, "mlp_out.1", 1))
    unmended(store, ConfigError, "ends before shard 1 does")


def test_a_copy_of_the_group_alone_gets_back_its_first_shard_and_no_other(store):
    whole = files_of(store)
    for name in ("journal.jsonl", "moments"):
        remove(store / name)
    cut(shard_file(store, "mlp_out.1", 0))
    mended(store)
    assert files_of(store) == whole
    cut(shard_file(store, "mlp_out.1", 2))
    unmended(store, StoreError, "shard 2 of .* cannot be found again: journal.jsonl is missing")
    remove(store / "data.zarr" / "summary-1" / "zarr.json")
    unmended(store, StoreError, "summary-1 is damaged, and journal.jsonl and moments do not tell")


def test_damage_to_the_writers_own_files_is_told_after_all_else_is_mended(store):
    whole = files_of(store)
    flip(store / "journal.jsonl", 30)
    cut(shard_file(store, "mlp_out.1", 2))
    told = r"journal.jsonl cannot be put back: the store reads on.*; 1 other file put back$"
    with pytest.raises(StoreError, match=told):
        mended(store)
    assert files_of(store) == whole
    flip(store / "journal.jsonl", 30)
    flip(store / "moments" / "3", 9)
    unmended(store, StoreError, "moments/3 cannot be put back: the store reads on, but cannot be")


def test_a_damaged_root_is_left_to_a_backup(store):
    root = store / "data.zarr" / "zarr.json"
    root.write_bytes(root.read_bytes().replace(b'"n_rows": 396', b'"n_rows": 397'))
    unmended(store, StoreError, "do not match their checksum; nothing else says .* from a backup")
    root.write_bytes(b"{}")
    unmended(store, StoreError, "from a backup")
    root.unlink()
    unmended(store, StoreError, r"zarr.json is missing; nothing else says .* from a backup")
    remove(store / "data.zarr")
    unmended(store, StoreError, "there is no activation store")


def test_a_store_in_use_is_not_repaired(store):
    cut(shard_file(store, "mlp_out.1", 2))
    with writing(store):
        unmended(store, StoreError, "is being written by process")


def test_a_store_that_no_harvest_wrote_is_repaired_by_its_own_program(tmp_path):
    path = write_store(tmp_path / "s", make_spec(), n_rows=200)
    cut(shard_file(path, "mlp_out.1", 1))
    with refused(ConfigError, "was not written by saepipe harvest"):
        mended(path)
    with repairing(path, verify(path)) as job:
        assert job.cursor(1) == {"context": 8}


def test_a_full_disk_leaves_the_damage_as_it_was(store):
    file = shard_file(store, "mlp_out.1", 1)
    size = file.stat().st_size
    cut(file)
    with files_up_to(size - 1):
        unmended(store, StoreError, "could not be written: File too large")
    mended(store)
    assert verify(store) == []


@pytest.mark.parametrize(
    ("settings", "damaged", "shards"),
    [
        ({"sites": ("mlp_out.1",), "codec": "bitround:3"}, ["mlp_out.1/c/2/0", "summary-1"], (2,)),
        (
            {"sites": ("mlp_out.1", "resid_pre.0", "attn_out.2")},
            ["attn_out.2/c/1/0", "mlp_out.1/c/1/0", "attn_out.2/c/3/0", "summary-2"],
            (1, 3),
        ),
    ],
    ids=["rounded", "sites added later"],
)
def test_every_store_is_put_back_as_it_was(harvested, tmp_path, settings, damaged, shards):
    out = tmp_path / "acts.actstore"
    if len(settings["sites"]) > 1:
        shutil.copytree(harvested / "acts.actstore", out)
    harvest(config_of(harvested, out, **settings))
    whole = everything(out)
    for name in damaged:
        remove(out / "data.zarr" / name)
    report = mended(out)
    assert (report.shards, everything(out)) == (shards, whole)
