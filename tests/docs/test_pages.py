"""README and every page and notebook of docs/ run as they stand, from the first line on."""

import pytest

from tests.docs.blocks import blocks_of
from tests.docs.running import DOCS, MARKDOWN, blocks_to_run, name_of, run_page

PAGES = [
    *(page for page in MARKDOWN if blocks_to_run(page)),
    *sorted(DOCS.glob("**/*.ipynb")),
]
DRAWN = ".png"
"""Pictures are drawn, which takes a third of the time, only for a page that names one."""


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_new_folder")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_runs_as_it_stands(page, request, tmp_path, monkeypatch):
    if page.suffix == ".ipynb":
        from tests.docs.notebook import run_notebook

        run_notebook(page, folder=tmp_path)
        return
    request.getfixturevalue("hub")
    if not any(DRAWN in block.code for block in blocks_of(page.read_text(encoding="utf-8"))):
        request.getfixturevalue("undrawn")
    run_page(page, monkeypatch)
