"""The formats that SAEs are found in: how each is told by its files, read and written.

Nothing but names is looked at to tell them apart, and of `cfg.json` its keys where names are alike.
What reads and writes brings torch, and is imported when it is needed.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.files import Files, HubFiles, LocalFiles, files_of, is_hub_id, named

if TYPE_CHECKING:
    from pipeline.formats.foreign_sae import Asked, ForeignSAE
    from pipeline.formats.writing import Exported, Leaving


@dataclass(frozen=True, kw_only=True)
class Format:
    """All that is to be known of one."""

    name: str
    """As it is typed."""
    words: str
    """Whose it is, for people."""
    files: tuple[frozenset[str], ...] = ()
    """Names that must be there together; any of these sets will do."""
    told_by: str = ""
    """`module:function` that tells from a file's tensors, where its name does not."""
    reads: str = ""
    """`module:function`; empty where it is not read."""
    asks: frozenset[str] = frozenset()
    """Settings of `Asked` that its files may leave open."""
    writes: str = ""

    def fits(self, names: Set[str]) -> bool:
        """Whether a folder of these files is of this format."""
        return any(wanted <= names for wanted in self.files)

    def has(self, name: str, names: Set[str]) -> bool:
        """Whether a file of a folder is one of those that make it of this format."""
        return any(name in wanted and wanted <= names for wanted in self.files)

    def read(self, files: Files, asked: "Asked") -> "ForeignSAE":
        """The SAE that these files hold."""
        return _named(self.reads)(files, asked)

    def write(self, sae: "Leaving") -> "Exported":
        """The files of an SAE of ours in this format."""
        return _named(self.writes)(sae)


def _named(where: str) -> Callable[..., Any]:
    module, _, name = where.partition(":")
    return getattr(import_module(f"pipeline.formats.{module}"), name)


def _sets(*names: tuple[str, ...]) -> tuple[frozenset[str], ...]:
    return tuple(map(frozenset, names))


FORMATS = {
    each.name: each
    for each in (
        Format(
            name="saelens",
            words="SAELens",
            files=_sets(("cfg.json", "sae_weights.safetensors")),
            reads="saelens:read",
            writes="saelens:write",
        ),
        Format(
            name="llama-scope",
            words="Llama Scope",
            files=_sets(
                ("hyperparams.json", "checkpoints/final.safetensors"),
                ("config.json", "sae_weights.safetensors"),
            ),
            reads="llama_scope:read",
        ),
        Format(
            name="dictionary-learning",
            words="dictionary_learning",
            files=_sets(("ae.pt",)),
            told_by="dictionary_learning:is_of",
            reads="dictionary_learning:read",
            asks=frozenset({"arch", "k"}),
            writes="dictionary_learning:write",
        ),
        Format(
            name="sparsify",
            words="sparsify",
            files=_sets(("cfg.json", "sae.safetensors")),
            reads="sparsify:read",
            writes="sparsify:write",
        ),
        Format(
            name="gemma-scope",
            words="Gemma Scope",
            files=_sets(("params.npz",), ("params.safetensors",)),
            told_by="gemma_scope:is_of",
            reads="gemma_scope:read",
        ),
        Format(name="openai", words="OpenAI", told_by="openai:is_of", reads="openai:read"),
        Format(
            name="safetensors",
            words="no library",
            reads="plain:read",
            asks=frozenset({"arch", "k", "centred"}),
        ),
    )
}
"""In the order in which they are tried."""
PLAIN = FORMATS["safetensors"]
OURS = frozenset({"run.json", "cfg.json", "sae.safetensors"})
"""What `SAE.load` reads of a folder."""
TENSORS = (".pt", ".pth", ".bin", ".safetensors", ".npz")
"""Ends of names of files that may hold tensors."""


def format_of(files: Files) -> Format | None:
    """What the files are of by their names; None where names do not tell, or nothing is known.

    A file that was named alone is of the format of its folder where it is one of the files that
    make it so.
    """
    for each in FORMATS.values():
        if each.fits(files.names) and (not files.only or each.has(files.only, files.names)):
            return None if each.name == "sparsify" and _is_ours(files) else each
    return None


