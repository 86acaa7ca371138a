"""What is put on the hub: which files, what they show, and what a second push sends."""

import getpass
import json
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
import torch

from pipeline import saepipe as sp
from pipeline.errors import CheckpointError, ConfigError, HubError
from pipeline.evaluate.metrics import METRICS
from pipeline.evaluate.report import load_report
from pipeline.hub.repository import Address
from pipeline.share import contents
from pipeline.share.shown import shown
from tests.helpers.featured import make_world
from tests.helpers.hub_server import TOKEN, Repository
from tests.helpers.refusals import refused
from tests.helpers.training import make_training_store

NAME = "models/org/name"


def push(run: Path, repo: str = "org/name", **settings):
    return sp.push(run, repo, **{"license": "mit", **settings})


def test_a_run_on_the_hub_is_its_weights_its_numbers_and_a_card(hub, evaluated):
    seen = []
    report = push(evaluated, on_progress=seen.append)
    files = hub.files(NAME)
    assert files["sae.safetensors"] == (evaluated / "sae.safetensors").read_bytes()
    assert {"run.json", "cfg.json", "eval.json", "density.png", "README.md"} <= files.keys()
    assert report.url == f"{hub.url}/org/name/tree/main"
    assert report.commit == hub.repositories[NAME].at("main")[0]
    assert seen[-1].done == seen[-1].total == report.bytes_sent > 0
    assert sum("/commit/" in one for one in hub.asked) == 1
    card = files["README.md"].decode()
    head = card.split("---")[1]
    for line in ("library_name: saepipe", "license: mit", "- sparse-autoencoder"):
        assert line in head
    assert "base_model" not in head and "datasets" not in head  # they lie in files here
    told = load_report(evaluated)
    assert f"{told.explained_variance:.4g}" in card
    for metric in METRICS.values():
        assert metric.words.replace("|", "\\|") in card
        assert metric.definition.replace("|", "\\|") in card
    assert "![" in card and "(density.png)" in card
    assert 'SAE.from_pretrained("org/name")' in card and "saepipe pull org/name" in card


@pytest.mark.parametrize(
    ("model", "text", "lines"),
    [
        ("EleutherAI/pythia-70m", "some/texts:en@train", ["EleutherAI/pythia-70m", "- some/texts"]),
        ("gpt2", "builtin", ["base_model: gpt2"]),
        ("builtin", "builtin", []),
    ],
)
def test_the_hub_is_told_which_of_its_models_and_data_sets_it_is_of(
    hub, evaluated, tmp_path, model, text, lines
):
    run = shutil.copytree(evaluated, tmp_path / "run")
    told = json.loads((run / "run.json").read_text())
    told["store"] |= {"model": model, "text": text}
    (run / "run.json").write_text(json.dumps(told))
    push(run)
    head = hub.files(NAME)["README.md"].decode().split("---")[1]
    assert all(line in head for line in lines)
    assert ("base_model" in head, "datasets" in head) == (bool(lines), len(lines) == 2)


def test_no_path_host_or_user_of_this_machine_is_in_what_is_pushed(hub, evaluated, tmp_path):
    store = make_training_store(tmp_path / "my folder" / "acts.actstore")
    run = sp.train(
        store, site="mlp_out.0", arch="topk", k=2, expansion=2, batch_size=64, device="cpu",
        out=tmp_path / "my folder" / "run",
    )  # fmt: skip
    push(evaluated)
    push(run, "org/trained")
    push(store, "org/acts")
    hidden = {
        str(Path.home()), tempfile.gettempdir(), str(tmp_path), "my folder", "popen-gw",
        str(evaluated.parent), TOKEN, "pytest-of",
    }  # fmt: skip
    hidden |= {
        f"{name}{end}" for name in (socket.gethostname(), getpass.getuser()) for end in '@:"'
    }
    for name, repository in hub.repositories.items():
        for path, data in repository.at("main")[1].items():
            texts = (data, path.encode())
            found = [word for word in hidden if any(word.encode() in text for text in texts)]
            assert not found, f"{name}/{path}"


def test_what_is_shown_keeps_names_and_the_text_of_data_sets():
    told = {
        "a": "/home/me/a b/model", "b": ["../x/y.actstore", ".", "org/name", "~/t.txt@train"],
        "note": "the rest of /home/me/a b/model, not of org/name; see ./here/x.txt",
        "worst": [{"text": "/home/me/a b/model"}], "n": 1.5,
    }  # fmt: skip
    assert shown(told, content={"worst"}) == {
        "a": "model", "b": ["y.actstore", ".", "org/name", "t.txt@train"],
        "note": "the rest of model, not of org/name; see x.txt",
        "worst": [{"text": "/home/me/a b/model"}], "n": 1.5,
    }  # fmt: skip


