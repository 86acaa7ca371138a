"""A foreign SAE as a run: every command takes it, and says what it cannot know."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import saepipe as sp
import torch

from pipeline.config.grid import expand
from pipeline.config.training import ConnectConfig
from pipeline.connect.run import ConnectorRun
from pipeline.errors import CheckpointError, ConfigError, ModelError, TextError
from pipeline.exchange.importing import brought_in, import_sae, runs_of
from pipeline.runs.imported import imported
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE
from pipeline.terminal.commands import run_train
from pipeline.terminal.screen import Screen
from tests.helpers.foreign import saelens, write_safetensors
from tests.helpers.refusals import refused
from tests.helpers.tiny import CTX_LEN, WIDTH, make_model, make_sae, make_text

LATENTS = 25
"""No multiple of the width."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, str]:
    """A tiny model and a text."""
    folder = tmp_path_factory.mktemp("world")
    return make_model(folder / "model"), make_text(folder / "text.txt", n_contexts=60)


def folder_of(path: Path, *, model: object = None, norm: str = "none", **cfg) -> Path:
    rng = np.random.default_rng(0)
    shapes = {
        "W_enc": (WIDTH, LATENTS),
        "b_enc": (LATENTS,),
        "W_dec": (LATENTS, WIDTH),
        "b_dec": (WIDTH,),
    }
    tensors = {
        name: (0.5 * rng.standard_normal(s)).astype(np.float32) for name, s in shapes.items()
    }
    told = {
        "sae_lens_version": "6.1.0",
        "hook_name": "blocks.1.hook_mlp_out",
        "context_size": CTX_LEN,
    }
    told |= {"model_name": str(model)} if model else {}
    return saelens(
        path, tensors, d_in=WIDTH, d_sae=LATENTS, metadata=told | cfg, kind="topk", k=5,
        normalize_activations=norm,
    )  # fmt: skip


def test_it_is_a_run_of_any_width_that_opens_as_it_was(tmp_path, world):
    source = folder_of(tmp_path / "theirs")
    run = sp.import_sae(source, out=tmp_path / "run", model=str(world[0]))
    assert (run.d_sae, run.provenance.d_in, run.config.expansion) == (
        LATENTS,
        WIDTH,
        LATENTS / WIDTH,
    )
    there = imported(run.path)
    assert there is not None
    assert (there.library, there.hook) == ("SAELens", "blocks.1.hook_mlp_out")
    direct = SAE.from_pretrained(source)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(run.sae.state_dict()[name], tensor), name
    assert torch.equal(SAE.from_pretrained(run.path).W_enc, direct.W_enc)
    direct.save_pretrained(tmp_path / "saved")
    assert torch.equal(SAE.from_pretrained(tmp_path / "saved").W_dec, direct.W_dec)
    again = sp.import_sae(tmp_path / "saved", out=tmp_path / "of-ours")
    assert torch.equal(again.sae.W_enc, direct.W_enc)


