"""README and every page of docs/ run as they stand, from the first block to the last."""

import pytest

from tests.docs.blocks import blocks_of
from tests.docs.running import PAGES, blocks_to_run, name_of, run_page

DRAWN = ".png"
"""Pictures are drawn, which takes a third of the time, only for a page that names one."""


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_new_folder", "hub")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks_to_run(p)], ids=name_of)
def test_a_page_runs_as_it_stands(page, request, monkeypatch):
    if not any(DRAWN in block.code for block in blocks_of(page.read_text(encoding="utf-8"))):
        request.getfixturevalue("undrawn")
    run_page(page, monkeypatch)
