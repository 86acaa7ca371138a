"""The three hunts: each yields trials, and each trial says what went wrong in it."""

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import typer

import cli
from tests.hunt.child import Ended, Fault, run
from tests.hunt.world import COMMANDS

BYTES = bytes(random.Random(0).randrange(256) for _ in range(3000))
VALUES = (
    "", " ", "x", "-1", "0", "1e400", "nan", "9" * 25, "\x1b[31mred", "two\nlines", "ü" * 300, ",",
    "a,,b", "1,2", "../..", "[1]", "None", "builtin:", "hub:", "--",
)  # fmt: skip
"""For options that are no path."""
WRONG = (
    "absent", "empty", "folder", "noise", "other.json", "loop", "two words\nand a line\x1b[31m",
    "not utf-8 \udcff", "model", "acts.actstore", "sae", "connector", "text.txt", "settings.toml",
    "/dev/null", "/proc/self/mem", "x" * 300,
)  # fmt: skip
"""For those that are one; what a name says is planted by `plant_wrong`, or is in the world."""
DAMAGES = (
    "absent", "empty", "folder", "forbidden", "truncated", "noise", "list", "dict", "version",
    "loop",
)  # fmt: skip
KEEPS = ("features", "report", "plot", "store repair")
"""Commands that may refuse in the middle: what they found or put back by then stays."""
LEGITIMATE = (
    r"model/tokenizer_config.json (absent|dict)",  # another model, as good as the one before
    r"model/config.json version",  # of transformers
    r"text.jsonl truncated",  # behind what is read of it
    r".*\.toml empty",  # other settings
    r"other/eval.json absent",  # it was not evaluated
    r".*/journal.jsonl (empty|truncated)",  # as a kill leaves it
    r"--lr is '9+'",  # diverges, and the run stays to say so
)
"""What is nothing wrong, as regular expressions."""
OWN = re.compile(r"[a-z]+ {2,}\S|stopped; ")
"""How lines of the program itself begin, which may stand above the one that says what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A command in a copy of the world, with something wrong."""

    name: str
    """Of the command."""
    argv: tuple[str, ...]
    what: str
    """What is wrong."""
    file: str = ""
    """That is damaged, and how."""
    damage: str = ""
    fault: Fault | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def arguments() -> Iterator[Trial]:
    """Each option and argument of each command, given what it was not made for."""
    for name, words in COMMANDS.items():
        argv = tuple(words.split())
        command, rest = _command_of(argv)
        for parameter in command.params:
            if getattr(parameter, "is_flag", False) or "--set" in parameter.opts:
                continue
            wrong = WRONG if _is_path(parameter) else VALUES
            for value in wrong:
                changed = _given(argv, rest, parameter, value)
                what = f"{parameter.opts[0]} is {value[:40]!r}"
                if changed is not None and not _is_legitimate(what):
                    yield Trial(name=name, argv=changed, what=what)


PATHS = {
    "out",
    "store",
    "run",
    "runs",
    "path",
    "folder",
    "config",
    "json",
    "text",
    "model",
    "images",
}


def _is_legitimate(what: str) -> bool:
    return any(re.fullmatch(one, what) for one in LEGITIMATE)


def _is_path(parameter: click.Parameter) -> bool:
    return parameter.name in PATHS


def _command_of(argv: tuple[str, ...]) -> tuple[click.Command, int]:
    """The command, and where its arguments begin."""
    command, n = typer.main.get_command(cli.app), 0
    while hasattr(command, "commands"):
        command, n = command.commands[argv[n]], n + 1
    return command, n


def _given(
    argv: tuple[str, ...], start: int, parameter: click.Parameter, value: str
) -> tuple[str, ...] | None:
    """The command line with this for that; None where it cannot be said."""
    if parameter.param_type_name == "option":
        option = max(parameter.opts, key=len)
        if option in argv:
            at = argv.index(option)
            return (*argv[: at + 1], value, *argv[at + 2 :])
        return (*argv, option, value)
    at = next((i for i in range(start, len(argv)) if not argv[i].startswith("--")), None)
    if at is None or value.startswith("--"):
        return None
    return (*argv[:at], value, *argv[at + 1 :])


