"""What fine-tuning changed, held to computations of their own in float64."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from pipeline.config.serialization import to_json
from pipeline.errors import CheckpointError
from pipeline.finetune import effects, firing
from pipeline.finetune.effects import Changes, Effects, Kept, find_effects, n_passes
from pipeline.finetune.firing import read_firing
from pipeline.finetune.meaning import _extremes, find_meaning, read_meaning
from pipeline.finetune.run import FinetunedRun
from pipeline.finetune.setting import open_setting
from pipeline.finetune.task import Rows
from pipeline.lm.sites import Site
from pipeline.sae.sae import TunedSAE
from pipeline.text.token_text import TokenTexts
from tests.helpers.refusals import refused
from tests.helpers.tiny import CTX_LEN, make_sae
from tests.helpers.tunings import finetune

CPU, SITE = torch.device("cpu"), Site.parse("mlp_out.1")


@pytest.fixture(scope="package")
def meaning(done):
    return done.meaning()


@pytest.fixture(scope="package")
def setting(done):
    return open_setting(done.config, [done.run])


@pytest.fixture(scope="package")
def plain(lm):
    """The model of another library, in float64."""
    return transformers.GPTNeoXForCausalLM.from_pretrained(lm.name).eval().double()


def plain_loss(plain, tuned: TunedSAE, rows: Rows, kept, *, keep_error: bool = False) -> float:
    """Held-out loss where the changes of these features alone are kept."""
    sae = tuned.sae
    W_enc, b_enc, W_dec, b_dec = (
        p.detach().double() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    )
    c, d = torch.ones(sae.d_sae).double(), torch.zeros(sae.d_sae).double()
    c[kept], d[kept] = tuned.c.detach().double()[kept], tuned.d.detach().double()[kept]

    def edit(_module, _args, x):
        pre = (x - b_dec) @ W_enc + b_enc
        after, before = ((z.relu() @ W_dec + b_dec) for z in (c * pre + d, pre))
        return x + after - before if keep_error else after

    handle = plain.gpt_neox.layers[1].mlp.register_forward_hook(edit)
    with torch.no_grad():
        logp = plain(rows.tokens.long()).logits[:, :-1].log_softmax(-1)
    handle.remove()
    loss = -logp.gather(-1, rows.tokens[:, 1:, None].long())[..., 0]
    return (loss if rows.counted is None else loss[rows.counted]).mean().item()


def changes_of(lm, rows: Rows, *, keep_error: bool = False, seed: int = 0) -> Changes:
    """Changes drawn at random, of some features, of the tiny SAE."""
    tuned = TunedSAE(make_sae())
    generator = torch.Generator().manual_seed(seed)
    some = torch.rand(tuned.d_sae, generator=generator) < 0.4
    tuned.c.data[some] += torch.randn(tuned.d_sae, generator=generator)[some] * 0.5
    tuned.d.data[some] += torch.randn(tuned.d_sae, generator=generator)[some] * 0.5
    return Changes(lm, SITE, tuned, rows, keep_error=keep_error, batch_size=4)


def rows_of(contexts, *, counted: bool) -> Rows:
    """Ten contexts; where only some predictions count, a different number in each."""
    tokens = contexts[:10]
    if not counted:
        return Rows(tokens=tokens)
    counts = torch.arange(CTX_LEN - 1)[None] < (torch.arange(10)[:, None] % 7 + 2)
    return Rows(tokens=tokens, counted=counts)


@pytest.mark.parametrize("keep_error", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_an_effect_is_what_the_loss_rises_by_without_that_change(
    lm, plain, contexts, keep_error, counted, monkeypatch
):
    monkeypatch.setattr(effects, "N_EXACT", 64)
    rows = rows_of(contexts, counted=counted)
    changes = changes_of(lm, rows, keep_error=keep_error)
    found, _ = find_effects(changes)
    kept = changes.changed.nonzero()[:, 0].tolist()
    assert {one.latent for one in found.measured} == set(kept)
    assert [x.effect for x in found.measured] == sorted(x.effect for x in found.measured)[::-1]

    def loss(some):
        return plain_loss(plain, changes.tuned, rows, some, keep_error=keep_error)

    whole = loss(kept)
    for one in found.measured:
        without = [latent for latent in kept if latent != one.latent]
        assert one.effect == pytest.approx(loss(without) - whole, abs=2e-5)
        assert (one.c, one.d) == (changes.tuned.c[one.latent], changes.tuned.d[one.latent])
    order = [one.latent for one in found.measured]  # all of them are
    for point in found.curve:
        assert point.ce == pytest.approx(loss(order[: point.n]), abs=2e-5)
    assert found.curve[0].n == 0
    assert found.curve[-1].n == found.n_changed == len(kept)
    assert found.n_tokens == int(rows.present.sum())


def test_the_ends_of_the_curve_are_the_losses_before_and_after(done, meaning):
    first, last = meaning.effects.curve[0], meaning.effects.curve[-1]
    assert first.ce == pytest.approx(done.report.ce_spliced, rel=1e-6)
    assert last.ce == pytest.approx(done.report.ce_finetuned, rel=1e-6)
    assert last.n == meaning.effects.n_changed == done.report.n_changed
    assert meaning.effects.n_tokens == done.report.n_heldout_tokens


@pytest.mark.parametrize("seed", range(5))
def test_the_fewest_features_for_the_share_have_a_neighbour_that_is_too_few(
    lm, contexts, seed, monkeypatch
):
    """Where more features never gain less, that is the fewest of all."""
    monkeypatch.setattr(effects, "N_SECTIONS", 1 + seed % 3)
    changes = changes_of(lm, rows_of(contexts, counted=False), seed=seed)
    n_calls = 0

    def count():
        nonlocal n_calls
        n_calls += 1

    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.random(changes.tuned.d_sae + 1))[::-1].tolist()

    def losses(kept, *, on_pass):
        for _ in range(len(kept) * -(-len(changes.rows) // 4)):
            on_pass()
        return [drawn[int(mask.sum())] for mask in kept]

    changes.losses = losses
    found, _ = find_effects(changes, on_pass=count)
    n = found.n_changed
    reached = [drawn[0] - drawn[k] >= 0.9 * (drawn[0] - drawn[n]) for k in range(n + 1)]
    assert found.n_for_share == reached.index(True)
    n_changed = int(changes.changed.sum())
    assert n_calls <= n_passes(n_changed, changes.rows, batch_size=4)
    assert {0, 1, 2, 4, 8, 16, n} <= {point.n for point in found.curve}


def test_where_nothing_is_gained_no_features_make_it():
    points = tuple(Kept(n=n, ce=2.0 + n) for n in (0, 1, 2))
    found = Effects(n_tokens=1, n_changed=2, measured=(), curve=points)
    assert found.gain == -2
    assert found.n_for_share is None
    assert found.share(points[1]) is None
    falling = tuple(Kept(n=n, ce=2.0 - n / 2) for n in (0, 1, 2))
    assert [replace(found, curve=falling).share(point) for point in falling] == [0, 0.5, 1]


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("keep_error", [False, True])
def test_estimates_add_up_to_the_gain_and_are_effects_where_changes_are_small(
    lm, contexts, counted, keep_error
):
    changes = changes_of(lm, rows_of(contexts, counted=counted), keep_error=keep_error)
    tuned = changes.tuned
    for part, start in ((tuned.c, 1), (tuned.d, 0)):
        part.data.sub_(start).mul_(0.02).add_(start)
    found, estimates = find_effects(changes)
    assert estimates.sum().item() == pytest.approx(found.gain, rel=0.02)
    assert not estimates[~changes.changed].any()
    measured = [one.effect for one in found.measured]
    estimated = [one.estimate for one in found.measured]
    assert estimated == pytest.approx(measured, abs=0.1 * max(map(abs, measured)))
    assert tuned.c.grad is None
    assert tuned.d.grad is None


def test_those_are_measured_that_the_estimate_ranks_first_and_the_rest_estimated(
    lm, contexts, monkeypatch
):
    changes = changes_of(lm, rows_of(contexts, counted=False))
    monkeypatch.setattr(effects, "N_EXACT", 64)
    every, _ = find_effects(changes)
    monkeypatch.setattr(effects, "N_EXACT", 5)
    some, _ = find_effects(changes)
    ranked = sorted(every.measured, key=lambda one: -abs(one.estimate))[:5]
    assert [x.latent for x in some.measured] == [
        x.latent for x in sorted(ranked, key=lambda one: -one.effect)
    ]
    best = {one.latent: one.estimate for one in every.measured} | {
        one.latent: one.effect for one in ranked
    }
    order = sorted(best, key=lambda latent: -best[latent])
    for n in (1, 8):
        mask = torch.zeros_like(changes.changed)
        mask[order[:n]] = True
        at = next(point for point in some.curve if point.n == n)
        assert at.ce == changes.losses([mask])[0]


def test_only_so_many_tokens_are_measured_on(lm, contexts, monkeypatch):
    monkeypatch.setattr(effects, "MAX_TOKENS", 3 * CTX_LEN + 1)
    changes = changes_of(lm, rows_of(contexts, counted=False))
    assert torch.equal(changes.rows.tokens, contexts[:3])


def test_without_any_change_there_is_nothing_to_measure(lm, contexts):
    changes = Changes(
        lm, SITE, TunedSAE(make_sae()), rows_of(contexts, counted=False), keep_error=False,
        batch_size=4,
    )  # fmt: skip
    found, _ = find_effects(changes)
    assert (found.measured, found.n_changed, found.n_for_share) == ((), 0, None)
    assert [point.n for point in found.curve] == [0]


# --- what features fire on -------------------------------------------------------------------


def test_frequencies_examples_and_tokens_are_those_of_a_plain_count(lm, contexts, tokenizer):
    tuned = changes_of(lm, rows_of(contexts, counted=True), seed=3).tuned
    rows = rows_of(contexts, counted=True)
    read = read_firing(lm, SITE, tuned, rows, [1, 3, 7, 5], tokenizer, batch_size=3)
    assert rows.counted is not None
    here = [(r, p) for r, n in enumerate(rows.counted.sum(1).tolist()) for p in range(n + 1)]
    assert read.n_tokens == len(here) == int(rows.present.sum())
    acts = {}
    handle = lm.body.get_submodule("layers.1.mlp").register_forward_hook(
        lambda m, a, out: acts.update(x=out.detach().double())
    )
    with torch.no_grad():
        lm.hidden(rows.tokens)
    handle.remove()
    sae = tuned.sae
    pre = (acts["x"] - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    for latent in (1, 3, 7):
        its = pre[..., latent]
        before, after = (
            {at: max(0.0, scale * its[at].item() + bias) for at in here}
            for scale, bias in ((1, 0), (tuned.c[latent].item(), tuned.d[latent].item()))
        )
        found = read.firing[latent]
        assert found.n_before == sum(value > 0 for value in before.values())
        assert found.n_after == sum(value > 0 for value in after.values())
        strength = {at: max(before[at], after[at]) for at in here}
        best = sorted(strength, key=lambda at: -strength[at])[: firing.N_EXAMPLES]
        assert len(found.examples) == min(15, sum(x > 0 for x in strength.values()))
        for example, (row, place) in zip(found.examples, best, strict=False):
            assert example.before == pytest.approx(before[row, place], rel=1e-4, abs=1e-5)
            assert example.after == pytest.approx(after[row, place], rel=1e-4, abs=1e-5)
            n = int(rows.counted[row].sum()) + 1
            letters = tokenizer.decode(rows.tokens[row, :n].tolist())
            assert example.token == letters[place]
            assert example.left == letters[max(0, place - 12) : place]
            assert example.right == letters[place + 1 : place + 7]
        letters = {at: tokenizer.token_text(rows.tokens[at].item()) for at in here}
        active = [at for at in here if strength[at] > 0]
        counts = Counter(letters[at] for at in active)
        sums = {
            letter: sum(strength[at] for at in active if letters[at] == letter) for letter in counts
        }
        order = sorted(sums, key=lambda letter: -sums[letter])[: firing.N_EXAMPLES]
        assert [told.token for told in found.tokens] == order
        for told in found.tokens:
            assert told.n == counts[told.token]
            for mean, values in ((told.before, before), (told.after, after)):
                its_sum = sum(values[at] for at in active if letters[at] == told.token)
                assert mean == pytest.approx(its_sum / told.n, rel=1e-4, abs=1e-5)
    assert read.firing[5] == firing.Firing(n_before=0, n_after=0, examples=(), tokens=())


def test_the_text_is_read_no_further_than_it_must(lm, contexts, tokenizer, monkeypatch):
    monkeypatch.setattr(firing, "MAX_TOKENS", 2 * CTX_LEN)
    rows = Rows(tokens=contexts)
    read = read_firing(lm, SITE, TunedSAE(make_sae()), rows, [1], tokenizer, batch_size=1)
    assert read.n_tokens == 2 * CTX_LEN
    assert firing.n_batches(rows, batch_size=1) == 2


# --- all of it -------------------------------------------------------------------------------


def test_lists_are_by_effect_and_of_the_largest_and_smallest_numbers(done, meaning):
    tuned = done.load_sae(CPU)
    ascending = tuned.c.argsort().tolist()
    assert [one.latent for one in meaning.inhibited] == ascending[:10]
    assert [one.latent for one in meaning.scaled_up] == ascending[:-11:-1]
    assert meaning.raised[0].d == tuned.d.max().item()
    assert meaning.lowered[0].d == tuned.d.min().item()
    measured = {one.latent: one for one in meaning.effects.measured}
    assert [one.latent for one in meaning.by_effect] == [*measured][:10]
    for one in meaning.features.values():
        assert (one.c, one.d) == (tuned.c[one.latent], tuned.d[one.latent])
        known = measured.get(one.latent)
        assert one.effect == (known and known.effect)
        assert one.estimate is not None
    assert [*meaning.lists] == [
        "by effect", "most scaled up", "most inhibited", "bias raised most", "bias lowered most",
    ]  # fmt: skip
    assert meaning.n_tokens == done.report.n_train_tokens


def test_the_extremes_are_among_what_was_learned():
    values = torch.tensor([3.0, 1.0, 2.0, 2.0])
    assert _extremes(values, torch.tensor([False, True, True, True])) == [2, 3, 1]
    assert _extremes(values, torch.full((4,), False)) == []


def test_promoted_tokens_are_those_of_the_direct_path(done, meaning, plain, tokenizer):
    tuned, norm = done.load_sae(CPU), plain.gpt_neox.final_layer_norm
    one, texts = meaning.by_effect[0], TokenTexts(tokenizer.token_bytes)
    row = tuned.W_dec[one.latent].detach().double()
    logits = plain.get_output_embeddings().weight.detach() @ (
        (row - row.mean()) * norm.weight.detach()
    )
    logits = logits[: tokenizer.n_vocab]
    for told, ends in (
        (one.promoted, logits.argsort(descending=True)), (one.suppressed, logits.argsort()),
    ):  # fmt: skip
        assert [it.token for it in told] == [texts.alone(t) for t in ends[:10].tolist()]
        assert [it.logit for it in told] == pytest.approx(logits[ends[:10]].tolist(), rel=1e-4)


def test_a_site_without_a_linear_way_to_the_logits_promotes_nothing(lm, contexts, setting):
    site = Site.parse("mlp_pre.1")
    tuned = TunedSAE(make_sae(d_in=lm.width(site), expansion=1))
    tuned.c.data[1] = 2.0
    tuned.learned[1] = True
    config = replace(setting.config, batch_size=4)
    found = find_meaning(lm, site, tuned, setting.task, setting.tokenizer, config)
    (one,) = found.scaled_up
    assert (one.promoted, one.suppressed) == ((), ())


def test_progress_counts_up_to_its_total(setting, done):
    seen = []
    find_meaning(
        setting.lm, setting.sites[0], done.load_sae(CPU), setting.task, setting.tokenizer,
        setting.config, on_progress=seen.append,
    )  # fmt: skip
    counts = [told.done for told in seen]
    assert counts == sorted(set(counts))
    assert counts[0] == 1
    assert {(told.stage, told.unit, told.total) for told in seen} == {
        ("meaning", "passes", counts[-1])
    }


def test_the_same_comes_out_of_what_is_kept(done, meaning, setting):
    again = find_meaning(
        setting.lm, setting.sites[0], done.load_sae(CPU), setting.task, setting.tokenizer,
        setting.config,
    )  # fmt: skip
    assert replace(again, sha256=done.sha256) == meaning


def test_what_earlier_versions_wrote_opens(copied):
    file = copied / "features.json"
    document = json.loads(file.read_text())
    old = {
        end: [
            {name: one[name] for name in ("latent", "c", "d", "examples")} for one in document[end]
        ]
        for end in ("scaled_up", "inhibited", "raised", "lowered")
    }
    file.write_text(json.dumps(old))
    found = FinetunedRun.open(copied).meaning()
    assert found.effects is None
    assert found.by_effect == ()
    assert [one.latent for one in found.scaled_up] == [x["latent"] for x in old["scaled_up"]]
    assert found.scaled_up[0].n_before is found.scaled_up[0].effect is None
    assert next(iter(found.lists)) == "most scaled up"


def test_of_another_run_or_gone_it_is_none_and_damaged_it_is_one_line(copied, done, meaning):
    file = copied / "features.json"
    assert read_meaning(copied, sha256=done.sha256) == meaning
    assert read_meaning(copied, sha256="0" * 64) is None
    file.write_text(json.dumps(to_json(meaning) | {"unknown": 1}))
    with refused(CheckpointError, r"features.json is damaged \(.*\): put a copy back, or delete"):
        read_meaning(copied, sha256=done.sha256)
    file.unlink()
    assert read_meaning(copied, sha256=done.sha256) is None


@pytest.mark.parametrize(
    ("settings", "report", "expected"),
    [
        ({}, {}, 1.0),
        ({"decay_to": "zero"}, {}, (1 - 0.05 * 0.01) ** 15),
        ({"decay_to": "zero", "weight_decay": 0.2}, {"best_epoch": 2}, (1 - 0.05 * 0.2) ** 10),
        ({"decay_to": "zero", "train": "bias"}, {}, 1.0),
    ],
)
def test_weight_decay_alone_makes_of_a_scale_what_its_steps_do(done, settings, report, expected):
    run = replace(
        done, config=replace(done.config, **settings), report=replace(done.report, **report)
    )
    assert run.decayed_scale == pytest.approx(expected, rel=1e-12)


def test_a_scale_that_no_gradient_reached_is_where_weight_decay_left_it(config):
    report = finetune(config(decay_to="zero", weight_decay=0.5, patience=1, lr=0.3))
    run = FinetunedRun.open(report.out)
    tuned = run.load_sae(CPU)
    never = tuned.c[~tuned.learned]
    assert len(never) > 5
    assert never.tolist() == pytest.approx([run.decayed_scale] * len(never), rel=1e-5)
