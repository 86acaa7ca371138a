"""The text of an evaluation that names none: held out, wherever the run's own text comes from.

It is the held-out part that belongs to an embedded text, and WikiText-103 otherwise. Where that
cannot be had, as without a network, or where the store is of conversations, it is what lies behind
the contexts that the store was made from, in the text that it was made from: no training on the
store has seen it.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from actstore.errors import StoreError
from actstore.ledger import read_journal
from actstore.reader import ActStore
from pipeline.config.stages import UNSAID
from pipeline.errors import TextError
from pipeline.runs.folder import Provenance
from pipeline.stores import looked_for
from pipeline.text.contexts import Cursor
from pipeline.text.heldout import heldout_text
from pipeline.text.open import open_text
from pipeline.whereabouts import place_of


@dataclass(frozen=True, kw_only=True)
class EvalText:
    """Where a text is read from, and what a reader of its numbers must know of that."""

    source: str
    column: str = "text"
    chat: bool = False
    """Whether the column holds conversations, which the model's chat template spells."""
    start: Cursor | None = None
    note: str = ""
    """Why another was to be expected; empty where none was."""

    @property
    def words(self) -> str:
        """What reports call it."""
        return self.source if self.start is None else f"the rest of {self.source}"

    def is_of(self, trained_on: Provenance) -> bool:
        """Whether it is known to be the text that a store was made from, whatever its name."""
        if self.start is not None:
            return False
        was, same = trained_on.text_fingerprint, self.source == trained_on.text
        if not same and was and place_of(self.source) is not None:
            with suppress(TextError, OSError):
                text = open_text(self.source, column=self.column)
                same = text.fingerprint_like(was) == was
        return same


@dataclass
class DefaultTexts:
    """The texts of runs of one evaluation; whether a text can be had is asked once."""

    column: str
    """The one with the text, of WikiText and of texts that are named."""
    _lacking: dict[str, str] = field(default_factory=dict[str, str])
    """Of each text asked for, why it cannot be had; empty where it can."""

    def of(self, trained_on: Provenance, run: Path) -> EvalText:
        """The text for the run of this folder.

        Raises:
            TextError: neither the default nor the rest of the run's own text can be had.
        """
        if trained_on.chat_template != UNSAID["chat_template"]:
            why = "the store is of conversations, and of those no others are known"
            return self._rest(trained_on, run, why=why)
        wanted = heldout_text(trained_on.text)
        if wanted not in self._lacking:
            self._lacking[wanted] = _why_not(wanted, self.column)
        if not (why := self._lacking[wanted]):
            return EvalText(source=wanted, column=self.column)
        if not trained_on.fingerprint:  # as of what was imported: there is no store
            raise TextError(f"{why}: name a text with --text")
        return self._rest(trained_on, run, why=why)

    @staticmethod
    def _rest(trained_on: Provenance, run: Path, *, why: str) -> EvalText:
        try:
            return _rest_of(trained_on, run, why=why)
        except (TextError, StoreError) as error:
            chats = trained_on.chat_template != UNSAID["chat_template"]
            raise TextError(
                f"{why}; nor can the rest of the text that {trained_on.path.name} was made from "
                f"be used ({error}): name a text with --text"
                + ", and --chat-template if it is of conversations"
                * chats
            ) from error


def _why_not(text: str, column: str) -> str:
    try:
        open_text(text, column=column).fingerprint()
    except TextError as error:
        return str(error)
    return ""


def _rest_of(trained_on: Provenance, run: Path, *, why: str) -> EvalText:
    """What lies behind everything that is in the store now, wherever that is."""
    path = trained_on.find(run)
    if path is None:
        raise TextError(looked_for(trained_on.path, trained_on.fingerprint))
    store = ActStore.open(path)
    text, column = trained_on.text, store.spec.source.get("text_column", "text")
    journal = read_journal(store.path)
    if not text or not isinstance(column, str) or not journal:
        raise TextError("the store does not say which")
    stored = store.spec.source.get("text_fingerprint")
    if open_text(text, column=column).fingerprint_like(str(stored)) != stored:
        raise TextError(f"{text} has changed since")
    if store.manifest.source_exhausted:
        raise TextError(f"the store holds all of {text}")
    return EvalText(
        source=text,
        column=column,
        chat="chat_template" in store.spec.source,
        start=Cursor.from_json(journal[-1].cursor),
        note=f"evaluated on what lies in {text} behind what the store holds (name another text "
        f"with `text`): {why}",
    )
