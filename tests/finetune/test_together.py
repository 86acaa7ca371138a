"""Several SAEs learn together, at sites of their own; of each there is a run."""

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import permutations

import pytest
import saepipe as sp
import torch

from pipeline.config.stages import EvalConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluate.evaluate import evaluate
from pipeline.finetune.finetune import finetune as finetune_together
from pipeline.finetune.measure import mean_cross_entropy
from pipeline.finetune.memory import plan_memory
from pipeline.finetune.run import FinetunedRun
from pipeline.finetune.setting import open_setting
from pipeline.finetune.tables import effects_table, gain_words
from pipeline.finetune.task import load_task
from pipeline.lm.hooks import in_float
from pipeline.lm.sites import Site
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import TunedSAE
from tests.finetune.conftest import make_config
from tests.helpers.refusals import refused
from tests.helpers.tiny import make_sae, save_sae
from tests.helpers.tunings import finetune

SITES = ("attn_out.1", "mlp_out.1", "resid_post.2")
"""Two of one layer, and one above; named in another order."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("several")
    return [
        save_sae(folder / site, make_sae(seed=seed), model=tiny_model, site=site)
        for seed, site in enumerate(SITES)
    ]


@pytest.fixture
def together(tmp_path, runs, text):
    return partial(
        make_config, run=runs[1], beside=(runs[2], runs[0]), out=tmp_path / "tuned", text=text
    )


@pytest.fixture(scope="module")
def learned(tmp_path_factory, runs, text):
    """A whole one, which nobody changes."""
    out = tmp_path_factory.mktemp("learned") / "tuned"
    config = make_config(run=runs[1], beside=(runs[2], runs[0]), out=out, text=text)
    return config, finetune_together(config)


def test_of_each_there_is_a_run_that_stands_alone(learned, runs):
    config, reports = learned
    assert [report.site for report in reports] == [*SITES]
    for report, site in zip(reports, SITES, strict=True):
        run = FinetunedRun.open(config.out / site)
        assert run.report == report
        assert {*report.together_with} == {*SITES} - {site}
        assert [*run.config.beside] == [path for path in runs if path.name != site]
        assert run.sae.learned.any()
        assert torch.equal(run.sae.learned, (run.sae.c != 1) | (run.sae.d != 0))
        assert run.losses() == FinetunedRun.open(config.out / SITES[0]).losses()
    assert json.loads((config.out / "sweep.json").read_bytes())["members"] == [*SITES]


def test_losses_are_those_of_all_in_the_model_at_once(learned, lm, tokenizer):
    config, reports = learned
    rows = load_task(config, tokenizer).heldout
    tuned = {Site.parse(site): FinetunedRun.open(config.out / site).sae for site in SITES}
    for coders, figure in (
        ({site: one.sae for site, one in tuned.items()}, "ce_spliced"),
        (tuned, "ce_finetuned"),
        ({}, "ce_base"),
    ):
        edits = {site: in_float(coder) for site, coder in coders.items()}
        ce = mean_cross_entropy(lm, rows, edits, batch_size=4)
        assert [getattr(report, figure) for report in reports] == [pytest.approx(ce, rel=1e-6)] * 3
    assert reports[0].ce_finetuned < reports[0].ce_spliced


def test_gradients_are_those_of_autograd_through_all_of_them(learned, runs, lm, tokenizer):
    """The first step of plain AdamW on the same rows, by transformers' own loss."""
    config, _ = learned
    one = make_config(run=runs[0], out=config.out, text=config.text, epochs=1, steps_per_epoch=1)
    rows = load_task(one, tokenizer).train
    coders = {site: TunedSAE(SAERun.open(run).load_sae(torch.device("cpu")))
              for site, run in zip(SITES, runs, strict=True)}  # fmt: skip
    with lm.spliced(coders):
        loss = lm.module(rows.tokens.long(), labels=rows.tokens.long()).loss
        loss.backward()
    out = config.out.with_name("step")
    made = make_config(
        run=runs[0], beside=tuple(runs[1:]), out=out, text=config.text, epochs=1, steps_per_epoch=1,
        weight_decay=0.0,
    )  # fmt: skip
    finetune_together(made)
    for site, coder in coders.items():
        tuned = FinetunedRun.open(out / site).sae
        slope = coder.d.grad
        assert slope is not None
        moved = tuned.learned & (slope.abs() > 1e-7)  # Adam's first step is lr * sign
        assert moved.sum() > 5
        assert torch.equal((tuned.d < 0)[moved], (slope > 0)[moved])
        assert torch.allclose(tuned.d[moved].abs(), torch.tensor(made.lr), rtol=1e-2)


def test_what_is_kept_of_the_gain_is_measured_beside_the_others(learned):
    """All changes of one site kept is what all learned; none is a model that lacks only these."""
    config, reports = learned
    for site in SITES:
        run = FinetunedRun.open(config.out / site)
        effects = run.meaning().effects
        assert effects.curve[-1].ce == pytest.approx(reports[0].ce_finetuned, rel=1e-5)
        assert effects.curve[0].ce != pytest.approx(reports[0].ce_spliced, rel=1e-5)


def test_the_same_command_reuses_them_and_others_are_refused(learned, runs):
    config, _ = learned
    for first, *others in permutations(runs):
        again = make_config(**{**vars(config), "run": first, "beside": tuple(others)})
        assert [one.reused for one in finetune_together(again)] == [True] * 3
    told = "exists and is not a fine-tuning of attn_out.1, mlp_out.1: choose another --out"
    with refused(ConfigError, told):
        finetune_together(make_config(**{**vars(config), "beside": (runs[0],)}))
    with refused(ConfigError, "holds a fine-tuning of another configuration"):
        finetune_together(make_config(**{**vars(config), "lr": 0.01}))
    with refused(ConfigError, "exists and is not a fine-tuning: choose another --out"):
        finetune(make_config(**{**vars(config), "beside": ()}))
    (config.out / "more").mkdir()
    assert [one.reused for one in finetune_together(config)] == [True] * 3


