"""A model that is steered while it runs: at which positions, with a cache and without."""

import pytest
import saepipe as sp
import torch

from pipeline.errors import ConfigError
from pipeline.lm.model import LanguageModel
from tests.helpers.models import TOKENS, hooks_on
from tests.helpers.refusals import refused
from tests.helpers.tiny import make_sae

SITES = ("mlp_out.1", "resid_post.0")
WHERE = ("all", "prompt", "new")


class Spy:
    """A steering that leaves x as it is, and keeps what it was shown."""

    def __init__(self, d_in: int, *, by: float = 0.0) -> None:
        self.d_in, self.latents, self.by, self.shapes = d_in, (0,), by, list[tuple[int, ...]]()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape[:2]))
        return x + self.by


@pytest.fixture(scope="module")
def model(folder) -> LanguageModel:
    return LanguageModel.from_pretrained(folder, device="cpu")


def steering(model: LanguageModel, **edit) -> sp.Steering:
    return sp.Steering(make_sae(d_in=model.shape.d_model), **edit)


EDITS = {
    "add": {"add": {3: 4.0}},
    "clamp": {"clamp": {3: 4.0}},
    "both": {"add": {1: -5.0}, "clamp": {3: 6.0}, "ablate": [7, 8]},
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("n_prompt", [1, 2, 12])
def test_with_a_cache_or_without_it_writes_the_same(model, where, edit, n_prompt):
    prompt, edits = TOKENS[:, :n_prompt], {site: steering(model, **EDITS[edit]) for site in SITES}
    with model.steered(edits, where=where):
        cached = model.generate(prompt, max_new_tokens=10)
        whole = model.generate(prompt, max_new_tokens=10, use_cache=False)
        steered, _ = model.run_with_acts(prompt, [])
    assert torch.equal(cached, whole)
    assert not hooks_on(model)
    plain, _ = model.run_with_acts(prompt, [])
    assert torch.equal(steered, plain) == (where == "new")


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("n_prompt", [1, 5])
def test_positions_are_told_apart_by_counting(model, use_cache, n_prompt):
    shown = {}
    for where in WHERE:
        spy = Spy(model.shape.d_model)
        with model.steered({"mlp_out.1": spy}, where=where):
            model.generate(TOKENS[:, :n_prompt], max_new_tokens=4, use_cache=use_cache)
        shown[where] = spy.shapes
    prompt, steps = (2, n_prompt), (1, 1, 1) if use_cache else (1, 2, 3)
    assert shown["prompt"] == [prompt] * (1 if use_cache else 4)
    assert shown["new"] == [(2, n) for n in steps]
    whole = [(2, n if use_cache else n_prompt + n) for n in steps]
    assert shown["all"] == [prompt, *whole]  # with a cache, a token costs a step


@pytest.mark.parametrize("where", WHERE)
def test_a_generation_is_what_passes_over_whole_texts_make(model, where):
    """Which positions are edited is written out: of those that are, every later token depends."""
    steer, n_prompt = steering(model, add={3: 6.0}), 4
    with model.steered({"mlp_out.1": steer}, where=where):
        ids = model.generate(TOKENS[:, :n_prompt], max_new_tokens=6)
    edited = {"all": slice(None), "prompt": slice(n_prompt), "new": slice(n_prompt, None)}[where]

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        made = x.clone()
        made[:, edited] = steer(x[:, edited])
        return made

    for end in range(n_prompt, ids.shape[1]):
        with model.spliced({"mlp_out.1": by_hand}):
            logits, _ = model.run_with_acts(ids[:, :end], sites=[])
        assert torch.equal(logits[:, -1].argmax(-1), ids[:, end])


def test_a_batch_is_steered_row_by_row(model):
    with model.steered({"mlp_out.1": steering(model, add={3: 6.0})}, where="new"):
        both = model.generate(TOKENS[:, :5], max_new_tokens=6)
        alone = [model.generate(row[None], max_new_tokens=6) for row in TOKENS[:, :5]]
    assert torch.equal(both, torch.cat(alone))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("where", WHERE)
def test_steering_by_nothing_keeps_every_bit(folder, precision, where):
    model = LanguageModel.from_pretrained(folder, device="cpu", precision=precision)
    alone, _ = model.run_with_acts(TOKENS, sites=[])
    text = model.generate(TOKENS, max_new_tokens=6)
    edits = {site: steering(model, add={3: 0.0, 5: 0.0}) for site in SITES}
    with model.steered(edits, where=where):
        logits, _ = model.run_with_acts(TOKENS, sites=[])
        assert torch.equal(model.generate(TOKENS, max_new_tokens=6), text)
    assert torch.equal(logits, alone)


def test_a_model_in_half_precision_is_steered_and_keeps_its_numbers(folder):
    model = LanguageModel.from_pretrained(folder, device="cpu", precision="bf16")
    before = model.run_with_acts(TOKENS, sites="mlp_out.1")[1]["mlp_out.1"]
    steer = steering(model, add={3: 4.0}, clamp={4: 1.0})
    with model.steered({"mlp_out.1": steer}):
        after = model.run_with_acts(TOKENS, sites="mlp_out.1")[1]["mlp_out.1"]
        model.generate(TOKENS, max_new_tokens=3)
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, steer(before.float()).bfloat16())


def test_outside_of_a_generation_all_is_prompt(model):
    (alone, _), shown = model.run_with_acts(TOKENS, sites=[]), {}
    for where in WHERE:
        with model.steered({"mlp_out.1": steering(model, add={3: 4.0})}, where=where):
            model.generate(TOKENS, max_new_tokens=2)  # what it counted does not last
            shown[where], _ = model.run_with_acts(TOKENS, sites=[])
    assert torch.equal(shown["new"], alone)
    assert torch.equal(shown["prompt"], shown["all"])
    assert not torch.equal(shown["all"], alone)


def test_what_cannot_be_steered_is_one_line(model):
    wide = sp.Steering(make_sae(d_in=model.shape.d_model + 1), ablate=[1])
    steer = steering(model, ablate=[1])
    for edits, where, told in (
        ({"mlp_out.1": wide}, "all", "has d_in 33, but mlp_out.1 .* is 32 wide"),
        ({"mlp_out.9": steer}, "all", "has layers 0 to 2"),
        ({"mlp_out.1": steer.sae}, "all", "takes a saepipe.Steering, got SAE"),
        (steer, "all", "takes a Steering for each site"),
        ({"mlp_out.1": steer}, "old", "where is one of all, prompt, new, got 'old'"),
    ):
        with refused(ConfigError, told), model.steered(edits, where=where):
            pass
    assert not hooks_on(model)
