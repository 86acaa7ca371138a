import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from actstore.reader import ActStore
from pipeline.connect.run import ConnectorRun
from pipeline.errors import CheckpointError, ConfigError
from pipeline.mnist import page
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.experiment import run_experiment
from pipeline.mnist.images import open_images
from pipeline.mnist.result import MnistResult, compared, enter_experiment
from pipeline.mnist.train import PAIRS, connector_folder, load_frames
from pipeline.runs.folder import training_in
from pipeline.runs.sae_run import SAERun
from pipeline.terminal.mnist import mnist_tables
from pipeline.terminal.screen import drawn
from tests.cli.test_real_data import data
from tests.helpers.images import make_config, write_images
from tests.helpers.refusals import refused


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[MnistConfig, MnistResult, list[str]]:
    """A whole experiment, and the stages it told of."""
    config, stages = make_config(tmp_path_factory.mktemp("mnist") / "run"), list[str]()
    result = run_experiment(config, on_progress=lambda progress: stages.append(progress.stage))
    return config, result, stages


def test_all_of_it_is_made_and_told_of(made):
    config, result, stages = made
    assert list(dict.fromkeys(stages)) == ["classifier", "saes", "connectors", "figures"]
    assert not result.reused
    assert (result.n_train, result.n_test) == (160, 40)
    assert [(sae.kind, sae.layer) for sae in result.saes] == [
        (kind, layer) for kind in ("tied", "relu") for layer in ("h1", "h2", "h3")
    ]
    names = {one.name for one in result.networks if one.form == "refitted"}
    assert names == {"l1=0.001", "l1=0.01", "start=random", "start=regression"}
    there = {path.name for path in config.out.iterdir()}
    assert there == {
        "experiment.json", "result.json", "classifier", "train.actstore", "test.actstore", "saes",
        "connectors", "report.html", "epochs.gif", "epochs-h1-h2.png", "epochs-h2-h3.png",
        "weights-h1-h2.png", "weights-h2-h3.png", "features-h1.png", "features-h2.png",
        "features-h3.png", "reconstruction.png", "accuracies.png", "frontier.png",
    }  # fmt: skip
    assert str(config.out) not in (config.out / "result.json").read_text()
    assert "<script" not in (config.out / "report.html").read_text().partition("</head>")[0]


def test_the_same_again_is_read_and_changes_nothing(made):
    config, result, _ = made
    before = files_of(config.out)
    stages = []
    again = run_experiment(config, on_progress=lambda progress: stages.append(progress.stage))
    assert again.reused
    assert replace(again, reused=False, config=result.config) == result
    assert stages == []
    assert files_of(config.out) == before


def test_of_two_experiments_into_one_folder_the_second_is_told_who_is_there(made, tmp_path):
    config, _, _ = made
    with training_in(tmp_path), refused(ConfigError, "trained into by process"):
        run_experiment(replace(config, out=tmp_path))


@pytest.mark.slow
def test_stopped_while_connectors_train_it_keeps_the_rest_and_goes_on_to_the_same_result(
    made, tmp_path
):
    config, result, _ = made
    stopped = replace(config, out=tmp_path / "run")

    def stop(progress) -> None:
        if progress.stage == "connectors" and progress.done >= progress.total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(stopped, on_progress=stop)
    assert not (stopped.out / "result.json").exists()
    before, stages = files_of(stopped.out), set[str]()
    again = run_experiment(stopped, on_progress=lambda progress: stages.add(progress.stage))
    assert stages == {"connectors", "figures"}
    done = {name: data for name, data in before.items() if name.startswith(("class", "saes", "t"))}
    assert done.items() <= files_of(stopped.out).items()
    assert replace(again, config=result.config, seconds=0.0) == replace(result, seconds=0.0)
    run = Path("connectors/h1-h2,l1=0.001")
    np.testing.assert_equal(load_frames(stopped.out / run), load_frames(config.out / run))


def test_the_weights_are_kept_after_each_epoch_and_end_as_the_connectors(made):
    config, _, _ = made
    for pair in ("h1-h2", "h2-h3"):
        run = ConnectorRun.open(config.out / "connectors" / f"{pair},l1=0.001")
        frames = load_frames(run.path)
        every = run.config.checkpoint_every
        assert [*frames] == [every, 2 * every, 3 * every]
        W = run.load_connector(torch.device("cpu")).W.numpy()
        np.testing.assert_array_equal(frames[3 * every], W)
        assert not np.array_equal(frames[every], W)
        assert not list((config.out / "connectors" / f"{pair},l1=0.01").glob("epochs"))
    with Image.open(config.out / "epochs.gif") as picture:
        assert picture.n_frames == 3


def test_weights_that_a_stop_within_an_epoch_left_are_not_shown(made, tmp_path):
    config, result, _ = made
    folder = connector_folder(tmp_path, PAIRS[0], result.chosen) / "epochs"
    folder.mkdir(parents=True)
    for step in (10, 13, 20):
        np.savez(folder / f"step-{step:09d}.npz", W=np.full((2, 2), step, np.float32))
    shown = page._epochs(replace(result, config=replace(config, out=tmp_path)), PAIRS[0])
    assert {epoch: W[0, 0] for epoch, W in shown.items()} == {1: 10, 2: 20}


