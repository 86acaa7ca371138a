"""Names of parametrised tests: the same in every process, short, and fit for a terminal."""

import re
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_VALUE, LONGEST = 40, 72  # of one value; of all between the brackets: a line of a terminal

# What a name may not hold: what differs between two processes, or what no one can read.
WRONG = {
    "an address in memory": re.compile(r"0x[0-9a-f]{6,}|\bat 0x", re.IGNORECASE),
    "bytes": re.compile(r"""(?<![A-Za-z0-9])b(['"]).*\1"""),
    "a backslash": re.compile(r"\\"),  # most often of a character that has no print
    "a set": re.compile(r"\{[^:{}]+\}|frozenset"),  # its order depends on the hash seed
}


def name_of(value: object, argname: str) -> str | None:
    """How a value without a name of its own is called; None leaves it to pytest.

    pytest would write bytes and long texts out. Bytes are named after their argument instead:
    they may hold the clock, as a gzip's do, and then two workers would collect different tests.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return argname
    if isinstance(value, str) and (len(value) > LONGEST_VALUE or not _plain(value)):
        return "".join(c if _plain(c) else " " for c in value[:LONGEST_VALUE]).strip() or argname
    return None


def wrong_with(node_id: str) -> list[str]:
    """What is wrong with the name of a test."""
    inside = node_id.partition("[")[2].removesuffix("]")
    found = [what for what, pattern in WRONG.items() if pattern.search(inside)]
    found += [str(place) for place in (ROOT, tempfile.gettempdir()) if str(place) in inside]
    if len(inside) > LONGEST:
        found.append(f"{len(inside)} characters between the brackets, above {LONGEST}")
    if not _plain(node_id):
        found.append("characters that are not printable ASCII")
    return found


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and "\\" not in text