def test_what_is_there_and_the_same_is_not_sent_again(hub, evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "run")
    push(run)
    hub.asked.clear()
    plans = []
    again = push(run, on_plan=plans.append)
    assert again.n_sent == 0 and not hub.sent()
    assert {file.state for file in plans[0].files} == {"same"}
    (run / "eval.json").unlink()
    (run / "density.png").write_bytes(b"\x89PNG\0another")
    hub.put(NAME, {**hub.files(NAME), "notes.txt": b"mine", "img/mine.png": b"\0"})
    third = push(run)
    states = {file.path: file.state for file in third.files}
    assert states["density.png"] == states["README.md"] == "changed"
    assert states["eval.json"] == "removed" and states["sae.safetensors"] == "same"
    files = hub.files(NAME)
    assert "eval.json" not in files and files["notes.txt"] == b"mine" and "img/mine.png" in files
    assert files["density.png"] == b"\x89PNG\0another"


def test_a_dry_run_says_all_and_sends_nothing(hub, evaluated, monkeypatch, succeeds):
    monkeypatch.delenv("HF_TOKEN")
    out, _ = succeeds("push", evaluated, "org/name", "--license", "mit", "--dry-run")
    assert "sae.safetensors" in out and "library_name: saepipe" in out and "new" in out
    assert not hub.repositories and not hub.sent()


@pytest.mark.parametrize("offline", [False, True])
def test_a_dry_run_needs_no_network(hub, evaluated, monkeypatch, succeeds, offline):
    if offline:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    out, _ = succeeds("push", evaluated, "org/name", "--license", "mit", "--dry-run")
    assert "sae.safetensors" in out and "library_name: saepipe" in out
    assert out.count("note: the hub could not be reached: what it has already is not known") == 1


def test_a_dry_run_tells_what_the_hub_refuses(hub, evaluated, failing):
    failing("/api/models/org/name", 403)
    with refused(HubError, "the hub answered 403"):
        push(evaluated, dry_run=True)


def test_it_goes_into_a_folder_and_onto_a_branch_that_need_not_be_there(hub, evaluated):
    hub.put(NAME, {"README.md": b"all of ours"})
    push(evaluated, "org/name/layer 1".replace(" ", "-"), revision="second")
    files = hub.files(NAME, "second")
    assert files["README.md"] == b"all of ours"
    assert files["layer-1/sae.safetensors"] == (evaluated / "sae.safetensors").read_bytes()
    assert b"org/name/layer-1@second" in files["layer-1/README.md"]
    assert hub.files(NAME).keys() == {"README.md"}
    sae = sp.SAE.from_pretrained("org/name/layer-1@second")
    assert torch.equal(sae.W_dec, sp.SAERun.open(evaluated).sae.W_dec)


@pytest.mark.parametrize("there", [True, False])
def test_private_is_what_is_new_and_never_said_of_what_is_public(hub, evaluated, there):
    if there:
        hub.put(NAME, {"a": b""})
        with refused(ConfigError, "org/name is there and public"):
            push(evaluated, private=True)
        assert hub.files(NAME).keys() == {"a"}
    else:
        assert push(evaluated, private=True).private
        assert hub.repositories[NAME].private
        assert push(evaluated).private


def test_copies_for_other_tools_go_along_or_it_is_said_why_not(hub, evaluated, monkeypatch):
    def saelens(run: Path, name: str, folder: Path) -> None:
        folder.mkdir()
        (folder / "cfg.json").write_text(json.dumps({"of": name, "d": run.name}))

    def lacking(run: Path, name: str, folder: Path) -> None:
        raise ConfigError("it has no such architecture")

    monkeypatch.setattr(contents, "COPIES", {"saelens": saelens, "other": lacking})
    report = push(evaluated)
    assert json.loads(hub.files(NAME)["saelens/cfg.json"])["of"] == "saelens"
    assert any("without other/: it has no such architecture" in note for note in report.notes)
    assert b"SAE.load_from_disk" in hub.files(NAME)["README.md"]
    monkeypatch.setattr(contents, "COPIES", {"saelens": lacking})
    push(evaluated)
    assert "saelens/cfg.json" not in hub.files(NAME)
    assert b"SAE.load_from_disk" not in hub.files(NAME)["README.md"]


def test_an_sae_alone_goes_to_the_hub_and_comes_back(hub, evaluated):
    sae = sp.SAE.from_pretrained(evaluated)
    url = sae.push_to_hub("org/alone", license="apache-2.0", private=True)
    assert url == f"{hub.url}/org/alone/tree/main" and hub.repositories["models/org/alone"].private
    assert "license: apache-2.0" in hub.files("models/org/alone")["README.md"].decode()
    back = sp.SAE.from_pretrained("org/alone")
    assert back.arch == sae.arch and back.site == sae.site
    for name, weights in sae.state_dict().items():
        assert torch.equal(weights, back.state_dict()[name])
    hub.asked.clear()
    sae.push_to_hub("org/alone", license="apache-2.0")
    assert not hub.sent()


