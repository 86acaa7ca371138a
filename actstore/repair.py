"""Put back what was damaged of a complete store: only ever the very bytes that were lost.

Whoever can compute rows again hands over whole shards; they are encoded beside the damaged files
and take their place only if every array of the shard comes out as the summary says.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from actstore.encoding import ThreadEncoder, n_cores
from actstore.errors import NonFiniteError, StoreError
from actstore.files import readable_json, write_many, writing
from actstore.ledger import JOURNAL, MOMENTS, Entry
from actstore.manifest import Manifest, StoreSpec
from actstore.merge import end_joined
from actstore.metadata import array_document, shard_key
from actstore.settle import sweep
from actstore.shardwriter import Shard, write_files
from actstore.summary import (
    GROUP,
    Summary,
    being_extended,
    peek,
    summary_name,
    write_root,
    write_summary,
)
from actstore.verify import CONSEQUENCE, Finding, known_summary, rebuilt_summary, told_shards
from actstore.writer import disk_errors_told


@dataclass(frozen=True, kw_only=True, eq=False)
class Repair:
    """A store under repair, held by the writer's lock; what is wrong in no shard is put right."""

    path: Path
    manifest: Manifest
    lost: Mapping[int, frozenset[str]]
    """Arrays that are damaged, by shard."""
    files: tuple[Path, ...]
    """Put back so far: zarr.json files, and the folder of the summary."""
    _summary: Summary
    _told: Mapping[int, Entry]

    @property
    def spec(self) -> StoreSpec:
        """The store's."""
        return self.manifest.spec

    def rows_in(self, shard: int) -> int:
        """Rows of a shard."""
        return int(self._summary.shard_rows[shard])

    def cursor(self, shard: int) -> Mapping[str, object] | None:
        """Where the source stood before a shard; None at its start.

        Raises:
            StoreError: If the journal no longer tells.
        """
        if shard == 0:
            return None
        before = self._told.get(shard - 1)
        if before is None:
            raise StoreError(
                f"shard {shard} of {self.path} cannot be found again: {JOURNAL} is missing or "
                "damaged, which tells where in its text it begins; copy it from where the store "
                "was written, or harvest anew"
            )
        return before.cursor

    def restore(self, shard: Shard) -> tuple[Path, ...]:
        """Replace the damaged files of a shard by those of `shard`, once they prove to be the same.

        Returns:
            The files that were replaced.

        Raises:
            StoreError: If the shard differs from what was stored in any array, or the disk is full
                or fails; nothing is replaced then, and nothing left behind.
        """
        shard.check(self.spec)
        with disk_errors_told(self.path), ExitStack() as stack:
            try:
                with closing(ThreadEncoder(min(8, n_cores()))) as encoder:
                    written = write_files(shard, self.spec, self._place, encoder)
            except NonFiniteError as error:
                raise self._other(shard, [error.site]) from error
            stack.callback(written.close)
            wanted = self._summary.files(self.spec, shard.index)
            differing = [name for name, told in written.files.items() if told != wanted[name]]
            if differing:
                raise self._other(shard, differing)
            damaged = {self._place(name, shard.index) for name in self.lost[shard.index]}
            for path in set(written.open_files) - damaged:
                written.discard(path)
            written.place()
            return tuple(written.open_files)

    def _place(self, array: str, shard: int) -> Path:
        return self.path / GROUP / shard_key(array, shard)

    def _other(self, shard: Shard, arrays: Sequence[str]) -> StoreError:
        return StoreError(
            f"shard {shard.index} of {self.path} came out different from what was stored, in "
            f"{', '.join(arrays)}, so it was left as it is: other hardware, another library or "
            "batch size rounds otherwise; repair it on the kind of machine that harvested it, "
            "with the same --batch-size, or harvest anew"
        )


@contextmanager
def repairing(path: Path, findings: Sequence[Finding]) -> Generator[Repair]:
    """Take up a store for repair: what lies outside of shards is put back at once.

    Args:
        path: The store.
        findings: What `verify` found.

    Raises:
        StoreError: If a writer is at work, or what is damaged cannot be put back by anyone.
    """
    with ExitStack() as stack:
        with disk_errors_told(path):
            stack.enter_context(writing(path))
            repair = _begin(path, findings)
        yield repair


def _begin(path: Path, findings: Sequence[Finding]) -> Repair:
    manifest = _manifest(path)
    lost: dict[int, frozenset[str]] = {}
    for finding in findings:
        if finding.shard is not None and finding.array is not None:
            lost[finding.shard] = lost.get(finding.shard, frozenset()) | {finding.array}
    with suppress(StoreError):  # damaged: whoever adds sites tells
        end_joined(path, manifest)
    sweep(path, manifest)
    folder = path / GROUP / summary_name(manifest.generation)
    if any(finding.path == folder for finding in findings):
        summary = rebuilt_summary(path, manifest)
    else:
        summary, _ = known_summary(path, manifest)
    if summary is None:
        raise StoreError(
            f"{folder} is damaged, and {JOURNAL} and "
            f"{MOMENTS} do not tell all that stood in it: restore it from a backup, or harvest anew"
        )
    return Repair(
        path=path,
        manifest=manifest,
        lost=dict(sorted(lost.items())),
        files=_put_back_documents(path, manifest, summary, findings),
        _summary=summary,
        _told=told_shards(path, generation=manifest.generation),
    )


def _manifest(path: Path) -> Manifest:
    """What the root says, which nothing else in the store could say again."""
    root = path / GROUP / "zarr.json"
    try:
        manifest, problem = peek(path), f"{root} is missing"
    except StoreError as error:
        manifest, problem = None, str(error)
    if manifest is None:
        raise StoreError(
            f"{problem}; nothing else says what {root} said: restore it from a backup, "
            "or harvest anew"
        )
    if manifest.state != "complete":
        raise StoreError(f"{path} is not finished: there is nothing to repair it by")
    midway = being_extended(path, manifest)
    if midway is not None:
        raise midway
    return manifest


def _put_back_documents(
    path: Path, manifest: Manifest, summary: Summary, findings: Sequence[Finding]
) -> tuple[Path, ...]:
    """Write what follows from the root's spec, and the summary; the files that were damaged."""
    root, folder = path / GROUP, path / GROUP / summary_name(manifest.generation)
    put_back: list[Path] = []
    for finding in findings:
        if finding.shard is not None or finding.path in put_back:
            continue
        if finding.path == folder:
            write_summary(folder, summary)
        elif finding.path == root / "zarr.json":
            write_root(path, manifest, summary)
        elif finding.array is not None:
            document = array_document(manifest.spec, finding.array, manifest.n_rows)
            write_many({finding.path: [readable_json(document)]})
        else:
            continue
        put_back.append(finding.path)
    return tuple(put_back)


def beyond_repair(path: Path, findings: Sequence[Finding]) -> str | None:
    """What to tell of damage to the writer's own files, which nothing else can replace."""
    own = [f.path for f in findings if f.path == path / JOURNAL or f.path.parent == path / MOMENTS]
    if not own:
        return None
    return f"{own[0]} cannot be put back: {CONSEQUENCE}; restore it from a backup"
