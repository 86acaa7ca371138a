"""A site of a store in formats of others: read by their libraries, and back to the bit."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as parquet
import pytest

from actstore.moments import as_float
from actstore.reader import ActStore
from pipeline.config.rows import ExportConfig, ImportConfig
from pipeline.config.stages import EvalConfig, FeaturesConfig
from pipeline.config.training import TrainConfig
from pipeline.errors import ConfigError
from pipeline.exchange.rows import export, values, writers
from pipeline.exchange.rows.export import export_rows
from pipeline.exchange.rows.importing import import_rows
from tests.helpers.crashing import files_up_to
from tests.helpers.rows import made_rows
from tests.helpers.stores import contexts, make_spec

SITE = "mlp_out.1"
N_CONTEXTS, CTX_LEN, WIDTH = 25, 8, 16
TO = {"npy": "a.npy", "safetensors": "a.safetensors", "parquet": "a.parquet", "arrow": "a"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of three contexts, and files of Arrow of ten."""
    for module in (values, export):
        monkeypatch.setattr(module, "BLOCK_BYTES", 3 * CTX_LEN * WIDTH * 4)
    monkeypatch.setattr(writers, "FILE_BYTES", 10 * CTX_LEN * (WIDTH * 4 + 12))


def read_npy(path: Path):
    return np.load(path), np.load(path.with_suffix(".tokens.npy")), None


def read_safetensors(path: Path):
    from safetensors.torch import load_file

    held = load_file(path)
    acts = held[SITE].float().numpy()
    return acts, held["token_ids"].numpy(), held["document_id"].numpy()


def read_parquet(path: Path):
    held = parquet.read_table(path)
    np.testing.assert_array_equal(held["position"], np.tile(np.arange(CTX_LEN), N_CONTEXTS))
    np.testing.assert_array_equal(held["context_id"], np.repeat(np.arange(N_CONTEXTS), CTX_LEN))
    acts = np.stack(held[SITE].to_numpy())
    return acts, held["token_id"].to_numpy(), held["document_id"].to_numpy()


def read_arrow(path: Path):
    import datasets

    held = datasets.load_from_disk(str(path)).with_format("numpy")
    assert len(list(path.glob("*.arrow"))) > 1
    hook = "blocks.1.hook_mlp_out"
    acts = held[:][hook].astype(held.features[hook].dtype)  # numpy is given float32
    return acts, held[:]["token_ids"], None


READ = {"npy": read_npy, "safetensors": read_safetensors, "parquet": read_parquet,
        "arrow": read_arrow}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("to", TO)
def test_an_export_is_read_by_others_and_comes_back_to_the_bit(to, dtype, make_store, tmp_path):
    path = make_store(dtype=dtype, source={"model": "builtin"})
    acts, tokens, documents = contexts(make_spec(dtype=dtype), 0, N_CONTEXTS)
    out = tmp_path / TO[to]
    done = export_rows(ExportConfig(store=path, site=SITE, to=to, out=out))
    found, ids, docs = READ[to](out)
    expected = as_float(acts[SITE]).reshape(-1, WIDTH)
    np.testing.assert_array_equal(np.asarray(found, np.float32).reshape(-1, WIDTH), expected)
    np.testing.assert_array_equal(ids.reshape(-1), tokens.reshape(-1))
    if docs is not None:
        np.testing.assert_array_equal(docs.reshape(-1), documents.reshape(-1))
    widened = dtype == "bfloat16" and to != "safetensors"
    assert any("has no bfloat16" in note for note in done.notes) == widened
    if not widened and to != "safetensors":
        assert found.dtype == dtype

    back = ImportConfig(
        source=out, out=tmp_path / "back.actstore", sites=SITE, dtype=dtype, shard_rows=64,
        tokens_file=out.with_suffix(".tokens.npy") if to == "npy" else None,
    )  # fmt: skip
    import_rows(back)
    was, now = ActStore.open(path), ActStore.open(back.out)
    for name in (SITE, "context_tokens", "context_id", *["document_id"] * (docs is not None)):
        for shard in range(was.n_shards):
            np.testing.assert_array_equal(now.shard(name, shard), was.shard(name, shard))
    assert now.spec.ctx_len == CTX_LEN
    if to in ("safetensors", "parquet"):
        assert now.spec.source["model"] == "builtin"


