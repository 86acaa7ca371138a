"""README and every page and notebook of docs/ run as they stand, from the first line on."""

import pytest

from tests.docs.running import DOCS, MARKDOWN, blocks_to_run, name_of, run_page

PAGES = [
    *(page for page in MARKDOWN if blocks_to_run(page)),
    *sorted(DOCS.glob("**/*.ipynb")),
]


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_new_folder")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_runs_as_it_stands(page, request, tmp_path, monkeypatch):
    if page.suffix == ".ipynb":
        from tests.docs.notebook import run_notebook

        run_notebook(page, folder=tmp_path)
        return
    request.getfixturevalue("hub")
    run_page(page, monkeypatch)
