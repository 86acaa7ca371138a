"""What a training cannot do is one line on stderr, whatever it was asked for."""

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from pipeline.runs.sae_run import SAERun
from pipeline.training.optimizer import Controller
from tests.helpers.training import make_rows, unfinish, write_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def train(saepipe, store, tmp_path):
    """`saepipe train` for a few steps of 64 rows into `out`, with more options."""

    def run(*options: object, site: str | None = "mlp_out.0", where: Path = store):
        sites = [] if site is None else ["--site", site]
        return saepipe(
            "train", where, "--out", tmp_path / "out", "--batch-size", 64, "--tokens", 256,
            "--device", "cpu", *sites, *options,
        )  # fmt: skip

    return run


def one_line(answer: tuple[int, str, str]) -> str:
    code, _, err = answer
    assert code in (1, 2)
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    return err.strip()


BAD = {
    "--l1 0.1": "--l1 means nothing to --arch topk: it is of relu, relu-april, tied, gated",
    "--k 2 --l0 3": "of topk, k 2 and l0 3 say the same thing: give one",
    "--arch relu --l0 3 --target 0.1": "l0 3 and target 0.1 say the same thing: give one of them",
    "--arch gated --l0 33": "l0 = 33 is above the number of latents, 32 (the site's width is 8): "
    "lower --l0 or raise --expansion",
    "--recipe s9": "there is no recipe 's9': there are anthropic2024, bricken2023",
    "--arch topk --k 33": "k = 33 is above the number of latents, 32 (the site's width is 8): "
    "lower --k or raise --expansion",
    "--arch topk,relu --k 2,40": "k = 40 is above the number of latents, 32",
    "--arch relu --target 0": "target must be above 0 and below 1, got 0.0",
    "--arch relu --target 0.1 --l1 0": "l1 is 0, and to arrive at so many latents multiplies it: "
    "type --set arch.l1=X with X above 0, or leave it out",
    "--arch jumprelu --l0 2 --set arch.coefficient=0": "coefficient is 0, and to arrive at so many "
    "latents multiplies it: type --set arch.coefficient=X",
    "--l1 ,": "--l1 must be a number, or several with commas between them, got ','",
    "--arch relu --l1 1,1": "the sweep has l1=1.0 twice: name each value once",
    "--site mlp_out.7": "choose --site from mlp_out.0, resid_post.0",
    "--site mlp_out.0": "the sweep has mlp_out.0 twice",
    "--seed 9223372036854775808": "config.seed must be below 2**63, got 9223372036854775808",
    "--seed -1": "seed must be from 0 to 2**63 - 1, got -1",
    "--set expansion=1000000000000": "the machine has too little memory",
    "--batch-size 9223372036854775807": "the machine has too little memory",
    "--set expansion=9223372036854775807": "the machine has too little memory",
    "--log tensorbord": "--log knows tensorboard, wandb, trackio, got 'tensorbord'",
}


@pytest.mark.parametrize("options", BAD)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(train, tmp_path, options):
    assert BAD[options] in one_line(train(*options.split()))
    if "multiplies" not in BAD[options]:
        assert not (tmp_path / "out").exists()


def test_an_interrupted_training_says_where_it_goes_on(train, tmp_path):
    every = ("--set", "checkpoint_every=2")
    _, said, _ = train(*every)
    assert "goes on" not in said
    unfinish(tmp_path / "out", up_to=2)
    for refused in (("--no-resume",), ("--lr", 0.5)):
        assert "goes on" not in train(*every, *refused)[1]
    code, said, _ = train(*every)
    assert (code, said.splitlines()[0]) == (0, f"train     {tmp_path}/out goes on from step 2")
    assert "goes on" not in train(*every)[1]


def test_of_several_sites_one_must_be_chosen(train):
    told = "has several sites: choose --site from mlp_out.0, resid_post.0"
    assert told in one_line(train(site=None))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("exclude_positions = [[], [16]]", "exclude_positions 16 is no position: they are 0 to 15"),
        ('hold = "soon"', "'soon' is not a length of training: type 10k steps, 5M or 20%"),
        ("ema = 1.0", "ema must be above 0 and below 1, got 1.0"),
        ('precision = "fp16"', "precision fp16 overflows in training"),
    ],
)  # fmt: skip
def test_a_setting_of_the_file_that_cannot_be_is_one_line(saepipe, store, tmp_path, setting, said):
    (tmp_path / "c.toml").write_text(f"tokens = 128\ndevice = 'cpu'\nsite = 'mlp_out.0'\n{setting}")
    answer = saepipe("train", store, "--out", tmp_path / "out", "--config", tmp_path / "c.toml")
    assert said in one_line(answer)


