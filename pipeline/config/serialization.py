"""Configs as JSON and TOML: strict, small, dataclasses of one family told apart by `kind`.

What `to_json` writes, `from_json` reads back equal. A key nobody knows is an error, never ignored;
but a dataclass with a `FLAT` field has whatever keys it is given, as long as their values fit.
"""

import errno
import math
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import SequenceMatcher, get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pipeline.config.settings import NUMBERS, Count, Length, Strengths, parse_count
from pipeline.errors import ConfigError, NoSuchArchitectureError

T = TypeVar("T")

FLAT: Mapping[str, object] = {"flat": True}
"""Metadata of a field that is a mapping, and stands in JSON key by key beside the other fields."""
UNLESS_DEFAULT: Mapping[str, object] = {"unless default": True}
"""Metadata of a field that stands in JSON only where it is not as by default: versions that do not
know it open all that is."""

SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def to_json(value: object) -> object:
    """A config, or a part of one, as what `json.dumps` takes."""
    if is_dataclass(value) and not isinstance(value, type):
        found: dict[str, object] = {}
        for f in fields(value):
            if "unless default" in f.metadata and getattr(value, f.name) == f.default:
                continue
            item = to_json(getattr(value, f.name))
            found |= cast("dict[str, object]", item) if "flat" in f.metadata else {f.name: item}
        return found
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[T], value: object, *, where: str = "config") -> T:
    """The `kind` that `value` describes.

    Args:
        kind: A frozen dataclass; its type hints say what each setting may be.
        value: Parsed JSON or TOML.
        where: What to call `value` in messages.

    Raises:
        ConfigError: a setting is unknown, missing or of the wrong type, or the dataclass itself
            refuses the values.
    """
    return cast("T", _read(kind, value, where))


