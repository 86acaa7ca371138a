"""A share of the hunt, the same each time; `python -m tests.hunt` is all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes that imported torch are forked")
def test_in_a_share_of_all_trials_nothing_is_found(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.hunt", "--share", "0.005"], cwd=ROOT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}, capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(" tried, ") == 3
