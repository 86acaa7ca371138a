"""A grid of settings: each list of values is swept over, and their product makes a sweep's members.

    lr = [1e-4, 3e-4]                        arch = {kind = ["relu", "topk"], l1 = [1, 2], k = 32}

are 2 * (2 + 1) members: relu with each `l1`, topk with its `k`, at both learning rates.
"""

import hashlib
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TypeVar, cast, get_origin, get_type_hints

from pipeline.config.architectures import ARCHS
from pipeline.config.serialization import SCALARS, from_json
from pipeline.config.training import LoopConfig, TrainConfig
from pipeline.errors import ConfigError

T = TypeVar("T")
Settings = dict[str, object]

ONE_PASS = ("store", "batch_size", "order_seed", "device", "stack", "window_rows", "threads")
"""What members share, since each batch is read once, onto one device, for all of them."""

_PLAIN = str.maketrans({",": "+", "+": "_", "~": "_", "%": "pct"})
_UNSAFE = re.compile(r"[^A-Za-z0-9._%+-]")
_LONGEST = 200  # bytes of a name; a file system takes 255


@dataclass(frozen=True, kw_only=True)
class Point:
    """One member of a grid."""

    name: str
    """Of its folder: what varies, as `mlp_out.1+l1=0.001`; empty where it is the only one."""
    config: LoopConfig
    varies: Mapping[str, object]
    """The settings that the grid sweeps over, as this member has them."""


def expand(
    settings: Mapping[str, object], *, out: Path, kind: type[LoopConfig] = TrainConfig
) -> tuple[Point, ...]:
    """Every combination of the values in `settings`, the last setting changing fastest.

    Args:
        settings: What `from_json(kind, ...)` takes, but any value, also of `arch`, may be a
            list of values. Settings that are lists themselves are swept over by lists of lists.
            Settings that another kind of `arch` lacks are left out for that kind.
        out: Folder of the sweep; of the run itself if there is one member.
        kind: What is trained.

    Raises:
        ConfigError: a list is empty, a member comes twice, one of `ONE_PASS` has several values,
            or a member is no possible config.
    """
    known = [name for name in _settings_of(kind) if name in settings]
    names = [name for name in dict.fromkeys((*known, *settings)) if name != "out"]
    lists = {name for name, hint in get_type_hints(kind).items() if get_origin(hint) is tuple}
    axes = [
        _archs(settings[name]) if name == "arch" else _axis(name, settings[name], lists=lists)
        for name in names
    ]
    points: dict[str, Point] = {}
    configs: set[LoopConfig] = set()
    for choice in product(*axes):
        values = {name: value for name, (value, _) in zip(names, choice, strict=True)}
        varies = {key: value for _, listed in choice for key, value in listed.items()}
        config = from_json(kind, values | {"out": str(out)})
        if config in configs:
            raise ConfigError(f"the sweep has {_plain_name(varies)} twice: name each value once")
        configs.add(config)
        name = _free_name(varies, taken=points)
        points[name] = Point(name=name, config=replace(config, out=out / name), varies=varies)
    return tuple(points.values())


def _settings_of(kind: type[LoopConfig]) -> list[str]:
    """What makes a member what it is before what every training is told."""
    common = [f.name for f in fields(LoopConfig)]
    return [f.name for f in fields(kind) if f.name not in common] + common


def comma_list(text: str, kind: Callable[[str], T], *, option: str) -> list[T]:
    """The values of an option of the command line: `1e-4,3e-4`."""
    values: list[T] = []
    for word in text.split(","):
        try:
            if not word.strip():
                raise ValueError  # noqa: TRY301 - an empty text is no value either
            values.append(kind(word.strip()))
        except ConfigError as error:
            raise ConfigError(f"{option}: {error}") from error
        except ValueError:
            wanted = cast("dict[object, str]", SCALARS).get(kind, "a number")
            raise ConfigError(
                f"{option} must be {wanted}, or several with commas between them, got {text!r}"
            ) from None
    return values


