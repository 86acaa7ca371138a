"""What pages lead to and name is there, and what the tests know of a page is how it is written."""

import re
from pkgutil import resolve_name
from urllib.parse import unquote

import pytest

from pipeline.saepipe import NAMES
from tests.docs.blocks import SHOWN, blocks_of, without_blocks
from tests.docs.running import MARKDOWN, ROOT, RUN, name_of

LINKING = [*MARKDOWN, ROOT / "CHANGELOG.md", ROOT / "data/README.md", ROOT / "actstore/FORMAT.md"]
LINK = re.compile(
    r"\]\(<?([^()\s>]+)>?(?: \"[^\"]*\")?\)|^\[[^\]]+\]: (\S+)|src=\"([^\"]+)\"", re.M
)
CODE = re.compile(r"`[^`\n]+`")


def links_of(text: str) -> list[str]:
    """Where its links and pictures are; not those of other places, nor of the page itself."""
    words = CODE.sub("", without_blocks(text))
    targets = ["".join(groups) for groups in LINK.findall(words)]
    return [unquote(t.partition("#")[0]) for t in targets if not re.match(r"#|[a-z]+:", t)]


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_what_a_page_links_to_and_shows_is_there(page):
    links = links_of(page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_links_are_found_wherever_they_stand():
    text = "[a](b.md#c) ![d](e.png) [![f](g.png)](h.md 'i') `[j](k.md)` [l](https://m) [n](#o)\n"
    text += '```sh\n[p](q.md)\n```\n[r]: s.md\n<img src="t.png"> [u](<v%20w.md>)\n'
    assert links_of(text.replace("'i'", '"i"')) == [
        "b.md", "e.png", "g.png", "h.md", "s.md", "t.png", "v w.md",
    ]  # fmt: skip


NAMING = [*MARKDOWN, ROOT / "tests/elsewhere.sh"]
OURS = re.compile(r"(?<![\w./])(?:(?:pipeline|actstore|tests|data|docs)/[\w/.-]*\w|cli\.py)")
MODULE = re.compile(r"`((?:pipeline|actstore)(?:\.\w+)+)")
PUBLIC = re.compile(r"\bsp\.(\w+)")


@pytest.mark.parametrize("page", NAMING, ids=name_of)
def test_files_that_a_page_or_a_script_names_are_there(page):
    named = OURS.findall(page.read_text(encoding="utf-8"))
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_modules_and_names_of_python_that_a_page_gives_are_there(page):
    text = page.read_text(encoding="utf-8")
    for name in MODULE.findall(text):
        assert resolve_name(name), name
    assert set(PUBLIC.findall(text)) <= {*NAMES, "__version__"}


NEVER = {"bash", "console", "ipython", "mermaid", "py", "pycon", "shell", "zsh"}
"""What would run, or be drawn by a script from elsewhere, under another name."""


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_blocks_that_a_reader_types_are_sh_or_python_and_each_block_ends(page):
    text = page.read_text(encoding="utf-8")
    assert not {block.language for block in blocks_of(text)} & NEVER, f"{RUN} and {SHOWN} are known"
    assert "```" not in without_blocks(text)
    reasons = re.findall(r"^ *<!-- not run.*", text, re.M)
    assert len(reasons) == sum(not block.is_run for block in blocks_of(text)), (
        "<!-- not run: reason --> stands on the line straight above its block"
    )
