"""push_store(store, repo): an activation store to the hub, shard by shard.

What goes is `data.zarr`, which can be read anywhere; the writer's own files, which only the next
harvest of this machine needs, stay. The root goes last, as a writer puts it there last: until then
whoever looks finds a store that is not complete. A push that was stopped goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from actstore.errors import StoreError
from actstore.files import PARTIAL, readable_json
from actstore.manifest import Manifest
from actstore.metadata import root_document
from actstore.reader import ActStore
from actstore.summary import GROUP, Summary, documents_of, read_summary, summary_name
from pipeline.hub.publish import OnPlan, Publication, PushReport, publish
from pipeline.hub.repository import MAIN, Address, Content
from pipeline.progress import OnProgress, size
from pipeline.sae.card import head, plain, table
from pipeline.share.card import on_hub
from pipeline.share.shown import shown

CARD = "README.md"
ROOT = f"{GROUP}/zarr.json"


def push_store(
    path: Path,
    repo: str,
    *,
    license: str,
    private: bool = False,
    revision: str = MAIN,
    dry_run: bool = False,
    on_plan: OnPlan | None = None,
    on_progress: OnProgress | None = None,
) -> PushReport:
    """Put a complete store into a dataset repository.

    Raises:
        ConfigError: a setting is impossible, or nobody is logged in.
        StoreError: the store is unfinished or damaged.
        HubError: the hub cannot be reached, or refuses it; the same call goes on.
    """
    address = replace(Address.of(repo), revision=revision, kind="dataset")
    store = ActStore.open(path)
    manifest, notes = _shown(store.manifest, path), []
    files: dict[str, Content] = {
        f"{GROUP}/{file.relative_to(path / GROUP).as_posix()}": file
        for file in sorted((path / GROUP).rglob("*"))
        if file.is_file() and not file.name.endswith(PARTIAL)
    }
    if manifest is not store.manifest:
        summary = _summary(path, store.manifest)
        files[ROOT] = readable_json(root_document(manifest, documents_of(manifest, summary)))
        notes.append(
            "names of this machine's files are not shown: the copy's fingerprint is "
            f"{manifest.fingerprint[:12]}, and runs find it by --store alone"
        )
    card = store_card(str(address), manifest, n_bytes=_n_bytes(files), license=license)
    what = Publication(
        source=path,
        address=address,
        kind="dataset",
        private=private,
        contents={**files, CARD: card.encode()},
        owns=lambda name: name.startswith(f"{GROUP}/"),
        last=lambda name: name in (ROOT, CARD),
        notes=tuple(notes),
    )
    return publish(what, dry_run=dry_run, on_plan=on_plan, on_progress=on_progress)


def _n_bytes(files: Mapping[str, Content]) -> int:
    return sum(file.stat().st_size for file in files.values() if isinstance(file, Path))


def _shown(manifest: Manifest, path: Path) -> Manifest:
    """The same, but for names of this machine's files, and with them the fingerprint."""
    source = shown(dict(manifest.spec.source))
    if source == dict(manifest.spec.source):
        return manifest
    spec = replace(manifest.spec, source=source)
    version = manifest.format_version
    fingerprint = _summary(path, manifest).fingerprint(spec, version=version)
    return replace(manifest, spec=spec, fingerprint=fingerprint)


def _summary(path: Path, manifest: Manifest) -> Summary:
    summary = read_summary(path / GROUP / summary_name(manifest.generation), manifest.spec)
    if not summary.is_of(manifest):
        raise StoreError(f"{path} is damaged: get it back: saepipe store verify {path} --repair")
    return summary


def store_card(name: str, manifest: Manifest, *, n_bytes: int, license: str) -> str:
    """The card of a store.

    Args:
        name: Where it goes: `datasets/org/name`.
        manifest: What it says of itself.
        n_bytes: Of its files.
        license: As the hub names it.
    """
    spec, source = manifest.spec, {k: str(v) for k, v in manifest.spec.source.items()}
    text = on_hub(source.get("text", ""))
    facts: Sequence[tuple[str, str]] = [
        ("sites", ", ".join(f"{site.name} ({site.width:,} wide)" for site in spec.sites)),
        ("rows a site", f"{manifest.n_rows:,}"),
        ("contexts", f"{manifest.n_rows // spec.ctx_len:,} of {spec.ctx_len:,} tokens"),
        ("kept as", f"{spec.dtype}, {spec.codec}"),
        ("on disk", size(n_bytes)),
        ("fingerprint", manifest.fingerprint),
        *((name.replace("_", " "), value) for name, value in source.items()),
    ]
    told = "\n".join((
        head(license=license, source_datasets=[text] if text else []),
        f"# {name.rpartition('/')[2].partition('@')[0]}",
        "",
        f"Activations of {plain(source.get('model', '?'))} on {plain(source.get('text', '?'))}: "
        "a store of saepipe.",
        "",
        table(("", ""), facts),
        "",
    ))  # fmt: skip
    return f"""{told}
## Use it

```sh
saepipe pull {name} --out NAME.actstore
saepipe train NAME.actstore --out RUN
```

It is a plain Zarr v3 group, `data.zarr`, which any reader of Zarr opens.
"""
