"""The cache that delphi reads: every active latent of every token, and nothing else."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipeline.errors import ConfigError
from pipeline.evaluate.setup import load_sae
from pipeline.exchange.delphi import export_delphi
from pipeline.features import collect
from tests.helpers.refusals import refused
from tests.helpers.tiny import make_sae


def dense(folder, shape) -> np.ndarray:
    """All files together, as latents of each token."""
    z = np.zeros(shape, np.float16)
    for path in folder.glob("*.safetensors"):
        first, last = map(int, path.stem.split("_"))
        tensors = load_file(path)
        at = tensors["locations"].astype(np.int64)
        assert at[:, 2].max(initial=0) <= last - first
        where = (at[:, 0], at[:, 1], at[:, 2] + first)
        assert not z[where].any() and len(np.unique(at, axis=0)) == len(at)
        z[where] = tensors["activations"]
    return z


@pytest.fixture(scope="session")
def latents(world, run) -> np.ndarray:
    coder = load_sae(run, device=torch.device("cpu")).coder
    contexts = world.store.contexts(np.arange(world.store.n_contexts), sites=["mlp_out.1"])
    acts = np.stack([context.acts["mlp_out.1"] for context in contexts])
    return coder.encode(torch.from_numpy(acts)).detach().numpy()


@pytest.mark.parametrize("n_splits", [1, 5, 64])
def test_every_active_latent_is_there_once(world, run, tmp_path, latents, n_splits):
    told = export_delphi(run, out=tmp_path, n_splits=n_splits, device="cpu")
    assert told.folder == tmp_path / "layers.1.mlp" and told.n_files == n_splits
    ends = torch.linspace(0, 64, n_splits + 1).long().tolist()
    names = [f"{a}_{b - 1}.safetensors" for a, b in pairwise(ends)]
    assert sorted(p.name for p in told.folder.iterdir()) == sorted([*names, "config.json"])
    expected = np.where(latents > 1e-5, latents, 0).astype(np.float16)
    np.testing.assert_array_equal(dense(told.folder, latents.shape), expected)
    assert told.n_active == (expected > 0).sum()
    tokens = world.store.tokens(np.arange(world.store.n_contexts))
    for name in names:
        tensors = load_file(told.folder / name)
        np.testing.assert_array_equal(tensors["tokens"], tokens)
        assert tensors["locations"].dtype == np.uint16  # as few bytes as delphi gives them
        assert tensors["activations"].dtype == np.float16
        order = np.lexsort(tensors["locations"].T[::-1])
        assert (order == np.arange(len(order))).all()  # the order in which delphi finds them
    config = json.loads((told.folder / "config.json").read_bytes())
    assert config["model_name"] == str(world.model)
    assert (config["n_tokens"], config["cache_ctx_len"], config["n_splits"]) == (480, 12, n_splits)


def test_blocks_of_any_size_give_the_same_bytes(run, tmp_path, monkeypatch):
    one = export_delphi(run, out=tmp_path / "a")
    monkeypatch.setitem(collect.BLOCK, "cpu", 3 * 12 * 64)
    other = export_delphi(run, out=tmp_path / "b")
    for path in one.folder.iterdir():
        assert path.read_bytes() == (other.folder / path.name).read_bytes()
    assert export_delphi(run, out=tmp_path / "a").reused


def test_the_first_contexts_alone_are_read_where_fewer_tokens_are_wanted(run, tmp_path, latents):
    told = export_delphi(run, out=tmp_path, tokens=25)  # in whole contexts: 36
    assert told.n_tokens == 36
    expected = np.where(latents[:3] > 1e-5, latents[:3], 0).astype(np.float16)
    np.testing.assert_array_equal(dense(told.folder, (3, 12, 64)), expected)


def test_a_site_at_the_input_of_a_module_is_called_by_its_own_name(world, tmp_path):
    run = world.run("act", site="mlp_act.1")
    assert export_delphi(run, out=tmp_path).module == "mlp_act.1"


def test_what_float16_does_not_hold_is_refused_and_leaves_nothing(world, tmp_path):
    coder = make_sae()
    with torch.no_grad():
        coder.W_enc.mul_(1e5)
    run = world.run("large", coder=coder)
    with refused(ConfigError, "float16, at most 65504"):
        export_delphi(run, out=tmp_path)
    assert not [*tmp_path.rglob("*.safetensors")] and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("n_splits", [0, 65])
def test_there_are_at_most_as_many_files_as_latents(run, tmp_path, n_splits):
    with refused(ConfigError, "n_splits must be 1 to 64"):
        export_delphi(run, out=tmp_path, n_splits=n_splits)