def read_foreign(source: str, asked: "Asked | None" = None) -> "tuple[ForeignSAE, Format, Files]":
    """The SAE that a source holds, what it is of, and the files it was read from.

    Raises:
        CheckpointError: nothing is there, or it is damaged, or no SAE that we can have.
        ConfigError: it does not say what it is; says which setting does.
    """
    from pipeline.formats.foreign_sae import Asked

    asked = asked or Asked()
    files = files_of(source)
    if isinstance(files, HubFiles) and _holds_ours(files):
        raise CheckpointError(
            f"{source} holds a run of saepipe: type saepipe pull {source} --out RUN, and name that"
        )
    found = format_of(files)
    if found is None:
        if not files.only:
            several = [name for name in sorted(files.names) if Path(name).suffix in TENSORS]
            if len(several) != 1:
                raise CheckpointError(
                    f"{source} is no SAE that is known: it holds {files.listed}"
                    + (": name one file of it" if several else "")
                    + (": name one of its folders" if files.folders and not several else "")
                )
            files.only = several[0]
        found = _by_tensors(files)
    for name, option in asked.options.items():
        if name not in found.asks:
            raise ConfigError(
                f"{source} is an SAE of {found.words}, whose files say what it is: leave out "
                f"--{option}"
            )
    return found.read(files, asked), found, files


def ours_of_hub(source: str) -> Path | None:
    """The folder of the hub's cache with an SAE of ours that is there; None of anything else.

    Raises:
        CheckpointError: there is no such repository, or the hub cannot be reached.
    """
    if Path(source).expanduser().exists() or not is_hub_id(source):
        return None
    files = files_of(source)
    if not _holds_ours(files):
        return None
    found = [files.path(name) for name in sorted(files.names & OURS)]
    return found[0].parent


def _holds_ours(files: Files) -> bool:
    names = files.names
    return "sae.safetensors" in names and (
        "run.json" in names or ("cfg.json" in names and _is_ours(files))
    )


def _by_tensors(files: Files) -> Format:
    from pipeline.formats.tensor_files import read_tensors

    names = read_tensors(files.path(files.only))
    told = (each for each in FORMATS.values() if each.told_by and _named(each.told_by)(names))
    return next(told, PLAIN)


def _is_ours(files: Files) -> bool:
    """Whether `save_pretrained` wrote the cfg.json of a folder; one that is damaged may be."""
    from pipeline.formats.tensor_files import read_settings

    try:
        told = read_settings(files.path("cfg.json"))
    except CheckpointError:
        return True
    return "sha256" in told and "arch" in told


def seems_foreign(source: str) -> bool:
    """Whether a source is not one of ours: of another library's files, or on the hub.

    Raises:
        CheckpointError: nothing can have this name.
    """
    path = Path(named(source)).expanduser()
    if not path.exists():
        return is_hub_id(source)
    folder, only = (path, "") if path.is_dir() else (path.parent, path.name)
    if (folder / "run.json").exists():
        return False
    if only and path.suffix not in TENSORS:
        return False
    files = LocalFiles(source=source, folder=folder, only=only)
    if only and format_of(files) is None:
        return path.suffix != ".safetensors" or not (_says_ours(path) or _is_of_ours(files))
    return format_of(files) is not None


def _says_ours(path: Path) -> bool:
    """Whether a file of safetensors says that we wrote it."""
    try:
        with path.open("rb") as opened:
            return b'"saepipe"' in opened.read(2**16)
    except OSError:  # which is told where it is read
        return True


def _is_of_ours(files: LocalFiles) -> bool:
    """Whether a file is that of a folder that `save_pretrained` wrote."""
    return files.only == "sae.safetensors" and "cfg.json" in files.names and _is_ours(files)


def seems(path: Path) -> str:
    """Whose SAE a path on this disk seems to be, by names alone; empty for no one's."""
    if not path.exists():
        return ""
    folder, only = (path, "") if path.is_dir() else (path.parent, path.name)
    files = LocalFiles(source=str(path), folder=folder, only=only)
    try:
        names = files.names
    except CheckpointError:
        return ""
    if {"cfg.json", "sae.safetensors"} <= names and not files.only:
        return "an SAE that save_pretrained, or sparsify, wrote"
    whose = (
        each.words
        for each in FORMATS.values()
        if each.fits(names) and (not files.only or each.has(files.only, names))
    )
    return next((f"an SAE of {words}" for words in whose), "")
