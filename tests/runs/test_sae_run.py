"""The run of an SAE on disk: written, found again, refused where it is another."""

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.architectures import ARCHS, ReluConfig, TopKConfig
from pipeline.config.training import TrainConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluate.setup import l0_of
from pipeline.runs.folder import enter, save_tensors
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE
from tests.helpers.refusals import refused
from tests.helpers.tiny import make_provenance
from tests.helpers.training import DAMAGES

PROVENANCE = make_provenance(d_in=6)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        store="/data/a.actstore", out=tmp_path / "runs" / "a", site="mlp_out.1",
        arch=ReluConfig(l1=1e-3), lr=1e-4,
    )  # fmt: skip


def enter_run(config, provenance=PROVENANCE, *, resume=True):
    run = SAERun(path=config.out, config=config, provenance=provenance)
    with ExitStack() as locks:
        return enter(run, resume=resume, locks=locks)


def finished(
    config: TrainConfig, run: SAERun | None = None
) -> tuple[SAERun, dict[str, torch.Tensor]]:
    sae = SAE(config.arch, d_in=6, d_sae=24, seed=5)
    run = (run or enter_run(config)).finish(sae)
    return run, sae.state_dict()


def test_a_run_reads_back_what_made_it(config):
    run, weights = finished(replace(config, arch=TopKConfig(k=3)))
    opened = SAERun.open(config.out)
    assert opened == run
    assert (opened.config.arch, opened.provenance) == (TopKConfig(k=3), PROVENANCE)
    sae = opened.load_sae(torch.device("cpu"))
    assert all(torch.equal(p, weights[name]) for name, p in sae.state_dict().items())
    document = json.loads((config.out / "run.json").read_text())
    assert (document["format"], document["kind"]) == (1, "sae")
    assert document["config"]["arch"]["k"] == 3
    assert document["store"]["model"] == "builtin"


@pytest.mark.parametrize("kind", ["gated", "jumprelu"])
def test_a_run_of_before_auxk_helped_its_kind_had_none(config, kind):
    run, _ = finished(replace(config, arch=ARCHS[kind](l0=3)))
    assert SAERun.open(config.out).config.arch.k_aux is None
    document = json.loads((config.out / "run.json").read_text())
    del document["config"]["arch"]["k_aux"]
    (config.out / "run.json").write_text(json.dumps(document))
    assert SAERun.open(config.out).config.arch == replace(run.config.arch, k_aux=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is a run of format 2, this saepipe reads format 1"),
        ({"kind": "finetune"}, "is a finetune run, not one of saepipe train"),
        ({"config": {"store": "s"}}, "damaged: run.json.config lacks the setting 'out'"),
        ({"stroe": 1}, "damaged: run.json has no setting 'stroe': did you mean 'store'\\?"),
        ({"sha256": ""}, r"unfinished run: finish it with .*a\.actstore --out .*options it began"),
        ("", "run.json is damaged"),
        ("{", "run.json is damaged"),
        ("[]", "run.json is damaged"),
        ("3", "run.json is damaged"),
        (None, "is not a run: it has no run.json"),
    ],
)
def test_a_run_json_that_cannot_be_used_is_one_line(config, change, message):
    finished(config)
    path = config.out / "run.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.unlink() if change is None else path.write_text(change)
    with refused(CheckpointError, message):
        SAERun.open(config.out)


def test_the_file_of_weights_alone_is_an_sae(config, tmp_path):
    _, weights = finished(replace(config, arch=TopKConfig(k=3)))
    alone = tmp_path / "carried away.safetensors"
    shutil.copy(config.out / "sae.safetensors", alone)
    SAE.load(alone).save_pretrained(tmp_path / "again")
    (tmp_path / "again/cfg.json").unlink()
    for path in (alone, tmp_path / "again", config.out):
        sae = SAE.load(path)
        assert (sae.arch, sae.site) == (TopKConfig(k=3), "mlp_out.1")
        assert all(torch.equal(p, weights[name]) for name, p in sae.state_dict().items())
    data = bytearray(alone.read_bytes())
    data[-1] ^= 1
    for damaged in (data, data[:100], b"", b"PK"):
        alone.write_bytes(damaged)
        told = r"(is missing or damaged \(.+\)|cannot be read as weights: .+)$"
        with refused(CheckpointError, rf"away\.safetensors {told}"):
            SAE.load(alone)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused(config, tmp_path, damage):
    run, _ = finished(config)
    run.blank_sae().save_pretrained(tmp_path)
    for folder in (config.out, tmp_path):
        damage(folder / "sae.safetensors")
        with refused(CheckpointError, r"sae\.safetensors is missing or damaged \(.+\)$"):
            SAE.from_pretrained(folder)
    with refused(CheckpointError, r"sae\.safetensors is missing or damaged \(.+\)"):
        run.load_sae(torch.device("cpu"))


