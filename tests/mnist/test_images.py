import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.mnist.images import labelled, open_images, read_idx, read_split
from tests.helpers.dataset_hub import dataset_hub
from tests.helpers.images import idx_bytes, write_idx
from tests.helpers.refusals import refused


def draw(n: int, *, side: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, side, side), dtype=np.uint8), rng.integers(0, 10, n)


def write_set(folder: Path, prefix: str, n: int, *, seed: int = 0, gz: bool = False, **how):
    pixels, labels = draw(n, seed=seed, **how)
    write_idx(folder, prefix, pixels, labels, gz=gz)
    return pixels, labels


class TestIdx:
    @pytest.mark.parametrize("name", ["a-idx3", "a-idx3.gz"])
    def test_the_values_are_those_that_were_written(self, tmp_path, name):
        values = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
        data = idx_bytes(values)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        np.testing.assert_array_equal(read_idx(tmp_path / name, n_dims=3), values)

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("idx3", b"", "begins with nothing, not with 00 00 08 03"),
            ("idx3", b"\x89PNG", "begins with 89 50 4e 47"),
            ("idx3", bytes([0, 0, 8, 1]) + bytes(20), "not with 00 00 08 03"),
            ("idx3", bytes([0, 0, 13, 3]) + bytes(20), "not with 00 00 08 03"),
            ("idx3", idx_bytes(np.zeros((2, 3, 3)))[:-1], "3 x 3 are 18 bytes, and it holds 17"),
            ("idx3", idx_bytes(np.zeros((2, 3, 3))) + b"x", "3 x 3 are 18 bytes, and it holds 19"),
            ("idx3.gz", b"no gzip", "cannot be read"),
            ("idx3.gz", gzip.compress(bytes(100), mtime=0)[:-9], "cannot be read"),
        ],
        ids=[
            "empty", "png", "labels", "of floats", "too short", "too long", "no gzip", "gzip, cut",
        ],
    )  # fmt: skip
    def test_what_is_no_such_file_says_what_it_is(self, tmp_path, name, data, message):
        path = tmp_path / name
        path.write_bytes(data)
        with refused(ConfigError, f"{path} .*{message}"):
            read_idx(path, n_dims=3)


class TestFolder:
    def test_files_for_training_and_for_testing_are_kept_apart(self, tmp_path):
        written = (
            write_set(tmp_path, "train", 7, gz=True),
            write_set(tmp_path, "t10k", 3, seed=1),
        )
        images = open_images(str(tmp_path))
        for part, (pixels, labels) in zip((images.train, images.test), written, strict=True):
            np.testing.assert_array_equal(part.pixels, pixels.astype(np.float32) / 255)
            np.testing.assert_array_equal(part.labels, labels)
        assert images.side == 4
        np.testing.assert_array_equal(images.train.rows[0], images.train.pixels[0].ravel())

    @pytest.mark.parametrize("of_file", [True, False])
    def test_of_one_set_a_fifth_is_set_apart_and_each_image_keeps_its_label(
        self, tmp_path, of_file
    ):
        pixels, labels = write_set(tmp_path, "t10k", 50)
        path = tmp_path / "t10k-images-idx3-ubyte" if of_file else tmp_path
        images = open_images(str(path))
        assert (len(images.train), len(images.test)) == (40, 10)
        known = {p.tobytes(): label for p, label in zip(pixels, labels, strict=True)}
        found = {}
        for part in (images.train, images.test):
            for p, label in zip(part.pixels, part.labels, strict=True):
                found[np.rint(p * 255).astype(np.uint8).tobytes()] = label
        assert found == known
        assert open_images(str(path)).fingerprint == images.fingerprint

    def test_the_fingerprint_is_of_pixels_and_labels(self, tmp_path):
        write_set(tmp_path, "t10k", 50)
        before = open_images(str(tmp_path)).fingerprint
        labels = tmp_path / "t10k-labels-idx1-ubyte"
        data = bytearray(labels.read_bytes())
        data[-1] = (data[-1] + 1) % 10
        labels.write_bytes(data)
        assert open_images(str(tmp_path)).fingerprint != before

    def test_images_without_labels_name_the_file_that_is_missing(self, tmp_path):
        write_set(tmp_path, "t10k", 10)
        (tmp_path / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(ConfigError, match="must lie beside it, as t10k-labels-idx1-ubyte"):
            open_images(str(tmp_path))

    def test_a_file_of_another_name_says_how_it_must_be_called(self, tmp_path):
        (tmp_path / "mnist.bin").write_bytes(idx_bytes(np.zeros((2, 3, 3))))
        with pytest.raises(ConfigError, match="must hold images and idx3"):
            open_images(str(tmp_path / "mnist.bin"))

    @pytest.mark.parametrize(
        ("sets", "message"),
        [
            ({}, r"has 0 files .* train-images-idx3-ubyte.gz"),
            ({"train": (7, 4), "t10k": (7, 5)}, "two sizes"),
            ({"t10k": (4, 4)}, "4 images to learn from and 0 to test on"),
        ],
        ids=["none", "two sizes", "too few"],
    )
    def test_images_that_cannot_be_used_are_refused(self, tmp_path, sets, message):
        for prefix, (n, side) in sets.items():
            write_set(tmp_path, prefix, n, side=side)
        with pytest.raises(ConfigError, match=message):
            open_images(str(tmp_path))


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.zeros((2, 3, 4)), [0, 1], "3 x 4 pixels"),
        (np.zeros((2, 3, 3)), [0, 1, 2], "2 images and 3 labels"),
        (np.zeros((2, 3, 3)), [0, 10], "labels from 0 to 10"),
        (np.zeros((2, 3, 3)), [-1, 9], "labels from -1 to 9"),
    ],
)
def test_what_are_no_labelled_digits_is_refused(pixels, labels, message):
    with pytest.raises(ConfigError, match=message):
        labelled(pixels.astype(np.uint8), np.array(labels, np.int64), where="here")