@pytest.mark.parametrize("to", TO)
def test_a_store_without_tokens_is_written_without(to, make_store, tmp_path):
    path, out = make_store(source={"tokens": "none"}), tmp_path / TO[to]
    done = export_rows(ExportConfig(store=path, site=SITE, to=to, out=out))
    assert any("no token ids" in note for note in done.notes)
    summary = import_rows(ImportConfig(source=out, out=tmp_path / "b.actstore", sites=SITE))
    assert any("no token ids" in note for note in summary.notes)


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("how", ["stopped", "full"])
def test_an_export_is_whole_or_not_at_all(to, how, make_store, tmp_path):
    config = ExportConfig(store=make_store(), site=SITE, to=to, out=tmp_path / TO[to])
    before = set(tmp_path.rglob("*"))
    if how == "full":
        with files_up_to(3_000), pytest.raises(ConfigError, match="nothing of it is kept"):
            export_rows(config)
    else:

        def stop(progress):
            if progress.done > 100:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export_rows(config, on_progress=stop)
    assert set(tmp_path.rglob("*")) == before
    assert export_rows(config).n_rows == 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"site": "mlp_out.9"}, "has no site 'mlp_out.9'; it has mlp_out.1"),
        ({"out": "a.bin"}, r"npy is a file \*.npy"),
        ({"out": "taken.npy"}, "taken.npy is there already"),
        ({"out": "half.npy"}, "half.tokens.npy is there already"),
    ],
    ids=["site", "ending", "taken", "tokens taken"],
)
def test_what_cannot_be_written_is_refused(change, said, make_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("taken.npy").touch()
    Path("half.tokens.npy").touch()
    config = {"store": make_store(), "site": SITE, "to": "npy", "out": "a.npy"} | change
    with pytest.raises(ConfigError, match=said):
        export_rows(ExportConfig(**config))


@pytest.mark.parametrize("to", TO)
def test_of_two_at_one_place_the_second_is_refused(to, make_store, tmp_path):
    config = ExportConfig(store=make_store(), site=SITE, to=to, out=tmp_path / TO[to])
    refusals = list[str]()

    def meanwhile(_progress):
        with pytest.raises(ConfigError) as error:
            export_rows(config)
        refusals.append(str(error.value))

    done = export_rows(config, on_progress=meanwhile)
    assert refusals
    assert all(f"is being written by process {os.getpid()}" in said for said in refusals)
    assert sum(file.stat().st_size for file in done.files) == done.n_bytes
    assert (
        ActStore.open(
            import_rows(ImportConfig(source=done.path, out=tmp_path / "b.actstore", sites=SITE))
        ).n_rows
        == 200
    )


def test_a_disk_without_room_is_told_before(make_store, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=99))
    config = ExportConfig(store=make_store(), site=SITE, to="npy", out=tmp_path / "a.npy")
    with pytest.raises(ConfigError, match="more than the 99B"):
        export_rows(config)


def test_python_has_both_as_verbs(make_store, tmp_path):
    from pipeline import saepipe as sp

    path, out = make_store(), tmp_path / "a.safetensors"
    done = sp.export_store(path, SITE, to="safetensors", out=out)
    store = sp.import_store(done.path, out=tmp_path / "b.actstore")
    assert sp.ActStore.open(store).n_rows == 200
    with pytest.raises(ConfigError, match="name the site, as in `site`"):
        np.save(tmp_path / "a.npy", made_rows())
        sp.import_store(tmp_path / "a.npy", out=tmp_path / "c.actstore")


def test_a_site_that_no_hook_is_of_keeps_its_name(make_store, tmp_path):
    path = make_store(widths={"image": 16})
    export_rows(ExportConfig(store=path, site="image", to="arrow", out=tmp_path / "a"))
    back = ImportConfig(source=tmp_path / "a", out=tmp_path / "b.actstore", sites="image")
    assert ActStore.open(import_rows(back)).sites == ("image",)


# --- in use --------------------------------------------------------------------------------------