def with_paths(value: T, change: Callable[[Path], Path]) -> T:
    """The same value, each path in it changed."""
    made: Any = value
    if isinstance(value, Path):
        made = change(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
        changed = {name: with_paths(part, change) for name, part in parts.items()}
        own = {name: part for name, part in changed.items() if part is not parts[name]}
        made = replace(value, **own) if own else value
    elif isinstance(value, tuple | list):
        items = [with_paths(item, change) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            made = type(value)(items)
    return made


def portable(value: T, folder: Path) -> T:
    """As a file in `folder` holds it: each path leads on from there, so that both may move."""
    start = os.path.realpath(folder)
    return with_paths(value, lambda path: Path(os.path.relpath(os.path.realpath(path), start)))


def located(value: T, folder: Path) -> T:
    """Inverse of `portable`, wherever the folder is now; paths that are absolute stay."""
    start = os.path.realpath(folder)
    return with_paths(value, lambda path: Path(os.path.normpath(os.path.join(start, path))))  # noqa: PTH118


def load_toml(path: Path | Traversable) -> dict[str, object]:
    """The settings of a TOML file, still to be given to `from_json`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _read(hint: Any, value: object, where: str) -> object:  # noqa: ANN401 - a type hint is anything
    """`value` as `hint` asks for it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Count and isinstance(value, str):
        try:
            return parse_count(value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    if (hint == Length and type(value) is int) or (hint == Strengths and type(value) in NUMBERS):
        return str(value)
    if origin is Annotated:
        return _read(args[0], value, where)
    if origin in (Union, UnionType):  # X | None, or float | int | None
        some = [arg for arg in args if arg is not NoneType]
        kind = int if int in some and type(value) is int else some[0]
        return None if value is None else _read(kind, value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool | float):
            raise ConfigError(f"{where} must be one of {_listed(args)}, got {value!r}")
        return value
    if origin is tuple:
        value = [value] if type(value) in NUMBERS else value
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(hint, type) and is_dataclass(hint):
        if "kinds" in vars(hint):  # one of a family, by name
            return _read_by_kind(cast("Any", hint).kinds(), value, where)
        return _read_dataclass(hint, value, where)
    if hint is Path:
        return _read_path(value, where)
    return _read_scalar(hint, value, where)


def _read_path(value: object, where: str) -> Path:
    path = Path(cast("str", _read(str, value, where)))
    try:
        path.stat()
    except (OSError, ValueError) as error:  # whoever needs it to be there tells of all others
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise ConfigError(f"{where}: {path} is a loop of symbolic links") from None
    return path


def _read_scalar(hint: type, value: object, where: str) -> object:
    if hint is float and type(value) is int:
        with suppress(OverflowError):  # which is told as any other that is no number
            value = float(value)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{where} must be {SCALARS[hint]}, got {value!r}")
    if hint is int and not -(2**63) <= cast("int", value) < 2**63:
        raise ConfigError(f"{where} must be below 2**63, got {value!r}")
    return value


def _read_by_kind(kinds: Mapping[str, type], value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where} must be a table with a kind, got {value!r}: type {{kind = {value!r}}}"
        )
    got = value.get("kind")
    if not isinstance(got, str) or got not in kinds:
        told = f"{where}.kind must be one of {_listed(kinds)}, got {got!r}{meant(got, kinds)}"
        raise NoSuchArchitectureError(told, kind=got) if isinstance(got, str) else ConfigError(told)
    try:
        return _read_dataclass(kinds[got], value, where)
    except _UnknownSettingError as error:
        able = [name for name, kind in kinds.items() if error.name in _settings_of(kind)]
        if error.where != where or not able:
            raise
        raise ConfigError(
            f"{where} has no setting {error.name!r} of kind {got!r}: it is of {', '.join(able)}"
        ) from None


class _UnknownSettingError(ConfigError):
    """A setting that is not known where it stands, but perhaps around it."""

    def __init__(self, name: str, where: str, hint: str) -> None:
        super().__init__(f"{where} has no setting {name!r}{hint}")
        self.name, self.where = name, where


def _settings_of(kind: type) -> dict[str, Any]:
    return {f.name: f for f in fields(kind) if "flat" not in f.metadata}


def _inner_settings(hints: Mapping[str, Any], value: Mapping[Any, Any]) -> dict[str, list[str]]:
    """The settings of all kinds of a part: the name of the part, and the first kind that has each.

    The kind that was chosen comes before the others.
    """
    found: dict[str, list[str]] = {}
    for part, hint in hints.items():
        if isinstance(hint, type) and "kinds" in vars(hint):
            kinds = cast("Mapping[str, type]", cast("Any", hint).kinds())
            chosen = value.get(part)
            named = [chosen.get("kind")] if isinstance(chosen, Mapping) else []
            for kind in [*(kind for kind in kinds if kind in named), *kinds]:
                for name in _settings_of(kinds[kind]):
                    found.setdefault(name, [part, kind])
    return found


def _read_dataclass(hint: type, value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table of settings, got {value!r}")
    hints = get_type_hints(hint, include_extras=True)
    flat = next((f.name for f in fields(hint) if "flat" in f.metadata), None)
    settings = _settings_of(hint)
    for key in value:
        if key not in settings and flat is None:
            inner = _inner_settings(hints, value)
            if key in inner:
                part, kind = inner[key]
                wanted = f"{part} = {{kind = {kind!r}, {key} = {value[key]!r}}}"
                raise ConfigError(f"{where} has no setting {key!r}, but {part} has: type {wanted}")
            known = {name: f"{part}.{name}" for name, (part, _) in inner.items()}
            known |= {name: name for name in settings}
            raise _UnknownSettingError(key, where, nearest(key, known, called=known))
    for name, f in settings.items():
        if name not in value and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{where} lacks the setting {name!r}")
    kinds = {key: hints[key] if key in settings else get_args(hints[str(flat)])[1] for key in value}
    try:
        read = {key: _read(kinds[key], item, f"{where}.{key}") for key, item in value.items()}
    except _UnknownSettingError as error:
        if error.name not in settings:
            raise
        raise ConfigError(
            f"{error.where} has no setting {error.name!r}, but {where} has: "
            "it stands beside it, not inside"
        ) from None
    if flat is not None:
        others = {key: read.pop(key) for key in value if key not in settings}
        read[flat] = others
    return hint(**read)


def nearest(got: object, known: Iterable[str], *, called: Mapping[str, str] | None = None) -> str:
    """The end of a message about an unknown name: which known ones are near, or what there is.

    Args:
        got: The name.
        known: Names.
        called: What each is to be called; None means by itself.
    """
    names = list(known)
    if (ours := OTHER_TOOLS.get(str(got))) in names:
        return f": it is {called[ours] if called else ours!r} here{_HOW.get(str(ours), '')}"
    if hint := meant(got, names, called=called):
        return hint
    if len(names) <= _LISTED:
        return f": it has {_listed(names)}"
    some = get_close_matches(str(got), names, n=3, cutoff=0)
    told = [called[name] if called else name for name in some]
    return f": of the {len(names)} it has, the nearest are {_listed(told)}"


def meant(got: object, known: Iterable[str], *, called: Mapping[str, str] | None = None) -> str:
    """The end of a message that lists what is known already: the nearest, if any is near."""
    close = get_close_matches(str(got), list(known), n=3)
    alike = {name: SequenceMatcher(None, name, str(got)).ratio() for name in close}
    near = [name for name in close if alike[name] > alike[close[0]] - _AS_NEAR]
    told = [repr(called[name] if called else name) for name in near]
    return f": did you mean {' or '.join(told)}?" if told else ""


OTHER_TOOLS = {
    **dict.fromkeys(("d_sae", "dict_size", "n_latents", "latents", "width"), "expansion"),
    **dict.fromkeys(("l1_coefficient", "l1_penalty", "sparsity_penalty"), "l1"),
    **dict.fromkeys(("learning_rate",), "lr"),
    **dict.fromkeys(("train_batch_size_tokens", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("training_tokens", "n_tokens"), "tokens"),
    **dict.fromkeys(("lr_warm_up_steps", "warmup_steps"), "lr_warmup"),
    **dict.fromkeys(("lr_decay_steps",), "lr_decay"),
}
"""What SAELens and dictionary_learning call a setting, and what it is called here."""
_HOW = {"expansion": ": latents per input, so that latents = expansion x width"}

_LISTED = 10
"""Names that are listed where none is near."""
_AS_NEAR = 0.1
"""What is less like the name than that, beside the nearest, is not meant."""


def _listed(names: object) -> str:
    return ", ".join(str(name) for name in cast("tuple[object, ...]", names))
