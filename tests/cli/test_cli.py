import inspect
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

import cli
from actstore.reader import ActStore
from pipeline.config.architectures import ReluConfig
from pipeline.config.command_line import assigned, layers_of
from pipeline.config.settings import parse_count as count
from pipeline.config.stages import (
    EvalConfig,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    ReportConfig,
    SteerConfig,
)
from pipeline.config.training import TrainConfig
from pipeline.errors import ConfigError
from tests.helpers.slow import slow
from tests.helpers.tiny import CTX_LEN, make_model, make_text

COMMANDS = {
    cli.harvest: HarvestConfig,
    cli.train: TrainConfig,
    cli.evaluate: EvalConfig,
    cli.features: FeaturesConfig,
    cli.report: ReportConfig,
    cli.finetune: FinetuneConfig,
    cli.steer: SteerConfig,
}


@pytest.fixture
def harvested(succeeds, tmp_path) -> list[object]:
    """Arguments of a harvest that was carried out."""
    model = make_model(tmp_path / "model")
    text = make_text(tmp_path / "text.txt", n_contexts=60)
    command = [
        "harvest", "--model", model, "--text", text, "--site", "mlp_out.1", "--tokens", "600",
        "--ctx-len", CTX_LEN, "--device", "cpu", "--out", tmp_path / "acts.actstore",
    ]  # fmt: skip
    succeeds(*command)
    return command


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.__name__)
def test_options_have_the_defaults_of_the_config(command):
    defaults = {f.name: f.default for f in fields(COMMANDS[command])}
    defaults |= {"l0": None, "l1": ReluConfig.l1, "k": None, "arch": "topk", "site": None}
    defaults |= {"target": ReluConfig.target, "recipe": None}
    defaults |= {"worst": EvalConfig.n_worst}
    elsewhere = {"ctx", "config", "json", "resume", "log", "assign", "layers", "connect"}
    elsewhere |= {"feature", "sort", "rows"}  # what of the result is shown
    elsewhere |= {"scale", "clamp", "prompt"}  # lists, which are empty where none is typed
    elsewhere |= {"plan"}  # nothing is done
    if command is cli.finetune:
        elsewhere.add("runs")  # one and those beside it
    if command in (cli.evaluate, cli.report):
        elsewhere.add("out")  # depends on the runs
    for name, parameter in inspect.signature(command).parameters.items():
        if name in elsewhere:
            continue
        assert name in defaults, name
        if parameter.default is inspect.Parameter.empty or name == "site":
            continue
        default = parameter.default
        if name == "tokens" and default is not None:
            default = count(default)
        elif isinstance(default, str) and isinstance(defaults[name], int | float):
            default = type(defaults[name])(default)  # text, since it may be several with commas
        assert default == defaults[name], name
    assert TrainConfig(store=Path(), out=Path()).arch.kind == "topk"


