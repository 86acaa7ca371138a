"""`saepipe store`: what it tells, finds, repairs and removes."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from actstore.addition import adding
from actstore.reader import ActStore
from pipeline.harvest.repair import RepairReport
from tests.helpers.stores import as_numbers, column, contexts, files_of, make_spec, write_store
from tests.helpers.tiny import CTX_LEN, make_model, make_text

SOURCE = {
    "model": "EleutherAI/pythia-6.9b-deduped",
    "revision": "step143000",
    "text": "Skylion007/openwebtext",
    "text_fingerprint": "sha256:" + "f" * 64,
}
WIDTHS = {"mlp_out.1": 16, "resid_post.11": 8}


def flip(path: Path, *files: str) -> None:
    """Damage files of a store's group."""
    for name in files:
        file = path / "data.zarr" / name
        data = bytearray(file.read_bytes())
        data[50] ^= 1
        file.write_bytes(data)


def words(text: str) -> str:
    """Text as it reads, however it was folded."""
    return " ".join(text.split())


def test_info_tells_programs_all_of_a_store(succeeds, make_store):
    path = make_store(widths=WIDTHS, source=SOURCE, seed=5)
    out, _ = succeeds("store", "info", path, "--json", "-")
    told, store = json.loads(out), ActStore.open(path)
    assert told["sites"] == WIDTHS
    assert told["source"] == SOURCE
    expected = {
        "state": "complete", "generation": 1, "n_rows": 200, "n_contexts": 25, "ctx_len": 8,
        "dtype": "bfloat16", "codec": "lz4", "n_shards": 4, "shard_rows": 64, "chunk_rows": 8,
        "seed": 5, "fingerprint": store.fingerprint, "n_bytes": store.n_bytes,
        "raw_bytes": 200 * 24 * 2, "fidelity": None, "adding": [],
    }  # fmt: skip
    assert {key: told[key] for key in expected} == expected
    for site in WIDTHS:
        files = [p for p in (path / "data.zarr" / site / "c").rglob("*") if p.is_file()]
        rows = as_numbers(column(store, site))
        statistics = told["statistics"][site]
        assert statistics["bytes"] == sum(p.stat().st_size for p in files)
        np.testing.assert_allclose(statistics["mean_norm"], np.linalg.norm(rows.mean(0)))
        np.testing.assert_allclose(statistics["variance"], rows.var(0).sum())
    stored = sum(told["statistics"][site]["bytes"] for site in WIDTHS)
    assert (told["site_bytes"], told["ratio"]) == (stored, stored / told["raw_bytes"])


def test_info_tells_what_rounding_cost(succeeds, make_store):
    given = {"widths": WIDTHS, "dtype": "float32"}
    exact = ActStore.open(make_store(name="exact", codec="raw", **given))
    path = make_store(codec="bitround:3", **given)
    store = ActStore.open(path)
    out, err = succeeds("store", "info", path, "--json", "-")
    for site, told in json.loads(out)["fidelity"].items():
        rounded = as_numbers(column(store, site))
        lost = np.square(rounded - as_numbers(column(exact, site))).mean(0)
        assert lost.any()
        np.testing.assert_allclose(told["relative_error"], lost.sum() / rounded.var(0).sum())
        np.testing.assert_allclose(told["worst_coordinate"], (lost / rounded.var(0)).max())
        assert f"{told['relative_error']:.2e}" in err
        assert f"{told['worst_coordinate']:.2e}" in err


def test_info_of_an_unfinished_store_tells_what_is_safe_and_how_to_go_on(
    saepipe, succeeds, tmp_path
):
    path = write_store(tmp_path / "half.actstore", make_spec(), n_rows=1000, stop=3)
    out, _ = succeeds("store", "info", path)
    assert "192 safe on disk of 1,000 wanted" in words(out)
    assert "go on with the same saepipe harvest that began it" in words(out)
    told = json.loads(succeeds("store", "info", path, "--json", "-")[0])
    assert (told["state"], told["n_rows_safe"], told["n_rows"]) == ("writing", 192, 1000)