def test_the_same_is_reused_and_another_is_not_overwritten(tmp_path):
    source, out = folder_of(tmp_path / "theirs"), tmp_path / "run"
    assert not import_sae(str(source), out).reused
    written = (out / "run.json").stat().st_mtime_ns
    assert import_sae(str(source), out).reused
    assert (out / "run.json").stat().st_mtime_ns == written
    with refused(ConfigError, r"with other settings \(.* there\): choose another --out"):
        import_sae(str(source), out, site="mlp_out.0")
    cfg = json.loads((source / "cfg.json").read_text())
    (source / "cfg.json").write_text(json.dumps(cfg | {"k": 3}))
    with refused(ConfigError, "with other files: choose another --out"):
        import_sae(str(source), out)
    with refused(ConfigError, "is a run already"):
        import_sae(str(out), tmp_path / "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with refused(ConfigError, "is no imported SAE"):
        import_sae(str(source), tmp_path / "full")
    with refused(ConfigError, "bad site 'mlp_out'"):
        import_sae(str(source), tmp_path / "c", site="mlp_out")
    data = bytearray((out / "sae.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "sae.safetensors").write_bytes(data)
    (source / "cfg.json").write_text(json.dumps(cfg))
    with refused(CheckpointError, "does not match"):
        import_sae(str(source), out)


def test_nothing_is_left_of_an_import_that_fails(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.exchange.importing.write_json", fails)
    with refused(CheckpointError, "No space left"):
        import_sae(str(folder_of(tmp_path / "theirs")), tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"theirs"}


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
def test_it_goes_through_every_verb(tmp_path, world, norm):
    model, text = world
    source = folder_of(tmp_path / "theirs", model=model, norm=norm)
    run = sp.import_sae(source, out=tmp_path / "run")
    plain = sp.evaluate(run, text=text, tokens=240, device="cpu")
    assert 0 < plain.l0 <= 5
    assert any("imported from" in note for note in plain.notes)
    store = tmp_path / "a.actstore"
    sp.harvest(
        model=str(model), text=text, sites=["mlp_out.1"], tokens=480, ctx_len=CTX_LEN, out=store,
        device="cpu",
    )  # fmt: skip
    with refused(ConfigError, "was not trained from a store: name one"):
        sp.features(run, device="cpu")
    found = sp.features(run, store=store, device="cpu")
    assert not any("not the store" in note for note in found.facts.notes)
    tuned = sp.finetune(
        run, out=tmp_path / "tuned", text=text, epochs=1, steps_per_epoch=3, ctx_len=CTX_LEN,
        heldout_contexts=4, batch_size=4, device="cpu",
    )  # fmt: skip
    assert tuned.n_steps == 3
    folded = sp.fold(tmp_path / "tuned", out=tmp_path / "folded")
    x = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        through = sp.FinetunedRun.open(tmp_path / "tuned").sae(x)
        assert torch.allclose(folded.sae(x), through, atol=1e-5)
    sp.steer(run, feature=3, scale="2", prompt="ab", tokens=2, device="cpu")
    page = sp.report([run, tmp_path / "tuned"], out=tmp_path / "page.html", text=text, tokens=240)
    assert "imported from" in page.path.read_text()
    assert str(tmp_path) not in page.path.read_text()


def test_an_sae_that_normalises_writes_by_the_scale_of_its_row(tmp_path):
    sae = make_sae()
    sae.input_norm = "layer_norm"
    x = 3 * torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(2)) + 1
    with torch.no_grad():
        z = sae.encode(x)
        less = z.clone()
        less[:, 7] = 0
        off = sp.Steering(sae, ablate=[7])(x) - x
        assert torch.allclose(sae.decode(less, of=x) - sae.decode(z, of=x), off, atol=1e-5)
        assert off.abs().max() > 0.1
        raised = sp.Steering(sae, add={7: 2.0})(x) - x
        assert torch.allclose(raised, 2 * sae.W_dec[7] * x.std(-1, keepdim=True), atol=1e-5)


def test_what_is_not_said_is_asked_for_by_its_option(tmp_path, world):
    model, text = world
    nowhere = folder_of(tmp_path / "theirs", model=model, hook_name="blocks.1.hook_mlp_in")
    run = sp.import_sae(nowhere, out=tmp_path / "run")
    for verb in (sp.evaluate, lambda r, **s: sp.finetune(r, out=tmp_path / "t", **s)):
        with refused(ConfigError, r"at which site .*'blocks.1.hook_mlp_in'.*--site KIND.LAYER"):
            verb(run, text=text, device="cpu")
    other = sp.import_sae(folder_of(tmp_path / "b"), out=tmp_path / "b-run")
    with refused(ConfigError, "does not say which model .* with `model`"):
        sp.evaluate(other, text=text, device="cpu")
    report = sp.evaluate(other, text=text, model=str(model), tokens=120, device="cpu")
    assert report.model == str(model)


@pytest.mark.parametrize(
    ("cfg", "asked", "said"),
    [
        ({}, {"model": "builtin"}, "are 16 wide, and mlp_out.1 of builtin is 160: name the"),
        ({"model": "builtin"}, {}, "are 16 wide, and mlp_out.1 of builtin is 160"),
        ({}, {"site": "mlp_act.1"}, "are 16 wide, and mlp_act.1 of .* is 48"),
        ({}, {"site": "mlp_out.7"}, "site mlp_out.7 does not exist"),
        ({"hook_name": "blocks.0.hook_resid_mid"}, {}, "site resid_mid.0 does not exist"),
    ],
)
def test_what_cannot_be_of_its_site_is_refused_before_it_is_a_run(
    tmp_path, world, cfg, asked, said
):
    source = folder_of(tmp_path / "theirs", **{"model": world[0]} | cfg)
    with refused(ConfigError, said):
        import_sae(str(source), tmp_path / "run", **asked)
    assert {path.name for path in tmp_path.iterdir()} == {"theirs"}


def test_a_model_that_cannot_be_asked_holds_nobody_up(tmp_path):
    def notes(**cfg):
        source = folder_of(tmp_path / f"theirs-{cfg['model'].replace('/', '-')}", **cfg)
        told = import_sae(str(source), tmp_path / f"run-of-{source.name}").notes
        return " ".join(note for note in told if "not held to its model" in note)

    assert "neither a folder" in notes(model="my-own-othello")
    assert "not held to its model" in notes(model="EleutherAI/pythia-70m")
    (tmp_path / "gemma").mkdir()
    (tmp_path / "gemma" / "config.json").write_text('{"model_type": "helium"}')
    assert "'helium' model" in notes(model=str(tmp_path / "gemma"))


@pytest.mark.parametrize("name", ["./absent", "not-a-model", "empty"])
def test_a_model_that_is_named_and_is_none_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    source = folder_of(tmp_path / "theirs")
    with refused(ModelError, f"{name}.*(is neither a folder|has no config.json)"):
        import_sae(str(source), tmp_path / "run", model=name)
    assert not Path("run").exists()


def test_a_source_in_the_place_of_a_run_is_imported_first_and_once(
    tmp_path, world, monkeypatch, caplog
):
    model, text = world
    monkeypatch.chdir(tmp_path)
    source = folder_of(tmp_path / "layers" / "theirs", model=model)
    with caplog.at_level(logging.WARNING):
        report = sp.evaluate(source, text=text, tokens=120, device="cpu")
    assert report.run == Path("runs/layers-theirs")
    assert [*Path("runs").iterdir()] == [report.run]
    assert sum("imported" in line for line in caplog.messages) == 1
    told = list[bool]()
    assert brought_in([source], say=lambda r: told.append(r.reused)) == [report.run]
    assert told == [True]
    assert runs_of([report.run]) == (report.run,)
    with refused(CheckpointError, "seems to be an SAE of SAELens: type saepipe import"):
        SAERun.open(source)


def test_what_a_refused_command_imported_is_said_to_stay(
    tmp_path, world, monkeypatch, saepipe, caplog
):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        folder_of(tmp_path / "of" / name, model=world[0])
    code, out, err = saepipe("eval", "of/one", "--text", "absent.txt")
    stays = "runs/of-{0} stays for whatever takes of/{0} next; remove it with rm -r runs/of-{0}"
    assert code == 1 and stays.format("one") in " ".join((out + err).split())
    with caplog.at_level(logging.WARNING), refused(TextError, "absent.txt"):
        sp.evaluate("of/two", text="absent.txt")
    assert any(stays.format("two") in line for line in caplog.messages)
    assert {path.name for path in Path("runs").iterdir()} == {"of-one", "of-two"}
    code, out, err = saepipe("eval", "of/one", "--text", "absent.txt")
    assert "stays" not in out + err


def test_saying_the_site_as_it_is_advised_leads_to_a_run_that_is_taken(tmp_path, world, succeeds):
    model, text = world
    nowhere = folder_of(tmp_path / "theirs", model=model, hook_name="blocks.1.hook_mlp_in")
    run = sp.import_sae(nowhere, out=tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        sp.evaluate(run, text=text, device="cpu")
    advice = str(caught.value).partition("say it with saepipe ")[2].partition(", and name")[0]
    typed = advice.replace("KIND.LAYER", "mlp_out.1").replace("OTHER", str(tmp_path / "other"))
    succeeds(*typed.split())
    assert sp.evaluate(tmp_path / "other", text=text, tokens=120, device="cpu").site == "mlp_out.1"
    with refused(ConfigError, r"other settings \(none there\): choose .*, and name that"):
        import_sae(str(nowhere), tmp_path / "run", site="mlp_out.1")


def test_a_source_can_be_an_end_of_a_connector(tmp_path, world, monkeypatch, capsys):
    model, text = world
    monkeypatch.chdir(tmp_path)
    sp.harvest(
        model=str(model), text=text, sites=["mlp_out.0", "mlp_out.1"], tokens=240,
        ctx_len=CTX_LEN, out="a.actstore", device="cpu",
    )  # fmt: skip
    sources = [
        folder_of(Path(f"layer{i}"), model=model, hook_name=f"blocks.{i}.hook_mlp_out")
        for i in (0, 1)
    ]
    made = sp.connect(
        "a.actstore", ends=sources, out="c", batch_size=24, start="random", device="cpu"
    )
    assert [end.run.name for end in made.ends] == ["layer0", "layer1"]
    assert made.source.sha256 == SAERun.open(Path("runs/layer0")).sha256
    from_shell = expand(
        {"store": "a.actstore", "ends": [*map(str, sources)], "batch_size": 24, "device": "cpu"},
        out=Path("d"), kind=ConnectConfig,
    )  # fmt: skip
    run_train(from_shell, resume=True, screen=Screen())
    assert capsys.readouterr().out.count("import    complete, reused: runs/layer") == 2
    assert ConnectorRun.open(Path("d")).ends == made.ends


def test_an_end_that_does_not_say_its_site_is_asked_for_it(tmp_path, world, monkeypatch):
    model, text = world
    monkeypatch.chdir(tmp_path)
    sp.harvest(
        model=str(model), text=text, sites=["mlp_out.0"], tokens=240, ctx_len=CTX_LEN,
        out="a.actstore", device="cpu",
    )  # fmt: skip
    known = folder_of(Path("known"), model=model, hook_name="blocks.0.hook_mlp_out")
    nowhere = folder_of(Path("nowhere"), model=model, hook_name="blocks.1.hook_mlp_in")
    with refused(ConfigError, r"nowhere does not say at which site .*--site KIND.LAYER"):
        sp.connect("a.actstore", ends=[known, nowhere], out="c", device="cpu")


def test_there_is_nothing_to_fold_in_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(CheckpointError, "is a plain SAE, which has nothing to fold"):
        sp.fold(folder_of(Path("theirs")), out="plain")
    with refused(CheckpointError, "type saepipe pull org/tuned --out RUN, and name that"):
        sp.fold("org/tuned", out="plain")
    assert [*Path().iterdir()] == [Path("theirs")]


def test_a_mistyped_run_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.formats.files.HubFiles.settled", lambda _: pytest.fail("asked"))
    Path("runs").mkdir()
    with refused(CheckpointError, "runs/tpok is not a run"):
        sp.evaluate("runs/tpok")


def test_a_model_is_not_told_matrix_by_matrix(tmp_path):
    many = {f"layers.{i}.weight": np.zeros((4, 4), np.float32) for i in range(40)}
    write_safetensors(tmp_path / "model.safetensors", many)
    with refused(CheckpointError, "and 32 more: it may be a model"):
        import_sae(str(tmp_path / "model.safetensors"), tmp_path / "run")


def test_an_imported_json_that_is_damaged_is_one_line(tmp_path):
    run = sp.import_sae(folder_of(tmp_path / "theirs"), out=tmp_path / "run")
    (run.path / "imported.json").write_text("[" * 100_000)
    with refused(CheckpointError, "imported.json is damaged"):
        imported(run.path)


def test_a_connector_wants_rows_as_they_are(tmp_path, world):
    model, text = world
    store = tmp_path / "a.actstore"
    sp.harvest(
        model=str(model), text=text, sites=["mlp_out.1", "mlp_out.2"], tokens=240,
        ctx_len=CTX_LEN, out=store, device="cpu",
    )  # fmt: skip
    for layer, norm in ((1, "layer_norm"), (2, "none")):
        source = folder_of(
            tmp_path / str(layer), norm=norm, hook_name=f"blocks.{layer}.hook_mlp_out"
        )
        sp.import_sae(source, out=tmp_path / f"run{layer}")
    with refused(ConfigError, r"normalises each row \(layer_norm\)"):
        sp.connect(
            store, ends=[tmp_path / "run1", tmp_path / "run2"], out=tmp_path / "c", device="cpu"
        )


def test_training_takes_any_width_too(tmp_path, world):
    model, text = world
    store = tmp_path / "a.actstore"
    sp.harvest(
        model=str(model), text=text, sites=["mlp_out.1"], tokens=480, ctx_len=CTX_LEN, out=store,
        device="cpu",
    )  # fmt: skip
    run = sp.train(
        store, k=2, expansion=LATENTS / WIDTH, batch_size=48, out=tmp_path / "r", device="cpu"
    )
    assert run.d_sae == SAE.from_pretrained(run.path).d_sae == LATENTS
    half = sp.train(store, k=2, expansion=0.5, batch_size=48, out=tmp_path / "h", device="cpu")
    assert half.d_sae == WIDTH // 2
    whole = json.loads((half.path / "run.json").read_text())
    assert "input_norm" not in whole


def test_a_file_beside_others_is_read_with_them(tmp_path):
    folder = folder_of(tmp_path / "theirs")
    by_file = SAE.from_pretrained(folder / "sae_weights.safetensors")
    assert torch.equal(by_file.W_enc, SAE.from_pretrained(folder).W_enc)
    write_safetensors(tmp_path / "x.safetensors", {"W_enc": np.zeros((2, 3), np.float32)})
    with refused(ConfigError, "name it with `arch`|name it with --arch"):
        SAE.from_pretrained(tmp_path / "x.safetensors")
