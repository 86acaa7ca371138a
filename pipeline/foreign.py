"""What a path that is not a run seems to be, by the names of files alone: nothing is read."""

from pathlib import Path

from actstore.files import partial_of
from pipeline.formats.table import seems as whose_sae

FILES = {
    ".pt": "a file of PyTorch",
    ".pth": "a file of PyTorch",
    ".bin": "a file of PyTorch",
    ".safetensors": "a file of weights",
    ".npz": "a file of numpy",
    ".npy": "a file of numpy",
}
"""By their endings."""
FOLDERS = {
    ("data.zarr",): "an activation store",
    ("experiment.json",): "an experiment of saepipe mnist",
    ("config.json", "model.safetensors"): "a language model",
}
"""By what is in them, where it is no SAE; the first that fits. Those of SAEs are in the table of
formats."""


def not_a_run(path: Path, *, made_by: str) -> str:
    """One line about a path where a run was looked for, and what makes one."""
    if (partial_of(path) / "begun.json").exists() and not path.exists():
        return f"{path} is unfinished: the command that began it, given again, goes on with it"
    if (path / "sweep.json").exists():
        runs = sorted(one.parent for one in path.glob("*/run.json"))
        one = f", as {runs[0]}" if runs else ""
        return f"{path} is a sweep, not a run: name one of its runs{one}"
    seems = _seems(path)
    if seems.startswith("an SAE"):
        return (
            f"{path} is not a run, and seems to be {seems}: type saepipe import {path} --out RUN, "
            "and name that"
        )
    guess = f", and seems to be {seems}" if seems else ""
    return f"{path} is not a run: it has no run.json{guess}; a run is a folder that {made_by} makes"


def _seems(path: Path) -> str:
    if sae := whose_sae(path):
        return sae
    if path.is_dir():
        found = (what for names, what in FOLDERS.items() if all((path / n).exists() for n in names))
        return next(found, "")
    if not path.exists():
        return ""
    if (path.parent / "run.json").exists():
        return f"a file of the run {path.parent}"
    return FILES.get(path.suffix.lower(), "a file")
