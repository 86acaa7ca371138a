"""What is said of an SAE counts where its files do not say it, and is refused where they do."""

from pathlib import Path

import numpy as np
import pytest
import saepipe as sp
import torch

from pipeline.config.architectures import TopKConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.foreign_sae import Asked
from pipeline.formats.table import read_foreign
from pipeline.sae.sae import SAE
from tests.helpers.foreign import (
    D,
    F,
    K,
    dictionary,
    matrices,
    saelens,
    sparsify,
    write_pickle,
    write_safetensors,
)
from tests.helpers.refusals import refused


def pickled(folder: Path, **more: np.ndarray) -> Path:
    """An `ae.pt` of the old AutoEncoder's names, with nothing beside it."""
    w = matrices()
    told = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "bias": w["b_dec"]}
    write_pickle(folder / "ae.pt", {**told, "decoder.weight": w["W_dec"].T, **more})
    return folder / "ae.pt"


def pickled_topk(folder: Path, **more: object) -> Path:
    """One of AutoEncoderTopK's names, of which `k` may be lacking."""
    w = matrices()
    told = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "b_dec": w["b_dec"]}
    write_pickle(folder / "ae.pt", {**told, "decoder.weight": w["W_dec"].T, **more})
    return folder / "ae.pt"


def plain(folder: Path, **more: np.ndarray) -> Path:
    write_safetensors(folder / "mine.safetensors", matrices() | more)
    return folder / "mine.safetensors"


def topk_of(folder: Path) -> Path:
    """One whose settings name the class."""
    source = pickled_topk(folder, k=torch.tensor(K), threshold=torch.tensor(-1.0))
    tensors = torch.load(source, weights_only=True)
    return dictionary(folder, "AutoEncoderTopK", tensors, k=K)


def with_threshold(folder: Path) -> Path:
    return plain(folder, theta=np.ones(F, dtype=np.float32))


