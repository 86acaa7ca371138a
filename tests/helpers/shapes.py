"""Shapes are checked where a signature has them, in a function's first calls and now and then.

pytest's `--jaxtyping-packages` puts jaxtyping's decorator on every function, which binds the
arguments of each call and checks them twice, whether or not there is an array among them: a third
of the time of all tests. A function without arrays in its signature needs no more than the type
checker itself; one that a loop calls a thousand times in one test is not checked in every round.
"""

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping


def has_shapes(annotation: object) -> bool:
    """Whether there is a type of jaxtyping in it, or a text, which may name one."""
    if isinstance(annotation, list):  # the parameters of a Callable
        return any(map(has_shapes, annotation))
    if type(annotation).__module__.partition(".")[0] == "jaxtyping" or isinstance(annotation, str):
        return True
    return any(map(has_shapes, get_args(annotation)))


FIRST, EVERY = 4, 64  # calls of a function in one test

_calls: Counter[object] = Counter()  # of each function, in this test


def a_test_begins() -> None:
    _calls.clear()


def watched(plain: Callable[..., Any], check: Callable[..., Any]) -> Callable[..., Any]:
    """`check(plain)`, made when it is first called, in the calls that are looked at."""
    checked = functools.cache(lambda: check(plain))

    @functools.wraps(plain)
    def call(*args: Any, **options: Any) -> Any:
        _calls[plain] += 1
        looked_at = _calls[plain] <= FIRST or _calls[plain] % EVERY == 0
        return (checked() if looked_at else plain)(*args, **options)

    return call


def check_shapes_where_there_are(module: Any = jaxtyping) -> None:
    """To be called before what is to be checked is imported."""
    whole = module.jaxtyped

    def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
        def decorate(thing: Any) -> Any:
            if not inspect.isfunction(thing):
                return whole(typechecker=typechecker)(thing)
            shapes = any(map(has_shapes, thing.__annotations__.values()))
            return watched(thing, whole(typechecker=typechecker) if shapes else typechecker)

        return decorate

    module.jaxtyped = jaxtyped
