"""The run of an SAE on disk: written, found again, refused where it is another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.architectures import TopKConfig
from pipeline.config.training import TrainConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.runs.folder import Provenance, enter
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE
from tests.helpers.training import DAMAGES

PROVENANCE = Provenance(
    path=Path("/data/a.actstore"),
    fingerprint="f" * 64,
    model="EleutherAI/pythia-70m",
    revision="step1000",
    model_fingerprint="m" * 64,
    text="builtin",
    site="mlp_out.1",
    d_in=6,
    ctx_len=128,
    n_rows=1280,
    dtype="bfloat16",
)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        store=Path("/data/a.actstore"), out=tmp_path / "runs" / "a", site="mlp_out.1"
    )


def enter_run(config, provenance, *, resume):
    return enter(SAERun(path=config.out, config=config, provenance=provenance), resume=resume)


def finished(config: TrainConfig) -> tuple[SAERun, dict[str, torch.Tensor]]:
    sae = SAE(config.arch, d_in=6, d_sae=24, seed=5)
    run = enter_run(config, PROVENANCE, resume=False).finish(sae)
    return run, sae.state_dict()


def test_a_run_reads_back_what_made_it(config):
    run, weights = finished(replace(config, arch=TopKConfig(k=3)))
    opened = SAERun.open(config.out)
    assert opened == run
    assert (opened.config.arch, opened.provenance, opened.d_sae) == (
        TopKConfig(k=3),
        PROVENANCE,
        24,
    )
    sae = opened.load_sae(torch.device("cpu"))
    for name, tensor in sae.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_run_json_says_what_a_stranger_needs(config):
    finished(config)
    document = json.loads((config.out / "run.json").read_text())
    assert (document["format"], document["kind"]) == (1, "sae")
    assert document["config"]["arch"] == {"kind": "relu", "l1": 1e-3, "target": None}
    assert document["store"]["model"] == "EleutherAI/pythia-70m"
    assert document["store"]["d_in"] == 6


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a run: it has no run\.json"):
        SAERun.open(tmp_path)


def test_an_unfinished_run_says_how_to_finish_it(config):
    enter_run(config, PROVENANCE, resume=False)
    with pytest.raises(CheckpointError, match=r"unfinished run: .*a\.actstore --out .*--resume"):
        SAERun.open(config.out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is a run of format 2, this saepipe reads format 1"),
        ({"kind": "finetune"}, "is a finetune run, not one of saepipe train"),
        ({"config": {"store": "s"}}, "damaged: run.json.config lacks the setting 'out'"),
        ({"stroe": 1}, "damaged: run.json has no setting 'stroe': did you mean 'store'?"),
    ],
)
def test_a_run_json_that_cannot_be_used_is_one_line(config, change, message):
    finished(config)
    path = config.out / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as caught:
        SAERun.open(config.out)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_run_json_that_is_not_one_is_damaged(config, text):
    finished(config)
    (config.out / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        SAERun.open(config.out)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused(config, damage):
    run, _ = finished(config)
    damage(config.out / "sae.safetensors")
    with pytest.raises(CheckpointError, match=r"sae\.safetensors is missing or damaged \(.+\)"):
        run.load_sae(torch.device("cpu"))


def begun(config) -> SAERun:
    """A run that made a step."""
    run = enter_run(config, PROVENANCE, resume=False)
    (config.out / "metrics.jsonl").write_text("{}\n")
    return run


def test_an_unfinished_run_is_only_entered_on_purpose(config):
    run = begun(config)
    with pytest.raises(ConfigError, match="add --resume"):
        enter_run(config, PROVENANCE, resume=False)
    assert enter_run(config, PROVENANCE, resume=True) == run


def test_a_run_that_never_made_a_step_gives_way(config):
    enter_run(config, PROVENANCE, resume=False)
    other = replace(config, lr=1e-3)
    assert enter_run(other, PROVENANCE, resume=False).config == other
    begun(other)
    with pytest.raises(ConfigError, match="lr"):
        enter_run(config, PROVENANCE, resume=False)


def test_another_configuration_is_named_setting_by_setting(config):
    begun(config)
    other = replace(config, lr=1e-3, arch=TopKConfig(k=8))
    with pytest.raises(ConfigError) as caught:
        enter_run(other, PROVENANCE, resume=True)
    text = str(caught.value)
    assert "lr: 0.0001 there, 0.001 now" in text
    assert "arch.kind: relu there, topk now" in text
    assert "arch.l1: 0.001 there, None now" in text and "arch.k: None there, 8 now" in text
    assert text.endswith("choose another --out") and "\n" not in text


def test_where_it_lies_and_who_computes_may_change(config):
    run = begun(config)
    moved = config.out.rename(config.out.with_name("b"))
    other = replace(config, out=moved, store=Path("/mnt/a.actstore"), device="cpu", threads=3)
    found = enter_run(other, replace(PROVENANCE, path=Path("/mnt/a.actstore")), resume=True)
    assert found.config == run.config and found.path == moved


def test_another_store_is_refused(config):
    begun(config)
    with pytest.raises(ConfigError, match=r"another store.*ffffffffffff there, eeeeeeeeeeee now"):
        enter_run(config, replace(PROVENANCE, fingerprint="e" * 64), resume=True)


def test_a_folder_with_something_else_is_left_alone(config):
    config.out.mkdir(parents=True)
    (config.out / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is not a run: choose another --out"):
        enter_run(config, PROVENANCE, resume=False)
    assert [p.name for p in config.out.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("leftover", [None, "run.json.partial"])
def test_an_empty_folder_or_the_trace_of_a_kill_is_no_obstacle(config, leftover):
    config.out.mkdir(parents=True)
    if leftover:
        (config.out / leftover).write_text("{")
    assert enter_run(config, PROVENANCE, resume=False).path == config.out


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_an_sae_is_loaded_from_its_run_for_rows_of_any_leading_dimensions(config, shape):
    _, weights = finished(replace(config, arch=TopKConfig(k=3)))
    sae = SAE.from_pretrained(str(config.out), device="cpu")
    assert all(torch.equal(p, weights[name]) for name, p in sae.state_dict().items())
    assert repr(sae) == "SAE(topk k=3, d_in=6, d_sae=24, site=mlp_out.1)"
    x = torch.randn(*shape, 6, generator=torch.Generator().manual_seed(0))
    z = sae.encode(x)
    assert (z.shape, sae.decode(z).shape, sae(x).shape) == ((*shape, 24), x.shape, x.shape)
    flat = x.reshape(-1, 6)
    torch.testing.assert_close(sae(x).reshape(-1, 6), sae(flat))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document | {"sha256": ""}, "is an unfinished run: train it to its end"),
        (lambda document: document | {"sha256": "0"}, r"sae.safetensors is missing or damaged \("),
        (lambda document: {"kind": "sae"}, "run.json is not of the run of an SAE: 'config'"),
        (lambda document: [], "run.json is not of the run of an SAE: list indices"),
    ],
)
def test_what_holds_no_whole_sae_is_one_line(config, tmp_path, change, said):
    finished(config)
    path = config.out / "run.json"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    with pytest.raises(CheckpointError, match=said):
        SAE.from_pretrained(config.out)
    with pytest.raises(CheckpointError, match="holds no SAE: it has neither the run.json of a"):
        SAE.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_sae_that_was_saved_and_damaged_is_refused(tmp_path, damage):
    SAE(TopKConfig(k=3), d_in=6, d_sae=24).save_pretrained(tmp_path)
    damage(tmp_path / "sae.safetensors")
    with pytest.raises(CheckpointError, match=r"sae\.safetensors is missing or damaged \(.+\)$"):
        SAE.from_pretrained(tmp_path)
