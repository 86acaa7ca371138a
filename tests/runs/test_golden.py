"""Runs that people have must stay readable: these were trained once, and are never again.

`read` is a TopK SAE (k = 3) of mlp_out.1 in the golden store, `map` a connector from an SAE of
resid.0 to it; they were written by saepipe 0.1.0, when SAEs were named coders.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from actstore.reader import ActStore
from pipeline.connect.run import ConnectorRun
from pipeline.errors import ConfigError
from pipeline.runs.curves import read_curves
from pipeline.runs.kinds import KINDS, says_kind
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE
from pipeline.training.batches import as_tensor
from pipeline.training.train import train
from tests.golden.make_store import OLD
from tests.helpers.stores import column

RUNS = OLD.with_name("runs")
CPU = torch.device("cpu")


@pytest.fixture
def read(tmp_path) -> Path:
    return Path(shutil.copytree(RUNS / "read", tmp_path / "read"))


def test_an_sae_encodes_and_reconstructs_as_it_did(read):
    assert says_kind(read) == "sae"
    run, store = SAERun.open(read), ActStore.open(OLD)
    assert run.provenance.fingerprint == store.fingerprint
    assert (run.config.arch.kind, run.config.arch.k) == ("topk", 3)
    x = as_tensor(column(store, run.provenance.site)).float()
    sae = run.load_sae(CPU)
    z = sae.encode(x)
    assert torch.equal((z > 0).sum(-1), torch.full((len(x),), 3))
    error = (x - sae.decode(z)).square().sum() / (x - x.mean(0)).square().sum()
    *_, line = read_curves(read / "metrics.jsonl")
    assert 1 - error.item() == pytest.approx(line["explained_variance"], abs=0.1)
    assert torch.equal(SAE.from_pretrained(read).encode(x), z)
    assert torch.equal(SAE.load(read / "sae.safetensors").encode(x), z)
    (read / "run.json").unlink()
    with pytest.raises(ConfigError, match="sae.safetensors does not say what its activation is"):
        SAE.load(read / "sae.safetensors")


def test_a_checkpoint_is_gone_on_with_to_the_same_bytes(read):
    weights = (read / "sae.safetensors").read_bytes()
    (read / "sae.safetensors").unlink()
    run = replace(SAERun.read(read), sha256="")
    then = run.config.w_dec_start, run.config.revive, run.config.revive_after
    assert then == ("random", 0.0, run.config.dead_window), "it says nothing of what there was not"
    run.write()
    report = train(replace(run.config, store=OLD, out=read))
    assert report.step == 20
    again = (read / "sae.safetensors").read_bytes()
    assert again != weights, "it says since what it is"
    assert {name: p.numpy().tobytes() for name, p in load(again).items()} == {
        name: p.numpy().tobytes() for name, p in load(weights).items()
    }


def test_a_connector_opens(tmp_path):
    path = RUNS / "map"
    assert says_kind(path) == "connector" and set(KINDS) >= {"sae", "connector"}
    run = ConnectorRun.open(path)
    assert (run.source.site, run.target.site) == ("resid.0", "mlp_out.1")
    assert run.target.sha256 == SAERun.open(RUNS / "read").sha256
    assert run.load_connector(CPU).W.shape == (run.source.d_sae, run.target.d_sae) == (8, 16)
    *_, line = read_curves(path / "metrics.jsonl")
    assert line["fvu"] == pytest.approx(0.919, abs=1e-3)