def _axis(name: str, value: object, *, lists: Container[str] = ()) -> list[tuple[object, Settings]]:
    """The values of one setting, each with what its member then says of itself."""
    swept = isinstance(value, list | tuple) and (
        name not in lists or any(isinstance(item, list | tuple) for item in value)
    )
    if not swept:
        return [(value, {})]
    values = list(cast("Sequence[object]", value))
    if not values:
        raise ConfigError(f"{name} is an empty list: give it at least one value")
    if len(values) == 1:
        return [(values[0], {})]
    if name in ONE_PASS:
        raise ConfigError(
            f"{name} must be one for all members of a sweep, got "
            f"{', '.join(map(str, values))}: run saepipe train once for each"
        )
    return [(item, {name: item}) for item in values]


def _archs(table: object) -> list[tuple[object, Settings]]:
    """The architectures of a table whose values may be lists."""
    if not isinstance(table, Mapping):
        return [(table, {})]
    knobs = {str(name): value for name, value in table.items() if name != "kind"}
    kinds = _axis("arch", table.get("kind"))
    known = {str(kind): _knobs_of(kind, given=knobs) for kind, _ in kinds}
    somewhere = set[str]().union(*known.values())
    choices: list[tuple[object, Settings]] = []
    for kind, said in kinds:
        # A knob that no kind knows stays, for the config to refuse.
        mine = [name for name in knobs if name in known[str(kind)] or name not in somewhere]
        mine.sort(key=lambda name, of=known[str(kind)]: of.index(name) if name in of else len(of))
        for choice in product(*(_axis(name, knobs[name]) for name in mine)):
            values = {name: value for name, (value, _) in zip(mine, choice, strict=True)}
            listed = {key: value for _, named in choice for key, value in named.items()}
            choices.append(({"kind": kind} | _in_own_words(kind, values), said | listed))
    return choices


def _knobs_of(kind: object, *, given: Iterable[str]) -> list[str]:
    """What a kind knows; one that does not exist gets all, for the config to refuse it."""
    config = ARCHS.get(str(kind))
    if config is None:
        return list(given)
    known = [f.name for f in fields(config) if f.name != "kind"]
    return [*known, "l0"] if config.l0_as in known else known


def _in_own_words(kind: object, values: Settings) -> Settings:
    """What is said of an architecture with `l0` by the name that it has for that."""
    config = ARCHS.get(str(kind))
    own = config.l0_as if config else "l0"
    if "l0" not in values or own == "l0":
        return values
    if own in values:
        raise ConfigError(
            f"of {kind}, {own} {values[own]} and l0 {values['l0']} say the same thing: give one"
        )
    return {own if name == "l0" else name: value for name, value in values.items()}


def _free_name(varies: Settings, *, taken: Mapping[str, object]) -> str:
    """A name that is safe as a file's, and that no other member has on any file system."""
    name = plain = _plain_name(varies)
    lower = {other.lower() for other in taken}
    if len(name) > _LONGEST:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = plain = f"{name[:_LONGEST]}_{digest}"
    number = 1
    while name.lower() in lower:
        number += 1
        name = f"{plain}_{number}"
    return name


def _plain_name(varies: Settings) -> str:
    """`mlp_out.1+topk+k=32`: values that speak for themselves go without their setting's name."""
    name = plain_name(",".join(_told(name, value) for name, value in varies.items()))
    return f"_{name}" if name.startswith((".", "-")) else name  # not hidden, above, or an option


def plain_name(name: str) -> str:
    """A name with commas between its words, as sweeps once had them, in what no shell minds."""
    name = re.sub(r"(?<=[0-9]e)\+", "", name)  # 1e+22
    return name.translate(_PLAIN)


def _told(name: str, value: object) -> str:
    if name == "ends":
        return "-".join(_word(Path(str(end)).name) for end in cast("Sequence[object]", value))
    return _word(value) if name in ("site", "arch") else f"{name}={_word(value)}"


def _word(value: object) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_word, cast("Sequence[object]", value))) or "none"
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    return _UNSAFE.sub("-", text) or "none"
