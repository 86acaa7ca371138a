"""Connectors inside a language model, against hooks and formulas of the test's own."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from pipeline.config.architectures import TopKConfig
from pipeline.config.stages import EvalConfig
from pipeline.connect.connector import Connector
from pipeline.connect.evaluate import evaluate_connectors
from pipeline.connect.report import (
    CONNECT_EVAL_FILE,
    ConnectorReport,
    load_connector_report,
    save_connector_report,
    write_connector_table,
)
from pipeline.connect.run import ConnectorRun
from pipeline.connect.scores import layer_weights
from pipeline.connect.setup import fit_baselines, load_connectors
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.lm.model import LanguageModel, load_model
from pipeline.lm.sites import Site
from pipeline.sae.sae import SAE
from tests.helpers.evaluations import N_CONTEXTS
from tests.helpers.featured import make_store_of
from tests.helpers.plain_eval import LOSS, OTHER, PlainModel, contexts_of, leave_out, rows_left
from tests.helpers.readings import connect, say_of_store
from tests.helpers.tiny import CTX_LEN, WIDTH, make_model, make_sae, save_sae

N_LATENTS = 4 * WIDTH
SITES = ("resid_pre.1", "mlp_out.1")
CPU = torch.device("cpu")


class Plain(PlainModel):
    """Layer 1 of the model in float64, from its input to the output of its MLP."""

    def __init__(self, model: Path, text: str) -> None:
        super().__init__(model, contexts_of(model, text, n=N_CONTEXTS))

    def both(self, edit=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Both, and log-probabilities of all but the last tokens; `edit` takes both, too."""
        x1 = list[torch.Tensor]()
        layer = self.lm.gpt_neox.layers[1]
        handle = layer.register_forward_pre_hook(lambda module, args: x1.append(args[0]))
        x2, logp = self.run(1, None if edit is None else lambda out: edit(x1[0], out))
        handle.remove()
        return x1[0], x2, logp


def weights_of(coder: SAE) -> dict[str, torch.Tensor]:
    return {name: p.detach().double() for name, p in coder.named_parameters()}


def plain_eval(
    plain: Plain, source: SAE, target: SAE, maps: list[Connector], kept: torch.Tensor | None = None
) -> dict[str, object]:
    """The numbers of a report, all tokens at once."""
    one, two = weights_of(source), weights_of(target)

    def encode(x, w):
        return ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).clamp_min(0)

    def decode(z):
        return z @ two["W_dec"] + two["b_dec"]

    def predict(connector, x):
        W, b = connector.W.detach().double(), connector.b.detach().double()
        return (encode(x, one) @ W + b).clamp_min(0)

    x1, x2, clean = plain.both()
    kept = torch.ones(x1.shape[:2], dtype=torch.bool) if kept is None else kept
    counted = kept[:, :-1]

    def ce(logp):
        return plain.nll(logp)[counted].mean().item()

    def spliced(value):
        return plain.both(lambda x1, x2: torch.where(kept[..., None], value(x1, x2), x2))[2]

    zero = ce(spliced(lambda x1, x2: torch.zeros_like(x2)))
    best = ce(spliced(lambda x1, x2: decode(encode(x2, two))))
    z1, z2 = encode(x1[kept], one), encode(x2[kept], two)
    alive = (z2 > 0).any(0)
    spread = (z2 - z2.mean(0)).square().sum(0)
    found = []
    for connector in maps:
        error = (z2 - predict(connector, x1[kept])).square().sum(0)
        logp = spliced(lambda x1, x2, connector=connector: decode(predict(connector, x1)))
        found.append({
            "fvu": (error[alive].sum() / spread[alive].sum()).item(),
            "mse": (error.sum() / z2.numel()).item(),
            "explained": (1 - error / spread)[alive].tolist(),
            "ce": ce(logp),
            "kl": (clean.exp() * (clean - logp)).sum(-1)[counted].mean().item(),
        })  # fmt: skip
    return {
        "n_tokens": int(kept.sum()),
        "n_predictions": int(counted.sum()),
        "n_alive": int(alive.sum()),
        "l0_in": (z1 > 0).double().sum(1).mean().item(),
        "l0_out": (z2 > 0).double().sum(1).mean().item(),
        "ce_clean": ce(clean),
        "ce_zero": zero,
        "ce_sae": best,
        "maps": found,
        "alive": alive.tolist(),
    }


