"""The pages of the reference that the code tells are those that it tells today."""

import os
import subprocess
import sys

from tests.docs.running import DOCS, ROOT


def test_pages_of_the_reference_are_what_the_code_tells_at_any_width(tmp_path):
    done = subprocess.run(
        [sys.executable, DOCS / "generate.py", tmp_path],
        check=False, cwd=ROOT, env=os.environ | {"COLUMNS": "40"}, text=True, stderr=-1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = {page.name: page.read_text(encoding="utf-8") for page in tmp_path.iterdir()}
    assert written.keys() == {"commands.md", "configuration.md", "metrics.md", "python.md"}
    told = written["commands.md"] + written["configuration.md"]
    unsaid = [line for line in told.splitlines() if line.endswith("|  |")]
    assert unsaid == [], "an option or a setting without words"
    for name, text in written.items():
        there = (DOCS / "reference" / name).read_text(encoding="utf-8")
        assert there == text, "the code changed: python docs/generate.py"
