"""Names that were given up are used no more: by code, messages, help, pages or scripts of pages."""

import re

import pytest

from tests.docs.running import MARKDOWN, ROOT

GIVEN_UP = {
    r"\bSparseCoder\b": "SAE",
    r"\bTunedCoder\b": "TunedSAE",
    r"\bHarvestProgress\b": "Progress",
    r"\bScoredMap\b": "MapScores",
    r"\bdata/figures\b": "docs/img",
    r"\w+=[\d.e-]+,\w+=[\d.e-]+/": "names of a sweep's members with a plus, l1=0.001+seed=0",
}
"""A pattern, and what took its place."""

SOURCES = [
    ROOT / "cli.py", ROOT / "mkdocs.yml", *MARKDOWN,
    *(path for room in ("actstore", "pipeline") for path in (ROOT / room).glob("**/*")
      if path.suffix in (".py", ".html", ".js", ".css", ".toml")),
]  # fmt: skip


@pytest.mark.parametrize("pattern", GIVEN_UP)
def test_a_name_that_was_given_up_is_nowhere(pattern):
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in SOURCES
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]
    assert not found, f"it is called {GIVEN_UP[pattern]} now"