class Bench:
    """Two SAEs of the tiny model in a folder, a store of its rows, and connectors between them."""

    def __init__(self, folder: Path, model: Path, text: str) -> None:
        self.folder, self.model, self.text = folder, model, text
        self.coders = make_sae(seed=1), make_sae(seed=2)
        self.ends = tuple(
            save_sae(folder / f"sae{i}", coder, model=model, site=site)
            for i, (coder, site) in enumerate(zip(self.coders, SITES, strict=True))
        )
        self.store = make_store_of(
            model, folder / "acts.actstore", n_contexts=N_CONTEXTS, sites=SITES
        )

    def connect(self, *, seed: int = 0, name: str | None = None, **settings) -> Path:
        """A finished connector of random weights."""
        out = self.folder / (name or f"connector{seed}")
        return connect(self.store, self.ends, out, seed=seed, **settings).path

    def evaluate(self, *runs: Path, **options) -> tuple[ConnectorReport, ...]:
        options = {"tokens": N_CONTEXTS * CTX_LEN, "text": self.text, "device": "cpu"} | options
        return evaluate_connectors(EvalConfig(runs=runs, **options))

    def maps(self, run: Path) -> dict[str, Connector]:
        """The connector and its baselines."""
        there = ConnectorRun.open(run)
        baselines, _ = fit_baselines(load_connectors([there], device=CPU), device=CPU)
        return {"connector": there.load_connector(CPU), **baselines}


@pytest.fixture
def bench(tmp_path, tiny_model, tiny_text):
    return Bench(tmp_path, tiny_model, tiny_text)


def assert_agrees(report: ConnectorReport, expected: dict[str, object]) -> None:
    """Means agree with those of a plain computation, ratios of losses with the report's own."""
    for key in expected.keys() - {"maps", "alive"}:
        rel = LOSS if key.startswith("ce_") else OTHER
        assert getattr(report, key) == pytest.approx(expected[key], rel=rel), key
    room, room_of_sae = report.ce_zero - report.ce_clean, report.ce_zero - report.ce_sae
    assert report.loss_recovered_sae == pytest.approx(room_of_sae / room, rel=1e-9)
    for found, plain in zip(report.maps, expected["maps"], strict=True):
        assert found.ce == pytest.approx(plain["ce"], rel=LOSS)
        gain = report.ce_zero - found.ce
        assert found.loss_recovered == pytest.approx(gain / room, rel=1e-9)
        assert found.recovered_of_sae == pytest.approx(gain / room_of_sae, rel=1e-9)
        for key in ("fvu", "mse", "kl"):
            value = getattr(found, key)
            assert value == pytest.approx(plain[key], rel=2 * OTHER, abs=1e-7), (found.name, key)
        quantiles = np.quantile(plain["explained"], (0.05, 0.25, 0.5, 0.75, 0.95))
        np.testing.assert_allclose(found.explained_quantiles, quantiles, rtol=1e-4, atol=1e-5)
    explained = iter(expected["maps"][0]["explained"])
    for told, alive in zip(report.explained, expected["alive"], strict=True):
        assert told == (pytest.approx(next(explained), rel=1e-4, abs=1e-5) if alive else None)


def test_every_number_agrees_with_a_plain_float64_computation(bench):
    run = bench.connect()
    (report,) = bench.evaluate(run, batch_size=5)
    maps = bench.maps(run)
    names = ["connector", "mean", "weights", "correlation", "ridge"]
    assert [one.name for one in report.maps] == [*maps] == names
    plain = Plain(bench.model, bench.text)
    assert_agrees(report, plain_eval(plain, *bench.coders, [*maps.values()]))
    assert 10 < report.n_out - report.n_alive < report.n_out / 2
    assert report.above == tuple((maps["connector"].W.abs() > 0.1).sum(0).tolist())
    assert (report.sites, report.n_in, report.n_out) == (SITES, N_LATENTS, N_LATENTS)
    assert len({one.ce for one in report.maps}) == len(report.maps) == 5
    assert report.notes == report.excluded == ()


