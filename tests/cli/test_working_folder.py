"""The installed command, where files of the user's have the names of its parts."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SCRIPT = Path(sysconfig.get_path("scripts"), "saepipe")
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
