"""Write the pages of the reference that the code alone can tell.

    python docs/generate.py [FOLDER]

These are commands.md, configuration.md, metrics.md and python.md, in docs/reference or another
folder. A test holds them to what this writes: after a change of the code, run it again.
"""

import ast
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from inspect import Parameter, cleandoc, getdoc, getsource, signature, unwrap
from itertools import pairwise
from pathlib import Path
from textwrap import dedent, fill
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import typer

import actstore.errors
import cli
import pipeline.errors
from pipeline import saepipe
from pipeline.config.architectures import ARCHS, ArchConfig
from pipeline.config.recipes import PUBLISHED, recipes
from pipeline.config.rows import ImportConfig
from pipeline.config.settings import Count, Length, Strengths, hints_of
from pipeline.config.stages import (
    EvalConfig,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    ReportConfig,
    SteerConfig,
)
from pipeline.config.training import ConnectConfig, LoopConfig, TrainConfig
from pipeline.connect import scores
from pipeline.connect.page.tables import METRICS as CONNECTOR_METRICS
from pipeline.connect.report import BOUNDED, CONNECT_EVAL_FILE, TAU
from pipeline.evaluate import metrics
from pipeline.evaluate.metrics import SHARE, Metric, OfSums, sections
from pipeline.mnist.config import MnistConfig

Row = Sequence[str]
REQUIRED = Parameter.empty
REFERENCE = Path(__file__).parent / "reference"
WRITTEN = "<!-- Written by docs/generate.py from the code: do not edit. -->"

CONFIGS: dict[str, tuple[type, ...]] = {
    "harvest": (HarvestConfig,),
    "train": (LoopConfig, TrainConfig, ConnectConfig),
    "eval": (EvalConfig,),
    "features": (FeaturesConfig,),
    "report": (ReportConfig,),
    "finetune": (FinetuneConfig,),
    "steer": (SteerConfig,),
    "mnist": (MnistConfig,),
    "store import": (ImportConfig,),
}
"""What may be set, by the command that takes it."""

TITLES: dict[type, str] = {
    LoopConfig: "Every training",
    TrainConfig: "SAEs",
    ConnectConfig: "Connectors",
}
"""Of configs that share a command."""

OPTIONS = {"sites": "site", "n_worst": "worst", "columns": "column"}
"""Of settings whose options have another name."""

VERBS: dict[str, type] = {
    "harvest": HarvestConfig,
    "train": TrainConfig,
    "sweep": TrainConfig,
    "connect": ConnectConfig,
    "evaluate": EvalConfig,
    "features": FeaturesConfig,
    "finetune": FinetuneConfig,
    "steer": SteerConfig,
    "report": ReportConfig,
    "import_store": ImportConfig,
}
"""The config whose settings a verb takes as keywords."""