def test_rows_that_the_saes_were_not_trained_on_can_be_left_out_and_count_nowhere(bench):
    run = bench.connect()
    leave_out(bench.ends[0], exclude_positions=[0, 7])
    leave_out(bench.ends[1], exclude_positions=[3], exclude_norms=1.1)
    counted, left = (bench.evaluate(run, as_trained=value)[0] for value in (False, True))
    assert counted.excluded == ()
    assert any("`as_trained=True`" in note and "positions 0, 7" in note for note in counted.notes)
    assert left.excluded == (
        "positions 0, 7", "position 3", "rows whose norm is above 1.1 times the median",
    )  # fmt: skip
    assert not any("`as_trained=True`" in note for note in left.notes)
    plain = Plain(bench.model, bench.text)
    x1, x2, _ = plain.both()
    kept = rows_left(plain.tokens, x1, positions=(0, 7)) & rows_left(
        plain.tokens, x2, positions=(3,), norms=1.1
    )
    assert left.n_tokens == int(kept.sum()) < counted.n_tokens
    maps = [*bench.maps(run).values()]
    assert_agrees(left, plain_eval(plain, *bench.coders, maps, kept))


def test_a_connector_that_cannot_err_recovers_what_the_sae_does(bench, tmp_path):
    """The source's latents are the target's: one SAE at one site, through the identity."""
    ends = tuple(save_sae(tmp_path / name, make_sae(seed=2), model=bench.model) for name in "ab")
    eye = Connector(torch.eye(N_LATENTS), torch.zeros(N_LATENTS))
    (report,) = bench.evaluate(connect(bench.store, ends, tmp_path / "eye", eye).path)
    assert report.connector.fvu == report.connector.mse == 0
    assert report.connector.ce == report.ce_sae
    assert report.connector.recovered_of_sae == 1
    assert report.connector.loss_recovered == report.loss_recovered_sae
    assert {value for value in report.explained if value is not None} == {1}
    assert report.layer is None  # not from an MLP's input to its output


def test_connectors_between_the_same_saes_share_passes_and_give_what_they_give_alone(bench, passes):
    runs = [bench.connect(seed=seed) for seed in range(3)]
    alone = [bench.evaluate(run)[0] for run in runs]
    together, n_passes = passes(lambda: bench.evaluate(*runs, batch_size=N_CONTEXTS))
    assert n_passes == 1 + 1 + 2 + 3 + 4  # means, clean, bounds, connectors, baselines
    assert [report.run for report in together] == runs
    assert len({report.connector.ce for report in together}) == 3
    for one, other in zip(together, alone, strict=True):
        assert one.connector.ce == pytest.approx(other.connector.ce, rel=1e-6)
        assert one.connector.fvu == pytest.approx(other.connector.fvu, rel=1e-6)
        for mine, its in zip(one.explained, other.explained, strict=True):
            assert mine == (None if its is None else pytest.approx(its, rel=1e-5, abs=1e-6))
        assert one.above == other.above


def test_connectors_between_other_saes_keep_their_order_and_load_the_model_once(
    bench, tmp_path, monkeypatch
):
    first, third = bench.connect(seed=0), bench.connect(seed=1)
    bench.ends = bench.ends[0], save_sae(
        tmp_path / "topk", make_sae(arch=TopKConfig(k=3)), model=bench.model, site=SITES[1],
        arch=TopKConfig(k=3),
    )  # fmt: skip
    second = bench.connect(seed=2)
    loaded = list[str]()

    def counted(name, **options):
        loaded.append(name)
        return load_model(name, **options)

    monkeypatch.setattr("pipeline.evaluate.setup.load_model", counted)
    reports = bench.evaluate(first, second, third)
    assert [report.run for report in reports] == [first, second, third]
    assert [report.l0_out <= 3 for report in reports] == [False, True, False]
    assert len({report.ce_sae for report in reports}) == 2
    assert len({report.ce_zero for report in reports}) == 1
    assert len(loaded) == 1