def test_no_help_is_taken_for_markup():
    commands = [typer.main.get_command(cli.app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        for told in (command.help, *(getattr(one, "help", "") for one in command.params)):
            assert Text.from_markup(told or "").plain == (told or "")


def test_help_waits_for_nothing_heavy():
    heavy = {"torch", "zarr", "transformers", "rich", "numpy", "numcodecs"}
    code = f"import cli, sys; sys.exit(bool({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("looked", [False, slow(True)], ids=["made", "and looked at"])
def test_all_commands_in_a_row(succeeds, fails, harvested, tmp_path, looked):
    store, sae, tuned = (tmp_path / name for name in ("acts.actstore", "sae", "tuned"))
    succeeds(
        "train", store, "--arch", "topk", "--k", 4, "--batch-size", 64, "--device", "cpu",
        "--out", sae,
    )  # fmt: skip
    text = make_text(tmp_path / "other.txt", n_contexts=60, seed=1)
    out, err = succeeds("eval", sae, "--text", text, "--tokens", 240, "--json", "-")
    (report,) = json.loads(out)  # stdout is JSON and nothing else
    assert report["l0"] == 4
    assert report["n_tokens"] == 240
    assert "loss recovered" in err and f"eval      report and figures: {sae}" in err
    out, _ = succeeds(
        "finetune", sae, "--text", text, "--epochs", 1, "--steps-per-epoch", 2, "--batch-size", 2,
        "--out", tuned, "--config", settings(tmp_path, ctx_len=CTX_LEN, heldout_contexts=4),
    )  # fmt: skip
    assert "SAE spliced in" in out
    assert out.startswith("finetune  2 steps of 2 contexts, then at most ")
    figures = {path.name for path in tmp_path.glob("*/*.png")}
    assert figures == {
        "dead_cosine.png", "density.png", "effects.png", "encoder_decoder.png", "loss.png",
        "scales_biases.png",
    }  # fmt: skip
    if looked:
        look_at(succeeds, fails, sae, tuned, text=text)


def look_at(succeeds, fails, sae: Path, tuned: Path, *, text: str) -> None:
    """Compare, browse and report the two runs."""
    succeeds("eval", sae, tuned, "--text", text, "--tokens", 240, "--layers", "0-1", "--as-trained")
    assert {"eval.csv", "frontier.png", "frontier.svg"} <= {p.name for p in sae.parent.iterdir()}
    assert [line["site"] for line in json.loads((sae / "eval.json").read_text())["inserted"]] == [
        "mlp_out.0", "mlp_out.1",
    ]  # fmt: skip
    out, _ = succeeds("features", sae, "--json", "-", "--rows", 3, "--sort", "max")
    listed = json.loads(out)
    assert len(listed) == 3
    assert listed[0]["max"] >= listed[1]["max"] >= listed[2]["max"]
    out, _ = succeeds("features", sae, "--feature", listed[0]["index"])
    assert "complete, reused" in out
    assert "lost without it" in out
    assert "1000000" in fails("features", sae, "--feature", 10**6)
    page = sae.parent / "report.html"
    out, _ = succeeds("report", sae, tuned)
    assert f"report    {page}" in out
    assert "features" in out  # those of the tuned run were missing, and were made
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def settings(folder: Path, **values: object) -> Path:
    path = folder / "settings.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return path


def test_the_same_harvest_again_is_reused_without_torch(succeeds, harvested):
    out, _ = succeeds(*harvested)
    assert "complete, reused: 600 rows" in out
    script = f"""
import sys, cli
sys.argv = {["saepipe", *map(str, harvested)]!r}
try: cli.main()
except SystemExit as stop: code = stop.code or 0
sys.exit(code or ("torch" in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.fixture
def config_of(succeeds, make_store, tmp_path):
    """What a training was told, by these options."""

    def train(*options: object) -> dict[str, Any]:
        run = tmp_path / "run"
        succeeds("train", make_store(), "--device", "cpu", "--out", run, *options)
        return json.loads((run / "run.json").read_text())["config"]

    return train


def test_flags_go_before_the_file_and_the_file_before_defaults(config_of, tmp_path):
    file = settings(tmp_path, lr=0.5, batch_size=32, checkpoint_every=7)
    config = config_of("--lr", 0.25, "--tokens", 64, "--config", file)
    assert (config["lr"], config["batch_size"], config["checkpoint_every"]) == (0.25, 32, 7)
    assert config["expansion"] == TrainConfig.expansion


def test_the_file_can_describe_an_architecture(config_of, tmp_path):
    file = tmp_path / "arch.toml"
    file.write_text('tokens = 64\nbatch_size = 32\n[arch]\nkind = "topk"\nk = 3\n')
    arch = config_of("--config", file)["arch"]
    assert arch == {"kind": "topk", "k": 3, "k_aux": None, "aux_coefficient": 1 / 8}


def test_any_setting_can_be_set_on_the_command_line(config_of):
    told = ("arch.l0=5", "hold=10 steps", "ema=0.9", "normalize=rms", "batch_size=32")
    config = config_of("--arch", "jumprelu", *(word for one in told for word in ("--set", one)))
    assert config["arch"]["l0"] == 5
    assert (config["hold"], config["ema"], config["normalize"]) == ("10 steps", 0.9, "rms")
    for told in ("[0, 187]", "0,187"):
        assert assigned({}, [f"exclude_tokens={told}"]) == {"exclude_tokens": [0, 187]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.actstore", "--out", "r"], "there is no activation store"),
        (
            ["train", "s", "--out", "r", "--arch", "relu", "--k", "8"],
            "--k means nothing to --arch relu: it is of topk, batchtopk, matryoshka",
        ),
        (["train", "s", "--out", "r", "--tokens", "many"], "a number like 500k"),
        (["train", "s", "--out", "r", "--lr", "-1"], "lr must be positive"),
        (["eval", "absent"], "absent"),
        (["finetune", "absent", "--out", "r"], "absent"),
        (["harvest", "--out", "s"], "no site to harvest"),
        (["harvest", "--site", "mlp_out.9", "--out", "s"], "has layers 0 to 3"),
        (["harvest", "--site", "mlp_out.1", "--out", "s", "--codec", "gzip"], "gzip"),
        (["store", "info", "absent"], "there is no activation store"),
        (["train", "s", "--out", "r", "--set", "ema"], "--set takes NAME=VALUE, got 'ema'"),
        (["train", "s", "--out", "r", "--set", "=3"], "--set takes NAME=VALUE, got '=3'"),
        (["train", "s", "--out", "r", "--set", "k=3"], "type --set arch.k=3"),
        (["train", "s", "--out", "r", "--set", "arch=topk"], "type --arch topk"),
        (["eval", "r", "--layers", "3-1"], "--layers takes layers as in 0-5"),
        (["eval", "r", "--layers", "0-900000000"], "--layers takes layers as in 0-5"),
        (["train", "s", "--out", "r", "--arch", "topkk", "--k", "3"], "did you mean 'topk'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_user_can_mend_is_one_line(fails, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(*arguments)
    assert not list(tmp_path.iterdir())


def test_an_unknown_setting_suggests_the_nearest(fails, tmp_path):
    said = fails("train", "s", "--out", "r", "--config", settings(tmp_path, expanson=8))
    assert "expanson" in said
    assert "did you mean 'expansion'" in said


def test_a_file_for_saes_says_what_connectors_do_not_know(fails, tmp_path):
    file = settings(tmp_path, arch="topk")
    told = fails("train", "s", "--connect", "a:b", "--out", tmp_path / "r", "--config", file)
    assert "has no setting 'arch'" in told


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["train", "s", "--out", "r"], "stopped; the same command goes on"),
        (["eval", "r"], "stopped; the same command begins again"),
    ],
    ids=["train", "eval"],
)
def test_ctrl_c_says_how_to_go_on(saepipe, monkeypatch, command, told):
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stopped)
    code, _, err = saepipe(*command)
    assert (code, err) == (130, f"{told}\n")


def test_names_in_errors_and_warnings_move_no_terminal(saepipe, fails, capsys):
    hostile = "\x1b[31m\u202e\udcff\n  x"
    assert r"\x1b[31m\u202e\udcff↵  x is not a run" in fails("eval", hostile)
    code, _, err = saepipe("eval", "--\x1b[31m")
    assert (code, "\x1b" in err) == (2, False)
    logging.lastResort.handle(logging.makeLogRecord({"msg": "a \x1b", "levelno": 30}))
    assert capsys.readouterr().err == "a \\x1b\n"


def test_wrong_usage_exits_with_2(saepipe):
    code, _, err = saepipe("train", "--no-such-option")
    assert code == 2
    assert "--no-such-option" in err


def test_nothing_typed_is_help_alone_and_the_version_is_told(saepipe):
    code, out, err = saepipe()
    assert code == 2
    assert "harvest" in out and not err
    assert saepipe("--version")[:2] == (0, f"saepipe {version('saepipe')}\n")


def test_a_path_that_cannot_be_written_is_one_line(fails, harvested, tmp_path):
    (tmp_path / "file").write_text("in the way")
    fails(*harvested[:-1], tmp_path / "file" / "acts.actstore")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_clean_and_the_same_command_goes_on(succeeds, harvested, tmp_path, number):
    out, n_rows = tmp_path / "stopped.actstore", 600 * CTX_LEN
    text = make_text(tmp_path / "long.txt", n_contexts=600)
    file = settings(tmp_path, shard_rows=20 * CTX_LEN, text=text, tokens=n_rows)
    model = harvested[2]
    command = [
        "harvest", "--model", model, "--site", "mlp_out.1", "--ctx-len", CTX_LEN, "--device", "cpu",
        "--config", file, "--out", out,
    ]  # fmt: skip
    program = "import sys, cli; sys.argv[0] = 'saepipe'; cli.main()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program, *map(str, command), "--batch-size", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()  # the plan: the work begins
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    *progress, said = err.splitlines()  # on a slow machine some was told already
    assert said == "stopped; the same command goes on"
    assert [line for line in progress if not line.startswith("harvest   ")] == []
    succeeds(*command)
    assert ActStore.open(out).n_rows == n_rows


@pytest.mark.parametrize(
    ("text", "layers"),
    [(None, []), ("3", [3]), ("0-2", [0, 1, 2]), ("1,3", [1, 3]), ("0-2, 5,1", [0, 1, 2, 5])],
)
def test_layers_read_as_people_write_them(text, layers):
    assert layers_of(text) == layers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "0..3", "1,,2"])
def test_what_is_no_layers_is_refused(text):
    with pytest.raises(ConfigError, match="--layers takes layers as in 0-5"):
        layers_of(text)


def test_more_sites_and_more_rows_are_two_harvests_of_one_command(succeeds, harvested, tmp_path):
    more = [708 if value == "600" else value for value in harvested]
    more[more.index("mlp_out.1")] = "mlp_out.1,resid_post.0"
    out, _ = succeeds(*more, "--json", tmp_path / "summary.json")
    assert "resid_post.0 of" in out and "600 rows a site (add)" in out
    assert "708 rows a site (extend)" in out
    store = ActStore.open(tmp_path / "acts.actstore")
    assert (store.sites, store.n_rows) == (("mlp_out.1", "resid_post.0"), 708)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["n_rows"], summary["fingerprint"]) == (708, store.fingerprint)


def test_what_another_store_holds_is_linked_and_not_harvested(succeeds, harvested, tmp_path):
    found, out = tmp_path / "acts.actstore", tmp_path / "again" / "other.actstore"
    out.parent.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEPIPE_STORES", str(tmp_path))
        told, _ = succeeds(*harvested[:-1], out)
    assert f"complete, reused: 600 rows a site in {found}, linked as {out}" in told
    assert out.resolve() == found
    assert ActStore.open(out).n_rows == 600
    assert "complete, reused: 600 rows" in succeeds(*harvested[:-1], out)[0]


def test_a_lossy_codec_tells_what_it_cost(succeeds, harvested, tmp_path):
    out = tmp_path / "rounded.actstore"
    told, _ = succeeds(*harvested[:-1], out, "--codec", "bitround:2")
    (line,) = [line for line in told.splitlines() if "bitround:2" in line]
    store = ActStore.open(out)
    error = store.rounding("mlp_out.1").sum() / store.var("mlp_out.1").sum()
    assert f"mlp_out.1: bitround:2 cost {error:.2e} of the variance" in line
    assert "bitround" not in succeeds(*harvested[:-1], tmp_path / "exact.actstore")[0]
