"""push and pull, as `import saepipe` has them; torch is imported when they are called."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.summary import GROUP
from pipeline.config.keywords import told_in_settings
from pipeline.errors import ConfigError
from pipeline.hub.publish import OnPlan, PushReport
from pipeline.hub.repository import MAIN
from pipeline.limits import limits_told
from pipeline.progress import OnProgress

if TYPE_CHECKING:
    from pipeline.share.pull import OnPull, PullReport

AnyPath = str | PathLike[str]


@told_in_settings
@limits_told()
def push(
    source: AnyPath,
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
    """Put a run, a sweep's runs or a store on the Hugging Face Hub, with a card made from it.

        sp.push("runs/topk", "org/pythia-mlp3-topk", license="mit")

    What is there already and the same is not sent again. No path, host or user of this machine is
    in what is sent.

    Args:
        source: A run of an SAE, trained, fine-tuned or folded; a sweep; or a store.
        repo: `ORG/NAME`, or `ORG/NAME/FOLDER` of a run; made if it is not there. A store's is a
            dataset.
        license: Its short name on the hub: `mit`, `apache-2.0`, `cc-by-4.0`.
        private: Whether a new repository is for its owners alone.
        revision: The branch.
        features: Whether what its features fire on goes along, with texts it was seen in.
        fold: Of a fine-tuning, put the plain SAE there that computes the same.
        dry_run: Only say what would be sent.
        on_plan: Told what is going to be sent.
        on_progress: Told the bytes sent.

    Raises:
        ConfigError: a setting is impossible, or nobody is logged in to the hub.
        CheckpointError: the run is unfinished or damaged.
        StoreError: the store is.
        HubError: the hub cannot be reached, or refuses it; the same call goes on.
    """
    path = Path(source)
    told: dict[str, Any] = {
        "license": license,
        "private": private,
        "revision": revision,
        "dry_run": dry_run,
    }
    if not (path / GROUP).exists():
        from pipeline.share.push import push_run

        return push_run(
            path, repo, features=features, fold=fold, on_plan=on_plan, on_progress=on_progress,
            **told,
        )  # fmt: skip
    from pipeline.share.stores import push_store

    if features or fold:
        raise ConfigError(f"{path} is a store, which has no --{'features' if features else 'fold'}")
    return push_store(path, repo, on_plan=on_plan, on_progress=on_progress, **told)


@told_in_settings
@limits_told()
def pull(
    repo: str,
    *,
    out: AnyPath,
    on_plan: "OnPull | None" = None,
    on_progress: OnProgress | None = None,
) -> "PullReport":
    """Bring a run, a sweep or a store from the Hugging Face Hub, every byte checked.

        sp.pull("org/pythia-mlp3-topk@main", out="runs/theirs")

    What was stopped goes on; `out` is whole or absent.

    Args:
        repo: `ORG/NAME`, `ORG/NAME/FOLDER`, each with `@REVISION` or without; a dataset of the name
            of a model is `datasets/ORG/NAME`.
        out: Folder of the run or sweep, or of the store: `NAME.actstore`.
        on_plan: Told what is going to be fetched.
        on_progress: Told the bytes that have arrived.

    Raises:
        ConfigError: `repo` is no name, `out` holds something else, or the disk has no room.
        CheckpointError: it is damaged there, or the disk fails.
        HubError: the hub cannot be reached, or has nothing of saepipe there.
    """
    from pipeline.share.pull import pull as run

    return run(repo, Path(out), on_plan=on_plan, on_progress=on_progress)
