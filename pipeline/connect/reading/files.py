"""What was read of a connector, kept in its folder as `connections.json`."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from actstore.files import canonical_json, write_file
from pipeline.codec import from_json, to_json
from pipeline.connect.reading.values import Reading
from pipeline.errors import CheckpointError, ConfigError

FORMAT = 1
READING = "connections.json"


def save_reading(reading: Reading) -> Path:
    """Write it into the folder of its run, whole or not at all; gives the file.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = reading.config.run / READING
    content = canonical_json(to_json(reading))
    head = json.dumps({"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest()})
    write_file(path, [head[:-1].encode(), b', "reading": ', content, b"}\n"])
    return path


def load_reading(run: Path) -> Reading | None:
    """What lies in the folder of a run, wherever that was when it was made; None without any.

    Raises:
        CheckpointError: it is damaged, or another version wrote it.
    """
    path = run / READING
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")  # noqa: TRY301
        content = document.get("reading")
        if hashlib.sha256(canonical_json(content)).hexdigest() != document.get("sha256"):
            raise ValueError("its checksum does not match")  # noqa: TRY301
        reading = from_json(Reading, content, where=READING)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): remove it, and make it again with saepipe features "
            f"{run}"
        ) from error
    return replace(reading, config=replace(reading.config, run=run))
