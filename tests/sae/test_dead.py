import math
from functools import partial
from itertools import permutations, takewhile

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from pipeline.sae.dead import Resampling, SilentRows, generator_of, resample_random, resample_worst

F, D = 12, 6
GATED = {"b_gate": 0.0, "r_mag": 0.0, "b_mag": 0.0}


def make(*, n_latents=F, width=D, starts=None, unit_norm=True, tied=False):
    """An SAE and moments full of numbers that are nowhere a start value."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=rng) + 3

    starts = {"b_enc": 0.0} if starts is None else starts
    params = {"E": draw(n_latents, width), "W_dec": draw(n_latents, width), "b_dec": draw(width)}
    params |= {name: draw(n_latents) for name in starts}
    if tied:
        params["E"] = params["W_dec"]
    moments = {
        key: {n: draw(*p.shape) for n, p in params.items() if not (tied and n == "E")}
        for key in ("exp_avg", "exp_avg_sq")
    }
    return Resampling(params=params, moments=moments, unit_norm=unit_norm, starts=starts)


def tensors_of(sae: Resampling) -> dict[str, torch.Tensor]:
    named = {name: p.clone() for name, p in sae.params.items()}
    for key, moment in sae.moments.items():
        named |= {f"{key}.{name}": m.clone() for name, m in moment.items()}
    return named


def mask(*latents, n_latents=F) -> torch.Tensor:
    dead = torch.zeros(n_latents, dtype=torch.bool)
    dead[list(latents)] = True
    return dead


def at_random(sae, dead, seed=0):
    return resample_random(sae, dead, generator=generator_of(seed, 1))


def at_worst(sae, dead, seed=0, *, loss=None):
    rng = torch.Generator().manual_seed(9)
    rows, losses = torch.randn(50, D, generator=rng), torch.rand(50, generator=rng) + 0.1
    loss = losses if loss is None else torch.full_like(losses, loss)
    generator = generator_of(seed, 1)
    return resample_worst(sae, dead, centred=rows, loss=loss, generator=generator)


both_ways = pytest.mark.parametrize("resample", [at_random, at_worst])


@both_ways
@pytest.mark.parametrize("starts", [None, {"b_enc": 0.0, "log_threshold": -3.5}, GATED])
def test_a_dead_latent_starts_anew_and_every_other_keeps_its_bits(resample, starts):
    sae = make(starts=starts)
    before, dead = tensors_of(sae), mask(0, 3, 11)
    assert resample(sae, dead) == 3
    for name, now in tensors_of(sae).items():
        parameter = name.rpartition(".")[2]
        if parameter == "b_dec":
            assert torch.equal(now, before[name]), name
            continue
        assert torch.equal(now[~dead], before[name][~dead]), name
        assert (now[dead] != before[name][dead]).all(), name
        if "." in name:
            assert (now[dead] == 0).all(), name
        elif parameter in sae.starts:
            assert (now[dead] == sae.starts[parameter]).all(), name


@both_ways
@pytest.mark.parametrize("tied", [False, True])
def test_new_dictionary_rows_have_unit_norm(resample, tied):
    sae = make(tied=tied)
    resample(sae, mask(1, 2))
    norms = sae.params["W_dec"].norm(dim=-1)
    torch.testing.assert_close(norms[1:3], torch.ones(2))
    assert (norms[3:] > 2).all()  # a latent that was not resampled is not touched, whatever it has
    assert (sae.params["E"] is sae.params["W_dec"]) == tied
    assert (sae.moments["exp_avg"]["W_dec"][1:3] == 0).all()


@both_ways
def test_before_the_first_step_there_are_no_moments(resample):
    sae = make()
    empty = Resampling(params=sae.params, moments={"exp_avg": {}, "exp_avg_sq": {}}, unit_norm=True)
    assert resample(empty, mask(0)) == 1


@both_ways
def test_the_same_seed_and_step_draw_the_same(resample):
    def rows(seed):
        sae = make()
        resample(sae, mask(0, 5), seed)
        return sae.params["E"][[0, 5]]

    assert torch.equal(rows(3), rows(3))
    assert not torch.equal(rows(3), rows(4))


def test_every_seed_and_step_has_draws_of_its_own():
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2**63, 1), (-1, 1), (0, 2**33), (10, 5), (5, 10)]
    first = [torch.rand(4, generator=generator_of(*pair)).tolist() for pair in pairs]
    assert first == [torch.rand(4, generator=generator_of(*pair)).tolist() for pair in pairs]
    assert len({tuple(draw) for draw in first}) == len(pairs)


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """In standard deviations above its mean."""
    value, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    return (value - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("width", [10, 24])
def test_random_rows_are_uniform_within_the_kaiming_bound(width):
    n = 2000
    sae = make(n_latents=n, width=width, unit_norm=False)
    at_random(sae, torch.ones(n, dtype=torch.bool))
    bound = math.sqrt(6 / width)
    for name in ("E", "W_dec"):
        values = sae.params[name].double().numpy()
        assert np.abs(values).max() <= bound
        counts, _ = np.histogram(values, bins=20, range=(-bound, bound))
        assert abs(chi_square(counts, np.full(20, values.size / 20))) < 5
        by_column = values.mean(0) / (bound / math.sqrt(3 * n))
        assert np.abs(by_column).max() < 5
    correlation = np.corrcoef(sae.params["E"].flatten(), sae.params["W_dec"].flatten())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(n * width)


def test_random_dictionary_rows_under_the_constraint_are_the_same_ones_scaled():
    free, unit = make(unit_norm=False), make()
    dead = mask(2, 7)
    at_random(free, dead)
    at_random(unit, dead)
    expected = free.params["W_dec"][dead] / free.params["W_dec"][dead].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(unit.params["W_dec"][dead], expected)
    assert torch.equal(unit.params["E"], free.params["E"])


def drawn(rows, loss, n_dead, seed) -> tuple[int, ...]:
    """Which rows the new dictionary rows point to."""
    sae = make(n_latents=n_dead + 1)
    dead = mask(*range(n_dead), n_latents=n_dead + 1)
    generator = generator_of(seed, 7)
    n = resample_worst(sae, dead, centred=rows, loss=loss, generator=generator)
    cosines = sae.params["W_dec"][:n] @ torch.nn.functional.normalize(rows, dim=-1).T
    assert n == 0 or float(cosines.amax(1).min()) > 1 - 1e-5
    return tuple(cosines.argmax(1).tolist())


def test_a_row_is_drawn_by_the_square_of_its_loss_and_once():
    """The law of two draws without replacement, by enumeration."""
    rows = torch.randn(4, D, generator=torch.Generator().manual_seed(0))
    loss = torch.tensor([1.0, 2.0, 0.0, 3.0])
    p = np.array([1, 4, 0, 9]) / 14
    n_draws = 1500
    found = [drawn(rows, loss, 2, seed) for seed in range(n_draws)]
    law = {
        (i, j): p[i] * p[j] / (1 - p[i]) for i, j in permutations(range(4), 2) if p[i] * p[j] > 0
    }
    assert sum(law.values()) == pytest.approx(1)
    assert {*found} == {*law}
    observed = np.array([found.count(pair) for pair in law])
    assert abs(chi_square(observed, n_draws * np.array([*law.values()]))) < 4


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_the_unit_of_the_loss_does_not_matter(scale):
    rows = torch.randn(30, D, generator=torch.Generator().manual_seed(0))
    loss = torch.rand(30, generator=torch.Generator().manual_seed(1)) + 0.5
    assert drawn(rows, loss * scale, 5, 3) == drawn(rows, loss, 5, 3)


def test_rows_without_a_direction_or_a_finite_loss_are_never_drawn():
    rows = torch.randn(8, D, generator=torch.Generator().manual_seed(0))
    rows[3] = 0
    loss = torch.tensor([0.0, math.inf, math.nan, 9.0, 1.0, 1.0, 1e-30, 1.0])
    for seed in range(20):
        assert sorted(drawn(rows, loss, 8, seed)) == [4, 5, 6, 7]


def test_more_dead_latents_than_rows_leave_the_rest_as_they_are():
    sae = make()
    before = tensors_of(sae)
    dead, generator = mask(1, 2, 5, 8), generator_of(0, 0)
    rows = torch.randn(2, D, generator=generator)
    assert resample_worst(sae, dead, centred=rows, loss=torch.ones(2), generator=generator) == 2
    changed = (sae.params["E"] != before["E"]).any(1)
    assert torch.equal(changed, mask(1, 2))
    assert torch.equal((sae.moments["exp_avg"]["b_enc"] == 0), mask(1, 2))


@pytest.mark.parametrize(
    ("resample", "dead"),
    [
        (at_random, ()),
        (at_worst, ()),
        (partial(at_worst, loss=0.0), (1,)),
        (partial(at_worst, loss=math.nan), (1,)),
    ],
)
def test_where_none_is_dead_or_no_row_is_badly_reconstructed_nothing_changes(resample, dead):
    sae = make()
    before = tensors_of(sae)
    assert resample(sae, mask(*dead)) == 0
    assert all(torch.equal(now, before[name]) for name, now in tensors_of(sae).items())


@pytest.mark.parametrize("dead", [(2, 5), tuple(range(F))])
def test_new_encoder_rows_have_a_fifth_of_the_norm_of_the_living(dead):
    sae = make()
    norms = sae.params["E"].double().norm(dim=-1)
    living = [i for i in range(F) if i not in dead] or range(F)
    expected = 0.2 * sum(float(norms[i]) for i in living) / len(living)
    assert at_worst(sae, mask(*dead)) == len(dead)
    for i in dead:
        E, W_dec = sae.params["E"][i], sae.params["W_dec"][i]
        assert float(E.norm()) == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(E / E.norm(), W_dec, rtol=1e-4, atol=1e-6)


@given(seed=st.integers(0, 2**31 - 1), window=st.integers(0, 40))
def test_dead_latents_are_those_a_brute_force_count_finds(seed: int, window: int):
    rng = np.random.default_rng(seed)
    silent = SilentRows(2, 5)
    history = []
    for _ in range(8):
        n_rows = int(rng.integers(1, 7))
        counts = rng.integers(1, 4, (2, 5)) * (rng.random((2, 5)) < 0.3)
        dtype = torch.float32 if seed % 2 else torch.int64
        silent.update(torch.from_numpy(counts).to(dtype), n_rows=n_rows)
        history.append((n_rows, counts))
        for place in np.ndindex(2, 5):
            since = takewhile(lambda past, place=place: not past[1][place], reversed(history))
            rows = sum(n_rows for n_rows, _ in since)
            assert silent.silent[place] == rows
            assert silent.dead(window)[place] == (rows >= window)


def test_a_resampled_latent_is_given_a_window_of_its_own():
    silent = SilentRows(2, 3)
    silent.update(torch.tensor([[0, 1, 0], [0, 0, 2]]), n_rows=10)
    silent.forgive(torch.tensor([[True, False, False], [False, False, False]]))
    assert silent.silent.tolist() == [[0, 0, 10], [10, 10, 0]]
    silent.update(torch.zeros(2, 3), n_rows=5)
    assert silent.dead(15).tolist() == [[False, False, True], [True, True, False]]


@given(seed=st.integers(0, 2**31 - 1), window=st.integers(1, 40))
def test_that_any_is_dead_is_known_without_looking_at_every_step(seed: int, window: int):
    rng = np.random.default_rng(seed)
    silent = SilentRows(2, 3)
    silent.restore(1, torch.tensor([0, int(rng.integers(0, 50)), 3]))
    for _ in range(30):
        assert silent.any_dead(window) == bool(silent.dead(window).any())
        silent.update(torch.from_numpy(rng.random((2, 3)) < 0.3).int(), n_rows=5)
        if rng.random() < 0.1:
            silent.forgive(silent.dead(window))


def test_a_device_is_asked_for_dead_latents_only_when_there_may_be_some(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "max", lambda x: asked.append(step) or x.amax())
    silent = SilentRows(1, 2)
    for step in range(60):
        if step < 35:
            assert not silent.any_dead(100)
        silent.update(torch.tensor([[1, step % 10 == 0]]), n_rows=10)
    assert asked == [10, 11, 21, 31]
