"""The latest evaluation of a connector, kept in its folder as `connect_eval.json`."""

from pathlib import Path

from pipeline.connect.evaluation.report import CONNECT_EVAL_FILE, ConnectorReport
from pipeline.errors import CheckpointError
from pipeline.evaluate.files import keep, kept


def save_connector_report(report: ConnectorReport) -> Path:
    """Write a report into the folder of its run, whole or not at all; gives the file.

    Raises:
        DataError: a number is not finite.
        OSError: the folder cannot be written to.
    """
    return keep(report, report.run / CONNECT_EVAL_FILE)


def load_connector_report(run: Path) -> ConnectorReport | None:
    """The report in the folder of a run, wherever that was when it was made; None without one.

    Raises:
        CheckpointError: it is damaged, or another version wrote it.
    """
    report = kept(run, CONNECT_EVAL_FILE, ConnectorReport)
    if report is not None and not report.maps:
        raise CheckpointError(
            f"{run / CONNECT_EVAL_FILE} scores no map; make it again: saepipe eval {run}"
        )
    return report
