"""`saepipe store COMMAND`: each builds what is asked for, calls one function, shows the result."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pipeline.config.stages import Device, HarvestConfig
from pipeline.terminal.arguments import JsonOut, Store, screen_of

store_app = typer.Typer(no_args_is_help=True, help="Look at, check, repair and remove stores.")


@store_app.command("info")
def store_info(path: Store, json: JsonOut = None) -> None:
    """What is in a store: where from, how much, how well kept."""
    from pipeline.terminal.store import store_tables
    from pipeline.terminal.store_facts import store_facts

    screen, facts = screen_of(json), store_facts(path)
    for table in store_tables(facts):
        screen.draw(table)
    screen.emit(facts)


@store_app.command("list")
def store_list(
    folder: Annotated[
        Path | None, Argument(help="Default: those in $SAEPIPE_STORES, or else this one.")
    ] = None,
    json: JsonOut = None,
) -> None:
    """Which stores are in a folder and in all its folders."""
    from pipeline.terminal.store import run_list

    screen = screen_of(json)
    screen.emit(run_list(folder, screen=screen))


@store_app.command("verify")
def store_verify(
    path: Store,
    repair: Annotated[bool, Option("--repair", help="Get back what is damaged.")] = False,
    device: Annotated[Device, Option(help="Device of a repair.")] = HarvestConfig.device,
    batch_size: Annotated[
        int | None, Option(help="Contexts a forward pass of a repair.")
    ] = HarvestConfig.batch_size,
    json: JsonOut = None,
) -> None:
    """Check every byte of a store, and with --repair harvest again what is damaged."""
    from pipeline.terminal.store import require_whole, run_repair, run_verify

    screen, repaired = screen_of(json), None
    findings = run_verify(path, screen=screen)
    if findings and repair:
        repaired = run_repair(path, findings, device=device, batch_size=batch_size, screen=screen)
        findings = run_verify(path, screen=screen)
    screen.emit({"path": path, "findings": findings, "repaired": repaired})
    require_whole(path, findings, screen=screen)


@store_app.command("rm")
def store_remove(
    path: Store, yes: Annotated[bool, Option("--yes", help="Do not ask.")] = False
) -> None:
    """Remove a store; refuses a folder that is no store."""
    from actstore.removal import remove_store
    from pipeline.stores import known_folders
    from pipeline.terminal.store import announce_removal

    screen = screen_of()
    announce_removal(path, ask=not yes, screen=screen)
    if not yes and not typer.confirm("remove it?"):
        raise typer.Exit(1)
    remove_store(path, known_folders())
    screen.say(f"removed   {path}")
