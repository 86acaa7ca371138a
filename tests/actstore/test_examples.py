"""The examples that people copy run as they stand, and without torch."""

import subprocess
import sys
import textwrap
from pathlib import Path

import actstore

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = "\nimport sys\nassert 'torch' not in sys.modules\n"

LABELLED_VECTORS = """
from pathlib import Path
import numpy as np
from actstore.batches import Batches
from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from actstore.writer import ActWriter

x = np.random.default_rng(0).standard_normal((10_000, 64), np.float32)
labels = np.arange(len(x), dtype=np.int32)
numbers = {row.tobytes(): i for i, row in enumerate(x)}
seen = []

class Enough(Exception):
    pass

def step(batch):
    seen.append([numbers[row.tobytes()] for row in batch])
    if len(seen) == len(x) // 256:
        raise Enough

try:
    exec(EXAMPLE)
except Enough:
    pass
assert store.n_rows == len(x)
rows = np.concatenate(seen)
assert len(set(rows.tolist())) == len(rows) == 39 * 256, "each row once"
assert (rows != np.sort(rows)).any(), "shuffled"
tokens = np.concatenate([store.shard("token_id", k) for k in range(store.n_shards)])
first = np.concatenate([store.shard("image", k) for k in range(store.n_shards)])
assert all(numbers[row.tobytes()] == token for row, token in zip(first, tokens)), "with its label"
"""


def run(program: str, folder: Path) -> None:
    """Run a program on its own in `folder`, every warning being an error."""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(
        command, check=False, cwd=folder, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_ten_lines_of_the_store_write_and_read_labelled_vectors(tmp_path):
    assert actstore.__doc__ is not None
    _, example = actstore.__doc__.split("read them back shuffled:\n")
    example = textwrap.dedent(example).strip()
    assert len(example.splitlines()) <= 10
    program = f"EXAMPLE = {example!r}\n{LABELLED_VECTORS}{WITHOUT_TORCH}"
    run(program, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["images.actstore"]