def files(world: "World") -> Iterator[Trial]:
    """Each file that each command reads, damaged in each way."""
    for name, words in COMMANDS.items():
        argv = tuple(words.split())
        for file in world.whole(name)[0].read:
            if (world.folder / file).is_file():
                for damage in DAMAGES:
                    what = f"{file} {damage}"
                    if not _is_legitimate(what):
                        yield Trial(name=name, argv=argv, what=what, file=file, damage=damage)


def faults(world: "World") -> Iterator[Trial]:
    """Each call that changes a file, by each fault."""
    for name, words in COMMANDS.items():
        argv = tuple(words.split())
        for at in range(world.whole(name)[0].n_changes):
            for kind in ("kill", "interrupt", "stop", "full"):
                fault = Fault(kind=kind, at=at)
                yield Trial(name=name, argv=argv, what=str(fault), fault=fault)


Tree = dict[str, bytes | None]
"""A folder: its files by their paths; folders, and what cannot be read, are None."""
TIMED = {"LOCK", "state.json"}
"""Files that say who held them, or how many bytes the lines of a clock took."""


def tree_of(folder: Path) -> Tree:
    """A folder as it is."""
    tree: Tree = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(place, name)
            readable = path.is_file() and os.access(path, os.R_OK) and name not in TIMED
            tree[str(path.relative_to(folder))] = path.read_bytes() if readable else None
    return tree