def test_a_linear_connector_predicts_below_zero_too(bench):
    relu, linear = bench.evaluate(
        bench.connect(name="a"), bench.connect(name="b", activation="linear")
    )
    assert (relu.activation, linear.activation) == ("relu", "linear")
    assert relu.connector.fvu < linear.connector.fvu


def test_without_the_store_a_note_says_what_is_missing_and_how_to_get_it(bench):
    run = bench.connect()
    (whole,) = bench.evaluate(run)
    (bench.folder / "elsewhere").mkdir()
    gone = bench.store.path.rename(bench.folder / "elsewhere/moved.actstore")
    (report,) = bench.evaluate(run)
    assert report.baselines == ()
    assert report.connector == whole.connector
    (note,) = report.notes
    assert "no baselines" in note and bench.store.path.name in note and "harvest it again" in note
    assert str(bench.folder) not in note
    gone.rename(bench.store.path)
    say_of_store(run, fingerprint="0" * 64)
    (other,) = bench.evaluate(run)
    assert "has changed since" in other.notes[0]


def test_intervals_hold_the_numbers_they_bound_and_are_the_same_again(bench):
    run = bench.connect()
    (report,), (again,) = bench.evaluate(run), bench.evaluate(run)
    assert report == again
    for scored in report.maps:
        names = [one.metric for one in scored.intervals]
        assert names[:2] == ["fvu", "loss_recovered"]
        # In some of the draws the SAE recovers nothing, and then there is no share of it.
        assert names[2:] in ([], ["recovered_of_sae"])
        for one in scored.intervals:
            assert one.low < getattr(scored, one.metric) < one.high, one
    (none,) = bench.evaluate(run, n_bootstrap=0)
    assert none.connector.intervals == ()
    assert replace(none.connector, intervals=report.connector.intervals) == report.connector
    (short,) = bench.evaluate(run, tokens=CTX_LEN)
    assert short.connector.intervals == ()  # one context varies with nothing


def test_the_weights_of_an_mlp_are_counted_between_its_input_and_its_output_alone(bench):
    (report,) = bench.evaluate(bench.connect())
    mlp = transformers.GPTNeoXForCausalLM.from_pretrained(bench.model).gpt_neox.layers[1].mlp
    w = torch.cat([mlp.dense_h_to_4h.weight.flatten(), mlp.dense_4h_to_h.weight.flatten()])
    assert report.layer is not None
    assert report.layer.n == len(w) == 2 * 3 * WIDTH**2
    assert report.layer.n_above == int((w.abs() > report.tau).sum()) < len(w)
    lm = load_model(str(bench.model), device=CPU, dtype=torch.float32)
    others = ("resid_pre.0", SITES[1]), ("resid_post.1", SITES[1]), (SITES[0], "resid_post.1")
    for source, target in others:
        assert layer_weights(lm, Site.parse(source), Site.parse(target), tau=0.1) is None
    # There the MLP reads what attention has added to.
    in_turn = replace(lm.shape, family=replace(lm.shape.family, parallel=False))
    lm = LanguageModel(lm.module, files=lm.files, shape=in_turn)
    assert layer_weights(lm, *map(Site.parse, SITES), tau=0.1) is None
    assert layer_weights(lm, *map(Site.parse, ("resid_mid.1", "mlp_out.1")), tau=0.1) is not None


