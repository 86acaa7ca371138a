"""The prompts of a steering, as they were typed or from a file."""

import json
from pathlib import Path

from pipeline.config.stages import SteerConfig
from pipeline.errors import ConfigError, TextError

KEYS = ("prompt", "text")
"""Of a record of .jsonl; the first that it has."""


def prompts_of(config: SteerConfig) -> tuple[str, ...]:
    """All of them: those that were typed come first.

    Raises:
        ConfigError: there is none, or one is empty or no text.
        TextError: the file is missing, or cannot be read.
    """
    prompts = list(config.prompt)
    if config.prompt_file is not None:
        prompts += _from_file(config.prompt_file)
    if not prompts:
        raise ConfigError("there is no prompt to go on with: type --prompt TEXT or --prompt-file F")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise ConfigError(f"prompt {number} is empty: give it some text")
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise ConfigError(f"prompt {number} is not UTF-8 text: {prompt!a}")
    return tuple(prompts)


def _from_file(path: Path) -> list[str]:
    """A prompt a line; lines that are blank are left out."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path} is not UTF-8 text ({error.reason}): convert it, for example with iconv"
        ) from error
    except OSError as error:
        raise TextError(
            f"the prompts in {path} cannot be read ({error.strerror}): name a file with a prompt "
            "a line as --prompt-file"
        ) from error
    told = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1)]
    told = [(number, line) for number, line in told if line.strip()]
    if not told:
        raise TextError(f"{path} holds no prompt: write one a line")
    if path.suffix.lower() != ".jsonl":
        return [line for _, line in told]
    return [_of_record(line, where=f"{path} line {number}") for number, line in told]


def _of_record(line: str, *, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TextError(f"{where} is not valid JSON: {error}") from error
    if isinstance(record, str):
        return record
    found = [record[key] for key in KEYS if key in record] if isinstance(record, dict) else []
    if not found or not isinstance(found[0], str):
        raise TextError(f'{where} has no prompt: write {{"prompt": TEXT}}, or "text"')
    return found[0]
