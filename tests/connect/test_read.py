"""A reading: made, written, read again, reused, and shown."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from pipeline.config.stages import FeaturesConfig
from pipeline.connect.figures import effects_figure
from pipeline.connect.reading.document import output_document, reading_document, top_tokens
from pipeline.connect.reading.read import (
    READING,
    effects_on,
    features_of_both,
    is_read,
    load_reading,
    read_connector,
    read_features,
    save_reading,
)
from pipeline.connect.reading.values import Effect, Effects, Reading, ReadingConfig
from pipeline.connect.run import ConnectorRun
from pipeline.connect.tables import equation_words, output_tables, reading_tables
from pipeline.errors import CheckpointError, ConfigError
from pipeline.features.files import FeatureSet
from pipeline.progress import Progress
from pipeline.terminal.commands import run_features
from pipeline.terminal.screen import Screen, drawn
from tests.helpers.readings import Connected, connect, make_connected, say_of_store
from tests.helpers.refusals import may_only_be_read, refused
from tests.helpers.slow import slow
from tests.helpers.tiny import make_model

HOSTILE = "<script>alert(1)</script> [red]x[/red] \x1b[31m \u202eabc & \t\n"


def config_of(run: Path, **changes) -> ReadingConfig:
    return ReadingConfig(run=run, **{"n_terms": 4, "n_outputs": 3, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def connected(tmp_path_factory) -> Connected:
    return make_connected(tmp_path_factory.mktemp("connected"), text=HOSTILE, n_contexts=20)


@pytest.fixture(scope="module")
def progress() -> list[Progress]:
    """What the first reading told."""
    return []


@pytest.fixture(scope="module")
def reading(connected, progress) -> Reading:
    return read_connector(config_of(connected.run.path), on_progress=progress.append)


@pytest.fixture
def own(connected, reading, tmp_path) -> Path:
    """Another connector between the same SAEs, whose features are known."""
    ends = (connected.run.source.run, connected.run.target.run)
    return connect(connected.world.store, ends, tmp_path / "own", seed=5).path


def lines_of(tables) -> list[str]:
    console = Console(width=80, force_terminal=False, color_system=None)
    with console.capture() as captured:
        for table in tables:
            console.print(drawn(table))
    return captured.get().split("\n")


def test_a_reading_tells_every_active_output_and_where_it_is_from(connected, reading):
    store, run = connected.world.store, connected.run
    assert reading.n_tokens == store.n_rows
    assert reading.store_fingerprint == store.fingerprint
    assert reading.connector == run.sha256
    assert (reading.source, reading.target) == (run.source, run.target)
    alive = np.flatnonzero(FeatureSet.open(run.target.run).n_active)
    assert [e.output for e in reading.equations] == alive.tolist()
    W = run.load_connector(torch.device("cpu")).W.numpy()
    for equation in reading.equations:
        for term in equation.terms:
            assert term.weight == W[term.feature, equation.output]
    n, n_connected = reading.effects.every.n, reading.effects.connected.n
    assert n > n_connected == sum(not p.control for p in reading.effects.points)
    assert n == len(reading.effects.points)
    shown = [e.explained_shown for e in reading.clearest]
    assert shown == sorted(shown, reverse=True)


def test_progress_tells_every_stage_up_to_its_end(reading, progress):
    ends = {(p.stage, p.words): p for p in progress}
    assert list(ends) == [
        ("rows", ""), ("equations", ""), ("relations", ""),
        ("features", "resid_pre.1"), ("features", "mlp_out.1"), ("effects", ""),
    ]  # fmt: skip
    units = ["rows", "outputs", "outputs", "tokens", "tokens", "inputs"]
    assert [p.unit for p in ends.values()] == units
    assert all(p.done == p.total for p in ends.values())


def test_features_that_were_removed_are_found_again(own, connected):
    made = read_connector(config_of(own))
    shutil.rmtree(connected.run.target.run / "features")
    assert features_of_both(made)[1].run == connected.run.target.run
    assert (connected.run.target.run / "features").exists()


def test_the_same_reading_is_reused_wherever_its_folder_is(own, tmp_path):
    made, before = read_connector(config_of(own)), (own / READING).stat().st_mtime_ns
    assert load_reading(own) == made
    assert read_connector(config_of(own), on_progress=pytest.fail) == made
    moved = own.rename(tmp_path / "moved")
    again = read_connector(config_of(moved), on_progress=pytest.fail)
    assert again == replace(made, config=replace(made.config, run=moved)) == load_reading(moved)
    assert (moved / READING).stat().st_mtime_ns == before


@pytest.mark.parametrize("changes", [{"n_terms": 2}, slow({"tokens": 100}), slow({"n_outputs": 1})])
def test_other_settings_are_read_anew(own, changes):
    first = read_connector(config_of(own))
    stages = set()
    other = read_connector(config_of(own, **changes), on_progress=lambda p: stages.add(p.stage))
    assert stages == {"rows", "equations", "relations", "effects"}
    assert other != first
    assert load_reading(own) == other


def test_another_connector_in_the_folder_is_read_anew(own):
    first = read_connector(config_of(own))
    run = ConnectorRun.open(own)
    connector = run.load_connector(torch.device("cpu"))
    connector.W *= 2
    run.finish(connector)
    assert read_connector(config_of(own)).connector != first.connector


def test_a_reading_in_a_replaced_model_is_made_again_and_noted(tmp_path):
    made = make_connected(tmp_path, n_contexts=10)
    run, model = made.run.path, made.world.model
    first = read_connector(config_of(run))
    save_reading(replace(first, model_fingerprint=""))  # as earlier versions did
    assert is_read(run)
    make_model(model, seed=1)
    assert not is_read(run)
    again = read_connector(config_of(run))
    assert is_read(run)
    assert f"the weights of {model} have changed since its store was harvested" in again.notes
    assert again.effects != first.effects
    features, _ = features_of_both(again)
    assert features.facts.model_fingerprint == again.model_fingerprint != first.model_fingerprint


@pytest.mark.parametrize(("which", "what"), [("own", "reading"), ("end", "features")])
def test_a_run_that_may_only_be_read_is_refused_before_the_pass(tmp_path, monkeypatch, which, what):
    run = make_connected(tmp_path, n_contexts=10).run
    folder = run.path if which == "own" else run.target.run
    may_only_be_read(folder, monkeypatch)
    with refused(ConfigError, f"{folder} cannot be .* where its {what} would be kept: .* cp -r"):
        read_connector(config_of(run.path), on_progress=pytest.fail)


def test_a_reading_that_is_there_is_shown_where_nothing_may_be_written(own, monkeypatch):
    config = FeaturesConfig(run=own, device="cpu")
    made = read_features(config)
    (own / "effects.png").unlink()
    may_only_be_read(own, monkeypatch)
    assert read_features(config) == made
    assert not (own / "effects.png").exists()


def test_a_damaged_reading_is_refused_and_made_again(own):
    assert load_reading(own) is load_reading(own / "nowhere") is None
    made, file = read_connector(config_of(own)), own / READING
    whole = file.read_bytes()
    for data in (whole[:-40], whole.replace(b'"n_active":', b'"n_active":1', 1), b"[]", b"\xff"):
        file.write_bytes(data)
        with refused(CheckpointError, f"{file} .* saepipe features"):
            load_reading(own)
    assert read_connector(config_of(own)) == made
    assert file.read_bytes() == whole


def test_fewer_tokens_are_the_first_and_more_than_there_are_are_told(own, connected):
    assert read_connector(config_of(own, tokens=70)).n_tokens == 70
    n_rows = connected.world.store.n_rows
    more = read_connector(config_of(own, tokens=n_rows + 1))
    assert more.n_tokens == n_rows
    assert any(f"holds {n_rows:,} tokens" in note for note in more.notes)


def test_a_store_that_is_gone_is_told_in_one_line(own):
    say_of_store(own, path=own / "gone.actstore")
    with refused(ConfigError, "gone.actstore.*--store"):
        read_connector(config_of(own))


@pytest.mark.parametrize(
    ("widths", "words"),
    [
        ({"mlp_out.1": 16}, "name a store that holds both"),
        ({"resid_pre.1": 16, "mlp_out.1": 24}, "24: name a store"),
    ],
    ids=["without a site", "of another width"],
)
def test_a_store_that_does_not_fit_is_refused(own, make_store, widths, words):
    with refused(ConfigError, words):
        read_connector(config_of(own, store=make_store(widths=widths)))


def test_another_store_is_told(own, make_store):
    store = make_store(widths={"resid_pre.1": 16, "mlp_out.1": 16})
    found = read_connector(config_of(own, store=store, n_outputs=1))
    assert any("is not the store that the connector was trained from" in n for n in found.notes)


def test_without_a_model_there_are_equations_and_a_word_about_the_rest(own):
    say_of_store(own, model="")
    found = read_connector(config_of(own))
    assert found.equations
    assert found.effects is None
    assert any("does not say which model" in note for note in found.notes)
    assert features_of_both(found) == (None, None)
    assert effects_on(found, found.equations[0].output) == ()
    assert "variance" in "\n".join(lines_of(reading_tables(found, (None, None), rows=3)))
    closely = output_tables(found, found.equations[0].output, (), (None, None))
    assert f"OF{found.equations[0].output} = " in lines_of(closely)[0]
    assert read_connector(config_of(own), on_progress=pytest.fail) == found


def test_a_model_that_cannot_be_had_leaves_a_note(own):
    nowhere = str(own / "no-model")
    say_of_store(own, model=nowhere, model_at=None)
    found = read_connector(config_of(own))
    assert found.effects is None
    assert any("effects were not measured" in note and nowhere in note for note in found.notes)


def test_an_output_that_has_no_equation_is_refused(reading):
    n, alive = reading.target.d_sae, [e.output for e in reading.equations]
    dead = min(set(range(n)) - set(alive))
    for output, words in {
        n: f"features 0 to {n - 1}, got {n}",
        dead: f"output feature {dead} was active on none",
    }.items():
        with refused(ConfigError, words):
            reading.equation(output)
    assert reading.equation(alive[3]).output == alive[3]


def test_effects_on_an_output_are_those_of_its_terms(reading):
    output = next(p.output for p in reading.effects.points if not p.control)
    effects = effects_on(reading, output, device="cpu")
    assert [e.input for e in effects] == [t.feature for t in reading.equation(output).terms]
    there = {(p.input, p.output): p for p in reading.effects.points}
    both = [(e, there[e.input, output]) for e in effects if (e.input, output) in there]
    assert both
    for effect, known in both:
        assert (effect.weight, effect.n_tokens) == (known.weight, known.n_tokens)
        assert effect.linear == pytest.approx(known.linear, abs=1e-5)
        assert effect.true == pytest.approx(known.true, abs=1e-5)


def test_an_equation_is_written_as_people_write_it(reading):
    for equation in reading.equations:
        words = equation_words(equation)
        assert words.startswith(f"OF{equation.output} = ")
        for term in equation.terms:
            assert f"{abs(term.weight):.2g} IF{term.feature}" in words
        assert words.count(" - ") + words.count("= - ") >= len(equation.subtracting)
        left = equation.n_further
        assert words.endswith(f"+ {left:,} more") == bool(left)
        assert len(equation_words(equation, n_cells=50)) <= max(50, 40)


def test_tables_fit_80_columns_and_hostile_text_does_nothing(connected, reading):
    ends = features_of_both(reading)
    busiest = max(reading.equations, key=lambda e: len(e.terms)).output
    effects = effects_on(reading, busiest, device="cpu")
    tables = [
        *reading_tables(reading, ends, rows=40),
        *output_tables(reading, busiest, effects, ends),
    ]
    lines = lines_of(tables)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert not {"\x1b", "\u202e"} & {*text}
    assert "\\x1b" in text and "[red]" in text
    for term in reading.equation(busiest).terms:
        assert f"IF{term.feature} ({term.weight:+.2g})" in text


def test_the_screen_shows_tables_or_an_output_and_gives_json(own, capsys):
    config, screen = FeaturesConfig(run=own, device="cpu"), Screen()
    assert not is_read(own)
    (whole,) = run_features(config, [], order="index", rows=2, screen=screen)
    assert is_read(own)
    assert (own / "effects.png").stat().st_size > 1000
    reading = load_reading(own)
    output = reading.equations[0].output
    (closely,) = run_features(config, [output], order="index", rows=2, screen=screen)
    out = capsys.readouterr().out
    assert "outputs best explained" in out
    assert "predicted" in out
    for document in (whole, closely):
        assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert closely["output"] == output
    assert whole["agreement"]["terms"]["n"] == reading.effects.connected.n


def test_a_document_holds_equations_relations_and_examples(reading):
    ends = features_of_both(reading)
    whole = reading_document(reading, ends, rows=3)
    assert [e["output"] for e in whole["equations"]] == [e.output for e in reading.clearest[:3]]
    equation = next(e for e in reading.equations if e.terms)
    told = output_document(reading, equation.output, (), ends)
    assert [i["index"] for i in told["inputs"]] == [t.feature for t in equation.terms]
    assert told["feature"]["index"] == equation.output
    first = equation.terms[0].feature
    assert told["inputs_fire_on"][str(first)] == top_tokens(ends[0], first)


def test_the_words_of_a_feature_are_the_tokens_that_make_up_most_of_it(reading):
    features = features_of_both(reading)[0]
    index = int(features.n_active.argmax())
    sample, total = features.feature(index).sample, Counter[int]()
    for token, value in zip(sample.token.tolist(), sample.value.tolist(), strict=True):
        total[token] += value
    most = [features.texts.alone(token) for token, _ in total.most_common(3)]
    assert top_tokens(features, index, n=3) == most
    assert top_tokens(None, index) == []


def test_the_figure_holds_every_point_at_its_place():
    points = tuple(
        Effect(input=i, output=0, weight=0.1, linear=0.1 * i, true=0.05 * i, n_tokens=9, control=c)
        for i, c in enumerate([False, False, False, True, True])
    )
    (axes,) = effects_figure(Effects(points=points)).axes
    at = np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])
    np.testing.assert_allclose(sorted(at.tolist()), [(p.linear, p.true) for p in points])
    assert any("slope 0.50" in t.get_text() for t in axes.texts)
    assert effects_figure(Effects(points=())).axes
