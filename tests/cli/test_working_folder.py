"""The installed command, by the folder it is typed in."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SCRIPT = Path(sysconfig.get_path("scripts"), "saepipe")
ROOT = Path(__file__).parents[2]
NAMES = ("pipeline", "actstore", "cli", "typer", "json")


@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "saepipe"]], ids=["", "-m"])
def test_files_of_its_names_in_the_working_folder_are_not_taken_for_it(tmp_path, command):
    if not SCRIPT.exists():
        pytest.skip(f"saepipe is not installed: there is no {SCRIPT}")
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    (tmp_path / "data").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep}  # two empty parts: the working folder
    told = subprocess.run(
        [*command, "--version"], cwd=tmp_path, env=environment, check=False, capture_output=True
    )
    assert (told.returncode, told.stdout[:8], told.stderr) == (0, b"saepipe ", b"")


def test_a_working_folder_that_is_gone_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(sys.argv.pop(1)); import pipeline.saepipe as s; s.main()"
    told = subprocess.run(
        [sys.executable, "-c", code, gone, "--version"],
        cwd=gone, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True,
    )  # fmt: skip
    said = b"error: the working directory is gone: cd to one that is there\n"
    assert (told.returncode, told.stdout, told.stderr) == (1, b"", said)
