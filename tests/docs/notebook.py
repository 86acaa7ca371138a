"""A notebook from its first cell to its last, in a process of its own as people run it."""

import asyncio
import warnings
from pathlib import Path

import nbformat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their own
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError as CellExecutionError


def run_notebook(path: Path, *, folder: Path) -> None:
    """Run all cells, in this working folder.

    Raises:
        CellExecutionError: one failed; it has the cell and the traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}})
        asyncio.run(client.async_execute())
