"""Shapes are checked where a signature has them; other signatures at a tenth of the price.

pytest's `--jaxtyping-packages` puts jaxtyping's decorator on every function, which binds the
arguments of each call and checks them twice, whether or not there is an array among them. A
function without arrays in its signature needs no more than the type checker itself.
"""

import inspect
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


def check_shapes_only_where_there_are(module: Any = jaxtyping) -> None:
    """To be called before what is to be checked is imported."""
    whole = module.jaxtyped

    def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
        def decorate(thing: Any) -> Any:
            annotations = thing.__annotations__.values() if inspect.isfunction(thing) else [""]
            if any(map(has_shapes, annotations)):
                return whole(typechecker=typechecker)(thing)
            return typechecker(thing)

        return decorate

    module.jaxtyped = jaxtyped
