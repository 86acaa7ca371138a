"""Activations of others in and out, as `import saepipe` does it."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.keywords import config_of, takes, told_in_settings
from pipeline.config.rows import ExportConfig, ExportFormat, ImportConfig
from pipeline.limits import limits_told
from pipeline.progress import OnProgress

if TYPE_CHECKING:
    from pipeline.exchange.rows.export import ExportSummary
    from pipeline.exchange.rows.importing import ImportSummary


@takes(ImportConfig)
@limits_told()
def import_store(
    source: str | PathLike[str] | ImportConfig,
    *,
    on_progress: OnProgress | None = None,
    **settings: object,
) -> "ImportSummary":
    """Make a store of activations that others kept; what was stopped goes on.

        sp.import_store("acts.npy", sites=["mlp_out.3"], out="acts.actstore")

    Args:
        source: SAELens' cached activations, saev's shards, or rows in .npy, safetensors, Parquet,
            Arrow or raw files; a file, or a folder of them.
        on_progress: Told the rows done.
        settings: Those below.

    Returns:
        What it did, which every verb takes as the path of its store.

    Raises:
        ConfigError: it is not said which rows of what these are, or what is said cannot be.
        DataError: a file is damaged, changes meanwhile, or holds rows that are not finite.
        StoreError: another store is there, another writer is at work, or the disk fails; the same
            call goes on.
    """
    from pipeline.exchange.rows.importing import import_rows

    given = source if isinstance(source, ImportConfig) else {"source": source}
    made = config_of(ImportConfig, given, settings, verb="import_store")
    return import_rows(made, on_progress=on_progress)


@told_in_settings
@limits_told()
def export_store(
    store: str | PathLike[str],
    site: str,
    *,
    to: ExportFormat,
    out: str | PathLike[str],
    on_progress: OnProgress | None = None,
) -> "ExportSummary":
    """Write the rows of a site for others, in the order of their texts, with their token ids.

        sp.export_store("acts.actstore", "mlp_out.3", to="safetensors", out="acts.safetensors")

    Args:
        store: From `harvest` or `import_store`.
        site: Which of its sites.
        to: npy, safetensors, parquet, or arrow, which is SAELens' cache of activations.
        out: The file; of arrow the folder.
        on_progress: Told the rows done.

    Raises:
        ConfigError: the site is not there, `out` is taken or has another ending than its format,
            or the disk has no room.
        StoreError: the store is missing, unfinished or damaged.
    """
    from pipeline.exchange.rows.export import export_rows

    config = ExportConfig(store=Path(store), site=site, to=to, out=Path(out))
    return export_rows(config, on_progress=on_progress)
