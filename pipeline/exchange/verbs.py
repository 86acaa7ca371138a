"""Two verbs of `import saepipe`: `import_sae`, as `import` is a word of Python's, and `export`."""

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.keywords import told_in_settings
from pipeline.limits import limits_told

if TYPE_CHECKING:
    from pipeline.exchange.exporting import ExportReport
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
        ConfigError: a setting is none, or `out` holds something else.
    """
    from pipeline.exchange.importing import import_sae as run
    from pipeline.runs.sae_run import SAERun

    told = {"site": site, "model": model, "arch": arch}
    return SAERun.open(run(fspath(source), Path(out), **told, k=k, centred=centred).out)


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
