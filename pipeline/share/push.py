"""push(run, repo): a run of an SAE, or a sweep of them, to the hub."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from actstore.files import readable_json
from pipeline.finetune.fold import fold as fold_run
from pipeline.finetune.run import is_finetuned
from pipeline.hub.publish import OnPlan, Publication, PushReport, publish
from pipeline.hub.repository import MAIN, Address, Content
from pipeline.progress import OnProgress
from pipeline.runs.sweep import SWEEP, runs_at
from pipeline.share.card import run_card, sweep_card
from pipeline.share.contents import (
    TABLE,
    contents_of,
    copies_of,
    require_whole,
    was_pushed,
)

CARD = "README.md"


def push_run(
    run: Path,
    repo: str,
    *,
    license: str,
    private: bool = False,
    revision: str = MAIN,
    features: bool = False,
    fold: bool = False,
    dry_run: bool = False,
    on_plan: OnPlan | None = None,
    on_progress: OnProgress | None = None,
) -> PushReport:
    """Put a run, or the finished runs of a sweep, into a model repository, in one commit.

    Raises:
        ConfigError: a setting is impossible, or nobody is logged in.
        CheckpointError: a run is unfinished, damaged, or of another kind.
        HubError: the hub cannot be reached, or refuses it.
    """
    address = replace(Address.of(repo), revision=revision, kind="model")
    notes: list[str] = []
    with ExitStack() as scratch:
        if (run / SWEEP).exists():
            contents = _of_sweep(
                run, address, license=license, features=features, note=notes.append
            )
        else:
            source = run
            if fold:
                source = Path(scratch.enter_context(TemporaryDirectory())) / run.name
                notes += fold_run(run, source).notes
            elif is_finetuned(run):
                notes.append(
                    "a fine-tuning goes as it is, an SAE with scales and biases: --fold pushes the "
                    "plain SAE that computes the same"
                )
            contents = _of_run(
                source, address, license=license, features=features, note=notes.append
            )
        return publish(
            Publication(
                source=run,
                address=address,
                kind="model",
                private=private,
                contents=contents,
                owns=was_pushed,
                notes=tuple(notes),
            ),
            dry_run=dry_run,
            on_plan=on_plan,
            on_progress=on_progress,
        )


def _of_run(
    run: Path, address: Address, *, license: str, features: bool, note: Callable[[str], None]
) -> dict[str, Content]:
    contents = contents_of(run, features=features)
    copies, lacking = copies_of(run)
    for words in lacking:
        note(words)
    contents |= copies
    if "eval.json" not in contents:
        note(f"there is no evaluation to show: make one first: saepipe eval {run}")
    opened = require_whole(run)
    card = run_card(str(address), opened, contents.keys(), license=license)
    return {CARD: card.encode(), **contents}


def _of_sweep(
    sweep: Path, address: Address, *, license: str, features: bool, note: Callable[[str], None]
) -> dict[str, Content]:
    folders = runs_at([sweep], note=note)
    contents: dict[str, Content] = {}
    for folder in folders:
        inner = replace(address, folder=f"{address.folder}{folder.name}/")
        own = _of_run(folder, inner, license=license, features=features, note=note)
        contents |= {f"{folder.name}/{name}": content for name, content in own.items()}
    opened = {folder.name: require_whole(folder) for folder in folders}
    card = sweep_card(str(address), opened, license=license)
    told = json.loads((sweep / SWEEP).read_bytes())
    contents[SWEEP] = readable_json(told | {"members": [*opened]})
    if (sweep / TABLE).exists():
        contents[TABLE] = sweep / TABLE
    return {CARD: card.encode(), **contents}
