"""The features of a run: found, written, read again, reused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from actstore.errors import StoreError
from pipeline.config.stages import FeatureOrder, FinetuneConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluate.geometry import dead_cosine, encoder_decoder_cosine, nearest
from pipeline.features.collect import collect_features, sample_store
from pipeline.features.feature import AFTER, BEFORE, feature_document
from pipeline.features.files import FeatureSet, has_features, ordered
from pipeline.lm.logits import attribute, load_path
from pipeline.lm.sites import Site
from pipeline.report.feature_data import shown_features
from pipeline.runs.sae_run import SAERun
from pipeline.terminal.commands import run_features
from pipeline.terminal.features import shown
from pipeline.terminal.screen import Screen
from tests.helpers.featured import SITES, World, config_of, make_store_of, make_world
from tests.helpers.refusals import may_only_be_read, refused
from tests.helpers.stores import make_spec, write_store
from tests.helpers.tiny import CTX_LEN, make_model, make_sae, make_text
from tests.helpers.tunings import finetune

CPU = torch.device("cpu")


@pytest.fixture
def own(world, tmp_path) -> World:
    """The same model and store, runs elsewhere."""
    return replace(world, folder=tmp_path)


def test_what_is_read_again_is_what_was_found(world, run, features):
    coder = SAERun.open(run).load_sae(CPU)
    found = sample_store(config_of(run), world.store, SITES[0], coder)
    dead = found.n_active == 0
    cosine = dead_cosine(coder.W_dec, torch.from_numpy(dead)).numpy()
    np.testing.assert_array_equal(features.n_active, found.n_active)
    np.testing.assert_array_equal(features.index, np.arange(coder.d_sae))
    np.testing.assert_allclose(features.frequency, found.n_active / found.n_tokens)
    np.testing.assert_allclose(features.dead_cosine, cosine)
    np.testing.assert_array_equal(features.max, found.max)
    assert 0 < dead.sum() < len(dead) == len(features)
    np.testing.assert_allclose(features.mean, found.total / np.maximum(1, found.n_active))
    for i in range(coder.d_sae):
        feature = features.feature(i)
        for name in ("index", "n_active", "mean", "max", "dead_cosine"):
            assert getattr(feature, name) == getattr(features, name)[i], name
        for examples, entries in ((feature.top, found.top), (feature.spread, found.spread)):
            mine = entries[entries["feature"] == i]
            for name in ("context", "position", "value", "tokens", "values"):
                got = getattr(examples, name)
                np.testing.assert_array_equal(got, mine[name])
                assert got.dtype == mine[name].dtype
        mine = found.values[found.values["feature"] == i]
        np.testing.assert_array_equal(feature.sample.token, mine["token"])
        np.testing.assert_array_equal(feature.sample.value, mine["value"])


def test_what_the_weights_say_of_a_feature(world, run, features):
    coder = SAERun.open(run).load_sae(CPU)
    path = load_path(
        str(world.model), Site.parse(SITES[0]), revision="main", n_vocab=257, device=CPU
    )
    ends, (indices, cosines) = attribute(path, coder.W_dec), nearest(coder.W_dec)
    both = encoder_decoder_cosine(coder)
    np.testing.assert_allclose(features.encoder_decoder_cosine, both)
    for i in range(0, coder.d_sae, 7):
        feature = features.feature(i)
        for end in ("promoted", "suppressed"):
            effects = getattr(feature, end)
            tokens, by = (ranked[i].tolist() for ranked in ends[end])
            assert [t.token for t in effects] == tokens
            assert [t.effect for t in effects] == by
        assert [n.index for n in feature.neighbours] == indices[i].tolist()
        assert [n.cosine for n in feature.neighbours] == cosines[i].tolist()
        assert feature.encoder_decoder_cosine == pytest.approx(both[i].item())


def test_facts_say_where_features_are_from(world, run, features):
    facts, store = features.facts, world.store
    assert (facts.store, facts.store_fingerprint) == (store.path.resolve(), store.fingerprint)
    assert (facts.coder, facts.model) == (SAERun.open(run).sha256, str(world.model))
    assert (facts.site, facts.ctx_len, facts.arch) == (SITES[0], CTX_LEN, "relu")
    assert facts.n_tokens == store.n_rows
    assert facts.has_texts and facts.attributed
    assert facts.notes == (
        "logits by the direct path alone: the final norm's division, biases, a cap of logits, and "
        "what later layers make of a feature are ignored",
    )


def test_texts_of_examples_can_be_read_without_a_model(run, features):
    table = parquet.read_table(run / "features" / "examples.parquet").to_pylist()
    letters = features.texts
    for row in table:
        tokens = row["tokens"]
        pieces = letters.pieces(tokens)
        assert row["before"] == "".join(pieces[:BEFORE])
        assert row["token"] == letters.alone(tokens[BEFORE])
        assert row["after"] == "".join(pieces[BEFORE + 1 :])
        assert row["token"].islower()
        assert len(row["before"]) == row["position"]
    kinds = [(row["feature"], row["kind"] == "spread", row["rank"]) for row in table]
    assert kinds == sorted(kinds)
    assert {row["kind"] for row in table} == {"top", "spread"}


def test_the_same_features_are_reused_and_others_are_found_anew(own):
    run = own.run()
    assert not collect_features(config_of(run)).reused
    again = collect_features(config_of(run, device="auto"))
    assert again.reused
    assert again.feature(1).n_active == FeatureSet.open(run).feature(1).n_active
    for changes in ({"n_top": 2}, {"tokens": 10 * CTX_LEN}, {"seed": 1}):
        assert not collect_features(config_of(run, **changes)).reused
        assert collect_features(config_of(run, **changes)).reused
    assert sorted(p.name for p in run.iterdir() if p.is_dir()) == ["features"]


def test_features_of_another_coder_or_store_are_not_reused(own, tmp_path):
    run = own.run()
    collect_features(config_of(run))
    other = own.run("other", coder=make_sae(seed=1))
    shutil.copytree(run / "features", other / "features")
    assert has_features(run) and not has_features(other)
    assert shown_features(run, n=3) and shown_features(other, n=3) is None
    with refused(CheckpointError, "features is of the weights of another run: find the features"):
        FeatureSet.open(other)
    assert not collect_features(config_of(other)).reused
    shutil.move(run, own.folder / "moved")
    run = own.folder / "moved"
    assert collect_features(config_of(run)).reused
    store = make_store_of(own.model, tmp_path / "longer.actstore", n_contexts=41)
    found = collect_features(config_of(run, store=store.path))
    assert not found.reused
    assert found.facts.n_tokens == 41 * CTX_LEN
    assert any("is not the store that the run was trained from" in n for n in found.facts.notes)


def test_damaged_features_are_told_in_one_line_and_found_anew(own):
    run = own.run()
    whole = collect_features(config_of(run)).feature(1)
    for file in sorted((run / "features").iterdir()):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 255
        for spoil in (lambda file=file, data=data: file.write_bytes(data), file.unlink):
            spoil()
            none = f"{run} has no features yet: find them"
            said = f"^({none}|.*{file.name} is missing or .*) with saepipe features {run}$"
            with pytest.raises(CheckpointError, match=said):
                FeatureSet.open(run).check()
        found = collect_features(config_of(run))
        assert not found.reused
        assert found.feature(1).n_active == whole.n_active


def test_an_interrupted_write_leaves_what_was_there(own, monkeypatch):
    run = own.run()
    collect_features(config_of(run))
    before = {p.name: p.read_bytes() for p in (run / "features").iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.features.save.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        collect_features(config_of(run, n_top=1))
    assert {p.name: p.read_bytes() for p in (run / "features").iterdir()} == before
    monkeypatch.undo()
    assert collect_features(config_of(run)).reused
    assert not collect_features(config_of(run, n_top=1)).reused
    assert sorted(p.name for p in run.iterdir() if p.is_dir()) == ["features"]


def test_a_number_beyond_the_last_feature(features):
    for index in (-1, 64):
        with pytest.raises(ConfigError, match=f"has features 0 to 63, got {index}"):
            features.feature(index)


def test_the_command_refuses_such_a_number_before_it_reads_the_store(own):
    run = own.run()
    with refused(ConfigError, "has features 0 to 63, got 64"):
        run_features(config_of(run), [3, 64], order="frequency", rows=1, screen=Screen())
    assert not (run / "features").exists()


def test_the_table_alone_needs_no_model(own, monkeypatch):
    run = own.run()
    collect_features(config_of(run))
    monkeypatch.setattr("pipeline.features.ablation.load_model", Mock(side_effect=AssertionError))
    told = run_features(config_of(run), [], order="frequency", rows=2, screen=Screen())
    assert len(told) == 2


def test_a_store_that_does_not_fit_is_told_in_one_line(own, tmp_path):
    run, gone = own.run(), own.run("gone")
    document = json.loads((gone / "run.json").read_text())
    document["store"]["path"] = str(tmp_path / "moved.actstore")
    (gone / "run.json").write_text(json.dumps(document))
    with pytest.raises(
        ConfigError, match=r"is not found: nothing is at .*/moved.actstore now, .*--store$"
    ):
        collect_features(config_of(gone))
    assert len(collect_features(config_of(gone, store=own.store.path))) == 64
    other = make_store_of(own.model, tmp_path / "other.actstore", sites=("resid_post.0",)).path
    wide = write_store(tmp_path / "wide", make_spec(widths={"mlp_out.1": 24}), n_rows=80)
    half = write_store(tmp_path / "half", make_spec(widths={"mlp_out.1": 16}), n_rows=160, stop=1)
    for store, error, said in (
        (other, ConfigError, r"is about mlp_out.1, and .* holds resid_post.0: .* with --store$"),
        (wide, ConfigError, r"SAE of 16 dimensions, and mlp_out.1 of .* has 24: .* --store$"),
        (half, StoreError, "is not finished"),
        (tmp_path / "none", StoreError, "there is no activation store"),
    ):
        with pytest.raises(error, match=said):
            collect_features(config_of(run, store=store))
    assert not (run / "features").exists()


def test_without_the_model_tokens_are_numbers_and_nothing_is_promoted(own, tmp_path):
    model = make_model(tmp_path / "model")
    store = make_store_of(model, tmp_path / "acts.actstore")
    run = replace(own, store=store).run()
    shutil.move(model, tmp_path / "away")
    found = collect_features(config_of(run))
    assert not found.facts.has_texts
    assert not found.facts.attributed
    first, second = found.facts.notes
    assert first.startswith("tokens stand as numbers: model ")
    assert second.startswith("no tokens are promoted or suppressed: model ")
    feature = found.feature(1)
    assert feature.promoted == feature.suppressed == ()
    assert found.texts.alone(int(feature.top.tokens[0, BEFORE])).startswith("[")
    assert collect_features(config_of(run)).reused
    shutil.move(tmp_path / "away", model)
    back = collect_features(config_of(run))
    assert not back.reused
    assert back.feature(1).promoted


def test_a_site_that_is_not_in_the_stream_has_no_direct_path(own):
    found = collect_features(config_of(own.run(site="mlp_pre.1")))
    assert not found.facts.attributed
    assert found.feature(1).promoted == ()
    assert "mlp_pre.1 has no linear way to the logits" in found.facts.notes[0]
    assert collect_features(config_of(own.run("act", site="mlp_act.1"))).feature(1).promoted


def test_a_store_of_another_model_is_noted(own, tmp_path):
    other = make_model(tmp_path / "other", seed=1)
    store = make_store_of(other, tmp_path / "other.actstore")
    run = own.run()
    found = collect_features(config_of(run, store=store.path))
    (note,) = [n for n in found.facts.notes if "activations" in n]
    assert str(other) in note and str(own.model) in note


@pytest.fixture
def replaceable(tmp_path) -> World:
    """A model and a store of its own."""
    return make_world(tmp_path)


CHANGED = "have changed since its store was harvested"


def test_features_of_a_replaced_model_are_found_anew_and_noted(replaceable):
    run = replaceable.run()
    before = collect_features(config_of(run))
    promoted = before.feature(1).promoted
    assert not any(CHANGED in note for note in before.facts.notes)
    make_model(replaceable.model, seed=1)
    after = collect_features(config_of(run))
    assert not after.reused
    assert f"the weights of {replaceable.model} {CHANGED}" in after.facts.notes
    assert after.feature(1).promoted != promoted
    assert collect_features(config_of(run)).reused
    make_model(replaceable.model)
    back = collect_features(config_of(run))
    assert not back.reused
    assert back.facts.model_fingerprint == before.facts.model_fingerprint
    assert back.facts.notes == before.facts.notes


def test_features_of_earlier_versions_are_of_the_model_of_their_store(replaceable):
    run = replaceable.run()
    collect_features(config_of(run))
    file = run / "features" / "features.json"
    facts = json.loads(file.read_text())
    del facts["model_fingerprint"]
    file.write_text(json.dumps(facts))
    assert collect_features(config_of(run)).reused
    make_model(replaceable.model, seed=1)
    assert not collect_features(config_of(run)).reused


def test_another_model_of_its_name_in_another_folder_is_noted(tmp_path, monkeypatch):
    """A store keeps the name of its model as it was typed."""
    for seed, name in enumerate(("here", "there")):
        make_model(tmp_path / name / "m", seed=seed)
    monkeypatch.chdir(tmp_path / "here")
    store = make_store_of(Path("m"), tmp_path / "acts.actstore")
    run = World(folder=tmp_path, model=Path("m"), store=store).run()
    assert not any(CHANGED in note for note in collect_features(config_of(run)).facts.notes)
    monkeypatch.chdir(tmp_path / "there")
    assert f"the weights of m {CHANGED}" in collect_features(config_of(run)).facts.notes


def test_a_run_that_may_only_be_read_is_refused_before_the_pass(own, monkeypatch):
    run = own.run()
    may_only_be_read(run, monkeypatch)
    with refused(ConfigError, rf"denied\), where its features .* type cp -r {run} COPY"):
        collect_features(config_of(run), on_progress=pytest.fail)


def test_features_that_are_there_are_read_where_nothing_may_be_written(own, monkeypatch):
    run = own.run()
    collect_features(config_of(run))
    may_only_be_read(run, monkeypatch)
    assert collect_features(config_of(run)).reused


def test_runs_whose_features_are_all_dead_or_all_alive(own):
    dead, alive = make_sae(), make_sae()
    torch.nn.init.constant_(dead.b_enc, -1e4)
    torch.nn.init.constant_(alive.b_enc, 2.0)
    found = collect_features(config_of(own.run(coder=dead)))
    feature = found.feature(5)
    assert feature.n_active == feature.max == feature.mean == len(feature.top.value) == 0
    assert feature.top.tokens.shape == (0, 33)
    assert feature.dead_cosine is not None
    assert "all of them are dead" in found.facts.notes[-1]
    found = collect_features(config_of(own.run("alive", coder=alive)))
    assert (found.n_active > 0).all()
    assert np.isnan(found.dead_cosine).all()
    assert found.feature(3).dead_cosine is None


def test_features_of_a_finetuned_run(own, tmp_path):
    run, out = own.run(), tmp_path / "tuned"
    finetune(
        FinetuneConfig(
            run=run, out=out, text=make_text(tmp_path / "t.txt", n_contexts=60), ctx_len=CTX_LEN,
            epochs=1, steps_per_epoch=2, batch_size=4, heldout_contexts=4, lr=0.5, device="cpu",
        )
    )  # fmt: skip
    plain, tuned = collect_features(config_of(run)), collect_features(config_of(out))
    assert (plain.n_active != tuned.n_active).any()
    assert tuned.facts.notes[0].startswith("fine-tuned on")
    assert collect_features(config_of(out)).reused
    assert tuned.facts.coder != plain.facts.coder


def test_orders_of_features(features):
    for order in get_args(FeatureOrder):
        indices = ordered(features, order, seed=3)
        assert sorted(indices.tolist()) == list(range(64))
        if order != "index":
            assert (np.diff(features.n_active[indices] == 0) >= 0).all()
    assert (np.diff(features.frequency[ordered(features, "frequency")]) <= 0).all()
    assert (np.diff(features.max[ordered(features, "max")]) <= 0).all()
    assert ordered(features, "index").tolist() == list(range(64))
    shuffled = [ordered(features, "random", seed=seed).tolist() for seed in (0, 0, 1)]
    assert shuffled[0] == shuffled[1] != shuffled[2]


def test_a_feature_as_json_holds_all_of_it(features):
    index = int(ordered(features, "frequency")[0])
    feature = features.feature(index)
    told = json.loads(json.dumps(feature_document(feature, features.texts), allow_nan=False))
    assert told["index"] == index
    assert told["frequency"] == feature.frequency
    assert len(told["top"]) == 3 and len(told["spread"]) == 4
    for example, tokens in zip(told["top"], feature.top.tokens, strict=True):
        n = min(CTX_LEN, example["position"] + 1 + AFTER)
        assert len(example["tokens"]) == len(example["texts"]) == len(example["values"]) == n
        assert example["tokens"][example["at"]] == tokens[BEFORE]
        assert example["values"][example["at"]] == pytest.approx(example["value"], rel=1e-5)
    assert told["promoted"][0]["token"] == feature.promoted[0].token
    assert told["neighbours"][0]["index"] == feature.neighbours[0].index
    assert len(told["sample"]["tokens"]) == 6


def test_features_found_with_the_model_are_kept_where_it_is_out_of_reach_now(tmp_path):
    own = make_world(tmp_path)
    run = own.run()
    whole = collect_features(config_of(run))
    own.model.rename(tmp_path / "away")
    found = collect_features(config_of(run))
    assert found.reused and found.facts == whole.facts and found.facts.has_texts
    told = shown(found, [1], order="max", rows=1)
    assert any("without a feature was not measured: model" in note for note in told.notes)
    assert told.documents[0]["ablation"] is None
    (run / "features/features.json").unlink()
    assert not collect_features(config_of(run)).facts.has_texts, "found anew, without"
