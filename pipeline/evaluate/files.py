"""The latest report of a run, kept in its folder as `eval.json`."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from actstore.files import write_file
from pipeline.codec import from_json, to_json
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.evaluate.report import EVAL_FILE, EvalReport

Report = TypeVar("Report")


def save_report(report: EvalReport) -> Path:
    """Write a report into the folder of its run, whole or not at all; gives the file.

    Raises:
        DataError: a number is not finite.
        OSError: the folder cannot be written to.
    """
    return keep(report, report.run / EVAL_FILE)


def load_report(run: Path) -> EvalReport | None:
    """The report in the folder of a run, wherever that was when it was made; None without one.

    Raises:
        CheckpointError: it is damaged, or another version wrote it.
    """
    return kept(run, EVAL_FILE, EvalReport)


def keep(report: Any, path: Path) -> Path:  # noqa: ANN401 - any dataclass
    """Write a report, a field a line: a person can read it, lists of a value per latent included.

    Raises:
        DataError: a number is not finite.
        OSError: the folder cannot be written to.
    """
    try:
        lines = [
            f"{json.dumps(f.name)}: {json.dumps(to_json(getattr(report, f.name)), allow_nan=False)}"
            for f in fields(report)
        ]
    except ValueError as error:
        raise DataError(
            f"the evaluation of {path.parent} holds a number that is not finite: its weights hold "
            "NaN or infinity; train it again"
        ) from error
    write_file(path, [("{\n" + ",\n".join(lines) + "\n}\n").encode()])
    return path


def kept(run: Path, name: str, kind: type[Report]) -> Report | None:
    """The report of a kind in a file of a run's folder, saying that it is of that run.

    Raises:
        CheckpointError: it is damaged, or another version wrote it.
    """
    path = run / name
    try:
        report: Any = from_json(kind, json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is not a report that this version can read: {error}; make it again: "
            f"saepipe eval {run}"
        ) from error
    return replace(report, run=run)
