"""A page from its first block to its last, in the working folder."""

import math
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from tests.docs import shell
from tests.docs.blocks import Block, blocks_of
from tests.docs.shown import TOLERANCE, not_printed

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MARKDOWN = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]
SHOWN_BY = (3, 11)
"""The embedded text is of the Python that runs: what another one prints differs in its numbers."""
RUN = ("sh", "python")
"""Languages of blocks that are run."""


def name_of(page: Path) -> str:
    """Its path, as people know it."""
    return page.relative_to(ROOT).as_posix()


def blocks_to_run(page: Path) -> list[Block]:
    """Those that a reader types."""
    blocks = blocks_of(page.read_text(encoding="utf-8"))
    return [block for block in blocks if block.language in RUN and block.is_run]


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run its blocks, those of Python in one namespace, and hold what it shows to what they print.

    Raises:
        AssertionError: a command failed, or something was not printed; it says where.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    tolerance = TOLERANCE if sys.version_info[:2] == SHOWN_BY else math.inf
    for block in blocks_to_run(page):
        with told_where(page, block) as printed:
            if block.language == "python":
                code = "\n" * (block.line - 1) + block.code  # so that a traceback has its lines
                exec(compile(code, str(page), "exec"), namespace)
            else:
                for command in shell.commands_of(block.code):
                    shell.run(command, monkeypatch)
            missing = not_printed(block.shown, printed.getvalue(), tolerance=tolerance)
            assert missing is None, f"this is shown below the block and was not printed: {missing}"


@contextmanager
def told_where(page: Path, block: Block) -> Generator[StringIO]:
    """What the block prints; a failure in it says which block it was, and what was printed."""
    printed = StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield printed
    except (Exception, SystemExit, pytest.fail.Exception) as error:
        told = "".join(traceback.format_exception(error))
        pytest.fail(
            f"{told}\n{page}, line {block.line}; printed:\n{printed.getvalue()}", pytrace=False
        )