def begun(config) -> SAERun:
    """A run that made a step."""
    run = enter_run(config)
    (config.out / "metrics.jsonl").write_text("{}\n")
    return run


def test_an_unfinished_run_is_gone_on_with_unless_it_shall_not_be(config):
    run = begun(config)
    with refused(ConfigError, "unfinished run .* not to be gone on with: choose another --out"):
        enter_run(config, resume=False)
    assert enter_run(config) == run


def test_of_two_trainings_into_one_folder_the_second_is_told_who_is_there(config):
    run = SAERun(path=config.out, config=config, provenance=PROVENANCE)
    with ExitStack() as locks:
        enter(run, locks=locks)
        with refused(ConfigError, f"trained into by process {os.getpid()} on .*wait for it, or"):
            enter_run(config)
        _, weights = finished(config, run)
        assert enter_run(config).finished, "what is finished can be had meanwhile"
    assert enter_run(config).trained().keys() == weights.keys()
    assert not (config.out / ".lock").exists()


def test_a_run_that_never_made_a_step_gives_way(config):
    enter_run(config)
    other = replace(config, lr=1e-3)
    assert enter_run(other).config == other
    begun(other)
    with pytest.raises(ConfigError, match="lr"):
        enter_run(config)


def test_another_configuration_or_store_is_named(config):
    begun(config)
    other = replace(config, lr=1e-3, arch=TopKConfig(k=8))
    for named in (
        "lr: 0.0001 there, 0.001 now",
        "arch.kind: relu there, topk now",
        "arch.l1: 0.001 there, None now",
        "arch.k: None there, 8 now",
    ):
        with refused(ConfigError, f"{named}.*choose another --out$"):
            enter_run(other)
    with refused(ConfigError, r"another store.*ffffffffffff there, eeeeeeeeeeee now"):
        enter_run(config, replace(PROVENANCE, fingerprint="e" * 64))


def test_where_it_lies_and_who_computes_may_change(config):
    run = begun(config)
    moved = config.out.rename(config.out.with_name("b"))
    other = replace(config, out=moved, store=Path("/mnt/a.actstore"), device="cpu", threads=3)
    found = enter_run(other, replace(PROVENANCE, path=Path("/mnt/a.actstore")))
    assert found.config == replace(run.config, out=moved) and found.path == moved


@pytest.mark.parametrize(
    ("files", "which", "seems"),
    [
        (["a.pt"], "a.pt", "a file of PyTorch"),
        (["ae.pt"], "ae.pt", "an SAE of dictionary_learning: type saepipe import "),
        (["x.NPZ"], "x.NPZ", "a file of numpy"),
        (["notes"], "notes", "a file"),
        (["run.json", "sae.safetensors"], "sae.safetensors", "a file of the run "),
        (["ae.pt", "config.json"], ".", "an SAE of dictionary_learning"),
        (["cfg.json", "sae_weights.safetensors"], ".", "an SAE of SAELens"),
        (["data.zarr/zarr.json"], ".", "an activation store"),
    ],
)
def test_what_is_no_run_is_called_what_it_seems_to_be(tmp_path, files, which, seems):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"PK")
    path = tmp_path / which
    with refused(
        CheckpointError, f"^{path} is not a run(: it has no run.json)?, and seems to be {seems}"
    ):
        SAERun.open(path)
    with refused(
        CheckpointError, "it has no run.json; a run is a folder that saepipe train makes$"
    ):
        SAERun.open(tmp_path / "absent")