def test_a_sweep_is_not_gone_on_with_as_another(train):
    assert train("--arch", "relu", "--l1", "0.5,1")[0] == 0
    said = one_line(train("--arch", "relu", "--l1", "0.5,2"))
    assert "(only there: l1=1.0; only now: l1=2.0): choose another --out" in said
    assert "is not a run: choose another --out" in one_line(train("--arch", "relu", "--l1", "0.5"))
    said = one_line(train("--arch", "relu", "--l1", "0.5,1", "--lr", 0.1))
    assert "lr: 0.01 there, 0.1 now" in said


def test_a_store_that_changed_since_is_noticed(train, tmp_path):
    path = write_rows(tmp_path / "s.actstore", make_rows(512, width=8))
    assert train(where=path)[0] == 0
    path.rename(tmp_path / "old.actstore")
    write_rows(path, make_rows(512, width=8, seed=9))
    said = one_line(train(where=path))
    assert "was trained on another store, or" in said and f"{path} changed since" in said


def test_a_run_that_diverges_says_where_and_stays_as_it_is(train, tmp_path):
    said = one_line(train("--lr", 1e25))
    assert f"training diverged: the loss is nan at step 2 of {tmp_path / 'out'} with lr" in said
    assert one_line(train("--lr", 1e25)) == said
    assert json.loads((tmp_path / "out" / "run.json").read_text())["failure"] in said


def test_a_member_that_diverges_is_told_and_the_others_are_shown(train, tmp_path):
    code, out, err = train("--lr", "1e25,0.001", "--json", tmp_path / "r.json")
    assert (code, err) == (0, "")
    assert [line[:28] for line in out.splitlines()][:2] == [
        "train     training diverged:", "train     256 rows: " + str(tmp_path)[:8],
    ]  # fmt: skip
    (report,) = json.loads((tmp_path / "r.json").read_text())
    assert report["run"].endswith("lr=0.001")


def test_a_checkpoint_of_a_version_that_trained_in_another_way_is_refused(
    train, tmp_path, monkeypatch
):
    out, steps = tmp_path / "out", ("--arch", "jumprelu", "--l0", 2, "--set", "checkpoint_every=2")
    with monkeypatch.context() as before:
        before.setattr(Controller, "state", lambda _: {})
        before.setattr(SAERun, "finish", Mock(side_effect=KeyboardInterrupt))
        train(*steps)
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    said = one_line(train(*steps))
    assert "optimizer.safetensors has no controller.l1: another version of saepipe" in said
    assert said.endswith("train into another --out")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept


@pytest.mark.parametrize("arch", ["relu", "gated", "jumprelu", "topk"])
def test_rows_that_are_all_zero_are_learned_from(train, tmp_path, arch):
    """They have no unit of their own."""
    zero = write_rows(tmp_path / "zero.actstore", np.zeros((512, 8), np.float32))
    code, out, err = train("--arch", arch, "--l0", 2, "--set", "normalize=none", where=zero)
    assert (code, err) == (0, "")
    assert "EV -" in out


def test_without_kernels_the_sparse_path_cannot_be_asked_for(train, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: False)
    (tmp_path / "c.toml").write_text('sparse = "on"')
    said = one_line(train("--config", tmp_path / "c.toml"))
    assert "no sparse kernels for cpu here" in said and said.endswith("sparse=auto")


IMPORTS = """
import os, sys
from pathlib import Path

os.fsync = lambda fd: None

from tests.helpers.training import settings_for, train_settings

for sparse, resample in (("on", "worst"), ("off", "random")):
    settings = settings_for(
        sys.argv[1], steps=4, log_every=1, checkpoint_every=2, exclude_positions=[0], ema=0.9,
        normalize="rms", b_dec_start="median", seed=[0, 1], sparse=sparse, resample=resample,
        resample_every="2 steps", resample_window="1 steps",
        arch={"kind": ["relu", "batchtopk", "jumprelu"], "target": 0.1, "k": 2},
    )
    train_settings(settings, Path(sys.argv[2], sparse))
heavy = {"transformers", "datasets", "tokenizers", "torch._dynamo", "matplotlib", "triton"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_a_whole_training_loads_no_language_model_library_compiler_or_figures(store, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, store, tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
