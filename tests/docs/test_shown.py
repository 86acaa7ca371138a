"""Output that a page shows is held to what is printed."""

import math

import pytest

from tests.docs.shown import alike, not_printed

PRINTED = """\
train     20,096 rows: runs/topk (loss 25.25  L0 32.0  EV 0.832)
                            ┃                     topk
━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━
 loss added                 │    0.0267 [0.017..0.036]
 loss recovered             │    0.8603 [0.822..0.905]
 dead features              │                        1
"""


@pytest.mark.parametrize(
    "shown",
    [
        PRINTED,
        "",
        " loss added │ 0.0267 [0.017..0.036]\n",
        "train     20,096 rows: runs/topk (loss 25.25  L0 32.0  EV 0.832)\n...\n dead features │ 1",
        "train 20,096 rows: runs/topk (loss 25.25\n loss added │ 0.0267\n loss recovered",
        "...\n ┃ topk\n━━╇━━\n loss added    │ 0.0250 [0.018..0.034]\n\n...\n",
    ],
    ids=["all", "nothing", "a line", "two lines", "beginnings", "near numbers, other widths"],
)
def test_lines_in_their_order_with_numbers_that_are_near_are_what_was_printed(shown):
    assert not_printed(shown, PRINTED) is None


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        (" loss added │ 0.0227 [0.017..0.036]", "loss added"),
        (" loss added │ 0.0267 [0.013..0.036]", "loss added"),
        (" dead features │ 2", "dead features"),
        (" loss, model alone │ 3.1\n dead features │ 1", "loss, model alone"),
        (" dead features │ 1\n loss added │ 0.0267 [0.017..0.036]", "loss added"),
        (" dead features │ 1\n dead features │ 1", "dead features"),
        (" dead latents │ 1", "dead latents"),
        (" dead feat", "dead feat"),
        (" recovered │ 0.8603", "recovered"),
        (" dead features │ 1 │ 1", "dead features"),
        ("train 20,096 rows: runs/relu (loss 25.25  L0 32.0  EV 0.832)", "runs/relu"),
    ],
    ids=[
        "number", "number in a range", "small number", "line that is missing", "order", "twice",
        "word", "part of a word", "end of a line", "further number", "path",
    ],
)  # fmt: skip
def test_what_is_shown_otherwise_is_told(shown, missing):
    assert missing in (not_printed(shown, PRINTED) or "")


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("4.69MB in a.actstore, 1,318 tokens/s", "4.69MB in a.actstore, 98k tokens/s"),
        ("to write, 65.4GB free, about 26 s", "to write, 3.0GB free, about 2 s"),
        ("topk 2026-11-29 23:29 finished", "topk 2027-01-02 03:04 finished"),
        ("beta −0.10 to 1e-3", "beta -0.101 to 1.05e-3"),  # noqa: RUF001
    ],
    ids=["speed", "room and time", "date", "signs"],
)
def test_what_is_of_the_machine_or_the_hour_may_be_any(shown, printed):
    assert alike(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("mlp_out.20", "mlp_out.21"),
        ("OF156 = 0.18 IF390", "OF157 = 0.18 IF390"),
        ("release 2.8.0", "release 2.8.1"),
        ("layers 0-5", "layers 0-6"),
        ("x = 1", "x = -1"),
    ],
)
def test_names_with_numbers_are_not_numbers(shown, printed):
    assert not alike(shown, printed)
    assert alike(shown, shown)


def test_where_any_number_does_the_words_must_still_be_there():
    assert not_printed(" dead features │ 0\n", PRINTED, tolerance=math.inf) is None
    assert not_printed(" live features │ 1\n", PRINTED, tolerance=math.inf) is not None
