"""A local server stands in for the hub, and notes what it is asked for."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from actstore.reader import ActStore
from pipeline.errors import ModelError
from pipeline.lm.hub import ModelFiles, builtin_model_path
from pipeline.lm.model import load_model
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.lm.weights import Weights
from tests.helpers.models import CPU, FP32
from tests.helpers.refusals import refused
from tests.helpers.slow import slow
from tests.helpers.standin import StandIn, serving
from tests.helpers.tiny import make_model, make_text

BIG = {"first": 40_000, "middle": 40_000, "small": 3, "last": 40_000}
"""Values of the tensors of a file whose ends do not show what is between them."""


def local(folder: Path, **retrained: torch.Tensor) -> ModelFiles:
    """A local folder that holds these tensors; those that are not given are zeros."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    tensors = {name: torch.zeros(n) for name, n in BIG.items()}
    save_file(tensors | retrained, folder / "model.safetensors")
    return ModelFiles(str(folder))


@pytest.mark.parametrize("at", ["start", "middle", "end", "all"])
@pytest.mark.parametrize("name", BIG)
def test_a_tensor_that_was_retrained_makes_another_fingerprint(tmp_path, name, at):
    n = BIG[name]
    tensor = torch.zeros(n)
    tensor[{"start": 0, "middle": n // 2, "end": n - 1, "all": slice(None)}[at]] = 1
    before, after = local(tmp_path / "a"), local(tmp_path / "b", **{name: tensor})
    assert before.fingerprint() != after.fingerprint()
    assert before.fingerprint().startswith("sha256-2:")


def test_a_copy_of_a_model_has_its_fingerprint_and_one_of_before_is_compared_as_it_was_made(
    tmp_path,
):
    files = local(tmp_path / "a")
    copy = ModelFiles(shutil.copytree(tmp_path / "a", tmp_path / "b").as_posix())
    os.utime(tmp_path / "b" / "model.safetensors", (1, 1))
    data = (tmp_path / "a" / "model.safetensors").read_bytes()
    told = f"{{}}model.safetensors:{len(data)}".encode() + data[: 1 << 16] + data[-(1 << 16) :]
    stored = f"sha256:{hashlib.sha256(told).hexdigest()}"
    assert stored == files.fingerprint_like(stored) == copy.fingerprint_like(stored)
    now = files.fingerprint()
    assert now == copy.fingerprint() == files.fingerprint_like(now) == files.fingerprint_like("")


def headed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "data",
    [
        b"", b"version https://git-lfs", bytes(20), headed(b"[]"), headed(b'{"a": {"data_of'),
        headed(b'{"a": {"data_offsets": [-9, 9]}}'), headed(b'{"a": {"data_offsets": [0, 9]}}'),
        headed(b'{"a": {"data_offsets": [0, Infinity]}}'),
    ],
    ids=["empty", "pointer", "zeros", "list", "cut", "before", "beyond", "infinity"],
)  # fmt: skip
def test_a_file_without_tensors_is_one_by_its_content(tmp_path, data):
    """Whoever loads it is told; its layers may be above all that runs."""
    files = local(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    path.write_bytes(data)
    before = files.fingerprint()
    path.write_bytes(data[:-1] + b"?")
    assert files.fingerprint() != before


NO_NETWORK = {"endpoint": "http://127.0.0.1:9"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Serves what is in `folder` as org/tiny, revisions main and step1; notes what is `fetched`."""
    whole = make_model(tmp_path_factory.mktemp("lm") / "whole")
    model = transformers.GPTNeoXForCausalLM.from_pretrained(whole)
    folder, fetched = whole.with_name("sharded"), list[str]()
    model.save_pretrained(folder, max_shard_size="16KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((whole / name).read_bytes())

    class Model(StandIn):
        protocol_version = "HTTP/1.1"

        def do_GET(self):  # noqa: N802 - as it is called
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:3] != ["org", "tiny", "resolve"]:
                return self.answer(404, X_Error_Code="RepoNotFound")
            if parts[3] not in ("main", "step1"):
                return self.answer(404, X_Error_Code="RevisionNotFound")
            file = folder / parts[4]
            if not file.is_file():
                return self.answer(404, X_Error_Code="EntryNotFound")
            data = file.read_bytes()
            if self.command == "GET":
                fetched.append(file.name)
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            return self.answer(200, data, ETag=etag, X_Repo_Commit=COMMIT)

    with serving(Model) as url:
        yield SimpleNamespace(folder=folder, fetched=fetched, url=url)


def saepipe(*arguments: str, home: Path, endpoint: str, **env: str):
    """Run the command line as a process of its own: the hub's address is read at import."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    variables |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_ETAG_TIMEOUT": "2", **env}
    command = [sys.executable, "-c", "from cli import main; main()", *arguments]
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=120, check=False
    )


def harvest(tmp_path: Path, model: str, *extra: str) -> list[str]:
    text = make_text(tmp_path / "text.txt", n_contexts=20)
    return [
        "harvest", "--model", model, "--text", text, "--site", "mlp_out.0", "--tokens", "120",
        "--ctx-len", "12", "--device", "cpu", "--out", str(tmp_path / "acts.actstore"), *extra,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def harvested(hub, tmp_path_factory) -> tuple[Path, list[str], list[str]]:
    """Where a harvest from the hub was made and its model kept, its command, what it fetched."""
    folder = tmp_path_factory.mktemp("harvested")
    command = harvest(folder, "org/tiny", "--revision", "step1")
    hub.fetched.clear()
    done = saepipe(*command, home=folder / "home", endpoint=hub.url)
    assert done.returncode == 0, done.stderr
    return folder, command, [*hub.fetched]


def test_only_the_files_a_site_needs_are_downloaded(hub, harvested):
    folder, _, fetched = harvested
    index = json.loads((hub.folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {
        file
        for tensor, file in index.items()
        if tensor.removeprefix("gpt_neox.").startswith(
            ("embed_in", "layers.0.mlp", "layers.0.post_attention_layernorm")
        )
    }
    weights = [name for name in fetched if name.endswith(".safetensors")]
    assert set(weights) == needed
    assert len(weights) == len(needed) < len(set(index.values()))
    source = ActStore.open(folder / "acts.actstore").spec.source
    assert source["model"] == "org/tiny"
    assert source["revision"] == "step1"
    assert source["model_fingerprint"] == f"commit:{COMMIT}"


@pytest.mark.parametrize(
    "env",
    [{}, {"HF_HUB_OFFLINE": "1"}, slow(NO_NETWORK)],
    ids=["online", "offline mode", "no network"],
)
def test_the_same_command_again_downloads_nothing(hub, harvested, env):
    folder, command, _ = harvested
    hub.fetched.clear()
    again = saepipe(*command, home=folder / "home", **{"endpoint": hub.url, **env})
    assert "complete, reused" in again.stdout, again.stderr
    assert not hub.fetched


UNREACHED = "the hub could not be reached for model org/tiny"


@pytest.mark.parametrize(
    ("model", "env", "message"),
    [
        slow("org/absent", {}, "the hub has no model org/absent", id="no such model"),
        pytest.param("org/tiny", {}, "has no model org/tiny (revision step9)", id="no revision"),
        pytest.param("org/tiny", NO_NETWORK, UNREACHED, id="no network"),
        slow("org/tiny", {"HF_HUB_OFFLINE": "1"}, UNREACHED, id="offline mode"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub, tmp_path, model, env, message):
    command = harvest(tmp_path, model, "--revision", "step9")
    done = saepipe(*command, home=tmp_path / "home", **{"endpoint": hub.url, **env})
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_damaged_or_pickled_weights_are_refused(tmp_path):
    model = make_model(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(b"\x10" * 40)
    with refused(ModelError, r"model\.safetensors is damaged"):
        Weights.locate(ModelFiles(str(model)))
    weights.rename(model / "pytorch_model.bin")
    with refused(ModelError, r"has no model\.safetensors, and pickled"):
        Weights.locate(ModelFiles(str(model)))


def test_weights_that_may_not_be_read_are_not_told_to_be_absent(tiny_model, monkeypatch):
    """As they are another's, who keeps them private; root may read all, so it is made up."""
    opened = Path.open

    def denied(path: Path, *mode, **options):
        if path.name == "model.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *mode, **options)

    monkeypatch.setattr(Path, "open", denied)
    with refused(ModelError, r"model\.safetensors may not be read \(Permission denied\): .* chmod"):
        Weights.locate(ModelFiles(str(tiny_model)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_private_weights_are_told_to_be_private(tmp_path):
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").chmod(0)
    with refused(ModelError, "Permission denied"):
        Weights.locate(ModelFiles(str(model)))


def test_the_checkpoints_of_older_neox_and_of_base_models_load(tmp_path):
    """Pythia's checkpoints name the head `embed_out`; gpt2's have no prefix."""
    model = make_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    assert "embed_out.weight" in tensors
    expected = load_model(str(model), device=CPU, dtype=FP32)
    bare = {name.removeprefix("gpt_neox."): t for name, t in tensors.items()}
    bare["lm_head.weight"] = bare.pop("embed_out.weight")
    save_file(bare, model / "model.safetensors", metadata={"format": "pt"})
    found = load_model(str(model), device=CPU, dtype=FP32)
    tokens = torch.arange(8)[None]
    assert torch.equal(found.hidden(tokens), expected.hidden(tokens))
    assert torch.equal(found.logits(torch.ones(1, 16)), expected.logits(torch.ones(1, 16)))


def test_the_embedded_model_is_found_beside_the_package_then_in_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.lm.hub.__file__", str(tmp_path / "pipeline" / "lm" / "hub.py"))
    with refused(ModelError, "install saepipe again"):
        builtin_model_path()
    checkout = tmp_path / "data" / "tiny-pythia"
    beside = tmp_path / "pipeline" / "embedded" / "tiny-pythia"
    for folder in (checkout, beside):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert builtin_model_path() == folder


SETTINGS = ("config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", [*SETTINGS, "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "content", ["", "[1]", "[" * 100_000], ids=["empty", "a list", "too deep a list"]
)
def test_files_that_hold_no_settings_are_one_line(tiny_model, tmp_path, name, content):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / name).write_text(content)
    with refused(ModelError, rf"{name} (is not valid JSON|must hold settings by name)"):
        load_tokenizer(str(model)) if name in SETTINGS else Weights.locate(ModelFiles(str(model)))


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_no_file_is_not_taken_for_absent(tiny_model, tmp_path, name):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / name).unlink()
    (model / name).symlink_to("nowhere")
    with refused(ModelError, rf"{name} is no file, or a link to none"):
        load_tokenizer(str(model))


def test_a_tokenizer_of_another_version_is_one_line(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    told = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(told | {"version": 999}))
    with refused(ModelError, "tokenizer.json is not a tokenizer that tokenizers can read: "):
        load_tokenizer(str(model))


def test_an_index_of_nothing_is_one_line(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "model.safetensors.index.json").write_text("{}")
    with refused(ModelError, "index.json does not say which file holds what"):
        Weights.locate(ModelFiles(str(model)))
