"""Each face hears of settings in its own words."""

import ast
from pathlib import Path

import pytest

from pipeline.errors import in_settings
from pipeline.terminal.options import as_typed

PIPELINE = Path(__file__).parents[2] / "pipeline"
COMMAND_LINE = PIPELINE / "config" / "command_line.py"
"""Like the terminal, it speaks to whoever types."""


@pytest.mark.parametrize(
    ("typed", "called"),
    [
        ("a is a folder: choose another --out", "a is a folder: choose another `out`"),
        ("as --text-column NAME (or --model)", "as `text_column` NAME (or `model`)"),
        ("type --set hold=20%, or --resume", "type `hold=20%`, or `resume=True`"),
        ("type --set arch.k_aux=3 now", "type `arch.k_aux=3` now"),
        ("a--out and 'runs/--out' are names", "a--out and 'runs/--out' are names"),
        ("type saepipe eval r --text x; or --text", "type saepipe eval r --text x; or `text`"),
    ],
    ids=["option", "with a dash", "of a value", "of a part", "no option", "in a command"],
)
def test_options_are_settings_to_python_and_back(typed, called):
    assert (in_settings(typed), as_typed(called)) == (called, typed)
    assert in_settings(called) == called


def test_words_of_others_in_backquotes_stay():
    assert as_typed("pass `use_fast=True` to `f`") == "pass `use_fast=True` to `f`"


def test_what_is_to_be_on_is_a_flag():
    assert as_typed("give `trust_remote_code=True`") == "give --trust-remote-code"


def messages(tree: ast.AST):
    """Every text that a source raises; what it is filled with is a k."""
    raised = [
        node for one in ast.walk(tree) if isinstance(one, ast.Raise) for node in ast.walk(one)
    ]
    parts = {part for node in raised if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in raised:
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                getattr(part, "value", "") if isinstance(part, ast.Constant) else "k"
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.value


def test_every_message_comes_back_as_it_was_written():
    for path in set(PIPELINE.rglob("*.py")) - {*PIPELINE.glob("terminal/*"), COMMAND_LINE}:
        for text in messages(ast.parse(path.read_text())):
            assert as_typed(in_settings(text)) == as_typed(text), path
