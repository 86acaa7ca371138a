"""Where the features of a run are read from, and in which words its tokens are told."""

from dataclasses import dataclass

from actstore.reader import ActStore
from pipeline.config import FeaturesConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluate.subject import Subject
from pipeline.features.token_text import TokenTexts
from pipeline.provenance import Provenance
from pipeline.tokenizer import Tokenizer, load_tokenizer


def open_store(config: FeaturesConfig, subject: Subject) -> ActStore:
    """The store to read, sure to have activations that the coder can take.

    Raises:
        ConfigError: it is gone, or has no such site, or one of another width.
        StoreError: it is unfinished or damaged.
    """
    site, d_in = str(subject.site), subject.coder.d_in
    path = subject.provenance.path if config.store is None else config.store
    if config.store is None and not path.exists():
        raise ConfigError(
            f"the store that {config.run} was trained from, {path}, is gone: name another that "
            f"holds {site}, with --store"
        )
    store = ActStore.open(path)
    if site not in store.sites:
        raise ConfigError(
            f"{config.run} is about {site}, and {path} holds {', '.join(store.sites)}: name a "
            f"store that holds {site}, with --store"
        )
    if store.width(site) != d_in:
        raise ConfigError(
            f"{config.run} is a coder of {d_in} dimensions, and {site} of {path} has "
            f"{store.width(site)}: name a store of the model it was trained on, with --store"
        )
    return store


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """What tokens are in text: those of the store, and those that logits are of."""

    texts: TokenTexts
    of_logits: TokenTexts
    head: Tokenizer | None
    """Of the model that the coder is in; None where it was not found."""
    missing: str
    """Why a tokenizer was not found; empty where all were."""

    @staticmethod
    def of(subject: Subject, store: ActStore) -> "Words":
        """Those of the model that the store is of, and of the model that the coder is in."""
        source = Provenance.of(store, site=str(subject.site))
        head, missing = _tokenizer(subject.model, subject.revision)
        if (source.model, source.revision) in (("", ""), (subject.model, subject.revision)):
            read = head
        else:
            read, why = _tokenizer(source.model, source.revision)
            missing = missing or why
        return Words(texts=_texts(read), of_logits=_texts(head), head=head, missing=missing)


def _tokenizer(model: str, revision: str) -> tuple[Tokenizer | None, str]:
    """A model's tokenizer, or None and the reason."""
    if not model:
        return None, "neither the run nor the store says which model the activations are from"
    try:
        return load_tokenizer(model, revision=revision or "main"), ""
    except ModelError as error:
        return None, str(error)


def _texts(tokenizer: Tokenizer | None) -> TokenTexts:
    return TokenTexts(lambda _: None) if tokenizer is None else TokenTexts(tokenizer.token_bytes)
