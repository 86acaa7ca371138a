"""What a pass over a store sees, and what removing a feature does, against plain computations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

import pipeline.connect.reading.effects
import pipeline.connect.reading.observe
from pipeline.connect.connector import PairLatents
from pipeline.connect.reading.effects import Link, chosen_links, measure
from pipeline.connect.reading.observe import Observed, observe
from pipeline.connect.reading.read import features_of, open_context
from pipeline.connect.reading.relations import equations
from pipeline.connect.reading.values import Equation, Term, agreement
from pipeline.connect.run import ConnectorRun
from pipeline.connect.train import PairFeeder
from pipeline.errors import ConfigError, DataError
from pipeline.runs.sae_run import SAERun
from tests.helpers.connector_pages import make_equation
from tests.helpers.plain_eval import leave_out
from tests.helpers.readings import Connected, connect, make_connected
from tests.helpers.refusals import refused

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def connected(tmp_path_factory) -> Connected:
    return make_connected(tmp_path_factory.mktemp("connected"))


@pytest.fixture(scope="module")
def context(connected):
    run = connected.run
    features = features_of(run.source, store=None, device="cpu")
    return open_context(run, run.load_pair(CPU), run.load_connector(CPU), features)


def seen(connected: Connected, n_rows: int, *, run: ConnectorRun | None = None) -> Observed:
    run = run or connected.run
    feed = PairFeeder(connected.world.store, [run], device=CPU).sample(run.ends, n_rows=n_rows)
    return observe(feed, run.load_connector(CPU))


def encoded(coder, x: np.ndarray) -> np.ndarray:
    """Of a ReLU coder, in float64."""
    W, b_enc, b_dec = (p.detach().double().numpy() for p in (coder.W_enc, coder.b_enc, coder.b_dec))
    return np.maximum((x - b_dec) @ W + b_enc, 0)


def dense(active) -> np.ndarray:
    z = np.zeros((active.n_rows, active.n_features))
    z[active.row, active.feature] = active.value
    return z


@pytest.mark.parametrize("n_rows", [480, 250, 7, 500])
def test_a_pass_sees_rows_from_all_over_the_store_each_once_and_both_sites_aligned(
    connected, n_rows, monkeypatch
):
    monkeypatch.setattr(pipeline.connect.reading.observe, "_BLOCK", 64 * 50)
    store, pair = connected.world.store, connected.run.load_pair(CPU)
    x1, x2 = (
        np.concatenate([store.shard(site, i) for i in range(store.n_shards)]) for site in pair.sites
    )
    z1, z2 = encoded(pair.source, x1), encoded(pair.target, x2)
    found = seen(connected, n_rows)
    assert found.n_rows == min(n_rows, 480)
    alike, rows = (  # the first row that is the same: tokens at the start of a context come again
        np.array([int((np.abs(z1 - row).max(1) < 1e-3).argmax()) for row in z])
        for z in (z1, dense(found.source))
    )
    np.testing.assert_allclose(dense(found.source), z1[rows], atol=2e-3)
    there, met = (np.bincount(numbers, minlength=480) for numbers in (alike, rows))
    assert (met <= there).all()
    assert met.sum() == min(n_rows, 480)
    assert n_rows < 250 or len(np.unique(rows // 120)) == store.n_shards
    z1, z2 = z1[rows], z2[rows]
    np.testing.assert_allclose(dense(found.target), z2, atol=1e-4)
    connector = connected.run.load_connector(CPU)
    W, b = connector.W.double().numpy(), connector.b.double().numpy()
    error = np.square(np.maximum(z1 @ W + b, 0) - z2).sum(0)
    around = np.square(z2 - z2.mean(0)).sum(0)
    varies = around > 1e-9
    np.testing.assert_array_equal(np.isnan(found.explained), ~varies)
    np.testing.assert_allclose(
        found.explained[varies], 1 - error[varies] / around[varies], rtol=1e-3, atol=1e-4
    )


def test_blocks_give_what_one_block_gives(connected):
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(90, 64, generator=generator).relu() for _ in range(2))
    connector, told = connected.run.load_connector(CPU), []
    whole = observe([PairLatents(z1=z1, z2=z2)], connector)
    parts = zip(z1.split([40, 0, 50]), z2.split([40, 0, 50]), strict=True)
    found = observe([PairLatents(z1=a, z2=b) for a, b in parts], connector, on_rows=told.append)
    assert told == [40, 40, 90]
    np.testing.assert_array_equal(dense(found.source), z1.numpy())
    np.testing.assert_array_equal(dense(found.target), z2.numpy())
    np.testing.assert_allclose(found.explained, whole.explained, rtol=1e-6)


def test_a_pass_stops_where_latents_fill_the_memory(connected, monkeypatch):
    z = torch.ones(10, 64)
    monkeypatch.setattr(pipeline.connect.reading.observe, "MAX_ACTIVE", 2 * 640 + 1)
    feed = iter([PairLatents(z1=z, z2=z)] * 5)
    found = observe(feed, connected.run.load_connector(CPU))
    assert found.n_rows == found.target.n_rows == 20
    assert len(list(feed)) == 3


def test_rows_that_an_sae_was_not_trained_on_are_not_read(connected, tmp_path):
    world, (first, second) = connected.world, connected.run.ends
    left = world.run("left", site=second.site, coder=SAERun.open(second.run).load_sae(CPU))
    leave_out(left, exclude_positions=[0, 3])
    run = connect(world.store, (first.run, left), tmp_path / "connector")
    assert seen(connected, 480, run=run).n_rows == 480 - 2 * 40


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ([], "no row that both SAEs were trained on"),
        ([PairLatents(z1=torch.ones(3, 64), z2=torch.full((3, 64), torch.nan))], "not finite"),
    ],
    ids=["no row", "not finite"],
)
def test_rows_of_which_nothing_can_be_read_are_refused_in_one_line(connected, feed, words):
    with refused(DataError, words):
        observe(feed, connected.run.load_connector(CPU))


def plain_effects(connected: Connected, contexts: np.ndarray, feature: int, output: int):
    """Both effects with hooks on the transformers model, SAEs and connector in float64."""
    model = transformers.GPTNeoXForCausalLM.from_pretrained(connected.world.model).double()
    layer, pair = model.gpt_neox.layers[1], connected.run.load_pair(CPU)
    connector = connected.run.load_connector(CPU)
    acts: dict[str, np.ndarray] = {}
    removed: list[np.ndarray | None] = [None]

    def before(_, args):
        x = args[0] if removed[0] is None else args[0] - torch.from_numpy(removed[0])
        acts["in"] = x.numpy()
        return (x, *args[1:])

    layer.register_forward_pre_hook(before)
    layer.mlp.register_forward_hook(lambda _, __, out: acts.update(out=out.numpy()))
    tokens = torch.from_numpy(contexts.astype(np.int64))
    with torch.no_grad():
        model(tokens)
        z1, z2 = encoded(pair.source, acts["in"]), encoded(pair.target, acts["out"])
        W_dec = pair.source.W_dec.detach().double().numpy()
        removed[0] = z1[..., feature, None] * W_dec[feature]
        model(tokens)
    z2_without = encoded(pair.target, acts["out"])
    z1_without = z1.copy()
    z1_without[..., feature] = 0
    w, b = (p.double().numpy()[..., output] for p in (connector.W, connector.b))
    linear = np.maximum(z1 @ w + b, 0) - np.maximum(z1_without @ w + b, 0)
    active = z1[..., feature] > 0
    true = z2[..., output] - z2_without[..., output]
    return linear[active].mean(), true[active].mean(), int(active.sum())


def test_effects_are_those_of_a_plain_computation_with_hooks(connected, context, monkeypatch):
    found = seen(connected, 480)
    connector = connected.run.load_connector(CPU)
    told = [e for e in equations(found, connector, n_terms=3) if e.terms][::9]
    links = [Link(input=t.feature, output=e.output) for e in told for t in e.terms]
    links.append(Link(input=links[0].input, output=links[-1].output, control=True))
    monkeypatch.setattr(pipeline.connect.reading.effects, "_CELLS", 12 * 64 * 5)
    effects = measure(context, links)
    assert {(e.input, e.output) for e in effects} == {(k.input, k.output) for k in links}
    sizes = []
    for effect in effects:
        contexts = context.contexts(effect.input)
        linear, true, n = plain_effects(connected, contexts, effect.input, effect.output)
        assert effect.n_tokens == n
        assert effect.linear == pytest.approx(linear, abs=2e-5)
        assert effect.true == pytest.approx(true, abs=2e-5)
        assert effect.weight == connector.W[effect.input, effect.output]
        sizes.append((abs(linear), abs(true)))
    assert np.min(np.max(sizes, axis=0)) > 0.05
    assert any(e.control for e in effects)


def test_top_contexts_are_those_in_which_the_input_is_largest(connected, context):
    store, pair = connected.world.store, connected.run.load_pair(CPU)
    contexts = store.contexts(np.arange(store.n_contexts), sites=[pair.sites[0]])
    z = np.stack([encoded(pair.source, c.acts[pair.sites[0]]) for c in contexts])
    feature = int(z.mean((0, 1)).argmax())
    order = np.argsort(-z[..., feature].max(1), kind="stable")[:12]
    np.testing.assert_array_equal(context.contexts(feature), store.tokens(order))


def test_a_dead_input_has_no_effect_to_tell(connected, context):
    dead = int((seen(connected, 480).source.n_active == 0).argmax())
    assert context.contexts(dead).shape[0] == 0
    assert measure(context, [Link(input=dead, output=1)]) == ()


def test_a_site_that_comes_first_cannot_be_reached(tmp_path):
    backwards = make_connected(tmp_path, sites=("mlp_out.1", "resid_pre.1"), n_contexts=10)
    run = backwards.run
    features = features_of(run.source, store=None, device="cpu")
    with pytest.raises(ConfigError, match="resid_pre.1 does not depend on mlp_out.1"):
        open_context(run, run.load_pair(CPU), run.load_connector(CPU), features)


def equation_of(output: int, *contributions: float) -> Equation:
    terms = tuple(
        Term(feature=10 * output + i, weight=1.0, contribution=c, share=0.1)
        for i, c in enumerate(contributions)
    )
    return replace(make_equation(output), adding=terms, subtracting=())


def test_links_are_the_strongest_terms_of_some_outputs_and_unconnected_pairs():
    told = [equation_of(o, 1.0, -3.0, 2.0) for o in range(6)] + [equation_of(6)]
    W = torch.zeros(60, 7)
    for equation in told:
        for term in equation.terms:
            W[term.feature, equation.output] = term.weight
    links = chosen_links(told, W, n_outputs=4, n_terms=2, seed=0)
    terms = [(k.input, k.output) for k in links if not k.control]
    outputs = sorted({o for _, o in terms})
    assert len(outputs) == 4
    assert terms == [(10 * o + i, o) for o in outputs for i in (1, 2)]
    controls = [k for k in links if k.control]
    assert sorted(k.output for k in controls) == outputs
    assert all(W[k.input, k.output] == 0 for k in controls)
    assert {k.input for k in controls} <= {i for i, _ in terms}
    assert links == chosen_links(told, W, n_outputs=4, n_terms=2, seed=0)
    assert links != chosen_links(told, W, n_outputs=4, n_terms=2, seed=1)


def test_agreement_is_pearson_spearman_and_the_slope_of_the_true_on_the_predicted():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40).round(1)
    y = x**3 + rng.normal(size=40).round(1)
    found = agreement(list(zip(x, y, strict=True)))
    ranks = [np.array([(v < w).sum() + (v == w).sum() / 2 for w in v]) for v in (x, y)]
    assert len(np.unique(x)) < 40
    assert found.n == 40
    assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-12)
    assert found.slope == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-9)


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(0.1, 1.0), (0.1, 2.0), (0.1, 4.0)]])
def test_what_does_not_vary_agrees_with_nothing(points):
    found = agreement(points)
    assert (found.n, found.pearson, found.spearman, found.slope) == (len(points), None, None, None)
