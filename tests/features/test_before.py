"""What features of a fine-tuned SAE did before, held to a computation of its own."""

from unittest.mock import Mock

import numpy as np
import pytest

from pipeline.config.stages import FinetuneConfig
from pipeline.errors import ConfigError
from pipeline.features.before import before_tuning
from pipeline.features.collect import collect_features
from pipeline.features.files import FeatureSet
from pipeline.finetune.run import FinetunedRun
from pipeline.terminal.features import shown
from tests.helpers.featured import config_of, make_world
from tests.helpers.tiny import CTX_LEN, make_text
from tests.helpers.tunings import finetune


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def tuned(world) -> FeatureSet:
    text = make_text(world.folder / "more.txt", n_contexts=30)
    config = FinetuneConfig(
        run=world.run("sae"), out=world.folder / "tuned", text=text, general_text=text, lr=0.1,
        batch_size=4, epochs=1, steps_per_epoch=5, ctx_len=CTX_LEN, heldout_contexts=4,
        device="cpu",
    )  # fmt: skip
    finetune(config)
    return collect_features(config_of(config.out, n_top=5, n_spread=6))


def test_before_is_what_the_sae_as_it_was_makes_of_the_same_rows(world, tuned):
    run = FinetunedRun.open(tuned.run)
    alive = np.flatnonzero(tuned.n_active > 5)[:4].tolist()
    found = before_tuning(tuned, alive)
    sae = run.sae.sae
    W_enc, b_enc, b_dec = (p.detach().double().numpy() for p in (sae.W_enc, sae.b_enc, sae.b_dec))
    known = run.meaning().features
    for index in alive:
        before, feature = found[index], tuned.feature(index)
        c, d = run.sae.c[index].item(), run.sae.d[index].item()
        assert (before.c, before.d, before.moved) == (c, d, known.get(index))
        for examples, told in ((feature.top, before.top), (feature.spread, before.spread)):
            for i, (context, position) in enumerate(
                zip(examples.context.tolist(), examples.position.tolist(), strict=True)
            ):
                x = world.store.context(context).acts["mlp_out.1"][position].astype(np.float64)
                pre = (x - b_dec) @ W_enc[:, index] + b_enc[index]
                assert told[i] == pytest.approx(max(0.0, pre), rel=1e-4, abs=1e-5)
                after = max(0.0, c * pre + d)
                assert examples.value[i] == pytest.approx(after, rel=1e-3, abs=1e-4)


def test_the_screen_tells_before_and_after_and_what_was_learned(tuned):
    known = {one.latent: one for one in FinetunedRun.open(tuned.run).meaning().by_effect}
    index = next(i for i in known if tuned.n_active[i] > 0)
    told = shown(tuned, [index], order="frequency", rows=5)
    numbers, top, *_ = told.tables
    words = dict(numbers.sections[0])["fine-tuned"]
    assert words.startswith(f"scale {known[index].c:.4g}, bias {known[index].d:+.4g}")
    assert words.endswith(
        f"without this change the held-out loss is {known[index].effect:.4f} nats higher"
    )
    assert [column.head for column in top.columns] == ["before", "after", ""]
    before = before_tuning(tuned, [index])[index]
    values = zip(before.top.tolist(), tuned.feature(index).top.value.tolist(), strict=True)
    assert [list(row[:2]) for row in top.sections[0]] == [
        [f"{was:.3g}", f"{now:.3g}"] for was, now in values
    ]
    (document,) = told.documents
    assert document["before"]["c"] == known[index].c
    assert document["before"]["effect"] == known[index].effect
    assert len(document["before"]["top"]) == len(before.top)


def test_a_dead_feature_had_no_contexts(tuned):
    dead = int(np.flatnonzero(tuned.n_active == 0)[0])
    assert before_tuning(tuned, [dead])[dead].top.tolist() == []


def test_a_plain_sae_has_no_before(world):
    plain = collect_features(config_of(world.run("plain")))
    assert before_tuning(plain, [1]) == {}
    told = shown(plain, [1], order="frequency", rows=5)
    assert "before" not in told.documents[0]
    assert "fine-tuned" not in dict(next(iter(told.tables)).sections[0])


def test_where_the_store_is_gone_a_note_says_so(tuned, monkeypatch):
    gone = Mock(side_effect=ConfigError("it is gone"))
    monkeypatch.setattr(FeatureSet, "open_store", gone)
    told = shown(tuned, [1], order="frequency", rows=5)
    assert "what it was before fine-tuning was not looked up: it is gone" in told.notes
    assert "before" not in told.documents[0]
