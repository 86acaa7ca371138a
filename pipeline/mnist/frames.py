"""The weights of a connector after each epoch of its training, taken from its checkpoints.

A connector is told to keep a checkpoint an epoch; its trainer keeps the latest ones alone. What is
copied here is what a resumed training goes on from, so that no epoch is missing after Ctrl-C.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors.numpy import load

from actstore.files import make_folder, write_file
from pipeline.checkpoint import CODER, checkpoints_of

EPOCHS = "epochs"
_WEIGHTS = "W"


def keep_frames(run: Path) -> None:
    """Copy the weights of every checkpoint of a connector that was not copied before.

    Raises:
        OSError: the disk is full or fails.
    """
    folder = run / EPOCHS
    for step, checkpoint in checkpoints_of(run).items():
        file = _file(folder, step)
        if file.exists():
            continue
        W = load((checkpoint / CODER).read_bytes())[_WEIGHTS]
        data = BytesIO()
        np.savez_compressed(data, W=W)
        make_folder(folder)
        write_file(file, [data.getbuffer()])


def load_frames(run: Path) -> list[tuple[int, Float32[np.ndarray, "n_in n_out"]]]:
    """The steps that weights were kept of, ascending, and the weights after them."""
    files = sorted((run / EPOCHS).glob("step-*.npz"))
    return [(int(file.stem.removeprefix("step-")), np.load(file)[_WEIGHTS]) for file in files]


def _file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.npz"
