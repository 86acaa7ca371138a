"""What `tests.helpers.shapes` leaves checked in every function of the packages."""

from collections.abc import Callable, Iterator, Mapping

import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float

from pipeline.plots.style import short, smoothed
from tests.helpers.shapes import has_shapes

Rows = Float[np.ndarray, "rows width"]


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        (Rows, True),
        (Rows | None, True),
        (Mapping[str, Rows], True),
        (Callable[[Rows], int], True),
        (Iterator[tuple[int, dict[str, Rows | None]]], True),
        ("Rows", True),
        (np.ndarray | None, False),
        (Callable[[int], Mapping[str, np.ndarray]], False),
        (None, False),
    ],
    ids=["shape", "or none", "values", "argument", "deep", "text", "array", "plain", "none"],
)
def test_shapes_are_found_wherever_they_stand_in_an_annotation(annotation, found):
    assert has_shapes(annotation) == found


def test_a_wrong_shape_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        smoothed(np.zeros(3), np.zeros((3, 2)))
    with pytest.raises(jaxtyping.TypeCheckError):
        smoothed(np.zeros(3), np.zeros(4))


def test_a_wrong_type_is_refused_where_there_is_no_shape():
    with pytest.raises(BeartypeCallHintViolation):
        short("1")