def test_a_report_is_read_back_as_it_was_written(bench):
    run = bench.connect()
    assert load_connector_report(run) is None
    (report,) = bench.evaluate(run)
    assert report.sha256 == ConnectorRun.open(run).sha256
    path = save_connector_report(report)
    assert path == run / CONNECT_EVAL_FILE
    assert load_connector_report(run) == report
    moved = run.rename(bench.folder / "elsewhere")
    assert load_connector_report(moved) == replace(report, run=moved)
    path = moved / CONNECT_EVAL_FILE
    for content in ("{", path.read_text().replace('"fvu"', '"fvx"'), '{"maps": []}', "[]"):
        path.write_text(content)
        with pytest.raises(CheckpointError, match="saepipe eval"):
            load_connector_report(moved)


def test_the_table_has_a_line_a_connector_and_the_baselines_once(bench, tmp_path):
    reports = bench.evaluate(bench.connect(seed=0, l1=0.5), bench.connect(seed=1))
    write_connector_table(reports, tmp_path / "eval.csv")
    head, *lines = ((tmp_path / "eval.csv").read_text()).splitlines()
    names = head.split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines]
    assert [row["map"] for row in rows] == [
        "connector", "mean", "weights", "correlation", "ridge", "connector",
    ]  # fmt: skip
    first = reports[0].connector
    assert (tmp_path / rows[0]["run"]).resolve() == reports[0].run.resolve()
    assert (rows[1]["run"], rows[1]["l1"]) == ("", "")
    assert float(rows[0]["l1"]) == 0.5
    assert float(rows[0]["fvu"]) == first.fvu
    assert float(rows[0]["fvu_low"]) < first.fvu < float(rows[0]["fvu_high"])
    assert float(rows[0]["above_q50"]) == first.above_quantiles[2]
    assert float(rows[0]["mean_abs_W"]) == first.l1
    assert int(rows[0]["layer_n"]) == reports[0].layer.n
    assert rows[0]["sites"] == "resid_pre.1; mlp_out.1"


def test_progress_is_told_up_to_the_end(bench):
    run, seen = bench.connect(), []
    config = EvalConfig(runs=(run,), text=bench.text, tokens=120, batch_size=4, device="cpu")
    evaluate_connectors(config, on_progress=seen.append)
    assert [(p.stage, p.done) for p in seen] == [
        (stage, n * CTX_LEN) for stage in ("mean", "losses") for n in (4, 8, 10)
    ]
    assert {(p.total, p.unit) for p in seen} == {(120, "tokens")}


def test_what_a_reader_must_know_of_the_text_and_the_model_of_the_store_is_noted(bench):
    run = bench.connect()
    say_of_store(run, text=bench.text, model_fingerprint="another")
    (changed,) = bench.evaluate(run)
    assert any("not held out" in note for note in changed.notes)
    assert any("have changed since" in note for note in changed.notes)


def test_a_connector_of_no_language_model_is_refused_before_its_sites_are_read(bench):
    run = bench.connect()
    say_of_store(run, model="")
    there = ConnectorRun.open(run)
    replace(there, source=replace(there.source, site="h1")).write()
    with pytest.raises(ConfigError, match="--model"):
        bench.evaluate(run)


def test_a_model_without_the_sites_is_refused(bench, tmp_path):
    wide = make_model(tmp_path / "wide", width=2 * WIDTH)
    with pytest.raises(ConfigError, match=r"an SAE of 16 dimensions, but resid_pre.1 .* has 32"):
        bench.evaluate(bench.connect(), model=str(wide))


def test_a_text_of_which_nothing_counts_is_refused(bench):
    run = bench.connect()
    leave_out(bench.ends[0], exclude_positions=list(range(CTX_LEN)))
    shutil.rmtree(bench.store.path)  # no baseline can be fitted to nothing
    with pytest.raises(ConfigError, match="leaves no prediction"):
        bench.evaluate(run, as_trained=True)


def test_weights_that_are_not_numbers_are_refused(bench):
    run, broken = bench.connect(seed=0), bench.connect(seed=1)
    there = ConnectorRun.open(broken)
    connector = there.load_connector(CPU)
    connector.b[3] = math.nan
    there.finish(connector)
    with pytest.raises(DataError, match="connector1 are not finite"):
        bench.evaluate(run, broken)
