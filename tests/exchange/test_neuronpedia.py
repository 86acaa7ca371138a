"""What Neuronpedia's importer reads: every line, against its tables and against plain sums."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluate.setup import load_sae
from pipeline.exchange import neuronpedia
from pipeline.exchange.json_lines import clean, line
from pipeline.exchange.neuronpedia import CREATOR, export_neuronpedia
from pipeline.features.collect import collect_features
from pipeline.features.files import FeatureSet
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.text.token_text import TokenTexts
from tests.helpers.featured import config_of
from tests.helpers.refusals import refused
from tests.helpers.tiny import make_sae

# apps/webapp/prisma/schema.prisma of hijohnnylin/neuronpedia at ebb8426 (20 August 2026): of each
# table that the importer fills (apps/webapp/app/api/admin/import/route.ts) the columns that are
# written here, their types, and those that have neither a default nor may be null.
TABLES = {
    "release": (
        "name:str description:str urls:[str] creatorName:str creatorId:str visibility:enum",
        "name description creatorName creatorId",
    ),
    "model": (
        "id:str displayName:str displayNameShort:str creatorId:str layers:int neuronsPerLayer:int "
        "owner:str instruct:bool inferenceEnabled:bool dimension:int visibility:enum",
        "id creatorId layers neuronsPerLayer owner",
    ),
    "sourceset": (
        "modelId:str name:str description:str creatorName:str creatorId:str urls:[str] "
        "releaseName:str visibility:enum",
        "modelId name description creatorName creatorId",
    ),
    "source": (
        "id:str modelId:str setName:str creatorId:str num_prompts:int num_tokens_in_prompt:int "
        "dataset:str hfRepoId:str hfFolderId:str visibility:enum",
        "id modelId setName creatorId",
    ),
    "features": (
        "modelId:str layer:str index:str sourceSetName:str creatorId:str maxActApprox:float "
        "hasVector:bool hookName:str topkCosSimIndices:[int] topkCosSimValues:[float] "
        "neuron_alignment_indices:[int] neuron_alignment_values:[float] "
        "neuron_alignment_l1:[float] decoder_weights_dist:[float] neg_str:[str] "
        "neg_values:[float] pos_str:[str] pos_values:[float] frac_nonzero:float "
        "freq_hist_data_bar_heights:[float] freq_hist_data_bar_values:[float] "
        "logits_hist_data_bar_heights:[float] logits_hist_data_bar_values:[float]",
        "modelId layer index hasVector frac_nonzero",
    ),
    "activations": (
        "id:str tokens:[str] index:str layer:str modelId:str maxValue:float maxValueTokenIndex:int "
        "minValue:float values:[float] creatorId:str binMin:float binMax:float binContains:float "
        "qualifyingTokenIndex:int",
        "id tokens index layer modelId maxValue maxValueTokenIndex minValue values creatorId",
    ),
}


def fits(value: object, kind: str) -> bool:
    if kind[0] == "[":
        return isinstance(value, list) and all(fits(one, kind[1:-1]) for one in value)
    if kind == "enum":
        return value in ("PUBLIC", "UNLISTED", "PRIVATE")
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is {"str": str, "int": int, "bool": bool}[kind]


def rows_of(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("ascii")
    # what importJsonlString does first (apps/webapp/lib/db/import.ts)
    return [json.loads(row) for row in text.replace("\\u0000", " ").strip().split("\n")]


def batches(folder: Path, table: str) -> list[Path]:
    return sorted((folder / table).iterdir(), key=lambda p: int(p.name[6:].split(".")[0]))


def all_rows(folder: Path, table: str) -> list[dict[str, Any]]:
    return [row for path in batches(folder, table) for row in rows_of(path)]


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    return export_neuronpedia(
        run, out=tmp_path_factory.mktemp("np"), release="tiny", creator="Someone", device="cpu",
        url="https://example.org", weights="org/repo/some/folder",
    )  # fmt: skip


def test_every_line_is_one_of_its_table(exported):
    folder = exported.folder
    for table, (columns, required) in TABLES.items():
        kinds = dict(told.split(":") for told in columns.split())
        files = batches(folder, table) if (folder / table).is_dir() else [folder / f"{table}.jsonl"]
        for path in files:
            rows = rows_of(path)
            for row in rows:
                # the importer takes the columns from the first line
                assert list(row) == list(rows[0])
                assert set(row) <= set(kinds) and set(required.split()) <= set(row)
                for name, value in row.items():
                    assert fits(value, kinds[name]), (table, name, value)


def test_lines_name_each_other(exported):
    folder, told = exported.folder, {}
    for name in ("release", "model", "sourceset", "source"):
        (told[name],) = rows_of(folder / f"{name}.jsonl")
    source, sourceset = told["source"], told["sourceset"]
    assert folder.parts[-2:] == ("model", "1-mlp-out-relu-64") == (exported.model, exported.source)
    assert (source["id"], source["setName"]) == ("1-mlp-out-relu-64", "mlp-out-relu-64")
    assert (source["hfRepoId"], source["hfFolderId"]) == ("org/repo", "some/folder")
    assert sourceset["name"] == source["setName"]
    assert sourceset["releaseName"] == told["release"]["name"] == "tiny"
    assert told["release"]["urls"] == sourceset["urls"] == ["https://example.org"]
    assert told["model"]["id"] == source["modelId"] == sourceset["modelId"] == "model"
    assert (told["model"]["layers"], told["model"]["neuronsPerLayer"]) == (3, 48)
    assert (source["num_prompts"], source["num_tokens_in_prompt"]) == (40, 12)
    assert {row["creatorId"] for row in told.values()} == {CREATOR}
    rows, acts = all_rows(folder, "features"), all_rows(folder, "activations")
    assert [row["index"] for row in rows] == [str(i) for i in range(64)]
    for row in (*rows, *acts):
        assert (row["modelId"], row["layer"]) == ("model", source["id"])
        assert row["creatorId"] == CREATOR
    assert {row["sourceSetName"] for row in rows} == {source["setName"]}
    assert {row["hookName"] for row in rows} == {"blocks.1.hook_mlp_out"}
    assert len({row["id"] for row in acts}) == len(acts) == exported.n_activations
    assert {len(row["id"]) for row in acts} == {25}
    assert exported.n_bytes == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="session")
def latents(world, run) -> np.ndarray:
    """Of every token of the store, in the order of its texts."""
    coder = load_sae(run, device=torch.device("cpu")).coder
    contexts = world.store.contexts(np.arange(world.store.n_contexts), sites=["mlp_out.1"])
    acts = np.stack([context.acts["mlp_out.1"] for context in contexts])
    return coder.encode(torch.from_numpy(acts)).detach().numpy()


def test_numbers_are_those_of_all_activations(exported, latents):
    z = latents.reshape(-1, latents.shape[-1])
    for row in all_rows(exported.folder, "features"):
        own = z[:, int(row["index"])]
        active = own[own > 0].astype(np.float64)
        assert row["frac_nonzero"] == pytest.approx(len(active) / len(own))
        assert row["maxActApprox"] == pytest.approx(max(own.max(), 0), rel=1e-5)
        if not len(active):
            assert row["freq_hist_data_bar_heights"] == row["freq_hist_data_bar_values"] == []
            continue
        counts, edges = np.histogram(active, 50)
        heights = row["freq_hist_data_bar_heights"]
        assert sum(heights) == pytest.approx(len(active))
        assert np.abs(np.cumsum(heights) - np.cumsum(counts)).max() <= 1  # a value at an edge
        np.testing.assert_allclose(
            row["freq_hist_data_bar_values"], (edges[1:] + edges[:-1]) / 2, rtol=1e-4, atol=1e-5
        )


def test_counts_of_a_sample_are_scaled_to_all_tokens(world, tmp_path, latents):
    run = world.run("sampled")
    collect_features(config_of(run, n_values=5))
    n_active = (latents.reshape(-1, 64) > 0).sum(0)
    for row in all_rows(export_neuronpedia(run, out=tmp_path).folder, "features"):
        total = sum(row["freq_hist_data_bar_heights"])
        assert total == pytest.approx(n_active[int(row["index"])], rel=1e-5)


def test_contexts_are_those_of_the_largest_activations_and_of_each_fifth(
    exported, contexts, latents
):
    by_feature: dict[int, list[dict[str, Any]]] = {}
    for row in all_rows(exported.folder, "activations"):
        by_feature.setdefault(int(row["index"]), []).append(row)
    assert len(by_feature) == (latents.max((0, 1)) > 0).sum() == exported.n_alive < 64
    n_intervals = set()
    for index, rows in by_feature.items():
        z = latents[:, :, index]
        best = np.sort(z.max(1))[::-1]
        top = [row for row in rows if row["binMin"] == -1]
        assert 0 < len(top) <= 3
        np.testing.assert_allclose([row["maxValue"] for row in top], best[: len(top)], rtol=1e-5)
        assert {row["binContains"] for row in top} == {-1}
        assert {row["binMax"] for row in top} == {top[0]["maxValue"]}
        for row in rows:
            at = row["maxValueTokenIndex"]
            assert row["values"][at] == row["maxValue"] == max(row["values"])
            assert row["minValue"] == min(row["values"])
            assert len(row["tokens"]) == len(row["values"])
            assert at == row["qualifyingTokenIndex"]
            shown = "".join(row["tokens"])
            (own,) = (z[i] for i, text in enumerate(contexts) if text.startswith(shown))
            assert own.argmax() == at  # the contexts are shorter than what is shown before
            assert len(shown) == min(12, at + 9)
            np.testing.assert_allclose(row["values"], own[: len(shown)], rtol=1e-5, atol=1e-6)
        for row in rows[len(top) :]:
            low, high = row["binMin"], row["binMax"]
            assert low * (1 - 1e-5) <= row["maxValue"] <= high * (1 + 1e-5)
            step = best[0] / 5
            assert (high - low) == pytest.approx(step, rel=1e-4)
            n_intervals.add(round(low / step))
            inside = (z >= low * (1 - 1e-5)) & (z <= high * (1 + 1e-5))
            assert row["binContains"] == pytest.approx(inside.mean(), rel=1e-5)
    assert n_intervals == {0, 1, 2, 3, 4}


@pytest.fixture(scope="session")
def contexts(world) -> list[str]:
    """The text of each context; no two begin alike."""
    tokenizer = load_tokenizer(str(world.model), revision="main")
    tokens = world.store.tokens(np.arange(world.store.n_contexts))
    return [tokenizer.decode(row) for row in tokens.tolist()]


def test_logits_are_those_of_the_direct_path(exported, world, run):
    weights = load_file(world.model / "model.safetensors")
    W_U = (
        weights["embed_out.weight"] if "embed_out.weight" in weights else weights["lm_head.weight"]
    )
    norm = weights["gpt_neox.final_layer_norm.weight"].double()
    W_dec = load_sae(run, device=torch.device("cpu")).coder.W_dec.detach().double()
    logits = ((W_dec - W_dec.mean(1, keepdim=True)) * norm) @ W_U.double().T
    n_vocab = 257  # tokens that there are, of 260 rows
    for row in all_rows(exported.folder, "features"):
        own = np.sort(logits[int(row["index"]), :n_vocab].numpy())
        np.testing.assert_allclose(row["pos_values"], own[::-1][:10], rtol=1e-4)
        np.testing.assert_allclose(row["neg_values"], own[:10], rtol=1e-4)
        counts, edges = np.histogram(own, 50)
        heights, values = row["logits_hist_data_bar_heights"], row["logits_hist_data_bar_values"]
        assert sum(heights) == n_vocab
        assert np.abs(np.cumsum(heights) - np.cumsum(counts)).max() <= 1
        np.testing.assert_allclose(values, (edges[1:] + edges[:-1]) / 2, rtol=1e-3, atol=1e-4)


def test_directions_are_told_by_coordinate_and_by_neighbour(exported, run, features):
    W_dec = load_sae(run, device=torch.device("cpu")).coder.W_dec.detach().double().numpy()
    for row in all_rows(exported.folder, "features"):
        own = W_dec[int(row["index"])]
        indices = row["neuron_alignment_indices"]
        assert indices == np.argsort(-own, kind="stable")[:3].tolist()
        np.testing.assert_allclose(
            row["neuron_alignment_values"], own[indices] / np.linalg.norm(own), rtol=1e-5
        )
        np.testing.assert_allclose(
            row["neuron_alignment_l1"], np.abs(own[indices]) / np.abs(own).sum(), rtol=1e-5
        )
        near = features.feature(int(row["index"])).neighbours
        assert row["topkCosSimIndices"] == [one.index for one in near]
        np.testing.assert_allclose(row["topkCosSimValues"], [one.cosine for one in near], rtol=1e-5)
        assert row["decoder_weights_dist"] == []


def test_of_attention_the_share_of_each_head_is_told(tmp_path):
    from tests.helpers.featured import World, make_store_of
    from tests.helpers.tiny import make_model

    model = make_model(tmp_path / "model")
    store = make_store_of(model, tmp_path / "a.actstore", sites=("attn_z.1",))
    run = World(folder=tmp_path, model=model, store=store).run(site="attn_z.1")
    collect_features(config_of(run))
    rows = all_rows(export_neuronpedia(run, out=tmp_path / "out").folder, "features")
    W_dec = load_sae(run, device=torch.device("cpu")).coder.W_dec.detach().numpy()
    norms = np.linalg.norm(W_dec.reshape(64, 2, 8), axis=2)
    shares = [row["decoder_weights_dist"] for row in rows]
    np.testing.assert_allclose(shares, norms / norms.sum(1, keepdims=True), rtol=1e-5)


def test_a_site_without_a_way_to_the_logits_has_no_histogram_and_a_note(world, tmp_path):
    run = world.run("pre", site="mlp_pre.1")
    collect_features(config_of(run))
    told = export_neuronpedia(run, out=tmp_path)
    assert any("no histograms of logits" in note for note in told.notes)
    for row in all_rows(told.folder, "features"):
        assert row["logits_hist_data_bar_heights"] == row["pos_str"] == []


def test_where_nothing_is_active_no_file_of_activations_is_written(world, tmp_path):
    coder = make_sae()
    with torch.no_grad():
        coder.b_enc.fill_(-1e4)
    run = world.run("dead", coder=coder)
    collect_features(config_of(run))
    told = export_neuronpedia(run, out=tmp_path)
    assert (told.n_alive, told.n_activations) == (0, 0)
    assert not (told.folder / "activations").exists()  # the importer cannot read an empty one
    assert len(all_rows(told.folder, "features")) == 64


def test_there_are_never_more_files_than_the_importer_lists(run, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia, "FEATURES_PER_FILE", 1)
    monkeypatch.setattr(neuronpedia, "MAX_FILES", 7)
    told = export_neuronpedia(run, out=tmp_path)
    files = batches(told.folder, "features")
    assert [path.name for path in files] == [f"batch-{i}.jsonl.gz" for i in range(7)]
    rows, at_once = (all_rows(each.folder, "features") for each in (told, exported))
    assert [row["index"] for row in rows] == [*map(str, range(64))]
    for row, same in zip(rows, at_once, strict=True):
        for name, value in row.items():
            assert value == (
                pytest.approx(same[name], rel=1e-4) if "logits" in name else same[name]
            )
    assert len(all_rows(told.folder, "activations")) == told.n_activations


HOSTILE = (
    "a\0b", "\\u0000", "\\\\u0000", "\\", '\\"', "</script><script>", "\ud800x", "\udc00",
    "\u2028\u2029", "\x1b[31m", "'; DROP TABLE \"Neuron\"; --", "\U0001f600", "\r\n\t",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_is_json_that_a_database_takes(text):
    data = line({"tokens": [clean(text)]})
    assert data.isascii() and data.count(b"\n") == 1
    imported = data.decode().replace("\\u0000", " ")
    (told,) = json.loads(imported)["tokens"]
    assert told.encode() and "\0" not in told
    assert told == text or any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text)


def test_hostile_tokens_come_through(run, tmp_path, monkeypatch):
    names = [text.encode("utf-8", "surrogatepass") for text in HOSTILE]
    monkeypatch.setattr(FeatureSet, "texts", TokenTexts(lambda token: names[token % len(names)]))
    rows = all_rows(export_neuronpedia(run, out=tmp_path).folder, "activations")
    assert any("\N{SYMBOL FOR NULL}" in token for row in rows for token in row["tokens"])
    assert any("\\u0000" in row["tokens"] for row in rows)


def test_the_marked_token_is_never_empty(run, tmp_path, monkeypatch):
    halves = TokenTexts(lambda token: (b"\xc3", b"\xa9")[token % 2])
    monkeypatch.setattr(FeatureSet, "texts", halves)
    for row in all_rows(export_neuronpedia(run, out=tmp_path).folder, "activations"):
        assert row["tokens"][row["qualifyingTokenIndex"]]


def test_what_is_written_names_no_place_of_this_machine(exported, world):
    for path in exported.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            assert str(world.folder).encode() not in data
            assert str(world.folder.parent).encode() not in data


def test_the_same_again_is_reused_and_other_content_is_refused(run, tmp_path):
    first = export_neuronpedia(run, out=tmp_path)
    before = {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()}
    again = export_neuronpedia(run, out=tmp_path)
    assert (first.reused, again.reused) == (False, True)
    assert {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()} == before
    with refused(
        ConfigError,
        f"{first.folder} exists and holds something else: choose another source_set or `out`",
    ):
        export_neuronpedia(run, out=tmp_path, creator="Another")
    assert {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in first.folder.parent.iterdir()] == [first.source]  # nothing is left over


def test_what_is_stopped_leaves_nothing(run, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_neuronpedia(run, out=tmp_path, on_progress=stop)
    assert [*(tmp_path / "model").iterdir()] == []
    leftover = tmp_path / "model" / "1-mlp-out-relu-64.partial"
    leftover.mkdir()
    (leftover / "source.jsonl").write_text("of a killed one")
    assert not export_neuronpedia(run, out=tmp_path).reused


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("source_set", "a__b"), ("source_set", "../up"), ("source_set", "a b"),
        ("model_id", "org/model"), ("model_id", ""), ("release", "é"), ("release", "x" * 129),
        ("weights", "repo-alone"),
    ],
)  # fmt: skip
def test_a_name_that_neuronpedia_does_not_take_is_refused(run, tmp_path, setting, value):
    if value == "":
        assert export_neuronpedia(run, out=tmp_path, **{setting: value}).model == "model"
        return
    with refused(ConfigError, re.escape(repr(value))):
        export_neuronpedia(run, out=tmp_path, **{setting: value})
    assert not [*tmp_path.rglob("*.jsonl*")]


def test_without_features_the_command_that_finds_them_is_told(world, tmp_path):
    bare = world.run("bare")
    with refused(CheckpointError, f"saepipe features {bare}"):
        export_neuronpedia(bare, out=tmp_path)


def test_without_the_model_a_note_says_what_is_lacking(world, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    moved = world.model.rename(world.model.with_name("elsewhere"))
    try:
        told = export_neuronpedia(copy, out=tmp_path / "out")
    finally:
        moved.rename(world.model)
    assert any("no histograms of logits" in note for note in told.notes)
    assert any("layers and neurons" in note for note in told.notes)
    (model,) = rows_of(told.folder / "model.jsonl")
    assert model["layers"] == 0 and "dimension" not in model
