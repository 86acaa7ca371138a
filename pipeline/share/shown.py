"""What of a run or a store may be seen by everybody: no path of this machine.

Of every path the last part stays. Texts from data sets are content, and stay as they are.
"""

from collections.abc import Collection, Iterator
from pathlib import PurePath
from typing import Any

from pipeline.runs.names import public
from pipeline.whereabouts import place_of

_BEGINNINGS = ("/", "~", "./", "../")


def shown(document: Any, *, content: Collection[str] = ()) -> Any:  # noqa: ANN401 - of JSON
    """A JSON document without paths of this machine.

    Args:
        document: Of numbers, texts, lists and objects.
        content: Keys of what is shown as it is.
    """
    paths = sorted({text for text in _texts(document, content) if _is_path(text)}, key=len)

    def changed(value: Any) -> Any:  # noqa: ANN401
        match value:
            case str():
                return _shown(value, [*reversed(paths)])
            case list():
                return [changed(item) for item in value]
            case dict():
                return {k: v if k in content else changed(v) for k, v in value.items()}
            case _:
                return value

    return changed(document)


def shown_name(name: str) -> str:
    """A name of a model or a text; of one that lies in files, the last part."""
    return PurePath(name).name or name if _is_path(name) else public(name)


def is_shown(name: str) -> bool:
    """Whether a name is one for everybody already."""
    return shown_name(name) == name


def _shown(text: str, paths: list[str]) -> str:
    if text in (".", "..") or _is_path(text):
        return text if text == "." else PurePath(text).name
    for path in paths:  # in sentences; the longest first
        text = text.replace(path, PurePath(path).name)
    return public(text)


def _is_path(text: str) -> bool:
    """Whether all of a text is a path of this machine; names on the hub are none."""
    if "\n" in text or text in (".", ".."):
        return False
    return text.startswith(_BEGINNINGS) or ("/" in text and place_of(text) is not None)


def _texts(document: Any, content: Collection[str]) -> Iterator[str]:  # noqa: ANN401
    match document:
        case str():
            yield document
        case list():
            for item in document:
                yield from _texts(item, content)
        case dict():
            for key, item in document.items():
                if key not in content:
                    yield from _texts(item, content)
        case _:
            pass
