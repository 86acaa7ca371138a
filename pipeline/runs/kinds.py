"""The kinds of run: what each brings, and the one table that names them.

A new kind is a folder of its own with a subclass of `RunKind`, and one line in `KINDS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from actstore.reader import ActStore
from pipeline.errors import CheckpointError, DataError
from pipeline.runs.belongs import told_by
from pipeline.runs.curves import StepReport
from pipeline.runs.folder import RunFolder

KINDS = {
    "sae": "pipeline.saes:SAES",
    "finetune": "pipeline.saes:SAES",
    "connector": "pipeline.connect.kind:CONNECTORS",
}
"""Where the kind of a run is, by what its run.json says that it is."""


@runtime_checkable
class Source(Protocol):
    """Makes of each batch of the store what groups are fed."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that every batch must hold."""
        ...

    @property
    def metadata(self) -> tuple[str, ...]:
        """The metadata that every batch must hold."""
        ...

    def fed(self, batch: Mapping[str, Tensor]) -> Mapping[Any, Any]:
        """What each group is given, by its `feed`."""
        ...


@runtime_checkable
class Trainee(Protocol):
    """A member of a group."""

    path: Path
    n_steps: int

    def fail(self, error: DataError) -> None:
        """Leave word that it diverged."""
        ...


@runtime_checkable
class AnyGroup(Protocol):
    """Members that take their steps together."""

    @property
    def feed(self) -> Any:  # noqa: ANN401 - whatever its source makes
        """What it is fed, as its source names it."""
        ...

    @property
    def members(self) -> Sequence[Trainee]:
        """Those that have not diverged."""
        ...

    @property
    def step(self) -> int:
        """Steps done."""
        ...

    @property
    def done(self) -> bool:
        """Whether every step was made."""
        ...

    def advance(self, fed: Any, /) -> Sequence[StepReport]:  # noqa: ANN401
        """One step; what was written to the curves."""
        ...

    def part_with_failures(self) -> Sequence[tuple[Trainee, DataError]]:
        """Let go of the members that diverged."""
        ...

    def save(self) -> None:
        """Write checkpoints."""
        ...

    def finish(self) -> None:
        """Leave behind what was trained."""
        ...


class Lazy:
    """Something of another module, `module:name`, imported when it is first asked for.

    So a kind can name all it is made of, and whoever trains loads neither figures nor models.
    """

    def __init__(self, where: str) -> None:
        self._module, _, self._name = where.partition(":")

    def get(self) -> Any:  # noqa: ANN401 - whatever it names
        """What it names."""
        return getattr(import_module(self._module), self._name)

    def __call__(self, *args: Any, **settings: Any) -> Any:  # noqa: ANN401
        """Call it."""
        return self.get()(*args, **settings)


class RunKind(ABC):
    """What one kind of run brings, from its training to its part of a page."""

    noun: ClassVar[str]
    """What such a run is called: `run`, `connector`."""
    curves: ClassVar[type[StepReport]]
    """A line of its curves."""

    evaluate: ClassVar[Lazy]
    """`(EvalConfig, *, on_progress)`: a report on each run, saved in its folder; of several also a
    table."""
    evaluation: ClassVar[Lazy]
    """`(run)`: the report on its weights that is saved there, or None."""
    eval_table: ClassVar[str]
    """The name of that table."""
    eval_tables: ClassVar[Lazy]
    """`(reports)`: each a `pipeline.tables.Table`."""
    eval_figures: ClassVar[Lazy]
    """`(report)`: draws it into its run's folder; gives the files."""
    comparison: ClassVar[Lazy]
    """`(reports, folder)`: draws what compares several into `folder`; gives the files."""

    features: ClassVar[Lazy]
    """`(FeaturesConfig, *, on_progress)`: what `saepipe features` finds, and keeps in the run."""
    has_features: ClassVar[Lazy]
    """`(run)`: whether that is there already, of its weights."""
    n_features: ClassVar[Lazy]
    """`(run)`: how many there are to be looked at closely."""
    shown: ClassVar[Lazy]
    """`(found, chosen, *, order, rows)`: a `Shown` of what was found, or of some of it closely."""

    exhibit: ClassVar[Lazy]
    """The `Exhibit` that a page shows of it."""

    @abstractmethod
    def prepare(self, store: ActStore, config: Any) -> RunFolder:  # noqa: ANN401 - of its own kind
        """A run as it will be written: paths absolute, all named, nothing trained or written.

        Raises:
            ConfigError: the store lacks what the run needs, or a setting is impossible.
            CheckpointError: another run that it builds on cannot be used.
        """

    @abstractmethod
    def assemble(
        self, store: ActStore, runs: Sequence[Any], n_steps: Sequence[int], *, files: ExitStack
    ) -> tuple[Source, Sequence[AnyGroup]]:
        """What trains these runs, where their checkpoints left them, and what feeds it.

        Args:
            store: They learn from it.
            runs: Of this kind, entered and not finished.
            n_steps: Of each.
            files: Closes their curves.
        """


def kind_named(name: str) -> RunKind:
    """The kind of this name; what it is made of is imported now."""
    return Lazy(KINDS[name]).get()


def says_kind(path: Path) -> str:
    """What the run at `path` says that it is; empty where there is none that can be read."""
    told = told_by(path)
    return str(told.get("kind", "sae")) if told else ""


def kind_of(path: Path) -> RunKind:
    """The kind of the run at `path`; that of SAEs where no run can be read, for them to refuse it.

    Raises:
        CheckpointError: it is of a kind that this version does not know.
    """
    name = says_kind(path) or "sae"
    if name not in KINDS:
        raise CheckpointError(f"{path} is a {name} run, and this saepipe knows {', '.join(KINDS)}")
    return kind_named(name)


def by_kind(paths: Sequence[Path]) -> dict[RunKind, list[Path]]:
    """These runs, together with those of their kind; kinds as they come."""
    found: dict[RunKind, list[Path]] = {}
    for path in paths:
        found.setdefault(kind_of(path), []).append(path)
    return found
