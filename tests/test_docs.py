"""The pages and examples in docs/ run as they stand, from the first line to the last."""

import re
import sys
from pathlib import Path

import pytest

from pipeline import saepipe

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def code_of(page: Path) -> str:
    """Its Python; lines keep their numbers, so that a failure says where it is."""
    text = page.read_text()
    if page.suffix == ".py":
        return text
    kept = [""] * len(text.splitlines())
    for block in BLOCK.finditer(text):
        first = text[: block.start(1)].count("\n")
        lines = block[1].splitlines()
        kept[first : first + len(lines)] = lines
    return "\n".join(kept)


PAGES = sorted([*DOCS.glob("**/*.md"), *DOCS.glob("**/*.py")])


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "saepipe", saepipe)
    monkeypatch.chdir(tmp_path)
    exec(compile(code_of(page), str(page), "exec"), {"__name__": "__main__"})


def test_blocks_keep_the_lines_of_their_page(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("# A\n\n```python\nx = 1\n```\n```sh\nrm\n```\n\n```python\nx += 1\ny\n```\n")
    assert code_of(page).splitlines() == [*[""] * 3, "x = 1", *[""] * 6, "x += 1", "y"]
    assert len(PAGES) >= 2


NAMING = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md", DOCS.parent / "tests/elsewhere.sh"]
OURS = re.compile(r"(?<![\w./])(?:(?:pipeline|actstore|tests|data|docs)/[\w/.-]*\w|cli\.py)")


@pytest.mark.parametrize("page", NAMING, ids=lambda page: page.name)
def test_files_that_a_page_or_a_script_names_are_there(page):
    named = OURS.findall(page.read_text())
    assert not [name for name in named if not (DOCS.parent / name).exists()]