@pytest.mark.parametrize("name", ["mnist", "no/such/path", "a\nb"])
def test_an_unknown_name_lists_what_there_is(name):
    with pytest.raises(ConfigError, match="--images takes digits, the path of IDX files, or a hub"):
        open_images(name)


def test_digits_without_scikit_learn_say_in_one_line_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # as if it were not installed
    with pytest.raises(ConfigError) as caught:
        open_images("digits")
    assert str(caught.value) == "--images digits needs scikit-learn: pip install 'saepipe[mnist]'"


def test_the_bundled_digits_need_no_file():
    images = open_images("digits")
    assert (len(images.train), len(images.test), images.side) == (1438, 359, 8)
    assert images.train.pixels.min() == 0
    assert images.train.pixels.max() == 1
    assert set(images.test.labels) == set(range(10))


def parquet_of(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
    )
    columns = {"image": [Image.fromarray(p) for p in pixels], "label": labels.tolist()}
    data = io.BytesIO()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(data)
    return data.getvalue()


OPEN = """
import json, sys
from pipeline.errors import ConfigError
from pipeline.mnist.images import open_images
for name in sys.argv[1:]:
    try:
        images = open_images(name)
        parts = {"train": images.train, "test": images.test}
        told = {k: [(p.rows * 255).round().tolist(), p.labels.tolist()] for k, p in parts.items()}
    except ConfigError as error:
        told = {"error": str(error)}
    print(json.dumps(told))
"""


def test_a_dataset_of_the_hub_gives_its_splits_and_what_is_none_one_line(tmp_path):
    sets = {"train": draw(6), "test": draw(3, seed=1)}
    files = {f"data/{split}-00000.parquet": parquet_of(*sets[split]) for split in sets}
    with dataset_hub(files, home=tmp_path) as environment:
        done = subprocess.run(
            [sys.executable, "-c", OPEN, "some/texts", "some/thing"],
            env=os.environ | environment, cwd=Path(__file__).parents[2],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found, missing = map(json.loads, done.stdout.splitlines()[-2:])
    for split, (pixels, labels) in sets.items():
        rows, digits = found[split]
        np.testing.assert_array_equal(rows, pixels.reshape(len(pixels), -1))
        assert digits == labels.tolist()
    assert "the hub has no dataset some/thing" in missing["error"]
    assert "\n" not in missing["error"]


def test_a_dataset_without_images_names_its_columns():
    import datasets

    with pytest.raises(ConfigError, match="no columns 'image' and 'label'; its columns are 'text'"):
        read_split(datasets.Dataset.from_dict({"text": ["one"]}), where="some/texts")


def test_a_dataset_of_images_of_two_sizes_is_refused():
    import datasets

    images = [Image.fromarray(draw(1, side=side)[0][0]) for side in (3, 4)]
    dataset = datasets.Dataset.from_dict(
        {"image": images, "label": [0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    with pytest.raises(ConfigError, match="images of 2 sizes"):
        read_split(dataset, where="some/images")
