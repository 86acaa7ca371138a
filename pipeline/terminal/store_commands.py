"""`saepipe store COMMAND`: each builds what is asked for, calls one function, shows the result."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pipeline.config.command_line import names_of
from pipeline.config.rows import ExportConfig, ExportFormat, ImportConfig
from pipeline.config.settings import parse_count as count
from pipeline.config.stages import Device, HarvestConfig
from pipeline.terminal.arguments import JsonOut, Store, screen_of

store_app = typer.Typer(
    no_args_is_help=True,
    help="Look at, check, repair and remove stores; others' rows in, ours out.",
)


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


@store_app.command("import")
def store_import(
    source: Annotated[
        Path,
        Argument(help="A file or folder of rows: Arrow, Parquet, npy, safetensors, saev, or raw."),
    ],
    out: Annotated[Path, Option(help="The store to make, NAME.actstore.")],
    site: Annotated[
        list[str] | None,
        Option(help="What the rows are of, as mlp_out.3; several with commas. Default: by name."),
    ] = None,
    column: Annotated[
        list[str] | None,
        Option(help="Column or tensor of each site; repeatable. Default: all of activations."),
    ] = None,
    model: Annotated[
        str, Option(help="That they are from: hub id, local folder, or builtin.")
    ] = ImportConfig.model,
    revision: Annotated[str, Option(help="Branch, tag or commit.")] = ImportConfig.revision,
    tokens_file: Annotated[
        Path | None, Option(help="Token ids of the rows, where the source has none.")
    ] = ImportConfig.tokens_file,
    ctx_len: Annotated[
        int | None, Option(help="Rows of a context; default: as the source says, or 1.")
    ] = ImportConfig.ctx_len,
    shape: Annotated[
        str | None,
        Option(metavar="[ROWS,]WIDTH", help="Of a raw file, whose numbers --dtype says."),
    ] = None,
    dtype: Annotated[
        str | None, Option(help="Numbers that are stored: bf16, fp16, fp32; default: the source's.")
    ] = ImportConfig.dtype,
    codec: Annotated[str, Option(help="lz4, zstd, raw or bitround:N.")] = ImportConfig.codec,
    json: JsonOut = None,
) -> None:
    """Make a store of activations that others kept; what was stopped goes on.

    SAELens' cached activations, saev's shards, and rows in .npy, safetensors, Parquet, Arrow or raw
    files, single or a folder of them, are read in bounded memory.
    """
    what = ImportConfig(
        source=source, out=out, sites=tuple(names_of(site)), columns=tuple(column or ()),
        model=model, revision=revision, tokens_file=tokens_file, ctx_len=ctx_len, dtype=dtype,
        codec=codec, shape=tuple(map(count, shape.split(","))) if shape else (),
    )  # fmt: skip
    from pipeline.terminal.rows import run_import

    screen = screen_of(json)
    screen.emit(run_import(what, screen=screen))


@store_app.command("export")
def store_export(
    path: Store,
    site: Annotated[str, Argument(help="KIND.LAYER, as mlp_out.1.")],
    to: Annotated[ExportFormat, Option(help="Format; arrow is SAELens' cache of activations.")],
    out: Annotated[Path, Option(help="The file; of arrow the folder.")],
    json: JsonOut = None,
) -> None:
    """Write the rows of a site for others, in the order of their texts, with token ids."""
    from pipeline.terminal.rows import run_export

    screen = screen_of(json)
    screen.emit(run_export(ExportConfig(store=path, site=site, to=to, out=out), screen=screen))
