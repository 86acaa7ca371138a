"""Shell blocks as a reader types them: saepipe in this process, a few plain commands by bash."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

import pipeline.saepipe

PLAIN = ("cat", "cp", "export", "ls", "mkdir", "mv")
"""What else than saepipe is run."""
_OPERATORS = set("();<>|&")
_TO_A_FILE = re.compile(r"""<<\s*['"]?(\w+)""")


def commands_of(code: str) -> Iterator[str]:
    """The commands of a block: lines that go on are one, and so is a text that is put in a file."""
    lines = iter(code.replace("\\\n", " ").splitlines())
    for line in lines:
        if not words_of(line):
            continue
        command = [line]
        if ends := _TO_A_FILE.search(line):
            command += iter(lambda: next(lines), ends[1])
            command.append(ends[1])
        yield "\n".join(command)


def words_of(line: str) -> list[str]:
    """The words of a line, operators too; without a comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return [*lexer]


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one command in the working folder; what it prints goes to sys.stdout and sys.stderr.

    Raises:
        AssertionError: it is of no kind that is run here, or fails.
    """
    words = words_of(command.partition("\n")[0])
    operators = {word for word in words if "`" in word or (word and set(word) <= _OPERATORS)}
    if words[0] == "saepipe" or words[0].endswith("/bin/saepipe"):
        assert not operators, f"a command of saepipe stands alone, not with {', '.join(operators)}"
        _run_saepipe(_by_bash(f"printf '%s\\0' {command}").split("\0")[1:-1], monkeypatch)
    else:
        assert words[0] in PLAIN, (
            f"{words[0]} is not run here: say why above, <!-- not run: ... -->"
        )
        assert operators <= {">", ">>", "<<"}, f"not run here: {command}"
        if words[0] == "export":
            names = [word.partition("=")[0] for word in words[1:]]
            told = _by_bash(
                f"{command}\nprintf '%s\\0' " + " ".join(f'"${name}"' for name in names)
            )
            for name, value in zip(names, told.split("\0"), strict=False):
                monkeypatch.setenv(name, value)
        else:
            sys.stdout.write(_by_bash(command))


def _by_bash(command: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _run_saepipe(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as here:
        here.setattr(sys, "argv", ["saepipe", *arguments])
        here.setattr(sys, "path", [*sys.path])  # its order is changed
        with pytest.raises(SystemExit) as stop:
            pipeline.saepipe.main()
    assert not stop.value.code, f"saepipe {shlex.join(arguments)} ended with {stop.value.code}"
