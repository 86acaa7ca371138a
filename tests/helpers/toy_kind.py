"""A kind of run that nobody else knows: the mean of a site's rows. All of it is in this file."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import nn

from actstore.reader import ActStore
from pipeline.config.training import LoopConfig
from pipeline.report.render import Exhibit, Part
from pipeline.runs.checkpoints import Checkpoint, checkpoints_of, load_checkpoint
from pipeline.runs.curves import METRICS, Curves, StepReport
from pipeline.runs.folder import Provenance, RunFolder
from pipeline.runs.kinds import Lazy, RunKind
from pipeline.tables import Column, Shown, Table
from pipeline.training.member import Member, MemberGroup
from pipeline.training.optimizer import Adam, Schedule


@dataclass(frozen=True, kw_only=True)
class MeanConfig(LoopConfig):
    """Its settings: those of every training."""

    KIND: ClassVar[str] = "mean"


@dataclass(frozen=True, kw_only=True)
class MeanRun(RunFolder):
    """Its folder."""

    KIND: ClassVar[str] = "mean"
    WEIGHTS: ClassVar[str] = "mean.safetensors"
    MADE_BY: ClassVar[str] = "tests"

    config: MeanConfig

    @property
    def origins(self) -> Mapping[str, tuple[Path, str]]:
        return {"store": (self.provenance.path, self.provenance.fingerprint)}

    @property
    def command(self) -> str:
        return "tests"


@dataclass(frozen=True, kw_only=True)
class MeanReport:
    """Its evaluation."""

    run: Path
    norm: float
    notes: tuple[str, ...] = ("a mean is one vector",)


class Rows:
    """Gives each run the rows of the one site there is."""

    metadata = ()

    def __init__(self, store: ActStore) -> None:
        self.sites = store.sites

    def fed(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {site: batch[site] for site in self.sites}


class MeanGroup(MemberGroup[Member[MeanRun]]):
    """Trains one mean, by gradient descent on the squared distance."""

    def __init__(self, member: Member[MeanRun]) -> None:
        super().__init__([member])
        self.member, self.feed = member, member.run.provenance.site
        self.mean = torch.zeros(member.run.provenance.d_in)
        self.grad = torch.zeros_like(self.mean)
        member.adam = Adam(
            {"mean": self.mean}, {"mean": self.grad}, member.run.config, trained=("mean",)
        )

    def advance(self, x: torch.Tensor) -> list[StepReport]:
        member = self.member
        error = self.mean - x
        loss = error.square().sum(1).mean()
        reports, lr = member.reports_next, member.lr
        self.grad.copy_(2 * error.mean(0))
        member.adam.step(lr)
        member.count(loss)
        if member.step % member.run.config.checkpoint_every == 0:
            self.save()
        elif member.done:
            self.check()
        if not reports:
            return []
        report = StepReport(
            run=member.path, step=member.step, n_steps=member.n_steps, loss=float(loss),
            rows=member.step * len(x), recon=float(loss), sparsity=0.0, beta=0.0, lr=lr,
            sparse=False, rows_per_s=member.pace(),
        )  # fmt: skip
        member.write(report)
        return [report]

    def keep(self, kept: Sequence[int]) -> None:
        self.members = [self.members[m] for m in kept]

    def save_member(self, m: int) -> None:
        if not self.member.saved:
            self.member.checkpoint({"mean": self.mean}, self.member.adam.state())

    def restore(self, checkpoint: Checkpoint) -> None:
        self.mean.copy_(checkpoint.trained["mean"])
        self.member.adam.load(checkpoint.optimizer)
        self.member.go_on_from(checkpoint.step)

    def finish(self) -> None:
        self.member.run.finish(nn.ParameterDict({"mean": self.mean}))


@dataclass(frozen=True, kw_only=True)
class OtherRun(MeanRun):
    """The same under another name."""

    KIND: ClassVar[str] = "other"


def make_run(path: Path, store: ActStore, kind: type[MeanRun] = MeanRun) -> MeanRun:
    """A complete one."""
    (site,) = store.sites
    config = MeanConfig(store=store.path, out=path)
    run = kind(path=path, config=config, provenance=Provenance.of(store, site=site))
    path.mkdir(parents=True)
    return run.finish(nn.ParameterDict({"mean": torch.from_numpy(store.mean(site)).float()}))


def evaluate(config, *, on_progress=None):
    reports = [MeanReport(run=p, norm=_norm(p)) for p in config.runs]
    for report in reports:
        (report.run / "norm.txt").write_text(str(report.norm))
    if len(reports) > 1:
        (config.out / "means.csv").write_text("\n".join(report.run.name for report in reports))
    return tuple(reports)


def evaluation(run: Path) -> MeanReport | None:
    kept = run / "norm.txt"
    return MeanReport(run=run, norm=float(kept.read_text())) if kept.exists() else None


def n_features(run: Path) -> int:
    return 8


def _norm(path: Path) -> float:
    return float(load_file(path / MeanRun.WEIGHTS)["mean"].norm())


def eval_tables(reports: Sequence[MeanReport]) -> list[Table]:
    rows = [[report.run.name, f"{report.norm:.3f}"] for report in reports]
    return [Table(columns=[Column(head="run"), Column(head="its norm")], sections=[rows])]


def eval_figures(report: MeanReport) -> tuple[Path, ...]:
    (report.run / "norm.svg").write_text("drawn")
    return (report.run / "norm.svg",)


def comparison(reports: Sequence[MeanReport], folder: Path) -> tuple[Path, ...]:
    (folder / "norms.svg").write_text(f"{len(reports)} drawn")
    return (folder / "norms.svg",)


def features(config, *, on_progress=None):
    (config.run / "found.txt").write_text("found")
    return config.run


def has_features(run: Path) -> bool:
    return (run / "found.txt").exists()


def shown(found: Path, chosen: Sequence[int], *, order: str, rows: int) -> Shown:
    table = Table(columns=[Column()], sections=[[[f"{rows} rows of {found.name} by {order}"]]])
    return Shown(lines=["read"], tables=[table], documents=[{"chosen": list(chosen)}])


@dataclass(frozen=True, kw_only=True)
class MeanPart(Part):
    template: ClassVar[str] = "tests.helpers/toy_kind.html"
    norms: Mapping[str, float]

    @property
    def sections(self) -> dict[str, str]:
        return {"means": "Means"}


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanExhibit(Exhibit):
    noun: ClassVar[str] = "mean"
    title: ClassVar[str] = "Report of means"
    run: MeanRun

    @classmethod
    def gather(cls, path: Path, name: str, *, n_features: int) -> "MeanExhibit":
        return cls(name=name, path=path, run=MeanRun.open(path))

    @property
    def headline(self) -> str:
        return f"The mean of {self.run.provenance.site}"

    @property
    def tiles(self) -> tuple[()]:
        return ()

    @staticmethod
    def part(exhibits: Sequence["MeanExhibit"]) -> MeanPart:
        return MeanPart(norms={one.name: _norm(one.path) for one in exhibits})


class Means(RunKind):
    noun = "mean"
    curves = StepReport
    evaluate = Lazy("tests.helpers.toy_kind:evaluate")
    evaluation = Lazy("tests.helpers.toy_kind:evaluation")
    eval_table = "means.csv"
    eval_tables = Lazy("tests.helpers.toy_kind:eval_tables")
    eval_figures = Lazy("tests.helpers.toy_kind:eval_figures")
    comparison = Lazy("tests.helpers.toy_kind:comparison")
    features = Lazy("tests.helpers.toy_kind:features")
    has_features = Lazy("tests.helpers.toy_kind:has_features")
    n_features = Lazy("tests.helpers.toy_kind:n_features")
    shown = Lazy("tests.helpers.toy_kind:shown")
    exhibit = Lazy("tests.helpers.toy_kind:MeanExhibit")

    def prepare(self, store: ActStore, config: MeanConfig) -> MeanRun:
        (site,) = store.sites
        return MeanRun(path=config.out, config=config, provenance=Provenance.of(store, site=site))

    def assemble(
        self, store: ActStore, runs: Sequence[MeanRun], n_steps: Sequence[int], *, files: ExitStack
    ) -> tuple[Rows, list[MeanGroup]]:
        groups = []
        for run, n in zip(runs, n_steps, strict=True):
            folders = checkpoints_of(run.path)
            saved = load_checkpoint(folders[max(folders)], digest=run.digest) if folders else None
            keep = saved.metrics_bytes if saved else 0
            curves = files.enter_context(Curves(run.path / METRICS, keep=keep))
            schedule = Schedule.of(run.config, n_steps=n)
            groups.append(MeanGroup(Member(run, curves=curves, schedule=schedule)))
            if saved:
                groups[-1].restore(saved)
        return Rows(store), groups


MEANS, OTHERS = Means(), Means()
