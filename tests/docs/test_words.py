"""Names that were given up are used no more: by code, messages, help or pages."""

import re

import pytest

from tests.docs.running import MARKDOWN, ROOT

GIVEN_UP = {
    "TunedCoder": (r"\bTunedCoder\b", "TunedSAE"),
    "HarvestProgress": (r"\bHarvestProgress\b", "Progress"),
    "ScoredMap": (r"\bScoredMap\b", "MapScores"),
    "figures": (r"\bdata/figures\b", "docs/img"),
    "members": (r"\w=[\d.e-]+,\w+=[\d.e-]+/", "a path with a plus, as l1=0.001+seed=0"),
}
"""By a word for it, what is looked for, and what took its place."""

SOURCES = [
    ROOT / "cli.py", ROOT / "mkdocs.yml", *MARKDOWN,
    *(path for room in ("actstore", "pipeline") for path in (ROOT / room).glob("**/*")
      if path.suffix in (".py", ".html", ".js", ".css", ".toml")),
]  # fmt: skip


@pytest.mark.parametrize("name", GIVEN_UP)
def test_a_name_that_was_given_up_is_nowhere(name):
    pattern, now = GIVEN_UP[name]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in SOURCES
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]
    assert not found, f"it is {now} now"