def test_a_sweep_is_no_run_and_says_which_are(tmp_path):
    (tmp_path / "sweep.json").write_bytes(b"{}")
    told = f"^{tmp_path} is a sweep, not a run: name one of its runs"
    with refused(CheckpointError, f"{told}$"):
        SAERun.open(tmp_path)
    for name in ("k=8", "k=16"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(b"{}")
    with refused(CheckpointError, f"{told}, as {tmp_path / 'k=16'}$"):
        SAERun.open(tmp_path)


@pytest.mark.parametrize("name", ["a/thesis.txt", "a"])
def test_what_is_no_run_is_left_alone(config, name):
    work = config.out.parent / name
    work.parent.mkdir(parents=True)
    work.write_text("years of work")
    with refused(ConfigError, "exists and is not a run: choose another --out"):
        enter_run(config)
    assert work.read_text() == "years of work"
    assert list(work.parent.iterdir()) == [work]


@pytest.mark.parametrize("leftover", [None, "run.json.partial"])
def test_an_empty_folder_or_the_trace_of_a_kill_is_no_obstacle(config, leftover):
    config.out.mkdir(parents=True)
    if leftover:
        (config.out / leftover).write_text("{")
    assert enter_run(config).path == config.out


def test_an_sae_is_loaded_from_its_run_for_rows_of_any_leading_dimensions(config):
    _, weights = finished(replace(config, arch=TopKConfig(k=3)))
    sae = SAE.from_pretrained(str(config.out), device="cpu")
    assert all(torch.equal(p, weights[name]) for name, p in sae.state_dict().items())
    assert repr(sae) == "SAE(topk k=3, d_in=6, d_sae=24, site=mlp_out.1)"
    for shape in ((), (7,), (2, 3, 4)):
        x = torch.randn(*shape, 6)
        z = sae.encode(x)
        assert (z.shape, sae.decode(z).shape, sae(x).shape) == ((*shape, 24), x.shape, x.shape)
        torch.testing.assert_close(sae(x).reshape(-1, 6), sae(x.reshape(-1, 6)))


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
    with refused(CheckpointError, said):
        SAE.from_pretrained(config.out)
    with refused(CheckpointError, "holds no SAE: it has neither the run.json of a"):
        SAE.from_pretrained(tmp_path / "nowhere")


def edit(run: Path, change) -> None:
    """Let its run.json say something else."""
    document = json.loads((run / "run.json").read_text())
    change(document)
    (run / "run.json").write_text(json.dumps(document))


EDITS = {
    "k": (lambda told: told["config"]["arch"].update(k=9), "k: 9, 3 there"),
    "kind": (
        lambda told: told["config"]["arch"].update(kind="batchtopk"),
        "kind: batchtopk, topk there",
    ),
    "site": (lambda told: told["store"].update(site="mlp_out.2"), r"site: mlp_out.2, mlp_out.1 th"),
    "expansion": (lambda told: told["config"].update(expansion=8), "d_sae: 48, 24 there"),
}


@pytest.mark.parametrize("edited", EDITS)
def test_a_run_json_that_says_what_its_weights_do_not_is_refused(config, edited):
    change, said = EDITS[edited]
    finished(replace(config, arch=TopKConfig(k=3)))
    edit(config.out, change)
    said = rf"run.json does not fit sae.safetensors \({said}.*\): put a copy back, or train again"
    with refused(CheckpointError, said):
        SAERun.open(config.out).load_sae(torch.device("cpu"))
    with refused(CheckpointError, said):
        SAE.from_pretrained(config.out)


SHAPES = {
    "kind": r"activation.threshold: \[\], None there",
    "expansion": r"W_enc: \[6, 48\], \[6, 24\] there",
}


@pytest.mark.parametrize("edited", SHAPES)
def test_weights_that_say_nothing_of_themselves_are_held_to_their_shapes(config, edited):
    run, weights = finished(replace(config, arch=TopKConfig(k=3)))
    replace(run, sha256=save_tensors(config.out / "sae.safetensors", weights)).write()
    opened = SAERun.open(config.out).load_sae(torch.device("cpu"))
    assert torch.equal(opened.W_dec, weights["W_dec"])
    edit(config.out, EDITS[edited][0])
    with refused(CheckpointError, rf"run.json does not fit sae.safetensors \(.*{SHAPES[edited]}"):
        SAERun.open(config.out).load_sae(torch.device("cpu"))


LINE = {
    "step": 9, "rows": 9, "recon": 1.0, "l0": 3.0, "n_dead": 0, "explained_variance": 0.9,
}  # fmt: skip


def test_curves_of_another_run_are_not_taken_for_its_own(config):
    run = enter_run(replace(config, arch=ReluConfig(l1=1e-3)))
    metrics = config.out / "metrics.jsonl"
    metrics.write_text(json.dumps(LINE) + "\n")
    run, _ = finished(config, run)
    assert SAERun.open(config.out).metrics == LINE
    assert l0_of(run) == 3.0
    assert run.advice is not None
    metrics.write_text(json.dumps(LINE | {"l0": 500.0}) + "\n")
    for look in (lambda: run.metrics, lambda: run.advice, run.to_frame):
        with refused(CheckpointError, "metrics.jsonl is not that of this run: put a copy back"):
            look()
    assert l0_of(run) is None
    before = replace(run, curves_sha256="")
    assert before.metrics["l0"] == 500.0, "it does not say"
