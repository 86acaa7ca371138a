"""Who may import whom, and what a reader may rely on everywhere."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / "cli.py", *ROOT.glob("actstore/**/*.py"), *ROOT.glob("pipeline/**/*.py")]

# From left to right: a room imports only what stands before it. Rooms in one line do not see each
# other.
ORDER = (
    ("actstore",),
    ("errors", "fingerprints", "progress", "tables", "whereabouts"),
    ("config", "disk", "frame", "stores"),
    ("device", "limits", "hub"),
    ("lm",),
    ("formats",),
    ("foreign", "sae"),
    ("text",),
    ("harvest", "runs"),
    ("training",),
    ("finetune",),
    ("evaluate",),
    ("features",),
    ("steer",),
    ("plots",),
    ("report",),
    ("saes", "connect"),
    ("exchange",),
    ("mnist", "share"),
    ("verbs",),
    ("saepipe", "demo"),
    ("terminal",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}

# Where a library may be imported.
HOMES = {
    "zarr": ("actstore/",),
    "numcodecs": ("actstore/",),
    "transformers": ("pipeline/lm/model.py", "pipeline/lm/other.py", "pipeline/lm/chat.py"),
    "matplotlib": (
        "pipeline/plots/",
        "pipeline/report/experiment.py",
        "pipeline/report/figures.py",
        "figures.py",
    ),
    "rich": ("pipeline/terminal/",),
    "typer": ("pipeline/terminal/", "cli.py"),
}

# What never brings torch, whatever it imports in turn.
TORCH_FREE = (
    "actstore.reader", "actstore.batches", "actstore.writer", "cli", "pipeline",
    "pipeline.config.stages", "pipeline.config.training", "pipeline.config.grid",
    "pipeline.text.open", "pipeline.lm.families", "pipeline.lm.hub", "pipeline.harvest.plan",
    "pipeline.harvest.harvest", "pipeline.verbs", "pipeline.saepipe", "pipeline.terminal.runs",
    "pipeline.exchange.rows.importing", "pipeline.exchange.rows.export", "pipeline.share.verbs",
)  # fmt: skip


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return where(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room_of(module: str) -> str:
    first, _, rest = module.partition(".")
    return rest.split(".")[0] or "__init__" if first == "pipeline" else first


@cache
def imports_of(module: str) -> set[str]:
    """Modules, and names in them that are modules of ours."""
    path = SOURCE_OF[module]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            names |= inner or {node.module}
    return names


SOURCE_OF = {module_of(path): path for path in SOURCES}
MODULES = SOURCE_OF.keys()


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_a_room_imports_only_what_stands_before_it(path: Path):
    here = room_of(module_of(path))
    rooms = {room_of(name) for name in imports_of(module_of(path)) & MODULES} - {here, "__init__"}
    assert not {room for room in rooms if LEVEL[room] >= LEVEL[here]}


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_a_library_is_imported_where_it_is_at_home(path: Path):
    for library, homes in HOMES.items():
        if any(f"{name}.".startswith(f"{library}.") for name in imports_of(module_of(path))):
            at_home = where(path).startswith(homes) or where(path).endswith(f"/{homes[-1]}")
            assert at_home, f"{where(path)} must not import {library}: it belongs in {homes}"


def test_no_file_imports_itself_by_way_of_others():
    try:
        TopologicalSorter({name: imports_of(name) & MODULES for name in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")


def test_the_store_knows_no_torch_and_training_no_language_model():
    for name in MODULES:
        found = imports_of(name)
        tops, room = {module.split(".")[0] for module in found}, room_of(name)
        if room == "actstore":
            assert not tops & {"torch", "transformers", "pipeline"}, name
        if room in ("sae", "training") or name == "pipeline.connect.train":
            assert not any(module.startswith("pipeline.lm") for module in found), name
        if room == "sae":
            assert "actstore" not in tops, name


def test_what_answers_at_once_loads_no_torch_and_training_no_transformers():
    """What they import in turn counts, too."""
    for modules, absent in ((TORCH_FREE, "torch"), (["pipeline.training.train"], "transformers")):
        code = (
            "import importlib, sys\n"
            f"for module in {list(modules)}:\n"
            "    importlib.import_module(module)\n"
            f"    assert {absent!r} not in sys.modules, module\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code], check=False, cwd=ROOT, text=True, stderr=-1
        )
        assert ran.returncode == 0, ran.stderr


def test_no_file_is_longer_than_a_reader_can_hold():
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= 600, f"{where(path)}: more than one idea?"


def test_rooms_have_no_code_at_import():
    for path in SOURCES:
        if path.name == "__init__.py" and path.parent.name != "pipeline":
            (docstring,) = ast.parse(path.read_text()).body
            assert isinstance(docstring, ast.Expr)
