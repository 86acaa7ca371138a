"""A notebook is run in a process of its own, in the folder that is named."""

import nbformat
import pytest


@pytest.mark.slow
def test_a_cell_that_fails_fails_the_notebook_and_those_before_it_ran_in_the_folder(tmp_path):
    from tests.docs.notebook import CellExecutionError, run_notebook  # they bring a client

    cells = ["open('made', 'w').close()", "x = 1 / 0", "open('never', 'w').close()"]
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    (tmp_path / "here").mkdir()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_notebook(tmp_path / "a.ipynb", folder=tmp_path / "here")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["made"]