def test_one_that_was_stopped_goes_on_to_the_same_bits_in_any_order(together, learned, runs):
    def stop(progress):
        if progress.stage == "finetune" and progress.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_together(together(), on_progress=stop)
    finetune_together(together(run=runs[0], beside=tuple(runs[1:])))
    for site in SITES:
        ours, theirs = (FinetunedRun.open(c.out / site).sae for c in (together(), learned[0]))
        for name in ("c", "d", "learned"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_checkpointing_changes_no_bit(together, learned):
    finetune_together(together(checkpointing=True))
    for site in SITES:
        ours, theirs = (FinetunedRun.open(c.out / site).sae for c in (together(), learned[0]))
        assert torch.equal(ours.c, theirs.c)
        told = [(c.out / site / "features.json").read_bytes() for c in (together(), learned[0])]
        assert told[0] == told[1]


def test_layers_above_the_lowest_site_are_checkpointed(together, runs):
    setting = open_setting(together(checkpointing=True), [SAERun.open(run) for run in runs])
    with setting.learning({}):
        assert ["forward" in vars(layer) for layer in setting.lm.body.layers] == [
            False,
            False,
            True,
        ]


def test_one_that_was_stopped_needs_the_same_saes(together, runs, tiny_model, tmp_path):
    second = shutil.copytree(runs[1], tmp_path / "second")

    def stop(progress):
        if progress.stage == "finetune":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_together(together(run=runs[0], beside=(second,)), on_progress=stop)
    with refused(ConfigError, r"of another configuration \(beside: .* there, .* now"):
        finetune_together(together(run=runs[0], beside=(second, runs[2])))
    shutil.rmtree(second)
    save_sae(second, make_sae(seed=7), model=tiny_model, site=SITES[1])
    with refused(ConfigError, "second was trained again since"):
        finetune_together(together(run=runs[0], beside=(second,)))


def test_a_plan_counts_all_of_them(together, runs):
    opened = [SAERun.open(run) for run in runs]
    plan, alone = (plan_memory(together(), some) for some in (opened, opened[:1]))
    assert plan.of("sae") == 3 * alone.of("sae")
    assert plan.of("learned") == 3 * alone.of("learned")
    assert plan.of("kept") > alone.of("kept")
    assert plan.site == ", ".join(SITES)


def test_whoever_uses_one_alone_is_told(learned):
    config, _ = learned
    run = config.out / SITES[0]
    (report,) = evaluate(EvalConfig(runs=(run,), text=config.text, tokens=100, device="cpu"))
    assert any("learned together with features of mlp_out.1 and" in one for one in report.notes)


def test_their_figures_are_drawn_again_from_the_folder_of_all(learned):
    config, _ = learned
    assert {path.parent.name for path in sp.plot(config.out)} == {*SITES}


def test_what_they_gain_is_told_beside_the_others(learned):
    config, (first, *_) = learned
    run = FinetunedRun.open(config.out / SITES[0])
    table = effects_table(run.meaning(), first)
    assert table.title == "features of attn_out.1 by the effect of their change"
    assert "that they add to those at mlp_out.1 and resid_post.2, on" in table.caption
    told = gain_words(run.meaning().effects, replace(first, together_with=()))
    assert "that they add" not in told
    empty = replace(run.meaning(), by_effect=())
    assert effects_table(empty, first) is None


def test_progress_says_whose_meaning_is_looked_for(together):
    seen = dict[str, int]()
    finetune_together(together(), on_progress=lambda told: seen.update({told.stage: told.done}))
    assert [*seen] == ["splice", "finetune", *(f"meaning of {site}" for site in SITES)]


def test_one_that_was_tuned_is_not_tuned_again_before_it_is_folded(learned, together):
    config, _ = learned
    with refused(CheckpointError, "not one of saepipe train: saepipe fold makes one of it"):
        finetune_together(together(run=config.out / SITES[0]))


def test_python_gives_a_report_of_each(together, runs, text):
    made = together()
    settings = {name: getattr(made, name) for name in ("batch_size", "epochs", "steps_per_epoch")}
    reports = sp.finetune(
        runs[:2], out=made.out, text=text, general_text=text, ctx_len=made.ctx_len, **settings
    )
    assert [report.site for report in reports] == [*SITES[:2]]
    assert all((report.out / "loss.png").exists() for report in reports)


def test_what_cannot_go_together_is_one_line(together, runs, tmp_path):
    copy = shutil.copytree(runs[1], tmp_path / "copy")
    with refused(ConfigError, "copy is of mlp_out.1, as another of these runs is"):
        finetune_together(together(beside=(copy,)))
    with refused(ConfigError, "mlp_out.1 is of mlp_out.1, as another of these runs is"):
        finetune_together(together(beside=(runs[1],)))
    with refused(ConfigError, "--compare is of one site"):
        together(compare=True)
    with refused(ConfigError, "one SAE goes to mlp_out.0, and 3 are named"):
        together(site="mlp_out.0")
    other = save_sae(tmp_path / "other", make_sae(), model="a/b", site="mlp_out.0")
    with refused(ConfigError, "these runs are of several models"):
        finetune_together(together(beside=(other,)))
