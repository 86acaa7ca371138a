"""The folder of a training, whatever is trained: created, gone on with, or found complete.

    run.json            config, what it is trained on, version; written again when complete
    metrics.jsonl       the curves
    checkpoints/        what an interrupted run goes on from
    *.safetensors       what was trained

A run is complete when run.json names the checksum of what was trained.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable, Generator, Mapping, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, make_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from actstore.files import locked, make_folder, partial_of, write_file, write_json
from actstore.manifest import Manifest
from actstore.reader import ActStore, peek
from pipeline.config.serialization import from_json, located, portable, to_json
from pipeline.config.stages import UNSAID, Documents, SpecialTokens
from pipeline.config.training import LoopConfig
from pipeline.errors import CheckpointError, ConfigError, NoSuchArchitectureError
from pipeline.foreign import not_a_run
from pipeline.frame import make_frame
from pipeline.runs.belongs import RUN, checksum_of, digest_of, is_file_of, told_by
from pipeline.runs.checkpoints import checkpoints_of
from pipeline.runs.curves import METRICS, read_curves
from pipeline.stores import locate
from pipeline.tables import Column, Table, as_html, cell
from pipeline.whereabouts import name_from_here, place_of

FORMAT = 1
LOCK = ".lock"
DRAWN = "curves.png"

# What may differ between a run and its continuation: where things lie and who computes, not what.
FREE = {"store", "out", "device", "threads", "stack", "checkpoint_every"}

RunT = TypeVar("RunT", bound="RunFolder")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Which activations an SAE was trained on. Texts are empty where the store does not say."""

    path: Path
    fingerprint: str
    model: str
    revision: str
    model_fingerprint: str
    text: str
    site: str
    d_in: int
    ctx_len: int
    n_rows: int
    dtype: str
    special_tokens: SpecialTokens = UNSAID["special_tokens"]
    documents: Documents = UNSAID["documents"]
    chat_template: str = UNSAID["chat_template"]
    """Fingerprint of what spelled the conversations of its text, if it is of such."""
    text_fingerprint: str = ""
    model_at: Path | None = None
    """Where the model was when this was told, if it is one in files and was there."""
    text_at: Path | None = None
    """The same of the text."""

    @staticmethod
    def of(store: ActStore, *, site: str) -> "Provenance":
        """The provenance of one site of an open store."""
        spec = store.spec
        said = {name: value for name, value in spec.source.items() if isinstance(value, str)}
        source: dict[str, Any] = UNSAID | said
        return Provenance(
            path=store.path.resolve(),
            fingerprint=store.fingerprint,
            model=source.get("model", ""),
            revision=source.get("revision", ""),
            model_fingerprint=source.get("model_fingerprint", ""),
            text=source.get("text", ""),
            text_fingerprint=source.get("text_fingerprint", ""),
            model_at=place_of(source.get("model", "")),
            text_at=place_of(source.get("text", "")),
            site=site,
            d_in=store.width(site),
            ctx_len=spec.ctx_len,
            n_rows=store.n_rows,
            dtype=spec.dtype,
            special_tokens=source["special_tokens"],
            documents=source["documents"],
            chat_template=source["chat_template"],
        )

    def from_here(self) -> "Provenance":
        """The same, model and text named as they are found from the folder one is in."""
        model = name_from_here(self.model, self.model_at)
        return replace(self, model=model, text=name_from_here(self.text, self.text_at))

    def named_as(self, known: "Provenance") -> "Provenance":
        """The same, model and text under the names that another has for the same weights and text.

        That one may have found them where these names lead nowhere.
        """
        names = {
            name: getattr(known, name)
            for name in ("model", "text")
            if "" != getattr(self, f"{name}_fingerprint") == getattr(known, f"{name}_fingerprint")
        }
        return replace(self, **names)

    def find(self, run: Path) -> Path | None:
        """Where the store that `run` was trained from is now; None where it is nowhere."""
        return locate(self.path, self.fingerprint, run=run, grown=self.was_before)

    def is_in(self, store: ActStore) -> bool:
        """Whether a store has all of these rows: it is this one, as it was or given more since."""
        return store.fingerprint == self.fingerprint or self.was_before(store.manifest)

    def was_before(self, there: Manifest) -> bool:
        """Whether a store is this one, given rows or sites since."""
        spec, source = there.spec, UNSAID | dict(there.spec.source)
        said = [*UNSAID, "revision"]
        for name in ("model", "text"):  # one may be found under several names
            known = f"{name}_fingerprint"
            said.append(known if getattr(self, known) else name)
        return (
            (spec.ctx_len, spec.dtype) == (self.ctx_len, self.dtype)
            and there.n_rows >= self.n_rows
            and any((s.name, s.width) == (self.site, self.d_in) for s in spec.sites)
            and all(source.get(name, "") == getattr(self, name) for name in said)
        )