def test_info_tells_of_a_site_that_is_being_added(succeeds, make_store):
    path = make_store()
    acts, _, _ = contexts(make_spec(widths={"new.1": 4}), 0, 8)
    _, tokens, documents = contexts(make_spec(), 0, 8)
    with adding(path, {"new.1": 4}) as writer:
        writer.append(acts, tokens=tokens, document_id=documents)
    assert "new.1: not finished, go on" in words(succeeds("store", "info", path)[0])


def test_80_columns_are_enough(succeeds, make_store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = make_store(name="a" * 30, codec="bitround:3", widths=WIDTHS, source=SOURCE)
    for command in (("info", path), ("list", path.parent)):
        out, _ = succeeds("store", *command)
        assert max(len(line) for line in out.splitlines()) <= 80
        for whole in ("resid_post.11", "bitround:3", "complete"):
            assert whole in out


def test_list_finds_stores_below_a_folder_and_says_why_one_cannot_be_read(
    succeeds, make_store, tmp_path
):
    make_store(source=SOURCE)
    (tmp_path / "deep").mkdir()
    write_store(tmp_path / "deep/half.actstore", make_spec(), n_rows=1000, stop=3)
    (make_store(name="bad") / "data.zarr/zarr.json").write_text("{")
    out, _ = succeeds("store", "list", tmp_path)
    assert "acts.actstore" in out
    assert "deep/half.actstore" in out
    assert f"{tmp_path}/bad.actstore: " in out and "is damaged" in out
    found = json.loads(succeeds("store", "list", tmp_path, "--json", "-")[0])
    assert [Path(one["path"]).name for one in found] == [
        "acts.actstore", "bad.actstore", "half.actstore",
    ]  # fmt: skip
    assert [one.get("state") for one in found] == ["complete", None, "writing"]
    assert "is damaged" in found[1]["problem"]
    assert found[0]["source"]["model"] == SOURCE["model"]


def test_list_looks_where_the_environment_says_or_else_here(
    succeeds, make_store, tmp_path, monkeypatch
):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_store(name=f"{name}/{name}")
    monkeypatch.chdir(tmp_path / "a")
    monkeypatch.delenv("SAEPIPE_STORES", raising=False)

    def listed(*arguments: object) -> list[str]:
        out, _ = succeeds("store", "list", *arguments, "--json", "-")
        return [Path(one["path"]).name for one in json.loads(out)]

    assert listed() == ["a.actstore"]
    monkeypatch.setenv("SAEPIPE_STORES", os.pathsep.join([str(tmp_path / "b"), str(tmp_path)]))
    assert listed() == ["b.actstore", "a.actstore", "b.actstore"]
    assert listed(tmp_path / "a") == ["a.actstore"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"no store in {empty}" in succeeds("store", "list", empty)[0]


def test_verify_tells_each_damage_in_a_line_and_counts_a_row_once(saepipe, succeeds, make_store):
    path = make_store(widths=WIDTHS)
    succeeds("store", "verify", path)
    flip(path, "mlp_out.1/c/1/0", "resid_post.11/c/1/0", "token_id/c/2")
    (path / "data.zarr/mlp_out.1/c/3/0").unlink()
    code, out, err = saepipe("store", "verify", path)
    assert code == 1
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        "token_id, shard 2, chunk 0, 64 rows",
        "mlp_out.1, shard 1, chunk 0, 8 rows",
        "mlp_out.1, shard 3, 8 rows",
        "resid_post.11, shard 1, chunk 0, 8 rows",
    ]
    assert f"({path}/data.zarr/mlp_out.1/c/3/0)" in out
    (line,) = err.splitlines()
    assert "is damaged (3 shards, 80 rows)" in line
    assert line.endswith(f"saepipe store verify {path} --repair")
    told = json.loads(saepipe("store", "verify", path, "--json", "-")[1])
    assert [one["rows"] for one in told["findings"]] == [[128, 192], [64, 72], [192, 200], [64, 72]]


def test_verify_of_what_is_not_whole_is_one_line(saepipe, tmp_path):
    path = write_store(tmp_path / "half.actstore", make_spec(), n_rows=1000, stop=3)
    for place, message in ((path, "is not finished"), (tmp_path / "absent", "there is no")):
        code, out, err = saepipe("store", "verify", place, "--repair")
        assert (code, out) == (1, "")
        assert message in err
        assert len(err.splitlines()) == 1


def test_a_damaged_harvest_is_repaired_to_the_same_bytes(succeeds, tmp_path):
    model = make_model(tmp_path / "model")
    text = make_text(tmp_path / "text.txt", n_contexts=60)
    settings = tmp_path / "settings.toml"
    settings.write_text(f"shard_rows = {10 * CTX_LEN}\n")
    path = tmp_path / "acts.actstore"
    succeeds(
        "harvest", "--model", model, "--text", text, "--site", "mlp_out.1", "--tokens", 480,
        "--ctx-len", CTX_LEN, "--device", "cpu", "--config", settings, "--out", path,
    )  # fmt: skip
    before = files_of(path)
    flip(path, "mlp_out.1/c/1/0", "mlp_out.1/c/2/0", "token_id/c/2")
    report = tmp_path / "report.json"
    out, _ = succeeds("store", "verify", path, "--repair", "--device", "cpu", "--json", report)
    assert f"repair    2 shards, 240 rows, 3 files of {path}" in out
    assert "every byte" in out
    assert files_of(path) == before
    told = json.loads(report.read_text())
    assert told["findings"] == []
    assert told["repaired"]["shards"] == [1, 2]


def test_a_repair_is_believed_only_once_it_was_verified(saepipe, make_store, monkeypatch):
    """The repair is replaced: ours leaves no damage behind without saying so."""
    path, nothing = make_store(), RepairReport(shards=(), rows=0, files=())
    monkeypatch.setattr("pipeline.harvest.repair.repair", lambda *_, **__: nothing)
    flip(path, "mlp_out.1/c/1/0")
    code, out, err = saepipe("store", "verify", path, "--repair")
    assert code == 1
    assert out.count("mlp_out.1, shard 1, chunk 0, 8 rows") == 2
    assert "is damaged (1 shard, 8 rows)" in err


def test_rm_without_anyone_to_ask_wants_yes(saepipe, succeeds, make_store, monkeypatch):
    path = make_store()
    with open(os.devnull) as nobody:  # noqa: PTH123 - a device
        monkeypatch.setattr(sys, "stdin", nobody)
        code, out, err = saepipe("store", "rm", path)
    assert code == 1
    assert "200 rows a site of mlp_out.1" in out
    assert f"saepipe store rm {path} --yes" in err
    ActStore.open(path)
    out, _ = succeeds("store", "rm", path, "--yes")
    assert not path.exists()
    assert f"removed   {path}" in out


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_rm_asks_at_a_terminal(make_store, answer, code):
    path = make_store()
    mine, theirs = pty.openpty()
    try:
        os.write(mine, f"{answer}\n".encode())
        program = "import sys, cli; sys.argv[0] = 'saepipe'; cli.main()"
        command = [sys.executable, "-c", program, "store", "rm", str(path)]
        done = subprocess.run(command, check=False, stdin=theirs, capture_output=True, text=True)
    finally:
        os.close(mine)
        os.close(theirs)
    assert done.returncode == code, done.stderr
    assert "remove it?" in done.stdout
    assert path.exists() == (answer == "n")


def test_rm_says_that_of_a_link_only_the_link_goes(succeeds, make_store, tmp_path):
    path, link = make_store(), tmp_path / "link.actstore"
    link.symlink_to(path)
    out, _ = succeeds("store", "rm", link, "--yes")
    assert f"is a link to {path}: the link will go, the store stays" in out
    assert not link.is_symlink()
    ActStore.open(path)


def test_rm_leaves_a_store_that_links_of_known_folders_lead_to(
    saepipe, make_store, tmp_path, monkeypatch
):
    path, link = make_store(), tmp_path / "deep/er/link.actstore"
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    monkeypatch.setenv("SAEPIPE_STORES", str(tmp_path / "deep"))
    code, out, err = saepipe("store", "rm", path, "--yes")
    assert (code, out) == (1, "") and f"is where {link} leads: remove that first" in err
    ActStore.open(path)


def test_rm_of_what_is_no_store_is_one_line(fails, make_store, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("")
    path = make_store()
    shutil.copy(tmp_path / "thesis/chapter.tex", path)
    for place in (tmp_path / "thesis", path, tmp_path / "absent"):
        assert "nothing was removed" in fails("store", "rm", place, "--yes")
    assert (tmp_path / "thesis/chapter.tex").exists()
    ActStore.open(path)
