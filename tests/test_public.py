"""The names that `import saepipe` gives: which there are, what they take, and what they cost.

tests/golden/public.txt has a line for each of them, and for each method that people are told of.
`python -m tests.test_public` prints such lines of all there is now.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cached_property
from importlib.util import find_spec
from inspect import Parameter, getdoc, signature
from pathlib import Path

import pytest

from pipeline import saepipe

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "public.txt"
SPECIAL = {"__getitem__", "__iter__", "__len__"}
# The numbers of an evaluation are held by tests/golden/eval.json.
WITHOUT_FIELDS = {"EvalReport"}


def public_lines() -> list[str]:
    return list(dict.fromkeys(lines_of_all()))


def lines_of_all() -> Iterator[str]:
    """A line a name: functions and methods with what they take, other attributes without."""
    for name in sorted(saepipe.NAMES):
        thing = getattr(saepipe, name)
        if not isinstance(thing, type):
            yield name + told(thing)
            continue
        yield name + (told(thing) if has_own_init(thing) else "")
        attributes = dict.fromkeys(
            f.name for f in (fields(thing) if is_dataclass(thing) else ()) if f.name[0] != "_"
        )
        yield from (f"{name}.{field}" for field in attributes if name not in WITHOUT_FIELDS)
        for part in thing.__mro__:
            if not part.__module__.startswith(("actstore.", "pipeline.")):
                continue
            for key, member in vars(part).items():
                if (key[0] == "_" and key not in SPECIAL) or key in attributes:
                    continue
                if isinstance(member, property | cached_property):
                    yield f"{name}.{key}"
                elif callable(member) or isinstance(member, classmethod | staticmethod):
                    yield f"{name}.{key}{told(getattr(thing, key))}"


def has_own_init(thing: type) -> bool:
    return "__init__" in vars(thing) and not is_dataclass(thing)


def told(call) -> str:
    """Its signature without types, as far as defaults can be written down."""
    own = signature(call)
    plain = [
        p.replace(annotation=Parameter.empty, default=written(p.default))
        for p in own.parameters.values()
    ]
    return str(own.replace(parameters=plain, return_annotation=Parameter.empty))


def written(default: object) -> object:
    try:
        return default if default is Parameter.empty else ast.literal_eval(repr(default))
    except (ValueError, SyntaxError):
        return ...


def broken(before: list[str], now: list[str]) -> list[str]:
    """Lines that are gone or changed; how a class of ours is made is no promise."""
    classes = {line.partition("(")[0] for line in now if "." not in line}
    return [line for line in before if line not in now and line not in classes]


def test_what_is_public_is_as_it_was_promised():
    promised, now = GOLDEN.read_text().splitlines(), public_lines()
    found = broken(promised, now)
    assert not found, "code that people have written may break:\n" + "\n".join(found)
    new = saepipe.NAMES.keys() - {line.partition("(")[0] for line in promised}
    assert not new, f"{', '.join(new)}: public, but without a line in {GOLDEN.name}"


@pytest.mark.parametrize(
    ("before", "now", "breaks"),
    [
        ("f(a)", ["f(a)", "g()"], False),
        ("T.x", ["T.x", "T.y"], False),
        ("T", ["T(made, inside)"], False),
        ("f(a)", [], True),
        ("f(a=1)", ["f(a=2)"], True),
        ("f(a, b=1)", ["f(a)"], True),
        ("T.x", ["T.x(self)"], True),
    ],
)
def test_what_is_gone_or_changed_is_seen(before, now, breaks):
    assert broken([before], now) == [before] * breaks


def test_every_public_name_is_explained():
    for name in saepipe.NAMES:
        thing = getattr(saepipe, name)
        assert thing.__name__ == name
        assert len(getdoc(thing) or "") > 15, name


def test_editors_see_the_names_that_python_finds():
    (block,) = [
        node for node in ast.parse((ROOT / "pipeline/saepipe.py").read_text()).body
        if isinstance(node, ast.If)
    ]  # fmt: skip
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == saepipe.NAMES
    assert set(saepipe.__all__) <= set(dir(saepipe))
    with pytest.raises(AttributeError, match="module 'saepipe' has no attribute 'Sae'"):
        saepipe.Sae


def test_importing_it_loads_nothing():
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom pipeline import saepipe\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "heavy = new & {'torch', 'numpy', 'transformers', 'matplotlib', 'typer', 'actstore'}\n"
        "assert not heavy, heavy\n"
        "assert {name for name in sys.modules if name.startswith('pipeline.')} == "
        "{'pipeline.saepipe'}\n"
        "assert saepipe.__version__\n"
        "saepipe.ActStore, saepipe.train\nassert 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, text=True, stderr=-1)
    assert ran.returncode == 0, ran.stderr


def test_what_is_installed_is_the_file_that_is_here():
    spec = find_spec("saepipe")
    advice = "install it again: pip install -e ."
    assert spec is not None and spec.origin is not None, advice
    assert Path(spec.origin).read_text() == (ROOT / "pipeline/saepipe.py").read_text(), advice


if __name__ == "__main__":
    print(*public_lines(), sep="\n")  # noqa: T201