@dataclass(frozen=True, kw_only=True)
class RunFolder(ABC):
    """A training on disk. Its fields, but for the path, are what run.json holds."""

    KIND: ClassVar[str]
    """What run.json calls it."""
    WEIGHTS: ClassVar[str]
    """The file of what was trained."""
    MADE_BY: ClassVar[str]
    """The command that makes such runs."""

    path: Path
    config: LoopConfig
    """As it ran: the paths absolute; in run.json they lead on from its folder."""
    provenance: Provenance
    """`store` in run.json."""
    sha256: str = ""
    """Of what was trained; empty until the run is complete."""
    curves_sha256: str = ""
    """Of its curves, once it is complete; empty in runs of versions that did not say."""
    failure: str = ""
    """Why it will never be complete."""

    @property
    @abstractmethod
    def origins(self) -> Mapping[str, tuple[Path, str]]:
        """What it was trained on, by name: where that lies, and its checksum."""

    @property
    @abstractmethod
    def command(self) -> str:
        """The command that began it, without its options."""

    @property
    def curves(self) -> list[dict[str, Any]]:
        """Every line of its curves, as metrics.jsonl has them.

        Raises:
            CheckpointError: there are none, or they are damaged, or another run's.
        """
        lines = list(read_curves(self.path / METRICS))
        require_own(self.path / METRICS, self.curves_sha256)
        return lines

    @property
    def metrics(self) -> dict[str, Any]:
        """The last line of its curves: where training ended.

        Raises:
            CheckpointError: there is none, or it is damaged, or another run's.
        """
        lines = self.curves
        if not lines:
            raise CheckpointError(f"{self.path / METRICS} has no line yet")
        return lines[-1]

    def to_frame(self) -> Any:  # noqa: ANN401 - pandas need not be installed
        """Its curves as a pandas DataFrame, one row a line.

        Raises:
            CheckpointError: there are none, or they are damaged, or another run's.
            ConfigError: pandas is not installed.
        """
        lines = self.curves
        return make_frame({name: [line[name] for line in lines] for name in next(iter(lines), {})})

    @property
    def digest(self) -> str:
        """Of all that its weights depend on, as run.json has it; empty where that is not there.

        Its checkpoints hold it, and no run of another goes on from them.
        """
        config = told_by(self.path).get("config")
        if not isinstance(config, dict):
            return ""
        origins = (checksum for _, checksum in self.origins.values())
        return digest_of(cast("dict[str, Any]", config), free=FREE, origins=origins)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        return bool(self.sha256)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to train: it is finished, or it diverged."""
        return self.finished or bool(self.failure)

    def _repr_html_(self) -> str:
        """What a notebook shows: where it ended, and its curves where they were drawn."""
        try:
            last = self.metrics
        except CheckpointError:
            last = {}
        rows = [[name, cell(value)] for name, value in last.items()]
        columns = [Column(), Column(align="right")]
        told = as_html(Table(title=repr(self), columns=columns, sections=[rows]))
        try:
            drawn = b64encode((self.path / DRAWN).read_bytes()).decode()
        except OSError:
            return told
        return f'{told}<img alt="training curves" src="data:image/png;base64,{drawn}">'

    @classmethod
    def open(cls: type[RunT], path: str | PathLike[str]) -> RunT:
        """A complete run.

        Raises:
            CheckpointError: there is no such run at `path`, or it is unfinished or damaged.
        """
        run = cls.read(Path(path))
        if run.failure:
            raise CheckpointError(f"{path} was never finished: {run.failure}")
        if not run.finished:
            raise CheckpointError(
                f"{path} is an unfinished run: finish it with {run.command} --out {path} and the "
                "options it began with"
            )
        return run

    @classmethod
    def read(cls: type[RunT], path: Path) -> RunT:
        """The run in a folder, complete or not.

        Raises:
            CheckpointError: there is none, or one of another kind, or its run.json is damaged.
        """
        try:
            told = json.loads((path / RUN).read_bytes())
            kind = told.get("kind", cls.KIND) if isinstance(told, dict) else cls.KIND
            if kind != cls.KIND:
                plain = ": saepipe fold makes one of it" if kind == "finetune" else ""
                raise CheckpointError(f"{path} is a {kind} run, not one of {cls.MADE_BY}{plain}")
            document = located(from_json(_document(cls), cls.as_now(told), where=RUN), path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(not_a_run(path, made_by=cls.MADE_BY)) from error
        except NoSuchArchitectureError as error:
            raise error.of(path) from error
        except (OSError, ValueError, RecursionError, ConfigError) as error:
            raise CheckpointError(
                f"{path / RUN} is damaged: {error}; put a copy back, or train into another --out"
            ) from error
        if document.format != FORMAT:
            raise CheckpointError(
                f"{path} is a run of format {document.format}, this saepipe reads format {FORMAT}"
            )
        run = cls(path=path, **{name: getattr(document, key) for name, key in _keys(cls).items()})
        return replace(run, provenance=run.provenance.from_here())

    @classmethod
    def as_now(cls, told: Any) -> Any:  # noqa: ANN401 - a parsed run.json
        """What run.json says in today's words: what it is silent on was as it was before that."""
        return told

    def write(self) -> None:
        """Write run.json."""
        kept = portable(self, self.path)
        whole = cast("dict[str, object]", to_json(kept))
        told = {key: whole[name] for name, key in _keys(type(self)).items() if name in whole}
        head = {"format": FORMAT, "saepipe": saepipe_version(), "kind": self.KIND}
        write_json(self.path / RUN, head | told)

    def fail(self, why: str) -> None:
        """Keep word that training diverged: going on would only lead there again."""
        replace(self, failure=why).write()

    def finish(self: RunT, trained: nn.Module) -> RunT:
        """Write what was trained, and only then call the run complete."""
        tensors = trained.state_dict()
        weights = save_tensors(self.path / self.WEIGHTS, tensors, metadata=self._metadata(tensors))
        run = replace(self, sha256=weights, curves_sha256=checksum_of(self.path / METRICS))
        run.write()
        return run

    def _metadata(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """What the file of what was trained says of itself."""
        return {}

    def trained(self) -> dict[str, Tensor]:
        """What was trained, every byte checked."""
        advice = "train again into another --out"
        return load_tensors(self.path / self.WEIGHTS, sha256=self.sha256, advice=advice)


def _keys(kind: type[RunFolder]) -> dict[str, str]:
    """Under which key of run.json each field stands."""
    names = [f.name for f in fields(kind) if f.name != "path"]
    return {name: "store" if name == "provenance" else name for name in names}


def _document(kind: type[RunFolder]) -> Any:  # noqa: ANN401 - a class that is made here
    """What the run.json of a kind may hold."""
    hints, known = get_type_hints(kind), {f.name: f for f in fields(kind)}
    head = [("format", int, FORMAT), ("saepipe", str, ""), ("kind", str, kind.KIND)]
    own = [
        (key, hints[name], field(default=known[name].default, kw_only=True))
        for name, key in _keys(kind).items()
    ]
    return make_dataclass(RUN, [*head, *own], frozen=True, kw_only=True)


def require_own(curves: Path, sha256: str) -> None:
    """Hold the curves of a run to the checksum that it had of them when it was complete.

    Raises:
        CheckpointError: they are not its own.
    """
    if not is_file_of(curves, sha256):
        raise CheckpointError(
            f"{curves} is not that of this run: put a copy back, or train into another --out"
        )


@contextmanager
def training_in(path: Path) -> Generator[None, None, None]:
    """Hold the lock of a folder that is trained into; it is made, and goes if it stays empty.

    Raises:
        ConfigError: another training holds it; names its process and host.
    """

    def held(holder: str) -> ConfigError:
        return ConfigError(
            f"{path} is being trained into by {holder}: wait for it, or stop it, or choose "
            "another --out"
        )

    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    file = path / LOCK
    with ExitStack() as stack:
        while True:
            make_folder(path)
            try:
                stack.enter_context(locked(file, held))
            except FileNotFoundError:  # who had it before is done, and has moved or removed it
                continue
            break
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # they are not empty
                for folder in made:
                    folder.rmdir()


@contextmanager
def taken_back(*files: Path, began: Callable[[], bool]) -> Generator[None, None, None]:
    """Remove these files where what follows is refused before anything began."""
    try:
        yield
    except Exception:
        if not began():
            for file in files:
                file.unlink(missing_ok=True)
        raise


def enter(run: RunT, *, resume: bool = True, locks: ExitStack) -> RunT:
    """The run in `run.path`: created, gone on with, or found complete.

    Args:
        run: As it shall be.
        resume: Go on with an unfinished run of the same configuration.
        locks: Holds the folder for as long as it is trained into; not one that has its end.

    Raises:
        ConfigError: the folder holds another run, something else, or an unfinished run that
            shall not be gone on with; or another training writes into it.
        CheckpointError: its run.json is damaged.
    """
    out = run.path
    found = _found(run)
    if found is None or not found.ended:
        locks.enter_context(training_in(out))
        found = _found(run)  # by now, another training may have ended
    if found is None or not (found.ended or _began(out)):
        locks.enter_context(taken_back(out / RUN, out / METRICS, began=lambda: _began(out)))
        run.write()  # what was asked for before, if anything, never made a step
        return run
    _require_same(found, run)
    if not found.ended and not resume:
        raise ConfigError(
            f"{out} holds an unfinished run of this configuration, which is not to be gone on "
            "with: choose another --out"
        )
    return found


def _found(run: RunT) -> RunT | None:
    """The run that is there; None where nothing is."""
    out = run.path
    if (out / RUN).exists():
        return type(run).read(out)
    if not is_free(out, but=RUN):
        raise ConfigError(f"{out} exists and is not a run: choose another --out")
    return None


def is_free(path: Path, *, but: str) -> bool:
    """Whether nothing is there, or a folder with nothing in it.

    Hidden files are nothing, and what a kill left of the file `but`.
    """
    left = {partial_of(path / but)}
    return not path.exists() or (path.is_dir() and {*path.glob("[!.]*")} <= left)


def _began(path: Path) -> bool:
    """Whether training left anything behind."""
    metrics = path / METRICS
    return (metrics.exists() and metrics.stat().st_size > 0) or bool(checkpoints_of(path))


def _require_same(found: RunFolder, now: RunFolder) -> None:
    """Raise ConfigError naming what differs between the run that is there and the one asked for."""
    for name, (path, checksum) in now.origins.items():
        _, was = found.origins[name]
        there = _grown(found, path) if name == "store" else None
        if was == checksum or (there is not None and _sees_the_same(found, there)):
            continue
        if there is not None:
            before = found.provenance.n_rows
            now_has = f"{there.n_rows:,} now" if there.n_rows > before else "more sites now"
            raise ConfigError(
                f"{now.path} was begun when {path} had {before:,} rows, and it has {now_has}: "
                "choose another --out"
            )
        raise ConfigError(
            f"{now.path} was trained on another {name}, or {path} changed since "
            f"(fingerprint {was[:12]} there, {checksum[:12]} now): choose another --out"
        )
    if changed := differences(found.config, now.config, free=FREE):
        raise ConfigError(
            f"{now.path} holds a run of another configuration ({changed}): choose another --out"
        )


def _grown(found: RunFolder, store: Path) -> Manifest | None:
    """A store that rows or sites were added to since it was trained from; None for any other."""
    there = peek(store) if found.provenance.model_fingerprint else None
    return there if there is not None and found.provenance.was_before(there) else None


def _sees_the_same(found: RunFolder, there: Manifest) -> bool:
    """Whether a run that has ended would see the rows that it saw."""
    longer = there.n_rows > found.provenance.n_rows
    return found.ended and not (longer and found.config.tokens is None)


def differences(found: object, now: object, *, free: Set[str]) -> str:
    """What differs between two configs, but for what is `free`: `lr: 0.1 there, 0.2 now`."""
    before, after = flat(to_json(found)), flat(to_json(now))
    return "; ".join(
        f"{name}: {before.get(name)} there, {after.get(name)} now"
        for name in (*before, *(after.keys() - before.keys()))
        if before.get(name) != after.get(name) and name not in free
    )


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """A nested config as `arch.kind` -> value."""
    found: dict[str, object] = {}
    for name, item in cast("dict[str, object]", value).items():
        found |= flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item}
    return found


def saepipe_version() -> str:
    """The version installed, `unknown` in a bare checkout."""
    try:
        return version("saepipe")
    except PackageNotFoundError:
        return "unknown"


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> str:
    """Write them, whole or not at all; gives the file's SHA-256."""
    kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    data = save(kept, dict(metadata) if metadata else None)
    write_file(path, [data])
    return hashlib.sha256(data).hexdigest()


def load_tensors(path: Path, *, sha256: str, advice: str) -> dict[str, Tensor]:
    """Read them, every byte checked."""
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("its checksum does not match run.json")  # noqa: TRY301
        return load(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error}): {advice}") from error