def test_saes_and_connectors_are_runs_of_the_store_like_any_others(made):
    config, _, _ = made
    store = ActStore.open(config.out / "train.actstore")
    assert store.sites == ("h1", "h2", "h3")
    tied, untied = (SAERun.open(config.out / "saes" / f"{kind}-h2") for kind in ("tied", "relu"))
    assert (tied.config.arch.kind, untied.config.arch.kind) == ("tied", "relu")
    assert untied.provenance.fingerprint == store.fingerprint
    assert untied.d_sae == 16
    run = ConnectorRun.open(config.out / "connectors" / "h2-h3,l1=0.01")
    assert (run.source.site, run.target.site) == ("h2", "h3")
    assert run.source.run == untied.path.resolve()
    assert run.config.layer == (config.out / "classifier" / "layer-3.safetensors").resolve()
    rms = [np.sqrt((store.shard(layer, 0).astype(float) ** 2).mean()) for layer in ("h2", "h3")]
    assert run.config.l1 == pytest.approx(0.01 * np.prod(rms), rel=1e-5), "in units of both layers"


def test_another_configuration_into_the_same_folder_names_what_differs(made):
    config, _, _ = made
    with pytest.raises(ConfigError, match="hidden: 8 there, 9 now"):
        run_experiment(replace(config, hidden=9))


def test_other_images_of_the_same_name_are_noticed(made, tmp_path):
    config, _, _ = made
    out = tmp_path / "run"
    shutil.copytree(config.out, out)
    images = write_images(tmp_path / "images", 190)
    document = json.loads((out / "experiment.json").read_text())
    document["config"]["images"] = str(images)
    (out / "experiment.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="on other images than"):
        run_experiment(replace(config, out=out, images=str(images)))


def test_what_is_no_experiment_is_left_alone(tmp_path):
    config = make_config(tmp_path / "run")
    config.out.mkdir()
    (config.out / "diary.txt").write_text("dear")
    with pytest.raises(ConfigError, match="is no experiment of saepipe mnist"):
        run_experiment(config)
    assert [path.name for path in config.out.iterdir()] == ["diary.txt"]


def test_what_a_kill_left_of_its_first_file_is_no_hindrance(tmp_path):
    config = make_config(tmp_path / "run")
    config.out.mkdir()
    (config.out / "experiment.json.partial").write_text("{")
    enter_experiment(config, open_images(config.images))
    assert [path.name for path in config.out.iterdir()] == ["experiment.json"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", b"{", "result.json is damaged .*: delete it"),
        ("experiment.json", b"[]", "experiment.json is damaged"),
        ("classifier/layer-2.safetensors", b"x", "classifier in .* is damaged"),
    ],
)
def test_damage_is_one_line(made, tmp_path, file, content, message):
    config, _, _ = made
    out = tmp_path / "run"
    shutil.copytree(config.out, out)
    (out / "result.json").unlink()
    (out / file).write_bytes(content)
    with refused(CheckpointError, message):
        run_experiment(replace(config, out=out))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"connect_l1": ()}, "each once, got none"),
        ({"connect_l1": (0.1, 0.1), "chosen_l1": 0.1}, "each once, got 0.1, 0.1"),
        ({"chosen_l1": 3.0}, r"chosen_l1 must be one of connect_l1 \(0.001, 0.01\), got 3"),
        ({"hidden": 0}, "hidden must be positive"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_impossible_settings_are_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path / "run", images="digits", **changes)


def test_every_figure_of_s2_stands_beside_ours(made):
    _, result, _ = made
    chosen, right = result.network("l1=0.001", "trained"), f"{result.accuracy:.3f}"
    mse = [f"{result.sae('tied', layer).mse:.4f}" for layer in ("h1", "h2", "h3")]
    wanted = {
        "classifier: accuracy on test images": ("0.98", [right]),
        "weights of features > 0.1": ("458", [str(c.n_above) for c in chosen.connectors]),
        "accuracy, simulated": ("0.978 → 0.94", [f"{right} → {chosen.accuracy:.3f}"]),
        "tied SAE: MSE": ("0.0397", mse),
    }
    assert compared(result).items() >= wanted.items()


def test_the_tables_fit_a_terminal(made):
    _, result, _ = made
    console = Console(width=80, record=True, file=io.StringIO())
    for table in mnist_tables(result):
        console.print(drawn(table))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "E2 W D1" in text
    assert "0.978 → 0.94" in text


@pytest.mark.slow
def test_real_images_keep_their_accuracy_through_features(tmp_path):
    config = MnistConfig(
        out=tmp_path / "run", images=str(data("mnist")), epochs=3, sae_steps=200,
        connect_epochs=6, connect_l1=(0.002,), chosen_l1=0.002, device="cpu",
    )  # fmt: skip
    result = run_experiment(config)
    assert (result.n_train, result.n_test) == (8000, 2000)
    assert result.accuracy > 0.85
    network = result.network("l1=0.002", "refitted")
    assert network.accuracy > result.accuracy - 0.2
    assert network.n_above < sum(result.neuron_weights)
