"""A local server stands in for the hub: what is fetched, what is kept, and what goes wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from tests.helpers.foreign import F, saelens, sparsify
from tests.helpers.standin import StandIn, serving

COMMIT = "c0ffee" + "0" * 34


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """org/saes, with an SAE of sparsify, one of SAELens, and files that nobody needs."""
    folder = tmp_path_factory.mktemp("hub")
    sparsify(folder / "files" / "layers.1.mlp")
    saelens(folder / "files" / "a" / "b")
    for name in ("README.md", "a/b/optimizer.pt", "layers.1.mlp/big.bin"):
        (folder / "files" / name).write_bytes(b"x" * 100)
    files = {
        path.relative_to(folder / "files").as_posix(): path.read_bytes()
        for path in (folder / "files").rglob("*")
        if path.is_file()
    }
    fetched = list[str]()

    class Repository(StandIn):
        def do_GET(self):  # noqa: N802 - as it is called
            path = unquote(self.path.partition("?")[0])
            if not path.removeprefix("/api/models").startswith("/org/saes"):
                self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            elif path.startswith("/api/"):
                siblings = [{"rfilename": name} for name in files]
                told = {"id": "org/saes", "sha": COMMIT, "siblings": siblings}
                self.answer(200, json.dumps(told).encode(), Content_Type="application/json")
            else:
                name = path.partition("/resolve/")[2].partition("/")[2]
                if name not in files:
                    self.answer(404, X_Error_Code="EntryNotFound")
                    return
                if self.command == "GET":
                    fetched.append(name)
                tag = f'"{len(files[name])}-{name}"'
                self.answer(200, files[name], ETag=tag, X_Repo_Commit=COMMIT)

    with serving(Repository) as url:
        yield SimpleNamespace(url=url, fetched=fetched, home=folder / "home")


def run(hub, code: str, *, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(hub.home), **env}
    variables |= {"NO_PROXY": "127.0.0.1", "HF_HUB_ETAG_TIMEOUT": "2"}
    return subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=cwd, text=True, env=variables,
        stdout=-1, stderr=-1,
    )  # fmt: skip


def saepipe(hub, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys, cli; sys.argv = ['saepipe', *{args!r}]; cli.main()"
    return run(hub, code, cwd=cwd, **env)


def test_only_what_is_needed_is_fetched_and_is_there_without_the_hub(hub, tmp_path):
    source = "org/saes/layers.1.mlp@main"
    done = saepipe(hub, "import", source, "--out", "one", cwd=tmp_path)
    assert f"one (topk at mlp_out.1, 12 -> {F})" in done.stdout, done.stderr
    assert {*hub.fetched} == {"layers.1.mlp/cfg.json", "layers.1.mlp/sae.safetensors"}
    assert json.loads((tmp_path / "one" / "imported.json").read_text())["source"] == source
    hub.fetched.clear()
    code = f"import saepipe as sp; print(sp.SAE.from_pretrained({source!r}))"
    offline = run(hub, code, cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert f"d_sae={F}, site=mlp_out.1" in offline.stdout, offline.stderr
    away = run(hub, code, cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert f"d_sae={F}, site=mlp_out.1" in away.stdout, away.stderr
    again = saepipe(hub, "export", "org/saes/a/b", "--to", "saelens", "--out", "x", cwd=tmp_path)
    assert "import    org/saes/a/b of SAELens: runs/saes-a-b" in again.stdout.replace("org-", "")
    assert {*hub.fetched} == {"a/b/cfg.json", "a/b/sae_weights.safetensors"}
    assert (tmp_path / "x" / "sae_weights.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "why"),
    [("org/saes/absent", "has no folder 'absent' with files in it: its folders are a/b, layers."),
     ("org/none", "the hub has no repository org/none"), ("org/saes", "is no SAE that is known")],
)  # fmt: skip
def test_what_the_hub_does_not_have_is_one_line(hub, tmp_path, source, why):
    done = saepipe(hub, "import", source, "--out", "x", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert why in done.stderr