def test_what_features_fire_on_goes_along_where_it_is_asked_for(hub, tmp_path):
    world = make_world(tmp_path / "world")
    run = world.run()
    sp.features(run, device="cpu")
    push(run)
    assert not any(path.startswith("features/") for path in hub.files(NAME))
    push(run, features=True)
    sp.pull("org/name", out=tmp_path / "back")
    back, was = (sp.FeatureSet.open(path) for path in (tmp_path / "back", run))
    assert len(back) == len(was) and back.frequency.tolist() == was.frequency.tolist()
    assert back.fires_on(back.feature(3)) == was.fires_on(was.feature(3))
    assert str(tmp_path).encode() not in hub.files(NAME)["features/features.json"]


@pytest.mark.parametrize(
    ("repo", "settings", "error", "words"),
    [
        ("name", {}, ConfigError, "names no repository"),
        ("org/name/../other", {}, ConfigError, "names no repository"),
        ("org/name", {"license": "MIT license\nx: y"}, ConfigError, "license must be the short"),
        ("org/name", {"features": True}, ConfigError, "has no features to push"),
        ("org/name", {"fold": True}, CheckpointError, "plain SAE, which has nothing to fold"),
    ],
)
def test_what_cannot_be_pushed_is_one_line_and_nothing_is_asked(
    hub, evaluated, repo, settings, error, words
):
    with refused(error, words):
        push(evaluated, repo, **settings)
    assert not hub.asked


def test_nobody_logged_in_is_told_before_anything_is_asked(hub, evaluated, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with refused(ConfigError, "nobody is logged in to the hub here: type hf auth login"):
        push(evaluated)
    assert not hub.asked


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ("repos/create", 401, "does not take the token of this machine"),
        ("repos/create", 403, "has no right to that"),
        ("preupload", 429, "too many requests: wait some minutes"),
        ("preupload", 500, "the hub answered 500 for model org/name: try again later"),
        ("objects/batch", 403, "has no right to that"),
        ("PUT /large", 500, "the hub answered 500"),
        ("/commit/", 412, "it was changed meanwhile"),
        ("/commit/", 503, "the hub answered 503"),
        ("validate-yaml", 500, "cannot be read"),
        ("/commit/", 999, "the hub could not be reached|cannot be read"),
        ("GET /api/models", 500, "the hub answered 500"),
        ("GET /api/models", 404, "the hub answered 404"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(
    hub, evaluated, failing, capsys, caplog, asked, status, words
):
    failing(asked, status)
    with pytest.raises(HubError, match=words) as stop:
        push(evaluated)
    assert "\n" not in str(stop.value)
    said = "".join(capsys.readouterr()) + caplog.text + str(stop.value)
    assert TOKEN not in said and "Bearer" not in said
    hub.fails = lambda _: None
    push(evaluated)  # and the same call goes on
    assert hub.files(NAME)["sae.safetensors"] == (evaluated / "sae.safetensors").read_bytes()


def test_a_hub_that_is_not_there_is_one_line(hub, evaluated, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refused(HubError, "the hub could not be reached for model org/name"):
        push(evaluated, on_plan=lambda plan: pytest.fail("it was planned"))


def test_who_may_not_see_a_gated_repository_is_told_so(hub, evaluated):
    hub.put(NAME, {"a": b""})
    hub.repositories[NAME].gated = True
    hub.writers = ()
    with refused(HubError, "asks for its licence to be accepted"):
        push(evaluated)


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("org/name", Address(repo="org/name")),
        ("hf://datasets/org/acts@v1", Address(repo="org/acts", revision="v1", kind="dataset")),
        ("org/n.a-me/k=2/x@refs/pr/1",
         Address(repo="org/n.a-me", folder="k=2/x/", revision="refs/pr/1")),
        ("models/org/name/", Address(repo="org/name", kind="model")),
    ],
)  # fmt: skip
def test_a_repository_is_typed_as_it_is_told(typed, address):
    assert Address.of(typed) == address
    assert Address.of(str(address)).repo == address.repo


def test_repositories_of_a_test_start_empty():
    assert Repository().at("main") is None


@pytest.mark.parametrize("name", ["eval.json", "imported.json", "folded.json"])
@pytest.mark.parametrize("data", [b"{", b"[1]", b"[" * 100_000])
def test_what_is_damaged_beside_the_weights_is_not_sent(hub, evaluated, tmp_path, name, data):
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    (run / name).write_bytes(data)
    with refused(CheckpointError, f"{name} is (damaged|not a report)"):
        sp.push(run, "org/name", license="mit")
    assert not any(asked.startswith("POST") for asked in hub.asked)
