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


def parameters(line: str) -> dict[str, tuple[str, str | None]] | None:
    """Kind and default of each parameter; None of what is not called."""
    _, called, rest = line.partition("(")
    if not called:
        return None
    (function,) = ast.parse(f"def f({rest}: ...").body
    a = function.args
    kinds = [
        *(("/", one) for one in a.posonlyargs),
        *(("", one) for one in a.args),
        *(("*", one) for one in a.kwonlyargs),
    ]
    positional = len(a.posonlyargs) + len(a.args) - len(a.defaults)
    defaults = [None] * positional + a.defaults + a.kw_defaults
    found = {
        one.arg: (kind, default and ast.unparse(default))
        for (kind, one), default in zip(kinds, defaults, strict=True)
    }
    rest_of = [("**", a.kwarg), ("*args", a.vararg)]
    return found | {one.arg: (kind, "") for kind, one in rest_of if one is not None}


def changes(before: list[str], now: list[str]) -> list[str]:
    """What somebody who wrote code for `before` must know: nothing where names were only added."""
    there = {line.partition("(")[0]: line for line in now}
    found: list[str] = []
    for line in before:
        name = line.partition("(")[0]
        if name not in there:
            found.append(f"{name} is gone")
            continue
        was, today = parameters(line), parameters(there[name])
        if was is None or today is None:
            if was is not None or (today is not None and "." in name):
                found.append(f"{name} was {line}, and is {there[name]}")
            continue
        for key, told_before in was.items():
            if today.get(key) != told_before:
                found.append(f"{name}: {key} was {told_before}, and is {today.get(key)}")
        found += [
            f"{name}: {key} is new, and must be given"
            for key in today.keys() - was.keys()
            if today[key][1] is None
        ]
        order = [key for key in today if key in was and was[key][0] != "*"]
        if order != [key for key in was if key in today and was[key][0] != "*"]:
            found.append(f"{name}: the order of what is positional changed")
    return found


def test_what_is_public_stays_as_it_is_or_grows():
    promised = GOLDEN.read_text().splitlines()
    found = changes(promised, public_lines())
    assert not found, "code that people have written breaks:\n" + "\n".join(found)
    new = saepipe.NAMES.keys() - {line.partition("(")[0] for line in promised}
    assert not new, f"{', '.join(new)}: public, but without a line in {GOLDEN.name}"


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (["f(a)"], ["f(a)", "g()"], None),
        (["f(a)"], ["f(a, *, b=1)"], None),
        (["f(a)"], ["f(a, **more)"], None),
        (["T.x"], ["T.x", "T.y"], None),
        (["T"], ["T(made, inside)"], None),
        (["f(a)"], [], "f is gone"),
        (["f(a=1)"], ["f(a=2)"], "a was .*'1'.* is .*'2'"),
        (["f(a, b)"], ["f(b, a)"], "order"),
        (["f(a)"], ["f(a, b)"], "b is new, and must be given"),
        (["f(a)"], ["f(*, a)"], "a was"),
        (["f(a, b=1)"], ["f(a)"], "b was .* is None"),
        (["T.x"], ["T.x(self)"], "was T.x, and is"),
    ],
)
def test_only_what_breaks_code_is_a_change(before, now, said):
    found = changes(before, now)
    assert bool(found) == (said is not None)
    if said is not None:
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(found)


def test_every_public_name_is_explained():
    for name in saepipe.NAMES:
        thing = getattr(saepipe, name)
        assert thing.__name__ == name
        assert len(getdoc(thing) or "") > 15, name


def test_editors_see_the_names_that_python_finds():
    block, _ = [
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
