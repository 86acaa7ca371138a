"""Three verbs of `import saepipe`: a run for Neuronpedia, for delphi, and for SAEBench."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.keywords import told_in_settings
from pipeline.limits import limits_told
from pipeline.progress import OnProgress

if TYPE_CHECKING:
    import torch

    from pipeline.publish.delphi import DelphiExport
    from pipeline.publish.neuronpedia import NeuronpediaExport
    from pipeline.publish.saebench import SAEBenchSAE

AnyPath = str | PathLike[str]


@told_in_settings
@limits_told()
def export_neuronpedia(
    run: AnyPath,
    *,
    out: AnyPath,
    model_id: str | None = None,
    source_set: str | None = None,
    description: str | None = None,
    release: str | None = None,
    creator: str = "",
    url: str = "",
    weights: str = "",
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> "NeuronpediaExport":
    """Write the features that were found for a run as Neuronpedia imports them.

        sp.features("runs/topk")
        sp.export_neuronpedia("runs/topk", out="neuronpedia", creator="Ada")

    Args:
        run: Of an SAE, plain or fine-tuned.
        out: The folder that gets MODEL/SOURCE; several layers and SAEs can share it.
        model_id: What Neuronpedia calls the model; None takes the last part of its name.
        source_set: What the SAEs of all layers are called together; None says where they are, of
            which architecture and width: `mlp-out-topk-512`.
        description: Of that set, in words.
        release: The name of a paper or project whose sets these are; None leaves it out.
        creator: Who made them.
        url: Of the release.
        weights: Where the SAE is on the hub: `org/repo`, or `org/repo/folder`.
        device: That computes logits.
        on_progress: Told the features done.

    Raises:
        CheckpointError: the run, or its features, are missing or damaged; or the disk fails.
        ConfigError: a name is none that Neuronpedia takes, or the folder holds something else.
    """
    from pipeline.publish.neuronpedia import export_neuronpedia as export

    return export(
        Path(run),
        Path(out),
        model_id=model_id,
        source_set=source_set,
        description=description,
        release=release,
        creator=creator,
        url=url,
        weights=weights,
        device=device,
        on_progress=on_progress,
    )


@told_in_settings
@limits_told()
def export_delphi(
    run: AnyPath,
    *,
    out: AnyPath,
    store: AnyPath | None = None,
    tokens: int | None = None,
    n_splits: int = 5,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> "DelphiExport":
    """Write what a run's latents are on the contexts of a store, as delphi's cache.

        sp.export_delphi("runs/topk", out="latents")

    Args:
        run: Of an SAE, plain or fine-tuned.
        out: The folder that gets MODULE; SAEs of several modules can share it.
        store: None means the one it was trained from.
        tokens: To read, in whole contexts from the store's first; None means all.
        n_splits: Files, each of a range of latents. delphi loads them one by one.
        device: That computes.
        on_progress: Told the tokens done.

    Raises:
        CheckpointError: the run cannot be used, or the disk fails.
        ConfigError: the store does not fit, or the folder holds something else, or an activation
            is more than float16 holds.
        StoreError: the store cannot be read.
    """
    from pipeline.publish.delphi import export_delphi as export

    return export(
        Path(run),
        Path(out),
        store=None if store is None else Path(store),
        tokens=tokens,
        n_splits=n_splits,
        device=device,
        on_progress=on_progress,
    )


@told_in_settings
@limits_told()
def saebench(
    run: AnyPath,
    *,
    model_name: str | None = None,
    device: str = "auto",
    dtype: "torch.dtype | None" = None,
) -> "SAEBenchSAE":
    """An SAE as a custom one of SAEBench, for its evaluations.

        from sae_bench.evals.core.main import multiple_evals

        multiple_evals([("topk", sp.saebench("runs/topk"))], ...)

    Args:
        run: Of an SAE; a fine-tuned one is folded.
        model_name: What TransformerLens calls the model; None takes the name that the run has.
        device: `cpu`, `cuda`, `mps`, or `auto` for the best that is there.
        dtype: That it computes in; None is float32.

    Raises:
        CheckpointError: the run is missing, unfinished or damaged.
        ConfigError: it says no model and none is named, or the device is not there.
    """
    import torch

    from pipeline.publish.saebench import to_saebench

    return to_saebench(
        Path(run), model_name=model_name, device=device, dtype=dtype or torch.float32
    )