def main() -> None:
    """Write all pages."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCE
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        title, *rest = page()
        text = "\n\n".join([title, WRITTEN, *rest])
        (folder / f"{name}.md").write_text(f"{text}\n", encoding="utf-8")


# --- commands --------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """Every command of the command line, read from the program that it is."""
    yield "# Commands"
    yield prose(
        "`saepipe COMMAND --help` says the same in a terminal. An option may be left out, unless "
        "it is required. What has no option of its own is a setting of the "
        "[configuration](configuration.md), for `--config`, and in `saepipe train` for `--set`. "
        "`saepipe --version` says which saepipe it is; `saepipe --install-completion` has your "
        "shell complete commands and options."
    )
    yield table(("Command", "What it does"), [
        (f"[`saepipe {name}`](#saepipe-{slug(name)})", first_line(command.help))
        for name, command in COMMANDS.items()
    ])  # fmt: skip
    for name in COMMANDS:
        yield from one_command(name)


def each_command(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Commands by what is typed for them, those of a group in its place."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from each_command(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


COMMANDS = dict(each_command(typer.main.get_command(cli.app)))


def one_command(name: str) -> Iterator[str]:
    """Its help; what must be given, and what may be."""
    command = COMMANDS[name]
    function = unwrap(command.callback)
    hints, parameters = get_type_hints(function), signature(function).parameters
    arguments, required, optional = list[Row](), list[Row](), list[Row]()
    usage = [f"saepipe {name}"]
    for param in command.params:
        hint, default, typed = hints[param.name], parameters[param.name].default, param.name.upper()
        needed, repeated = default is REQUIRED, get_origin(without_none(hint)) is list
        if param.param_type_name == "argument":
            takes = type_words(hint)
            arguments.append((f"`{typed}`", takes, "required" if needed else "", param.help))
            usage.append(f"{typed}{'...' * repeated}" if needed else f"[{typed}]")
            continue
        names = ", ".join(f"`{option}`" for option in (*param.opts, *param.secondary_opts))
        if hint is bool:
            row = (names, "", f"`{param.opts[0]}`" if default else "", option_words(name, param))
        else:
            takes = f"`{param.metavar}`" if param.metavar else option_type(name, param.name, hint)
            shown = "" if default in (None, "", REQUIRED) else as_toml(default, quotes=False)
            takes += ", repeatable" * repeated
            row = (names, takes, "required" if needed else shown, option_words(name, param))
        (required if needed else optional).append(row)
        usage += [f"{param.opts[0]} {typed}"] * needed
    yield f"## saepipe {name}"
    yield prose(command.help)
    yield f"`{' '.join(usage)}{' [OPTIONS]' * bool(optional)}`"
    if arguments:
        yield table(("Argument", "Takes", "Default", "What it is"), arguments)
    yield table(("Option", "Takes", "Default", "What it is"), [*required, *optional])
    if name in CONFIGS:
        yield f"All that may be set: [configuration](configuration.md#{slug(name)})."


def option_words(command: str, option: Any) -> str:
    """Its help, or what stands below the setting of its name."""
    below = [words_of(kind).get(option.name, "") for kind in CONFIGS.get(command, ())]
    return option.help or next(filter(None, below), "")


def option_type(command: str, name: str, hint: Any) -> str:
    """What it takes; where that is text on the command line, what the setting is that it sets."""
    kinds = CONFIGS.get(command, ())
    shaping = ARCHS.values() if command == "train" else ()
    settings = [hints_of(kind)[name] for kind in (*kinds, *shaping) if name in hints_of(kind)]
    plain = [setting for setting in settings if get_origin(setting) is not tuple]
    return type_words(plain[0] if plain and without_none(hint) is str else without_list(hint))


# --- configuration ---------------------------------------------------------------------------


def configuration() -> Iterator[str]:
    """Every setting of every command, as it is declared."""
    yield "# Configuration"
    yield prose(
        "Every setting, by the command that takes it. Many have an option of the same name "
        "([commands](commands.md)). All but those of `store import` can stand in the TOML file of "
        "`--config`, and all are "
        "keywords of the [verbs of Python](python.md); those of a training are also reached by "
        "`--set NAME=VALUE`, which may be repeated. An option goes before the file, the file "
        "before a recipe, and a recipe before the default. A run's folder has the settings that it "
        "was made with, in `run.json`."
    )
    yield prose(
        "A count is a whole number, or text such as `500k`, `20M`, `1.5B`. A length is "
        "`10k steps`, `5M` rows or `20%` of the run; a plain number, too, is rows. A strength is "
        "a number, `5x` of a feature's mean or `2max` of its largest activation. A list of one "
        "may be given as that one. Defaults are written as in TOML, which has no `None`: there "
        "such a setting is left out. What `None` then means stands beside it."
    )
    for command, kinds in CONFIGS.items():
        yield f"## {command}"
        for kind in kinds:
            yield from one_config(command, kind)
        if command == "train":
            yield from architectures()
            yield from published()


def one_config(command: str, kind: type) -> Iterator[str]:
    """What it is, and its settings: of those of a training, what it has beside every training."""
    if kind in TITLES:
        yield f"### {TITLES[kind]}"
    yield f"`{kind.__name__}`. {linked(cleandoc(kind.__doc__ or ''))}"
    if kind is LoopConfig or not issubclass(kind, LoopConfig):
        yield settings_table(kind, command=command)
        return
    yield prose(
        f"It takes the settings of [every training](#{slug(TITLES[LoopConfig])}), too. Of one that "
        "is in both tables, this one is right."
    )
    inherited = {f.name for f in fields(kind)} - kind.__annotations__.keys()
    yield settings_table(kind, command=command, without=inherited)


def architectures() -> Iterator[str]:
    """Of each its loss and source, as its config says them, and what it can be told."""
    yield "### Architectures"
    yield prose(
        "`--arch NAME`; in a file, `kind` in the table `[arch]`, with the settings below. On the "
        "command line these are typed as `--set arch.NAME=VALUE` where they have no option, and in "
        "Python they stand beside `arch`."
    )
    for kind in ARCHS.values():
        if kind.__module__ == ArchConfig.__module__:  # it is none of another package
            yield f"#### {kind.kind}"
            yield f"`{kind.__name__}`. {linked(cleandoc(kind.__doc__ or ''))}"
            yield settings_table(kind, command="train", without={"kind"})


def published() -> Iterator[str]:
    """The recipes: whose they are, and what they set."""
    yield "### Recipes"
    yield "`--recipe NAME` takes settings that others published: those of one of these files."
    for name in recipes():
        lines = (PUBLISHED / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        n_comments = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        comment = "\n".join(line.removeprefix("#").strip() for line in lines[:n_comments])
        yield f"#### {name}"
        yield linked(comment)
        yield "\n".join(["```toml", *lines[n_comments:], "```"]).replace("```toml\n\n", "```toml\n")


def settings_table(kind: type, *, command: str, without: Collection[str] = ()) -> str:
    """Name, type, default and words of each setting, those that must be given first."""
    hints, words = hints_of(kind), words_of(kind)
    options = {option.name: option.help or "" for option in COMMANDS[command].params}
    if kind is ConnectConfig:  # what they say is of SAEs
        options = {}
    shown = [f for f in fields(kind) if f.name not in without]  # pyright: ignore[reportArgumentType]
    shown.sort(key=lambda f: default_of(f) != "required")
    return table(("Setting", "Type", "Default", "What it is"), [
        (
            f"`{f.name}`", type_words(hints[f.name]), default_of(f),
            words.get(f.name) or options.get(OPTIONS.get(f.name, f.name), ""),
        )
        for f in shown
    ])  # fmt: skip


def default_of(setting: Field[Any]) -> str:
    """As it is written in a file."""
    if setting.default_factory is not MISSING:
        return as_toml(setting.default_factory())
    return "required" if setting.default is MISSING else as_toml(setting.default)


def words_of(kind: type) -> dict[str, str]:
    """What stands below each setting in the source of a config and of what it inherits."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if is_dataclass(part):
            (body,) = ast.parse(dedent(getsource(part))).body
            for line, below in pairwise(cast("ast.ClassDef", body).body):
                match line, below:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(words))),
                    ):
                        found[name] = words
                    case _:
                        pass
    return found