def test_the_command_line_says_what_it_did(succeeds, fails, make_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, _ = succeeds("store", "export", make_store(), SITE, "--to", "npy", "--out", "x.npy")
    assert "mlp_out.1: 200 rows" in out and "tokens in x.tokens.npy" in out
    assert "note: npy has no bfloat16" in out
    typed = ("store", "import", "x.npy", "--site", SITE, "--out", "b.actstore")
    out, _ = succeeds(*typed, "--tokens-file", "x.tokens.npy", "--dtype", "bf16", "--json", "-")
    told = json.loads(out)
    assert (told["n_rows"], told["reused"]) == (200, False)
    out, _ = succeeds(*typed, "--tokens-file", "x.tokens.npy", "--dtype", "bf16")
    assert "complete, reused: 200 rows a site in b.actstore" in out
    told = json.loads(succeeds("store", "info", "b.actstore", "--json", "-")[0])["source"]
    assert told["imported_from"] == str(tmp_path / "x.npy")
    kinds = ("npy", "float32", (tmp_path / "x.npy").stat().st_size)
    assert tuple(told[f"imported_{name}"] for name in ("format", "dtype", "bytes")) == kinds
    assert "imported fingerprint" in succeeds("store", "info", "b.actstore")[0]
    assert "type --shape WIDTH" in fails(*typed, "--shape", "1,2,3,4")
    assert "cannot be harvested again" in fails("store", "verify", damaged("b"), "--repair")


def damaged(name: str) -> Path:
    store = Path(f"{name}.actstore")
    file = store / "data.zarr" / SITE / "c" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[50] ^= 1
    file.write_bytes(data)
    return store


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["store", "import", "x", "--out", "y"], "goes on"),
        (["store", "export", "x", SITE, "--to", "npy", "--out", "y"], "begins again"),
        (["import", "x"], "begins again"),
    ],
    ids=["import", "export", "another import"],
)
def test_ctrl_c_says_whether_it_goes_on(typed, said, monkeypatch, capsys):
    import cli

    monkeypatch.setattr("sys.argv", ["saepipe", *typed])
    monkeypatch.setattr(cli, "app", lambda **_: 130)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert said in capsys.readouterr().err


@pytest.fixture
def without_tokens(tmp_path):
    np.save(tmp_path / "a.npy", made_rows(n=2048))
    config = ImportConfig(source=tmp_path / "a.npy", out=tmp_path / "a.actstore", sites=SITE)
    return import_rows(config).store


def test_without_tokens_an_sae_trains_and_features_say_what_they_need(without_tokens, tmp_path):
    from pipeline.features.collect import collect_features
    from pipeline.training.train import train

    config = {"store": without_tokens, "tokens": 2048, "batch_size": 256, "device": "cpu"}
    train(TrainConfig(out=tmp_path / "run", **config))
    with pytest.raises(ConfigError, match="imported without token ids.*--tokens-file"):
        collect_features(FeaturesConfig(run=tmp_path / "run", device="cpu"))
    with pytest.raises(ConfigError, match="exclude_tokens leaves nothing out"):
        train(TrainConfig(out=tmp_path / "other", exclude_tokens=(0,), **config))


def test_an_imported_store_trains_and_evaluates_as_the_harvested_one(tmp_path, tiny_model):
    from pipeline.evaluate.evaluate import evaluate
    from pipeline.features.collect import collect_features
    from pipeline.harvest.harvest import harvest
    from pipeline.training.train import train
    from tests.helpers.harvests import harvest_config

    harvested = harvest_config(tmp_path, model=tiny_model, sites=(SITE,))
    harvest(harvested)
    out = tmp_path / "a.safetensors"
    export_rows(ExportConfig(store=harvested.out, site=SITE, to="safetensors", out=out))
    spec = ActStore.open(harvested.out).spec
    imported = ImportConfig(
        source=out, out=tmp_path / "imported.actstore", shard_rows=spec.shard_rows
    )
    assert import_rows(imported).notes == ()
    found = {}
    for store in (harvested.out, imported.out):
        run = tmp_path / f"run-{store.stem}"
        train(TrainConfig(store=store, out=run, tokens=396, batch_size=44, device="cpu"))
        (report,) = evaluate(
            EvalConfig(runs=(run,), text=harvested.text, tokens=120, device="cpu", n_bootstrap=0)
        )
        features = collect_features(FeaturesConfig(run=run, device="cpu"))
        assert features.facts.has_texts
        found[store] = (report.mse, report.l0, report.ce_patched, features.n_active.tolist())
    assert found[harvested.out] == found[imported.out]
