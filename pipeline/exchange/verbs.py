"""Verbs of `import saepipe` for what other tools made, and for what they take.

`import` is a word of Python's: an SAE comes by `import_sae`, activations by `import_store`.
"""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.keywords import config_of, takes, told_in_settings
from pipeline.config.rows import ExportConfig, ExportFormat, ImportConfig
from pipeline.limits import limits_told
from pipeline.progress import OnProgress

if TYPE_CHECKING:
    from pipeline.exchange.exporting import ExportReport
    from pipeline.exchange.rows.export import ExportSummary
    from pipeline.exchange.rows.importing import ImportSummary
    from pipeline.runs.sae_run import SAERun

AnyPath = str | PathLike[str]


@told_in_settings
@limits_told()
def import_sae(
    source: AnyPath,
    *,
    out: AnyPath,
    site: str | None = None,
    model: str | None = None,
    arch: str | None = None,
    k: int | None = None,
    centred: bool = True,
) -> "SAERun":
    """Make a run of an SAE of another library, which every verb takes.

        run = sp.import_sae("google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
                            out="runs/gemma")

    It is read as its library computes it: SAELens, dictionary_learning, sparsify, Gemma Scope,
    OpenAI and Llama Scope, or a plain file of matrices. For its tensors alone see
    `SAE.from_pretrained`.

    Args:
        source: A folder, a file, or `org/repo[/folder][@revision]` of the hub.
        out: Folder of the run; what is there already, from the same files, is reused.
        site: Where it belongs, as `mlp_out.3`; None is what its files say.
        model: In which model; None is what its files say.
        arch: Its architecture, of files of no library.
        k: Active latents of a row, of such files.
        centred: Whether `b_dec` is taken from the input, of such files.

    Raises:
        CheckpointError: there is no SAE, or one that cannot be had here, or it is damaged; or the
            disk fails.
        ConfigError: a setting is none, or the model has no such site, or one of another width, or
            `out` holds something else.
        ModelError: the name of the model is none.
    """
    from pipeline.exchange.importing import import_sae as run
    from pipeline.formats.files import named
    from pipeline.runs.sae_run import SAERun

    told = {"site": site, "model": model, "arch": arch}
    return SAERun.open(run(named(source), Path(out), **told, k=k, centred=centred).out)


@told_in_settings
@limits_told()
def export(run: AnyPath, *, to: str, out: AnyPath) -> "ExportReport":
    """Write the SAE of a run as another library opens it.

        sp.export("runs/topk", to="saelens", out="for-saelens")

    What was fine-tuned is folded first. `batchtopk` becomes `jumprelu` where the other side knows
    no threshold for all latents.

    Args:
        run: Of an SAE, trained, imported or fine-tuned.
        to: `saelens`, `dictionary-learning`, `sparsify`, or `safetensors`: a plain file.
        out: The folder to make; what is there already is reused where it is the same.

    Returns:
        The files, and what whoever opens them must know.

    Raises:
        ConfigError: the other side has nothing like it, or `out` holds something else.
        CheckpointError: the run cannot be used; or the disk fails.
    """
    from pipeline.exchange.exporting import export as write

    return write(Path(run), to, Path(out))


@takes(ImportConfig)
@limits_told()
def import_store(
    source: AnyPath | ImportConfig,
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
        ConfigError: it is not said which rows of what these are, or what is said cannot be, or the
            disk has no room.
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
    store: AnyPath,
    site: str,
    *,
    to: ExportFormat,
    out: AnyPath,
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
