"""A share of the hunt, the same each time; `python -m tests.hunt` is all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.slow import slow

ROOT = Path(__file__).parents[2]


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes that imported torch are forked")
@pytest.mark.parametrize("hunt", ["arguments", "files", "faults"])
def test_in_a_share_of_all_trials_nothing_is_found(hunt):
    done = subprocess.run(
        [sys.executable, "-m", "tests.hunt", hunt, "--share", "0.01"], cwd=ROOT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert " tried in " in done.stdout
