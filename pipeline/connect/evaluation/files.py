"""The latest evaluation of a connector, kept in its folder as `connect_eval.json`."""

import json
from dataclasses import fields, replace
from pathlib import Path

from actstore.files import write_file
from pipeline.codec import from_json, to_json
from pipeline.connect.evaluation.report import CONNECT_EVAL_FILE, ConnectorReport
from pipeline.errors import CheckpointError, ConfigError, DataError


def save_connector_report(report: ConnectorReport) -> Path:
    """Write a report into the folder of its run, whole or not at all; gives the file.

    A field a line: a person can read it, lists of a value per output included.

    Raises:
        DataError: a number is not finite.
        OSError: the folder cannot be written to.
    """
    path = report.run / CONNECT_EVAL_FILE
    try:
        lines = [
            f"{json.dumps(f.name)}: {json.dumps(to_json(getattr(report, f.name)), allow_nan=False)}"
            for f in fields(report)
        ]
    except ValueError as error:
        raise DataError(
            f"the evaluation of {report.run} holds a number that is not finite: its weights, or "
            "those of its SAEs, hold NaN or infinity; train it again"
        ) from error
    write_file(path, [("{\n" + ",\n".join(lines) + "\n}\n").encode()])
    return path


def load_connector_report(run: Path) -> ConnectorReport | None:
    """The report in the folder of a run, wherever that was when it was made; None without one.

    Raises:
        CheckpointError: it is damaged, or another version wrote it.
    """
    path = run / CONNECT_EVAL_FILE
    try:
        report = from_json(ConnectorReport, json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is not a report that this version can read: {error}; make it again: "
            f"saepipe eval {run}"
        ) from error
    if not report.maps:
        raise CheckpointError(f"{path} scores no map; make it again: saepipe eval {run}")
    return replace(report, run=run)