class World:
    """The world, whose copies trials happen in, and its commands as they end with nothing wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        plant_wrong(folder)
        self.whole = cache(self._whole)
        self.same = cache(self._same)

    def copy(self) -> Path:
        place = self.folder.with_name("trial")
        shutil.rmtree(place, ignore_errors=True)
        return Path(shutil.copytree(self.folder, place, symlinks=True))

    def _whole(self, name: str) -> tuple[Ended, Tree]:
        """How a command ends, and what it leaves."""
        place = self.copy()
        ended = run(tuple(COMMANDS[name].split()), place)
        if ended.code:
            raise SystemExit(f"{name} should end well, but: {ended.err}")
        return ended, tree_of(place)

    def _same(self, name: str) -> frozenset[str]:
        """The paths whose content is the same each time."""
        (_, first), (_, second) = self.whole(name), self._whole(name)
        return frozenset(path for path in first if first[path] == second.get(path, b""))


def plant_wrong(folder: Path) -> None:
    """What paths may be that should not be."""
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    (folder / "noise").write_bytes(BYTES)
    (folder / "other.json").write_text('{"a": [1, 2]}')
    (folder / "loop").symlink_to("loop")


def damage(file: Path, how: str) -> bool:
    """Damage a file; False where this cannot be done to it."""
    data = file.read_bytes()
    if how in {"absent", "folder", "loop"}:
        file.unlink()
    if how == "folder":
        file.mkdir()
    elif how == "loop":
        file.symlink_to(file.name)
    elif how == "forbidden":
        file.chmod(0)
        return not os.access(file, os.R_OK)
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif how == "noise":
        file.write_bytes((BYTES * (len(data) // len(BYTES) + 1))[: len(data)])
    elif how in {"list", "dict"}:
        file.write_text("[1, 2]\n" if how == "list" else '{"a": {}}\n')
    elif how == "version":
        try:
            told = json.loads(data)
            key = next(key for key in told if "version" in key or "format" in key)
        except (ValueError, StopIteration, TypeError):
            return False
        file.write_text(json.dumps(told | {key: 999}))
    return True


def wrong_of(trial: Trial, world: World) -> str | None:
    """What is wrong with how the program took it; None if nothing, "" where it cannot be tried."""
    place = world.copy()
    if trial.damage and not damage(place / trial.file, trial.damage):
        return ""
    before = tree_of(place)
    if trial.fault is not None and trial.fault.kind == "stop":
        return _stop_wrong(trial, world, place)
    ended = run(trial.argv, place, fault=trial.fault)
    if trial.fault is not None:
        return _fault_wrong(trial, world, place, ended)
    if ended.code == 0:
        told = not trial.damage or _told(trial, place, ended)
        return None if told else _end_wrong(trial, world, place)
    after = tree_of(place)
    if trial.name.startswith(KEEPS):
        whole, same = world.whole(trial.name)[1], world.same(trial.name)
        kept = {path for path in whole if path not in same or after.get(path) == whole[path]}
        before, after = ({p: t[p] for p in t.keys() - kept} for t in (before, after))
    return _refusal_wrong(ended) or _changes(before, after)


def _told(trial: Trial, place: Path, ended: Ended) -> bool:
    """Whether a note, or the page that was made, says that something could not be had."""
    page = place / "page.html"
    lacks = (Path(trial.file).name, "no tokens are promoted or suppressed")
    on_page = page.exists() and any(words in page.read_text() for words in lacks)
    made = "made the evaluation" in ended.out + ended.err
    return "note: " in ended.out + ended.err or on_page or made


def _refusal_wrong(ended: Ended) -> str | None:
    """A refusal is one line, below what else the program says, and exit code 1 or 2."""
    if ended.code not in (1, 2):
        return f"exit {ended.code}: {ended.err[-400:]}"
    *above, line = ended.err.splitlines() or [""]
    if not line.startswith("error: ") or not all(OWN.match(other) for other in above):
        return f"not one line: {ended.err[-400:]!r}"
    if not line.isprintable() or len(line) > 1000:
        return f"cannot be read: {line[:400]!r}"
    return None


def _changes(before: Tree, after: Tree) -> str | None:
    changed = {p for p in before.keys() | after.keys() if before.get(p, 0) != after.get(p, 0)}
    return f"changed {sorted(changed)[:5]}" if changed else None


def _end_wrong(trial: Trial, world: World, place: Path) -> str | None:
    """It ended well: then as if nothing had been wrong."""
    after = tree_of(place)  # before the world is copied to the same place
    whole = world.whole(trial.name)[1]
    differs = {path for path in world.same(trial.name) if after.get(path) != whole[path]}
    missing = {path for path in whole if path not in after}
    left = {path for path in after if path.endswith(".partial")}
    differs = (differs | missing | left) - {trial.file}
    return f"another end: {sorted(differs)[:5]}" if differs else None


def _stop_wrong(trial: Trial, world: World, place: Path) -> str | None:
    """One that was stopped goes on to its end, though the same command was typed meanwhile.

    That one ends well, too, or it is told who is there.
    """
    others = list[Ended]()
    ended = run(
        trial.argv,
        place,
        fault=trial.fault,
        meanwhile=lambda: others.append(run(trial.argv, place, log="other.")),
    )
    told = [wrong for other in others if other.code and (wrong := _refusal_wrong(other))]
    if told:
        return f"the same command meanwhile: {told[0]}"
    if ended.code:
        return f"exit {ended.code}: {ended.err[-400:]}"
    return _end_wrong(trial, world, place)


def _fault_wrong(trial: Trial, world: World, place: Path, ended: Ended) -> str | None:
    assert trial.fault is not None
    if ended.code == 0 and trial.fault.kind != "kill":
        return _end_wrong(trial, world, place)
    if trial.fault.kind == "full" and (told := _refusal_wrong(ended)):
        return told
    if trial.fault.kind == "full" and "space" not in ended.err:
        return f"nothing of the disk: {ended.err!r}"
    if trial.fault.kind == "interrupt" and (ended.code != 130 or "Traceback" in ended.err):
        return f"exit {ended.code}: {ended.err[-400:]}"
    again = run(trial.argv, place)
    gone = trial.name == "store rm" and "there is no" in again.err
    if again.code and not gone:
        return f"the same command again: exit {again.code}: {again.err[-400:]}"
    return (wrong := _end_wrong(trial, world, place)) and f"the same command again: {wrong}"
