"""Names of runs, short enough for a table's head or a figure; the folder that runs share."""

import re
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path


def names_of(runs: Sequence[Path]) -> list[str]:
    """The ends of these paths, as few folders of each as it takes to tell all apart."""
    for n in range(1, max((len(run.parts) for run in runs), default=0)):
        names = ["/".join(run.parts[-n:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def from_here(path: Path) -> Path:
    """A path as one types it in this folder: nothing of what lies above that, if it is in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


_FOLDERS = re.compile(r"(?<![\w./:~])(?:~?/(?:[^\s/]+/)+|\.{1,2}/(?:[^\s/]+/)*)")


def public(words: str) -> str:
    """Words for everybody: of each path, absolute or from here, its last part alone."""
    return _FOLDERS.sub("", words)


def typed(path: Path) -> str:
    """A path in a command for everybody."""
    return public(str(from_here(path)))


def words_of(member: str) -> list[str]:
    """The words of the name of a sweep's member, which once had commas between them."""
    return member.split("," if "," in member else "+")


def middle_out(name: str, n: int) -> str:
    """At most `n` characters: a longer name loses its middle, as its ends tell it from others."""
    return name if len(name) <= n else f"{name[: (n - 1) // 2]}…{name[-(n // 2) :]}"


def beside(runs: Sequence[Path]) -> Path:
    """The folder of the only run; the one that several have in common."""
    if len(runs) == 1:
        return runs[0]
    return Path(commonpath([run.resolve().parent for run in runs]))
