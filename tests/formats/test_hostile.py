"""Files of strangers that would do something, or take all there is: one line, and nothing done."""

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import CheckpointError
from pipeline.formats.foreign_sae import Asked
from pipeline.formats.table import read_foreign
from pipeline.sae.sae import SAE
from tests.helpers.foreign import (
    D,
    F,
    dictionary,
    matrices,
    saelens,
    sparsify,
    write_pickle,
    write_safetensors,
)
from tests.helpers.refusals import refused
from tests.helpers.tiny import WIDTH, make_sae

RELU = Asked(arch="relu")


class Writes:
    """Its pickle writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "was here"))


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
def test_a_pickle_that_would_write_a_file_writes_none(tmp_path, archive):
    path, mark = tmp_path / "a.pt", tmp_path / "mark"
    tensors = {name: torch.from_numpy(t) for name, t in matrices().items()}
    torch.save({**tensors, "more": Writes(mark)}, path, _use_new_zipfile_serialization=archive)
    for read in (lambda: read_foreign(str(path), RELU), lambda: SAE.from_pretrained(path)):
        with refused(CheckpointError, "its pickle holds more than weights"):
            read()
    path.write_bytes(pickle.dumps(Writes(mark)))
    with refused(CheckpointError, r"a\.pt cannot be read as weights"):
        read_foreign(str(path), RELU)
    assert not mark.exists()


def test_the_pickle_does_write_where_it_is_trusted(tmp_path):
    """Or the test above would hold of anything."""
    torch.save({"more": Writes(tmp_path / "mark")}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "mark").exists()


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    told = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    told += b" " * (-(len(told) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(told)) + told


def npz(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_bomb_is_not_unpacked(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    data = header((2**28,)) + bytes(2**28)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy" if suffix == ".npz" else "a/data/0", data)
    with refused(CheckpointError, "would unpack to 268,435,"):
        read_foreign(str(path), RELU)


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20), (-1, 4), (3,)])
def test_an_array_must_be_as_large_as_it_says(tmp_path, shape):
    path = npz(tmp_path / "a.npz", W_enc=header(shape) + bytes(16))
    with refused(CheckpointError, r"a\.npz (claims|cannot be read)"):
        read_foreign(str(path), RELU)


def test_a_header_that_ends_in_the_middle(tmp_path):
    whole = header((4,))
    path = npz(
        tmp_path / "a.npz", W_enc=whole.replace(b"'shape': (4,)", b"'shape': (4, ") + bytes(16)
    )
    with refused(CheckpointError, r"a\.npz cannot be read as weights"):
        read_foreign(str(path), RELU)


def test_an_array_of_objects_is_not_opened(tmp_path):
    mark = tmp_path / "mark"
    data = header((1,), "|O") + pickle.dumps(Writes(mark))
    with refused(CheckpointError, "no numbers"):
        read_foreign(str(npz(tmp_path / "a.npz", W_enc=data)), RELU)
    assert not mark.exists()


def test_a_header_of_safetensors_that_claims_a_tebibyte_takes_no_memory(tmp_path):
    head = json.dumps({"W_enc": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    for data in (struct.pack("<Q", len(head)) + head.encode(), struct.pack("<Q", 2**60), b""):
        (tmp_path / "a.safetensors").write_bytes(data)
        with refused(CheckpointError, r"a\.safetensors cannot be read as weights"):
            read_foreign(str(tmp_path / "a.safetensors"), RELU)


def test_a_view_that_is_larger_than_its_file_is_refused(tmp_path):
    huge = torch.zeros(1).expand(2**20, 2**20)
    torch.save({"W_enc": huge, "W_dec": huge}, tmp_path / "a.pt")
    with refused(CheckpointError, "4,398,046,511,104 are claimed"):
        read_foreign(str(tmp_path / "a.pt"), RELU)


@pytest.mark.parametrize("layout", ["sparse", "meta"])
def test_what_is_no_array_is_refused(tmp_path, layout):
    huge = torch.empty(2**20, 2**20, device="meta")
    if layout == "sparse":
        huge = torch.sparse_coo_tensor(
            torch.zeros(2, 1, dtype=torch.long),
            torch.ones(1),
            (2**20, 2**20),
            check_invariants=True,
        )
    torch.save({"W_enc": huge, "W_dec": torch.zeros(2, 2)}, tmp_path / "a.pt")
    with refused(CheckpointError, r"a\.pt (holds a tensor that is not|cannot be read)"):
        read_foreign(str(tmp_path / "a.pt"), RELU)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(tmp_path, name, value):
    tensors = matrices()
    tensors[name].flat[-1] = value
    with refused(CheckpointError, f"{name} has values that are not finite"):
        read_foreign(str(saelens(tmp_path, tensors)))


def test_numbers_too_large_for_float32(tmp_path):
    tensors = {**matrices(), "b_enc": np.full(F, 1e200)}
    with refused(CheckpointError, "b_enc has values that are not finite"):
        read_foreign(str(saelens(tmp_path, tensors)))


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_a_tensor_that_is_missing(tmp_path, name):
    tensors = matrices()
    del tensors[name]
    with refused(CheckpointError, f"lacks {name}: it holds "):
        read_foreign(str(saelens(tmp_path, tensors)))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("W_enc", (D, F + 1)), ("b_enc", (F + 1,)), ("W_dec", (F, D + 1)), ("b_dec", (1, D)),
     ("W_dec", (F, D, 1)), ("b_enc", ())],
)  # fmt: skip
def test_shapes_that_contradict_each_other(tmp_path, name, shape):
    tensors = {**matrices(), name: np.zeros(shape, np.float32)}
    with refused(CheckpointError, r"sae_weights\.safetensors: "):
        read_foreign(str(saelens(tmp_path, tensors)))


@pytest.mark.parametrize(
    "content",
    ["[1]", "", "{", "[" * 100_000, '{"metadata": 3, "architecture": {}}', '"x"', "\xff",
     '{"k": ' + "9" * 5000 + "}"],
    ids=["list", "empty", "cut", "deep", "odd", "text", "bytes", "digits"],
)  # fmt: skip
def test_settings_that_are_none(tmp_path, content):
    saelens(tmp_path)
    (tmp_path / "cfg.json").write_bytes(content.encode("latin-1"))
    with refused(CheckpointError, "cfg.json|architecture"):
        read_foreign(str(tmp_path))


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"kind": "topk", "k": 0}, "k must be"), ({"kind": "topk", "k": 10**6}, "above its 20"),
        ({"kind": "topk", "k": "many"}, "k must be a number"),
        ({"kind": "topk", "k": 1.5}, "whole"),
        ({"kind": "matryoshka_batchtopk", "matryoshka_widths": [None]}, "no whole numbers"),
        ({"kind": "matryoshka_batchtopk", "matryoshka_widths": [1e400]}, "no whole numbers"),
        ({"d_in": "a\nb"}, r"says d_in 'a\\nb'"),
        ({"kind": "transcoder"}, "writes to another place than it reads"),
        ({"kind": "jumprelu_skip_transcoder"}, "writes to another place"),
        ({"kind": "matching_pursuit"}, "picked one after another"),
        ({"kind": "temporal"}, "several tokens"), ({"kind": "abstopk"}, "may be negative"),
        ({"kind": "jumprelu"}, "lacks threshold"), ({"kind": "of-tomorrow"}, "known are standard"),
        ({"normalize_activations": "covariance_whitening"}, "normalised by 'covariance_whitening'"),
    ],
)  # fmt: skip
def test_kinds_that_cannot_be_had(tmp_path, told, why):
    tensors = {**matrices(), "topk_threshold": np.full((), 0.1, np.float32)}
    with refused(CheckpointError, why):
        read_foreign(str(saelens(tmp_path, tensors, **told)))


def test_a_length_that_no_run_could_keep_is_not_taken(tmp_path):
    metadata = {"sae_lens_version": "6.1.0", "context_size": 2**63}
    assert read_foreign(str(saelens(tmp_path, metadata=metadata)))[0].ctx_len is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: "[" * 100_000, "cfg.json is damaged"),
        (lambda text: text.replace('"d_in": ', '"d_in": -'), f"d_in: -{WIDTH}, {WIDTH} there"),
        (
            lambda text: text.replace('"d_in": ', '"d_in": 9999999999'),
            f"d_in: 9+{WIDTH}, {WIDTH} there",
        ),
    ],
    ids=["deep", "negative", "absurd"],
)
def test_settings_of_ours_that_are_none(tmp_path, change, why):
    make_sae().save_pretrained(tmp_path)
    cfg = tmp_path / "cfg.json"
    assert change(cfg.read_text()) != cfg.read_text()
    cfg.write_text(change(cfg.read_text()))
    with refused(CheckpointError, why):
        SAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("told", "why"),
    [({"transcode": True}, "another place"), ({"skip_connection": True}, "another place"),
     ({"activation": "groupmax"}, "compete in groups"),
        ({"signed": True}, "may be negative"), ({"d_in": 7}, "says d_in 7"),
     ({"k": -1}, "k must be")],
)  # fmt: skip
def test_kinds_of_sparsify_that_cannot_be_had(tmp_path, told, why):
    with refused(CheckpointError, why):
        read_foreign(str(sparsify(tmp_path, **told)))


def test_a_dictionary_of_another_class(tmp_path):
    with refused(CheckpointError, "CrossCoder.* reads several places at once"):
        read_foreign(str(dictionary(tmp_path, "CrossCoder", {"a": np.zeros(3)})))


@pytest.mark.parametrize("told", [[1, 2], torch.zeros(3), {"a": 1}, {}])
def test_a_pickle_of_something_else(tmp_path, told):
    torch.save(told, tmp_path / "a.pt")
    with refused(CheckpointError, r"a\.pt "):
        read_foreign(str(tmp_path / "a.pt"), RELU)


def test_matrices_that_nothing_tells_apart(tmp_path):
    square = np.eye(4, dtype=np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"W_enc": square, "W_dec": square})
    with refused(CheckpointError, "square"):
        read_foreign(str(tmp_path / "a.safetensors"), RELU)
    w = matrices()
    write_pickle(tmp_path / "a.pt", {"one": w["W_enc"], "two": w["W_dec"]})
    with refused(CheckpointError, r"its matrices are one \[12, 20\], two \[20, 12\]"):
        read_foreign(str(tmp_path / "a.pt"), RELU)


def test_a_folder_of_nothing_known(tmp_path):
    (tmp_path / "notes.txt").touch()
    with refused(CheckpointError, "it holds notes.txt"):
        read_foreign(str(tmp_path))
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    with refused(CheckpointError, "name one file of it"):
        read_foreign(str(tmp_path))
    with refused(CheckpointError, "nothing is at"):
        read_foreign(str(tmp_path / "absent"))


def test_telling_what_a_folder_is_loads_no_torch():
    code = "import sys, pipeline.formats.table, pipeline.foreign; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
