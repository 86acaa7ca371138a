"""An architecture of somebody else's is one file and one line, and is trained like any other."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch

from actstore.reader import ActStore
from pipeline.config.architectures import ARCHS, Architectures, ReluConfig, register
from pipeline.config.serialization import from_json, to_json
from pipeline.config.training import TrainConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE
from tests.helpers.refusals import refused
from tests.helpers.stores import column
from tests.helpers.toy_architecture import ToyConfig
from tests.helpers.training import result, settings_for, train_settings, train_until


@pytest.fixture(scope="module", autouse=True)
def registered():
    register(ToyConfig)  # the one line
    yield
    del ARCHS._here["toy"]


@pytest.mark.parametrize("sparse", ["on", "off"])
def test_it_is_trained_resumed_loaded_and_saved(store, tmp_path, sparse):
    arch, out = {"kind": "toy", "price": 0.2}, tmp_path / "stopped"
    settings = settings_for(store, steps=12, sparse=sparse, lr=0.01, arch=arch)
    (whole,) = train_settings(settings, tmp_path / "whole")
    assert whole.explained_variance > 0
    assert train_until(settings, out, step=6)
    train_settings(settings, out)
    assert result(out) == result(tmp_path / "whole")

    sae = SAE.from_pretrained(out)
    assert (sae.arch, sae.site) == (ToyConfig(price=0.2), "mlp_out.0")
    x = torch.from_numpy(column(ActStore.open(store), "mlp_out.0"))
    assert torch.equal(sae.encode(x), sae.pre(x).abs())
    sae.save_pretrained(tmp_path / "shared")
    again = SAE.from_pretrained(str(tmp_path / "shared"))
    assert repr(again) == repr(sae) == "SAE(toy price=0.2, d_in=8, d_sae=32, site=mlp_out.0)"
    assert torch.equal(again(x), sae(x))


def test_a_run_of_it_without_its_package_says_what_is_missing(store, tmp_path):
    out, shared = tmp_path / "run", tmp_path / "shared"
    train_settings(settings_for(store, steps=1, arch={"kind": "toy"}), out)
    SAE.from_pretrained(out).save_pretrained(shared)
    del ARCHS._here["toy"]
    try:
        for read, path in ((SAERun.open, out), (SAE.from_pretrained, out)):
            with refused(CheckpointError, f"^{path} has the architecture 'toy'.*install the pack"):
                read(path)
        with refused(CheckpointError, f"^{shared} has the architecture 'toy'"):
            SAE.from_pretrained(shared)
    finally:
        register(ToyConfig)


def test_it_is_one_of_those_that_can_be_asked_for():
    assert "toy" in ARCHS and ARCHS["toy"] is ToyConfig
    with pytest.raises(ConfigError, match="price must not be negative"):
        ToyConfig(price=-1)
    with pytest.raises(ConfigError, match="config.arch has no setting 'l1'"):
        from_json(TrainConfig, {"store": "s", "out": "o", "arch": {"kind": "toy", "l1": 1}})
    assert to_json(ToyConfig()) == {"kind": "toy", "price": 0.1}


def test_that_of_another_package_is_imported_when_it_is_asked_for():
    archs = Architectures(ReluConfig)
    entry = {"name": "toy", "group": "saepipe.architectures"}
    archs.__dict__["_elsewhere"] = {
        "toy": EntryPoint(**entry, value="tests.helpers.toy_architecture:ToyConfig"),
        "gone": EntryPoint(**entry, value="tests.helpers.nowhere:Config"),
    }
    assert list(archs) == ["relu", "toy", "gone"] and len(archs) == 3
    assert archs["toy"] is ToyConfig and archs.get("none") is None
    with pytest.raises(ConfigError, match="gone cannot be imported from tests.helpers.nowhere:Con"):
        archs["gone"]


def test_architectures_are_named_without_what_computes_them():
    code = "import sys\nfrom pipeline.config.architectures import ARCHS\nlist(ARCHS.values())"
    code += "\nprint('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
