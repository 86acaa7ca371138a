"""Who may import whom, and what a reader may rely on everywhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / "cli.py", *ROOT.glob("actstore/**/*.py"), *ROOT.glob("pipeline/**/*.py")]

# Seen from the left, the right is out of bounds.
FORBIDDEN = {
    "actstore": {"pipeline", "cli", "torch", "transformers", "typer", "rich"},
    "pipeline": {"cli", "zarr", "numcodecs", "typer"},
    "pipeline/sae": {"actstore", "transformers"},
    "pipeline/harvest.py": {"pipeline.sae", "pipeline.training.train", "actstore.batches"},
    "pipeline/train.py": {
        "pipeline.harvest.harvest",
        "pipeline.lm.hooks",
        "pipeline.lm.model",
        "transformers",
    },
    "pipeline/training": {
        "pipeline.harvest.harvest",
        "pipeline.lm.hooks",
        "pipeline.lm.model",
        "transformers",
    },
    "pipeline/plan.py": {"torch"},
    "cli.py": {"zarr", "numcodecs", "torch", "transformers"},
}

# The left is imported in these places alone; "rich" is a library, "pipeline.terminal" is ours.
ONLY_IN = {
    "transformers": ("pipeline/model.py",),
    "typer": ("cli.py",),
    "rich": ("pipeline/terminal/",),
    "pipeline.terminal": ("pipeline/terminal/", "cli.py"),
    "zarr": ("actstore/",),
}


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path):
    where = path.relative_to(ROOT).as_posix()
    for prefix, banned in FORBIDDEN.items():
        if where == prefix or where.startswith(f"{prefix}/"):
            hits = {i for i in imports_of(path) if any(f"{i}.".startswith(f"{b}.") for b in banned)}
            assert not hits, f"{where} must not import {sorted(hits)}"
    for module, homes in ONLY_IN.items():
        if any(f"{name}.".startswith(f"{module}.") for name in imports_of(path)):
            assert where.startswith(homes), (
                f"{where} must not import {module}: it belongs in {' and '.join(homes)}"
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path):
    tree = ast.parse(path.read_text())
    limit = 450 if path.name == "cli.py" else 250  # the command line is one file by decree
    assert len(path.read_text().splitlines()) <= limit
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first, last = node.body[0].lineno, node.end_lineno or 0
            assert last - first < 45, f"{node.name} is {last - first + 1} lines"


def test_a_plan_and_training_load_no_language_model():
    """Modules that a finished harvest, and training, import: not what they could reach."""
    code = "import {}, sys; sys.exit({!r} in sys.modules)"
    for module, absent in (
        ("pipeline.harvest.plan", "torch"),
        ("pipeline.training.train", "transformers"),
    ):
        command = [sys.executable, "-c", code.format(module, absent)]
        assert subprocess.run(command, check=False, cwd=ROOT).returncode == 0, module


def test_packages_have_no_code_at_import():
    for path in SOURCES:
        if path.name == "__init__.py":
            (docstring,) = ast.parse(path.read_text()).body
            assert isinstance(docstring, ast.Expr)
