"""`saepipe push` and `pull`: each calls one function and shows the result."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pipeline.terminal.arguments import JsonOut, screen_of


def push(
    source: Annotated[Path, Argument(help="Folder of an SAE's run, or of a sweep; or a store.")],
    repo: Annotated[str, Argument(help="ORG/NAME of the hub, or ORG/NAME/FOLDER.")],
    license: Annotated[str, Option(help="As the hub names it: mit, apache-2.0, cc-by-4.0.")],
    private: Annotated[bool, Option("--private", help="A new repository is private.")] = False,
    revision: Annotated[str, Option(help="The branch.")] = "main",
    features: Annotated[bool, Option("--features", help="And what features fire on.")] = False,
    fold: Annotated[bool, Option("--fold", help="A fine-tuning as a plain SAE.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Only show files and card.")] = False,
    json: JsonOut = None,
) -> None:
    """Put a run, a sweep or a store on the Hugging Face Hub, with a card made from it."""
    from pipeline.terminal.hub import run_push

    screen = screen_of(json)
    screen.emit(
        run_push(
            source, repo, license=license, private=private, revision=revision, features=features,
            fold=fold, dry_run=dry_run, screen=screen,
        )
    )  # fmt: skip


def pull(
    repo: Annotated[str, Argument(help="ORG/NAME/FOLDER@REVISION of the hub.")],
    out: Annotated[Path, Option(help="Folder of the run, or NAME.actstore.")],
    json: JsonOut = None,
) -> None:
    """Bring a run, a sweep or a store from the Hugging Face Hub, every byte checked."""
    from pipeline.terminal.hub import run_pull

    screen = screen_of(json)
    screen.emit(run_pull(repo, out, screen=screen))