@pytest.mark.parametrize(
    ("write", "asked", "why"),
    [
        (saelens, {"arch": "topk"}, "is an SAE of SAELens, whose files say .* leave out --arch$"),
        (saelens, {"k": 5}, "whose files say what it is: leave out --k$"),
        (sparsify, {"centred": False}, "is an SAE of sparsify, .* leave out --uncentred$"),
        (pickled, {"centred": False}, "an SAE of dictionary_learning, .* leave out --uncentred$"),
        (pickled, {"arch": "topk", "k": 5}, "of the class AutoEncoder, and --arch topk is none"),
        (pickled, {"k": 5}, "of the class AutoEncoder, which has no k: leave out --k$"),
        (pickled, {"arch": "tied"}, "of the class AutoEncoder, and --arch tied is none"),
        (topk_of, {"arch": "batchtopk"}, "AutoEncoderTopK, and --arch batchtopk is none"),
        (topk_of, {"k": 5}, "says its k: leave out --k$"),
        (pickled_topk, {"arch": "topk"}, "does not say how many latents .* are kept: name --k$"),
        (pickled_topk, {"arch": "tied"}, "has nothing like the architecture tied$"),
        (plain, {"arch": "relu", "k": 5}, "k is of topk, batchtopk, matryoshka: name one"),
        (with_threshold, {"k": 5}, "k is of topk, batchtopk, matryoshka: name one"),
    ],
)  # fmt: skip
def test_what_files_say_themselves_is_not_to_be_named(tmp_path, write, asked, why):
    with refused(ConfigError, why):
        read_foreign(str(write(tmp_path)), Asked(**asked))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"arch": "banana"}, "arch must be one of relu, .* got 'banana'"),
        ({"k": 0}, "k must be at least 1, got 0"), ({"k": -3}, "k must be at least 1, got -3"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_read(asked, why):
    with refused(ConfigError, why):
        Asked(**asked)


@pytest.mark.parametrize("write", [pickled_topk, plain])
def test_k_counts_where_files_do_not_say_it(tmp_path, write):
    found, _, _ = read_foreign(str(write(tmp_path)), Asked(arch="topk", k=5))
    assert found.arch == TopKConfig(k=5)
    with refused(CheckpointError, f"k = {F + 1} is above its {F} latents"):
        read_foreign(str(write(tmp_path)), Asked(arch="topk", k=F + 1))


@pytest.mark.parametrize(("name", "n"), [("d_in", D), ("d_sae", F)])
@pytest.mark.parametrize("said", [7, "abc", float("nan")])
def test_settings_of_other_widths_than_the_matrices_are_refused(tmp_path, name, n, said):
    with refused(CheckpointError, f"says {name} {said!r}, and the matrices of .* have {n}: put"):
        read_foreign(str(saelens(tmp_path, **{name: said})))


def test_widths_of_sparsify_are_held_to_the_matrices_and_none_is_said_by_zero(tmp_path):
    assert read_foreign(str(sparsify(tmp_path, num_latents=0)))[0].d_sae == F
    for said, why in (({"num_latents": 7}, "says d_sae 7"), ({"d_in": 7}, "says d_in 7")):
        with refused(CheckpointError, why):
            read_foreign(str(sparsify(tmp_path, **said)))


def test_a_k_that_settings_do_not_say_is_noted(tmp_path):
    big = {
        "W_enc": np.ones((D, 200)), "b_enc": np.ones(200), "W_dec": np.ones((200, D)),
        "b_dec": np.ones(D),
    }  # fmt: skip
    big = {name: array.astype(np.float32) for name, array in big.items()}
    found = read_foreign(str(saelens(tmp_path / "a", big, kind="topk", d_sae=200)))[0]
    assert found.arch == TopKConfig(k=100)
    assert any("do not say k: it is taken for 100, as SAELens takes it" in n for n in found.notes)
    said = read_foreign(str(saelens(tmp_path / "b", big, kind="topk", d_sae=200, k=3)))[0]
    assert said.arch == TopKConfig(k=3) and not any("do not say k" in note for note in said.notes)


def test_settings_that_lead_nowhere_are_not_taken_for_none(tmp_path):
    folder = saelens(tmp_path)
    (folder / "cfg.json").unlink()
    (folder / "cfg.json").symlink_to(tmp_path / "gone")
    with refused(CheckpointError, r"cannot read .*cfg\.json: No such file"):
        read_foreign(str(folder))


def test_a_folder_of_several_names_them_and_an_empty_name_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(saelens(tmp_path / "all" / "one"))
    with refused(CheckpointError, "it holds one/: name one of its folders$"):
        read_foreign(str(tmp_path / "all"))
    with refused(CheckpointError, "^nothing is at ''"):
        read_foreign("")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("x" * 300, r"^nothing can be at 'x{40}\.\.\.', a name of 300 characters: name a folder"),
        (Path("a/" * 3000), "^nothing can be at 'a/a/.*, a name of 5,999 characters"),
        ("a\0b", r"^nothing can be at 'a\\x00b' \(embedded null"),
        ("~nobody-of-this-name/run", "^nothing can be at '~nobody-of-this-name/run'"),
        (None, "^an SAE is named by a text or a path, got None: name a folder"),
        (3, "^an SAE is named by a text or a path, got 3"),
        (b"run", "^an SAE is named by a text or a path, got b'run'"),
    ],
    ids=["long", "long path", "null", "nobody", "None", "number", "bytes"],
)
def test_what_is_no_name_is_one_line(tmp_path, source, why):
    for opens in (SAE.from_pretrained, SAE.load):
        with refused(CheckpointError, why):
            opens(source)
    with refused(CheckpointError, why):
        sp.import_sae(source, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_too_long_a_name_is_one_line():
    with refused(CheckpointError, "a name of 300 characters"):
        sp.evaluate("x" * 300)