def type_words(hint: Any) -> str:
    """What may be given, in words."""
    hint = without_none(hint)
    origin, args = get_origin(hint), get_args(hint)
    if hint == Count:
        return "count"
    if hint == Length:
        return "length"
    if hint == Strengths:
        return "strength"
    if origin is Annotated:
        return type_words(args[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in args)
    if origin in (Union, UnionType) and float in args:  # and int
        return type_words(float)
    if origin in (tuple, list):
        several = len(args) == 1 or args[1] is Ellipsis
        return f"list{'' if several else f' of {len(args)}'}: {type_words(args[0])}"
    if issubclass(hint, ArchConfig):
        return "[architecture](configuration.md#architectures)"
    return NAMED[hint]


NAMED = {Path: "path", str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}


def without_none(hint: Any) -> Any:
    """A type but for None."""
    kept = [arg for arg in get_args(hint) if arg is not NoneType]
    return kept[0] if NoneType in get_args(hint) and len(kept) == 1 else hint


def without_list(hint: Any) -> Any:
    """Of a list what is in it."""
    hint = without_none(hint)
    return get_args(hint)[0] if get_origin(hint) is list else hint


def as_toml(value: object, *, quotes: bool = True) -> str:
    """A value as it is written in a file, or without quotes as it is typed."""
    match value:
        case ArchConfig():
            return f"`{value.kind}`"
        case bool():
            return f"`{str(value).lower()}`"
        case Path() | str():
            return f'`"{value}"`' if quotes else f"`{value}`"
        case tuple():
            return f"`[{', '.join(map(str, cast('tuple[object, ...]', value)))}]`"
        case _:
            return f"`{value}`"


# --- metrics ---------------------------------------------------------------------------------

_SOURCE = re.compile(r" \(([A-Z][^()]* \d{4}[^()]*)\)")
_FORMULA = re.compile(r"(?P<formula>[^,:]*?(?: [-/] |Σ|exp\()[^,:]*)(?P<rest>$|[,:;].*)")


def measures() -> Iterator[str]:
    """Every number of an evaluation."""
    yield "# Metrics"
    yield prose(
        "The numbers of `saepipe eval`, by the names that they have in `eval.json` and `eval.csv`; "
        "those of connectors are [below](#connectors)."
    )
    about = (getdoc(metrics) or "").partition("\n\n")[2].partition("\n\n")[2]
    yield linked(about)
    yield prose(
        f"Metrics with an interval are computed again from {EvalConfig.n_bootstrap:,} resamplings "
        "of the text's contexts (`n_bootstrap`), with `mean x` held fixed; the interval is between "
        "the 2.5 % and the 97.5 % quantile of what comes out."
    )
    for title, found in sections().items():
        yield f"## {title}"
        yield metric_table([told_of(metric) for metric in found])
    yield "## Connectors"
    yield f"In `{CONNECT_EVAL_FILE}`, of a connector and of each baseline; tau is {TAU:g}."
    yield linked((getdoc(scores) or "").partition("\n\n")[2])
    for title, declared in CONNECTOR_METRICS.items():
        yield f"### {title}"
        yield metric_table([
            (name, words.format(tau=TAU), definition, "", name in BOUNDED)
            for name, (words, definition) in declared.items()
        ])  # fmt: skip


def told_of(metric: Metric) -> tuple[str, str, str, str, bool]:
    """What the table has of a metric."""
    unit = "share, shown in percent" if metric.unit == SHARE else metric.unit
    interval = isinstance(metric, OfSums) and metric.interval
    return metric.name, metric.words, metric.definition, unit, interval


def metric_table(rows: Sequence[tuple[str, str, str, str, bool]]) -> str:
    """Columns that nothing stands in are left out."""
    lines = list[list[str]]()
    for name, words, definition, unit, interval in rows:
        source = _SOURCE.search(definition)
        plain = _SOURCE.sub("", definition)
        lines.append([
            f"`{name}`", words, formula(plain), unit, "yes" if interval else "no",
            source[1] if source else "",
        ])  # fmt: skip
    heads = ("Name", "Metric", "Definition", "Unit", "Interval", "Source")
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    return table([heads[i] for i in kept], [[line[i] for i in kept] for line in lines])


def formula(definition: str) -> str:
    """A definition whose formula, if it begins with one, is set as such."""
    found = _FORMULA.match(definition)
    return f"`{found['formula'].strip()}`{found['rest']}" if found else definition


# --- python ----------------------------------------------------------------------------------


def python() -> Iterator[str]:
    """Every public name of `import saepipe`."""
    names = {name: getattr(saepipe, name) for name in saepipe.NAMES}
    errors = {n: x for n, x in names.items() if isinstance(x, type) and issubclass(x, Exception)}
    things = {n: x for n, x in names.items() if isinstance(x, type) and n not in errors}
    verbs = {n: x for n, x in names.items() if n not in errors and n not in things}
    yield "# Python"
    yield prose(
        "`import saepipe as sp` brings the names of this page and takes no time: each is imported "
        "when it is first used. They stay, or grow: a test holds them. Names of other modules may "
        "change. [From Python](../tutorials/python.md) is a walk through them."
    )
    yield "## Verbs"
    yield prose(
        "A function a stage, as the commands of the command line. Each takes its main argument, "
        "and its settings as keywords, or a config; paths as text, `Path`, or a run or store that "
        "is open; counts as `500k`. They return values and print nothing: `on_progress` is told "
        "how far they have come. `help(sp.train)` says all of it in a session; so does this page "
        "where it is built (`mkdocs serve`)."
    )
    for name in verbs:
        yield directive(name)
        if name in VERBS:
            where = (
                slug(TITLES[VERBS[name]])
                if VERBS[name] in TITLES
                else slug(command_of(VERBS[name]))
            )
            yield f"Settings: [`{VERBS[name].__name__}`](configuration.md#{where})."
    yield "## Things"
    yield "What verbs return, and what can be opened without them."
    yield from map(directive, things)
    yield "## Errors"
    yield prose(
        "What goes wrong in a way that you can mend is one of two errors, or of those below them; "
        "its message is one line, and says what to do. [Errors](errors.md) has the ones you may "
        "meet."
    )
    yield from map(directive, errors)
    others = [
        kind
        for module in (pipeline.errors, actstore.errors)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind not in errors.values()
    ]
    yield table(("Error", "Is a", "When"), [
        (f"`{kind.__module__}.{kind.__name__}`", f"`{base.__name__}`", first_line(kind.__doc__))
        for kind in others for base in kind.__bases__
    ])  # fmt: skip


def directive(name: str) -> str:
    """What mkdocstrings puts the name's signature and docstring in the place of."""
    return f"::: {saepipe.NAMES[name]}.{name}"


def command_of(kind: type) -> str:
    """The command that takes a config."""
    return next(command for command, kinds in CONFIGS.items() if kind in kinds)


# --- Markdown --------------------------------------------------------------------------------

_OPTION = re.compile(r"(?<![\w`-])--[a-z][\w-]*")
_LINK = re.compile(r"(?<![\w(<])(?:https?://\S+[^\s.,)]|arXiv (\d{4}\.\d{5}))")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of Markdown as a table of it."""
    lines = [heads, ["---"] * len(heads), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Words for a table: on one line, options as code, nothing in them taken for Markdown."""
    text = " ".join(text.split())
    pieces = re.split(r"(`[^`]*`|\[[^][]*\]\([^()]*\))", text)  # code and links stand between words
    return "".join(_kept(piece) if i % 2 else _words(piece) for i, piece in enumerate(pieces))


def _words(text: str) -> str:
    told = _OPTION.sub(r"`\g<0>`", text).replace("<", "&lt;")
    return re.sub(r"([\[\]|*])", r"\\\1", told)


def _kept(code: str) -> str:
    """A bar would end its cell, even in code."""
    return f"<code>{code[1:-1].replace('|', '&#124;')}</code>" if "|" in code else code


def linked(text: str) -> str:
    """With addresses, and numbers on arXiv, as links."""
    return _LINK.sub(
        lambda found: (
            f"[{found[0]}](https://arxiv.org/abs/{found[1]})" if found[1] else f"<{found[0]}>"
        ),
        text,
    )


def prose(text: str) -> str:
    """Paragraphs in lines of at most 120 characters."""
    paragraphs = (" ".join(part.split()) for part in cleandoc(text).split("\n\n"))
    return "\n\n".join(
        fill(part, 120, break_long_words=False, break_on_hyphens=False) for part in paragraphs
    )


def first_line(text: str | None) -> str:
    """The first sentence of a docstring."""
    return cleandoc(text or "").partition("\n\n")[0]


def slug(title: str) -> str:
    """The anchor of a heading."""
    return title.lower().replace(" ", "-")


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "commands": commands,
    "configuration": configuration,
    "metrics": measures,
    "python": python,
}

if __name__ == "__main__":
    main()
