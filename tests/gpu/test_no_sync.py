"""No function of a training step lets the host wait for a GPU, but in places that are named here.

Read from the source, so that it holds without a GPU; what reading cannot see (a boolean mask under
another name, a tensor that is an `if`) `test_cuda.py` finds where there is one.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "pipeline"

ALL = ("*",)
ARCHITECTURE = ("learn", "pick", "revive")
STEP: dict[str, tuple[str, ...]] = {
    "sae/active_pairs.py": ALL,
    "sae/architecture.py": (
        "revive", "reconstruct", "sent", "residual_of", "mean_square", "backward", "masked",
    ),
    "sae/arriving.py": ALL,
    "sae/dead.py": ("update", "dead", "any_dead", "learn"),
    "sae/gated.py": ARCHITECTURE,
    "sae/jumprelu.py": ARCHITECTURE,
    "sae/kernels_triton.py": ALL,
    "sae/matryoshka.py": ("learn",),
    "sae/relu.py": ("learn", "pick"),
    "sae/select.py": ALL,
    "sae/stack.py": (
        "prefers_sparse", "learn", "project", "clip", "renormalise", "_pre", "_places_of",
        "_latents", "_pairs", "_finish_gradients", "to_unit_norm_", "member_of",
    ),
    "sae/topk.py": ("learn", "pick"),
    "training/batches.py": ("_overlapped", "send", "receive"),
    "training/feed.py": ("apply", "kept", "_kept", "fed"),
    "training/group.py": ("advance", "_learn", "_follow", "_controlled", "_looks", "_numbers"),
    "training/loop.py": ("advance_all",),
    "training/member.py": ("count",),
    "training/optimizer.py": ("step", "track"),
}  # fmt: skip
"""The functions that a step calls, by file."""

ALLOWED: dict[tuple[str, str, str], str] = {
    ("sae/arriving.py", "tolist", "self._host.tolist()"): "host memory, once its event has come",
    ("sae/dead.py", "any_dead", "int(self.silent.max())"): "only when a latent may be dead",
    ("sae/dead.py", "learn", "params['W_dec'][dead]"): "places, not a mask",
    ("sae/select.py", "_true", "np.flatnonzero(mask.numpy())"): "on a CPU",
    ("sae/select.py", "_true", "mask.numpy()"): "on a CPU",
    ("sae/select.py", "_true", "mask.nonzero()"): "how many pairs there are: their memory",
    ("sae/select.py", "_in_order", "x.numpy()"): "on a CPU",
    ("sae/select.py", "_starts", "torch.bincount(x, minlength=n_values)"): "on a CPU",
    ("sae/select.py", "_largest_positive", "bool(guess > 0)"): "only where the guess was bad",
    ("sae/stack.py", "clip", "bool((shrink == 1).all())"): "on a CPU",
    ("sae/stack.py", "_places_of", "dead[m].nonzero()"): "only where latents are dead, for AuxK",
    ("sae/topk.py", "pick", "int(self.k)"): "a number of the host",
    ("training/feed.py", "apply", "x[kept]"): "only where rows are excluded: how many are left",
    ("training/group.py", "_follow", "(parts.density or sent(parts.counts, n_rows=n_rows))"
     ".tolist()"): "sent before the gradients; where a penalty is adjusted, else every 16 steps",
}  # fmt: skip
"""Places that wait, or look as if they did: file, function, source; and why they may."""

METHODS = {
    "item", "tolist", "cpu", "numpy", "nonzero", "argwhere", "bincount", "unique", "flatnonzero",
    "unique_consecutive", "masked_select", "is_nonzero", "equal", "allclose", "new_tensor",
}  # fmt: skip
FROM_LISTS = {"tensor", "as_tensor", "from_numpy"}
MASKS = {"kept", "mask", "equal", "larger", "dead"}


def waits_of(function: ast.AST) -> Iterator[ast.expr]:
    """Expressions of a function, those inside it left out, that let the host wait."""
    for node in within(function):
        if isinstance(node, ast.Call) and call_waits(node):
            yield node
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            at = node.slice
            named = isinstance(at, ast.Name) and at.id in MASKS
            negated = isinstance(at, ast.UnaryOp) and isinstance(at.op, ast.Invert)
            if named or negated or isinstance(at, ast.Compare):
                yield node
        elif isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            for part in ast.walk(node.test):
                if isinstance(part, ast.Call) and name_of(part) in {"any", "all"}:
                    told = {name_of(call) for call in ast.walk(node.test) if call_is(call)}
                    if isinstance(part.func, ast.Attribute) and "bool" not in told:
                        yield part


def call_is(node: ast.AST) -> bool:
    return isinstance(node, ast.Call)


def call_waits(call: ast.Call) -> bool:
    name, given = name_of(call), {keyword.arg for keyword in call.keywords}
    if isinstance(call.func, ast.Name):
        return name in {"bool", "int", "float"}
    if name == "repeat_interleave":
        return "output_size" not in given
    if name in FROM_LISTS:
        return "device" in given
    if name == "where":
        return len(call.args) == 1
    return name in METHODS


def name_of(call: ast.AST) -> str:
    func = getattr(call, "func", None)
    return getattr(func, "attr", getattr(func, "id", ""))


def within(function: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef):
            yield node
            yield from within(node)


def functions_of(path: str) -> Iterator[ast.FunctionDef]:
    """Of a step, without kernels of Triton, whose code is no Python when it runs."""
    wanted = STEP[path]
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        kernel = "_kernel" in map(ast.unparse, getattr(node, "decorator_list", ()))
        if isinstance(node, ast.FunctionDef) and not kernel and (
            wanted == ALL or node.name in wanted
        ):  # fmt: skip
            yield node


@pytest.mark.parametrize("path", STEP)
def test_a_step_waits_for_a_gpu_only_where_it_is_said_to(path):
    found = {
        (path, function.name, ast.unparse(node))
        for function in functions_of(path)
        for node in waits_of(function)
    }
    assert sorted(found - ALLOWED.keys()) == []


def test_every_place_that_may_wait_is_there():
    found = {
        (path, function.name, ast.unparse(node))
        for path in STEP
        for function in functions_of(path)
        for node in waits_of(function)
    }
    assert ALLOWED.keys() - found == set()
    for path, names in STEP.items():
        assert {*names} - {"*"} <= {function.name for function in functions_of(path)}, path


WAITING = (
    "bool(dead.any())", "x.item()", "float(loss)", "hint.tolist()", "x.cpu()", "x.nonzero()",
    "torch.bincount(x)", "torch.tensor([1.0], device=x.device)", "x.new_tensor([lr])",
    "x.repeat_interleave(n)", "x[x > 0]", "x[~dead]", "torch.where(x > 0)", "torch.unique(x)",
    "1 if dead.any() else 0",
)  # fmt: skip
QUIET = (
    "x.repeat_interleave(n, output_size=8)", "torch.where(x > 0, x, 0.0)", "x.fill_(lr)",
    "torch.zeros(3, device=x.device)", "x[0]", "x.sum()", "len(x)", "x[:, 2:3]",
    "1 if any(m.done for m in members) else 0",
)  # fmt: skip


@pytest.mark.parametrize("code", WAITING)
def test_what_waits_is_found(code):
    assert [*waits_of(ast.parse(f"def f(x):\n    y = {code}").body[0])]


@pytest.mark.parametrize("code", QUIET)
def test_what_does_not_wait_is_left_in_peace(code):
    assert not [*waits_of(ast.parse(f"def f(x):\n    y = {code}").body[0])]
