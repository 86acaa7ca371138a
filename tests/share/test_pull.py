"""What comes back from the hub: whole or not at all, and what was pushed."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from actstore.reader import ActStore
from actstore.verify import verify
from pipeline import saepipe as sp
from pipeline.errors import CheckpointError, ConfigError, HubError
from pipeline.evaluate.report import load_report
from pipeline.hub import publish as publishing
from tests.helpers.hub_server import TOKEN
from tests.helpers.refusals import refused
from tests.helpers.training import CTX, make_rows, make_training_store, write_rows
from tests.helpers.tunings import make_tuned

NAME = "models/org/name"


@pytest.fixture
def pushed(hub, evaluated) -> Path:
    """The run, whose copy is org/name."""
    sp.push(evaluated, "org/name", license="mit")
    return evaluated


def test_a_run_comes_back_a_run(pushed, tmp_path, succeeds):
    out, _ = succeeds("pull", "org/name", "--out", tmp_path / "back")
    assert "a run of org/name" in out and "every byte as it was pushed" in out
    back, was = sp.SAERun.open(tmp_path / "back"), sp.SAERun.open(pushed)
    for name, weights in was.sae.state_dict().items():
        assert torch.equal(weights, back.sae.state_dict()[name])
    assert back.config.arch == was.config.arch and back.provenance.site == was.provenance.site
    report, before = load_report(tmp_path / "back"), load_report(pushed)
    assert report.metrics == before.metrics and report.worst == before.worst
    there = {path.name for path in (tmp_path / "back").iterdir()}
    assert there == {"run.json", "cfg.json", "sae.safetensors", "eval.json", "density.png"}
    assert not [*tmp_path.glob("*.partial")]


def test_a_pulled_run_is_pushed_as_the_same(hub, pushed, tmp_path):
    sp.pull("org/name", out=tmp_path / "back")
    hub.asked.clear()
    assert sp.push(tmp_path / "back", "org/name", license="mit").n_sent == 0


def test_what_is_there_and_the_same_is_reused_and_other_things_are_refused(
    hub, pushed, tmp_path, succeeds
):
    sp.pull("org/name", out=tmp_path / "back")
    hub.asked.clear()
    assert sp.pull("org/name", out=tmp_path / "back").reused
    assert not any("/resolve/" in one for one in hub.asked)
    (tmp_path / "back" / "sae.safetensors").write_bytes(b"another")
    with refused(ConfigError, "exists and is not what org/name holds"):
        sp.pull("org/name", out=tmp_path / "back")
    (tmp_path / "file").write_text("mine")
    with refused(ConfigError, "exists and is not what org/name holds"):
        sp.pull("org/name", out=tmp_path / "file")


@pytest.mark.parametrize("status", [500, 999])
def test_what_was_stopped_goes_on_with_what_is_missing(hub, pushed, tmp_path, failing, status):
    failing("/resolve/" + hub.repositories[NAME].at("main")[0] + "/sae.safetensors", status)
    with refused(HubError, "sae.safetensors|model org/name"):
        sp.pull("org/name", out=tmp_path / "back")
    assert not (tmp_path / "back").exists()
    hub.fails = lambda _: None
    hub.asked.clear()
    sp.pull("org/name", out=tmp_path / "back")
    fetched = {
        one.rpartition("/")[2] for one in hub.asked if one.startswith("GET") and "/resolve/" in one
    }
    assert "sae.safetensors" in fetched and "run.json" not in fetched
    assert sp.SAERun.open(tmp_path / "back").sae


@pytest.mark.parametrize("name", ["sae.safetensors", "run.json"])
def test_what_does_not_fit_together_on_the_hub_is_refused(hub, pushed, tmp_path, name):
    data = bytearray(hub.files(NAME)[name])
    data[-9] ^= 1
    hub.put(NAME, {**hub.files(NAME), name: bytes(data)})
    with refused(CheckpointError, f"{name} (is missing or|is) damaged"):
        sp.pull("org/name", out=tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("run.json", b"{", "run.json is damaged: "),
        ("eval.json", b"{", "eval.json is not a report that this version can read"),
        ("eval.json", b"{}", "eval.json is not a report that this version can read"),
        ("eval.json", b"[1]", "eval.json is not a report that this version can read"),
        ("imported.json", b"{}", "imported.json is damaged "),
        ("folded.json", b"{}", "folded.json is damaged "),
        ("features/features.json", b"{}", "features/features.json is missing or damaged "),
        ("sweep.json", b"{}", "sweep.json is damaged: it names no run"),
        ("sweep.json", b'{"members": ["k=1"]}', "k=1 is not a run"),
    ],
)
def test_what_is_damaged_beside_the_weights_is_refused_by_its_place_on_the_hub(
    hub, pushed, tmp_path, name, data, why
):
    files = {**hub.files(NAME), name: data}
    if name == "sweep.json":
        del files["run.json"]
    hub.put(NAME, files)
    with refused(CheckpointError, rf"^org/name is damaged on the hub \({why}"):
        sp.pull("org/name", out=tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["run.json", "sweep.json", "metrics.jsonl"])
def test_what_is_nested_without_end_on_the_hub_is_one_line(hub, pushed, tmp_path, name):
    files = {**hub.files(NAME), name: b"[" * 100_000 + b"\n"}
    if name == "sweep.json":
        del files["run.json"]
    hub.put(NAME, files)
    with refused(CheckpointError, f"{name}( is damaged|: maximum)"):
        sp.pull("org/name", out=tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_what_changes_on_its_way_is_refused(hub, pushed, tmp_path, monkeypatch):
    """The hub says one checksum and gives other bytes."""
    from pipeline.hub import repository

    look = repository.look

    def lying(address):
        found = look(address)
        files = hub.repositories[NAME].at("main")[1]
        files["sae.safetensors"] = b"\0" * len(files["sae.safetensors"])
        return found

    monkeypatch.setattr("pipeline.share.pull.look", lying)
    with refused(HubError, "sae.safetensors is not what model org/name says that it is"):
        sp.pull("org/name", out=tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"cfg.json": b"{}", "sae.safetensors": b""}, "an SAE without its run"),
        ({"config.json": b"{}", "model.safetensors": b""}, "no run or store of saepipe"),
        ({}, "no run or store of saepipe"),
        ({"../../run.json": b"{}"}, "which is refused"),
        ({"/run.json": b"{}"}, "which is refused"),
    ],
)
def test_a_repository_of_other_things_is_one_line(hub, tmp_path, files, words):
    hub.put(NAME, files)
    with refused(HubError, words):
        sp.pull("org/name", out=tmp_path / "back")
    assert not (tmp_path / "back").exists() and not (tmp_path / "back.partial").exists()


@pytest.mark.parametrize(
    ("repo", "error", "words"),
    [
        ("org/none", HubError, "the hub has no repository org/none"),
        ("org/name@v9", HubError, r"the hub has no model org/name \(revision v9\)"),
        ("org/name/no/folder", HubError, "the hub has no folder no/folder in model org/name"),
        ("nothing", ConfigError, "names no repository of the hub"),
    ],
)
def test_what_is_not_on_the_hub_is_one_line(pushed, tmp_path, fails, repo, error, words):
    with refused(error, words):
        sp.pull(repo, out=tmp_path / "back")
    assert len(fails("pull", repo, "--out", tmp_path / "back")) > 0


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_no_message_has_the_token(hub, pushed, tmp_path, failing, caplog, saepipe, status):
    failing("/", status)
    code, out, err = saepipe("pull", "org/name", "--out", tmp_path / "back")
    assert code == 1 and err.splitlines()[-1].startswith("error: ")
    assert TOKEN not in out + err + caplog.text


def test_a_hub_out_of_reach_is_one_line(pushed, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    again = "check the network, then give the command again$"
    with refused(HubError, f"^the hub could not be reached for model org/name: {again}"):
        sp.pull("org/name", out=tmp_path / "back")
    with refused(HubError, f"^the hub could not be reached for model org/name: {again}"):
        sp.push(pushed, "org/name", license="mit")
    assert sp.SAE.load(pushed)


def test_who_asked_for_no_network_is_told_what_keeps_the_hub_away(pushed, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    why = "^the hub could not be reached for (model|repository) org/name, as HF_HUB_OFFLINE is set"
    for asks in (
        lambda: sp.pull("org/name", out=tmp_path / "back"),
        lambda: sp.push(pushed, "org/name", license="mit"),
    ):
        with refused(HubError, f"{why}: unset HF_HUB_OFFLINE, then give the command again$"):
            asks()
    with refused(HubError, f"{why}, and it is not in .*: unset HF_HUB_OFFLINE, or give a local"):
        sp.SAE.from_pretrained("org/name")


def test_a_fine_tuning_goes_and_comes_as_it_is_or_folded(hub, evaluated, tmp_path):
    tuned = make_tuned(evaluated, tmp_path / "tuned")
    report = sp.push(tuned.path, "org/name", license="mit")
    assert any("--fold" in note for note in report.notes)
    sp.pull("org/name", out=tmp_path / "back")
    back = sp.FinetunedRun.open(tmp_path / "back")
    assert torch.equal(back.sae.c, tuned.sae.c) and back.meaning() is not None
    sp.push(tuned.path, "org/plain", license="mit", fold=True)
    sp.pull("org/plain", out=tmp_path / "plain")
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sp.SAE.from_pretrained("org/plain")(x), tuned.sae(x))
    assert (tmp_path / "plain" / "folded.json").exists()


def test_a_sweep_goes_in_folders_and_comes_back_whole_or_by_one(hub, tmp_path):
    store = make_training_store(tmp_path / "acts.actstore", n_rows=512)
    sp.sweep(
        store, site="mlp_out.0", arch="topk", k=[1, 2], expansion=2, batch_size=64, device="cpu",
        out=tmp_path / "sweep",
    )  # fmt: skip
    sp.push(tmp_path / "sweep", "org/name", license="mit")
    card = hub.files(NAME)["README.md"].decode()
    assert "k=1/README.md" in card and "k=2/README.md" in card
    sp.pull("org/name", out=tmp_path / "back")
    assert json.loads((tmp_path / "back" / "sweep.json").read_text())["varies"] == ["k"]
    sp.pull("org/name/k=2", out=tmp_path / "one")
    assert sp.SAERun.open(tmp_path / "one").config.arch.k == 2
    assert sp.SAERun.open(tmp_path / "back" / "k=2").metrics
    told = json.loads(hub.files(NAME)["sweep.json"]) | {"members": ["../../x"]}
    hub.put(NAME, {**hub.files(NAME), "sweep.json": json.dumps(told).encode()})
    with refused(CheckpointError, "which is refused"):
        sp.pull("org/name", out=tmp_path / "third")


def test_a_store_goes_shard_by_shard_its_root_last_and_comes_back_verified(
    hub, tmp_path, monkeypatch
):
    monkeypatch.setattr(publishing, "_COMMIT_FILES", 5)
    store = make_training_store(tmp_path / "acts.actstore")
    report = sp.push(store, "org/acts", license="cc-by-4.0")
    commits = [files for _, files in hub.repositories["datasets/org/acts"].branches["main"]]
    assert len(commits) > 3 and report.kind == "dataset"
    assert [("data.zarr/zarr.json" in files) for files in commits] == [False] * (
        len(commits) - 1
    ) + [True]
    assert not any(path.startswith(("LOCK", "journal", "moments")) for path in commits[-1])
    out = tmp_path / "back.actstore"
    assert sp.pull("org/acts", out=out).what == "store"
    assert verify(out) == []
    assert ActStore.open(out).fingerprint == ActStore.open(store).fingerprint
    assert sp.push(store, "org/acts", license="cc-by-4.0").n_sent == 0


def test_a_stopped_push_of_a_store_sends_no_file_twice(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "_COMMIT_FILES", 4)
    monkeypatch.setattr(publishing, "_PART_FILES", 2)
    store = make_training_store(tmp_path / "acts.actstore")
    hub.fails = lambda asked: (
        500 if len([a for a in hub.asked if a.startswith("PUT")]) > 9 else None
    )
    with refused(HubError, "500"):
        sp.push(store, "org/acts", license="mit")
    hub.fails = lambda _: None
    with refused(HubError, "no run or store of saepipe"):
        sp.pull("org/acts", out=tmp_path / "early.actstore")
    before = set(hub.large)
    hub.asked.clear()
    sp.push(store, "org/acts", license="mit")
    assert not before & {one.rpartition("/")[2] for one in hub.asked if one.startswith("PUT")}
    sp.pull("org/acts", out=tmp_path / "back.actstore")


def test_a_store_that_grew_is_pushed_by_what_is_new(hub, tmp_path):
    rows = make_rows(1024, width=8)
    small = write_rows(tmp_path / "a.actstore", rows[:512])
    sp.push(small, "org/acts", license="mit")
    grown = write_rows(tmp_path / "b.actstore", rows)
    report = sp.push(grown, "org/acts", license="mit")
    assert 0 < report.n_sent < len(report.files)
    sp.pull("org/acts", out=tmp_path / "back.actstore")
    assert ActStore.open(tmp_path / "back.actstore").n_rows == 1024
    assert 1024 % CTX == 0


def test_damage_on_the_hub_is_found_on_arrival(hub, tmp_path):
    store = make_training_store(tmp_path / "acts.actstore")
    sp.push(store, "org/acts", license="mit")
    files = hub.files("datasets/org/acts")
    name = "data.zarr/mlp_out.0/c/0/0"
    data = bytearray(files[name])
    data[40] ^= 1
    hub.put("datasets/org/acts", {**files, name: bytes(data)})
    with refused(CheckpointError, "the store is damaged on the hub, too"):
        sp.pull("org/acts", out=tmp_path / "back.actstore")
    assert not (tmp_path / "back.actstore").exists()


def test_a_pulled_run_finds_its_pulled_store(hub, tmp_path):
    store = make_training_store(tmp_path / "here" / "acts.actstore")
    run = sp.train(
        store, site="mlp_out.0", arch="topk", k=2, expansion=2, batch_size=64, device="cpu",
        out=tmp_path / "here" / "run",
    )  # fmt: skip
    sp.push(run, "org/run", license="mit")
    sp.push(store, "org/acts", license="mit")
    sp.pull("org/run", out=tmp_path / "there" / "run")
    sp.pull("org/acts", out=tmp_path / "there" / "theirs.actstore")
    shutil.rmtree(tmp_path / "here")
    back = sp.SAERun.open(tmp_path / "there" / "run")
    assert back.provenance.find(back.path) == tmp_path / "there" / "theirs.actstore"


def test_training_reads_stores_from_disk_and_says_how_to_get_one_there(tmp_path, fails):
    said = fails("train", "hf://datasets/org/acts", "--out", tmp_path / "run")
    assert "saepipe pull datasets/org/acts --out" in said


def test_what_is_damaged_on_the_hub_is_told_without_places_of_this_machine(hub, pushed, tmp_path):
    hub.put(NAME, {**hub.files(NAME), "sae.safetensors": b"\0" * 99})
    with pytest.raises(CheckpointError) as caught:
        sp.pull("org/name@main", out=tmp_path / "back")
    told = str(caught.value)
    assert str(tmp_path) not in told and ".partial" not in told
    assert "another --out" not in told and "push it again" in told


def test_a_disk_without_room_is_told_before_anything_is_fetched(hub, pushed, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=99))
    hub.asked.clear()
    with refused(ConfigError, "back needs .* more than the 99B that its disk has free: make room"):
        sp.pull("org/name", out=tmp_path / "back")
    assert not any("/resolve/" in one for one in hub.asked)
    assert [*tmp_path.glob("back*")] == []
