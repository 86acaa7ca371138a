"""What `saepipe push` and `saepipe pull` show."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.progress import size
from pipeline.runs.names import from_here
from pipeline.share import verbs
from pipeline.tables import Column, Table, many
from pipeline.terminal.screen import Screen

if TYPE_CHECKING:
    from pipeline.hub.publish import PushReport
    from pipeline.share.pull import PullReport


def run_push(source: Path, repo: str, *, screen: Screen, **settings: Any) -> "PushReport":  # noqa: ANN401
    """Push; what would be sent is told before, and with `dry_run` alone."""

    def plan(report: "PushReport") -> None:
        screen.tell(_planned(report))
        screen.note(report.notes)

    with screen.progress("push") as show:
        report = verbs.push(source, repo, on_plan=plan, on_progress=show, **settings)
    if settings.get("dry_run"):
        screen.draw(_files(report))
        screen.tell(report.card.splitlines())
    else:
        sent = f"{many(report.n_sent, 'file')}, {size(report.bytes_sent)}"
        screen.say(f"push      {sent if report.n_sent else 'nothing new'}: {report.url}")
    return report


def _planned(report: "PushReport") -> Iterator[str]:
    total = sum(file.n_bytes for file in report.files if file.state != "removed")
    n_there = sum(file.state == "same" for file in report.files)
    removed = [file.path for file in report.files if file.state == "removed"]
    revision = "" if report.revision == "main" else f"@{report.revision}"
    seen = "private" if report.private else "public"
    there = f", {n_there:,} there already" if n_there else ""
    yield (
        f"push      {from_here(report.source)} to the {report.kind} {report.repo}{revision} "
        f"({seen}): {many(report.n_sent, 'file')}, {size(report.bytes_sent)} of {size(total)} to "
        f"send{there}"
    )
    if removed:
        yield f"push      {', '.join(removed)} of what was there before: to be removed"


def _files(report: "PushReport") -> Table:
    rows = [[file.path, size(file.n_bytes), file.state] for file in report.files]
    columns = [Column(head="file", folds=True), Column(head="size", align="right"), Column()]
    return Table(columns=columns, sections=[rows], ruled=False)


def run_pull(repo: str, out: Path, *, screen: Screen) -> "PullReport":
    """Pull; what is going to be fetched is told before."""

    def plan(report: "PullReport") -> None:
        files = f"{many(report.n_files, 'file')}, {size(report.n_bytes)}"
        screen.say(f"pull      a {report.what} of {report.repo} at {report.commit[:8]}: {files}")

    with screen.progress("pull") as show:
        report = verbs.pull(repo, out=out, on_plan=plan, on_progress=show)
    what = "complete, reused" if report.reused else f"every byte as it was pushed, a {report.what}"
    screen.say(f"pull      {what}: {from_here(out)}")
    return report
