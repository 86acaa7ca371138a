"""What `--text` means: the name of a text source -> the source.

    builtin, builtin@heldout                        text that every Python carries
    builtin:arithmetic, builtin:arithmetic@heldout  questions with answers
    org/name[:config][@split]                       a dataset of the hub, streamed
    PATH                                            a file, a folder of files
    PATH[@split]                                    a folder that `datasets` saved

A path that exists comes before a dataset of the same name.
"""

import re
from pathlib import Path

from pipeline.errors import TextError
from pipeline.text.builtin import Arithmetic, BuiltinText, Part
from pipeline.text.columns import Column
from pipeline.text.files import FileText, looks_like_a_file
from pipeline.text.hub import HubText, SavedText, is_saved
from pipeline.text.source import TextSource

EMBEDDED = ("builtin", "builtin:arithmetic")
"""Texts that need no download; each has a held-out part, `NAME@heldout`."""

_HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(:(?P<config>[^@/]+))?(@(?P<split>[\w.-]+))?", re.ASCII
)


def open_text(source: str, *, column: str | Column = "text", seed: int = 0) -> TextSource:
    """The text source of this name.

    Args:
        source: As in the list above.
        column: The one with the text, where documents are records; as a `Column` it may say how
            conversations are spelled.
        seed: Of the order of the embedded sources; others keep their own order.

    Raises:
        TextError: no source has this name, it cannot be reached, or holds no text.
    """
    of = Column(column) if isinstance(column, str) else column
    name, at, part = source.partition("@")
    if name.partition(":")[0] == "builtin":
        if name not in EMBEDDED or (at and part != "heldout"):
            raise TextError(
                f"there is no text {source!r}: the embedded ones are {' and '.join(EMBEDDED)}, "
                "each also with @heldout"
            )
        of.require_records(source, what="plain text")
        half: Part = "heldout" if at else "train"
        if name == "builtin:arithmetic":
            return Arithmetic(half, column=of.name, seed=seed)
        return BuiltinText(half, seed=seed)
    path, split = _path_and_split(source)
    if path.exists():
        if is_saved(path):
            return SavedText(path, name=source, split=split, column=of)
        if split is None:
            return FileText(path, name=source, column=of)
    named = _HUB_ID.fullmatch(source)
    if named is None or path.exists() or looks_like_a_file(path):
        raise TextError(
            f"there is no text {source!r}: --text takes {', '.join(EMBEDDED)}, the path of a "
            "file or folder, or a hub dataset as org/name[:config][@split]"
        )
    return HubText(named["id"], config=named["config"], split=named["split"] or "train", column=of)


def heldout_of(source: str) -> str | None:
    """The held-out part that belongs to an embedded source; None for every other."""
    return f"{source}@heldout" if source in EMBEDDED else None


def _path_and_split(source: str) -> tuple[Path, str | None]:
    """The path with a split after its last `@`, unless the whole is a path that exists."""
    whole = Path(source).expanduser()
    before, at, split = source.rpartition("@")
    if not at or whole.exists() or not Path(before).expanduser().exists():
        return whole, None
    return Path(before).expanduser(), split
