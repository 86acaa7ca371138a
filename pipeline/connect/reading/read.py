"""Read a connector: everything in `RUN/connections.json`, found and written, or reused."""

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from actstore.files import canonical_json, write_file
from actstore.reader import ActStore
from pipeline.config.serialization import from_json, located, portable, to_json
from pipeline.config.stages import Device, FeaturesConfig
from pipeline.connect.connector import Connector, End, SAEPair
from pipeline.connect.figures import effects_figure
from pipeline.connect.reading.document import FeaturesOfEnds
from pipeline.connect.reading.effects import Link, ReadingContext, chosen_links, measure
from pipeline.connect.reading.observe import observe
from pipeline.connect.reading.relations import equations, relations
from pipeline.connect.reading.values import Effect, Effects, Reading, ReadingConfig
from pipeline.connect.run import ConnectorRun
from pipeline.connect.train import PairFeeder
from pipeline.device import pick_device, pick_dtype
from pipeline.disk import require_run_writable, why_unwritable
from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.features.collect import collect_features, of_replaced_model, store_of
from pipeline.features.files import FeatureSet
from pipeline.lm.hub import ModelFiles
from pipeline.lm.model import load_for_sites
from pipeline.lm.sites import LayerSite, Site
from pipeline.plots.style import save_all
from pipeline.progress import OnProgress, Progress, counter
from pipeline.runs.replaced import fingerprint_at_hand, is_another, replaced_note
from pipeline.runs.sae_run import SAERun

_TERMS_MEASURED = 4
"""Of each output drawn for the effects."""


def read_connector(config: ReadingConfig, *, on_progress: OnProgress | None = None) -> Reading:
    """Equations, logic and effects of a connector, and what both its SAEs' features fire on.

    What is there already, of the same connector, store and settings, is reused.

    Raises:
        ConfigError: the store does not fit the run, or is gone, or a run may only be read.
        CheckpointError: the connector or one of its SAEs cannot be used.
        StoreError: a store cannot be read.
        DataError: a latent is not finite.
    """
    store_path = config.store and config.store.resolve()
    config = replace(config, run=config.run.resolve(), store=store_path)
    run = ConnectorRun.open(config.run)
    store = open_store(run, config.store)
    blank = _blank(config, run, store)
    there = _same(blank, run)
    if there is not None:
        return there
    _require_writable(run, blank)
    device = pick_device(config.device)
    pair, connector = run.load_pair(device), run.load_connector(device)
    check_widths(run, pair, store)
    n_rows = min(config.tokens, store.n_rows)
    feeder = PairFeeder(store, [run], device=device)

    def told(stage: str, total: int, unit: str) -> Callable[[int], None]:
        return counter(on_progress, stage=stage, total=total, unit=unit)

    with closing(feeder.sample(run.ends, n_rows=n_rows, seed=config.seed)) as feed:
        seen = observe(feed, connector, on_rows=told("rows", n_rows, "rows"))
    n_active = int((seen.target.n_active > 0).sum())
    found = equations(
        seen,
        connector,
        n_terms=config.n_terms,
        on_outputs=told("equations", n_active, "outputs"),
    )
    related = relations(seen, connector, found, on_outputs=told("relations", len(found), "outputs"))
    blank = replace(blank, n_tokens=seen.n_rows, equations=found, relations=related)
    reading = _with_effects(blank, run, pair, connector, on_progress)
    save_reading(reading)
    return reading


def read_features(config: FeaturesConfig, *, on_progress: OnProgress | None = None) -> Reading:
    """Read a connector as `saepipe features` was told to, and draw the effects measured.

    What it raises is `read_connector`'s.
    """
    asked = ReadingConfig(run=config.run, store=config.store, device=config.device)
    if config.tokens is not None:
        asked = replace(asked, tokens=config.tokens)
    reading = read_connector(asked, on_progress=on_progress)
    run = reading.config.run
    if reading.effects is not None and not why_unwritable(run):  # what may only be read has it
        save_all({"effects": effects_figure(reading.effects)}, run)
    return reading


def is_read(path: Path) -> bool:
    """Whether a run holds a reading of the weights and of the store that it has now."""
    there = load_reading(path)
    if there is None:
        return False
    run = ConnectorRun.open(path)
    return _same(_blank(there.config, run, open_store(run, there.config.store)), run) is not None


def _blank(config: ReadingConfig, run: ConnectorRun, store: ActStore) -> Reading:
    """All that can be told before the store is read."""
    notes: list[str] = []
    if not run.provenance.is_in(store):
        notes.append(
            f"{store.path} is not the store that the connector was trained from, or has changed "
            "since"
        )
    if config.tokens > store.n_rows and config.tokens != ReadingConfig.tokens:  # it was told
        notes.append(f"the store holds {store.n_rows:,} tokens; {config.tokens:,} were asked for")
    source = run.provenance
    fingerprint = fingerprint_at_hand(source.model, source.revision)
    notes += replaced_note(source, ModelFiles(source.model, source.revision or "main"))
    return Reading(
        config=config,
        connector=run.sha256,
        source=run.source,
        target=run.target,
        store=store.path.resolve(),
        store_fingerprint=store.fingerprint,
        model=source.model,
        revision=source.revision,
        model_fingerprint=fingerprint,
        n_tokens=0,
        equations=(),
        relations=(),
        effects=None,
        notes=tuple(notes),
    )


def _same(wanted: Reading, run: ConnectorRun) -> Reading | None:
    """What is there, if it is whole and what would be found again."""
    try:
        there = load_reading(wanted.config.run)
    except CheckpointError:
        return None
    if there is None or (there.effects is None and wanted.model):  # the model may be there now
        return None
    # What an earlier version wrote does not say, and is of the model that the store is of.
    was = there.model_fingerprint or run.provenance.model_fingerprint
    if is_another(was, wanted.model_fingerprint):
        return None
    config = replace(there.config, device=wanted.config.device, store=wanted.config.store)
    found = (
        "model", "model_fingerprint", "n_tokens", "equations", "relations", "effects", "notes",
        "store",
    )  # fmt: skip
    free = {name: getattr(wanted, name) for name in found}
    return there if replace(there, config=config, **free) == wanted else None


def _require_writable(run: ConnectorRun, blank: Reading) -> None:
    require_run_writable(run.path, what="reading")
    for end in run.ends if blank.model else ():
        if _features_there(end) is None:
            require_run_writable(end.run, what="features")


def _with_effects(
    reading: Reading,
    run: ConnectorRun,
    pair: SAEPair,
    connector: Connector,
    on_progress: OnProgress | None,
) -> Reading:
    """The same with effects in the model, or with a note on why there are none."""
    config = reading.config
    if not reading.model:
        why = "neither examples nor effects: the store does not say which model it is of"
        return replace(reading, notes=(*reading.notes, why))
    source, _ = (
        features_of(end, store=config.store, device=config.device, on_progress=on_progress)
        for end in run.ends
    )
    try:
        context = open_context(run, pair, connector, source)
    except (ModelError, ConfigError) as error:
        return replace(reading, notes=(*reading.notes, f"effects were not measured: {error}"))
    links = chosen_links(
        reading.equations,
        connector.W.detach().cpu(),
        n_outputs=config.n_outputs,
        n_terms=_TERMS_MEASURED,
        seed=config.seed,
    )
    n_inputs = len({link.input for link in links})
    tell = counter(on_progress, stage="effects", total=n_inputs, unit="inputs")
    points = measure(context, links, on_inputs=tell)
    return replace(reading, effects=Effects(points=points))


def effects_on(reading: Reading, output: int, *, device: Device = "auto") -> tuple[Effect, ...]:
    """What removing each input in the equation of an output does to it; none without a model."""
    links = [Link(input=term.feature, output=output) for term in reading.equation(output).terms]
    if reading.effects is None:
        return ()
    run, where = ConnectorRun.open(reading.config.run), pick_device(device)
    features = features_of(reading.source, store=reading.config.store, device=device)
    context = open_context(run, run.load_pair(where), run.load_connector(where), features)
    return measure(context, links)


# --- the store, the features and the model ---------------------------------------------------


def open_store(run: ConnectorRun, path: Path | None) -> ActStore:
    """The store to read, sure to have both sites; None means that which it was trained from."""
    wanted = " and ".join(end.site for end in run.ends)
    where = store_of(run.provenance, run.path, path, holding=wanted)
    store = ActStore.open(where)
    for end in run.ends:
        if end.site not in store.sites:
            raise ConfigError(
                f"{run.path} connects {wanted}, and {where} holds {', '.join(store.sites)}: name a "
                f"store that holds both, with --store"
            )
    return store


def check_widths(run: ConnectorRun, pair: SAEPair, store: ActStore) -> None:
    """Refuse a store whose activations the SAEs cannot take."""
    for site, coder in zip(pair.sites, (pair.source, pair.target), strict=True):
        if store.width(site) != coder.d_in:
            raise ConfigError(
                f"{run.path} reads {coder.d_in} dimensions at {site}, and {store.path} has "
                f"{store.width(site)}: name a store of the model it was trained on, with --store"
            )


def features_of(
    end: End, *, store: Path | None, device: Device, on_progress: OnProgress | None = None
) -> FeatureSet:
    """What the features of an SAE fire on: as found before, or found now.

    That is in `store`, None meaning the one that the SAE was trained from.
    """
    if (there := _features_there(end)) is not None:
        return there

    def tell(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(replace(progress, words=end.site))

    config = FeaturesConfig(run=end.run, store=store, device=device)
    return collect_features(config, on_progress=tell)


def _features_there(end: End) -> FeatureSet | None:
    """Those found before, with whatever settings, if they are of its weights and its model."""
    try:
        there, source = FeatureSet.open(end.run), SAERun.open(end.run).provenance
        there.check()
    except CheckpointError:
        return None
    now = fingerprint_at_hand(source.model, source.revision)
    other = of_replaced_model(there.facts, now, harvested=source)
    return None if other or there.facts.coder != end.sha256 else there


def features_of_both(reading: Reading) -> FeaturesOfEnds:
    """What the features of both SAEs fire on; None without a language model."""
    if not reading.model:
        return None, None
    config = reading.config
    source, target = (
        features_of(end, store=config.store, device=config.device)
        for end in (reading.source, reading.target)
    )
    return source, target


def open_context(
    run: ConnectorRun, pair: SAEPair, connector: Connector, features: FeatureSet
) -> ReadingContext:
    """The model with a connector and its SAEs, on their device; `features` are the source's.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: it does not fit the SAEs, or does not compute one site from the other.
    """
    first, second = map(Site.parse, pair.sites)
    ordered = isinstance(first, LayerSite) and isinstance(second, LayerSite)
    if ordered and not first < second:
        raise ConfigError(f"{second} does not depend on {first}, which does not come before it")
    source = run.provenance
    if not source.model:
        raise ModelError("the store does not say which model its activations are from")
    store = features.open_store()
    device = connector.W.device
    lm = load_for_sites(
        source.model,
        (first, second),
        revision=source.revision or "main",
        device=device,
        dtype=pick_dtype("auto", device),
    )
    for site, coder, end in (
        (first, pair.source, run.source), (second, pair.target, run.target),
    ):  # fmt: skip
        lm.require_fits(site, d_in=coder.d_in, ctx_len=store.spec.ctx_len, run=end.run)

    def contexts(feature: int) -> Int[np.ndarray, "contexts ctx_len"]:
        numbers = features.feature(feature).top.context
        if not len(numbers):
            return np.empty((0, store.spec.ctx_len), np.int32)
        return store.tokens(numbers)

    return ReadingContext(lm=lm, pair=pair, connector=connector, contexts=contexts)


# --- connections.json ------------------------------------------------------------------------

FORMAT = 1
READING = "connections.json"


def save_reading(reading: Reading) -> Path:
    """Write it into the folder of its run, whole or not at all; gives the file."""
    path = reading.config.run / READING
    content = canonical_json(to_json(portable(reading, reading.config.run)))
    head = json.dumps({"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest()})
    write_file(path, [head[:-1].encode(), b', "reading": ', content, b"}\n"])
    return path


def load_reading(run: Path) -> Reading | None:
    """What lies in the folder of a run, wherever that was when it was made; None without any.

    Raises:
        CheckpointError: it is damaged, or another version wrote it.
    """
    path = run / READING
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")  # noqa: TRY301
        content = document.get("reading")
        if hashlib.sha256(canonical_json(content)).hexdigest() != document.get("sha256"):
            raise ValueError("its checksum does not match")  # noqa: TRY301
        reading = located(from_json(Reading, content, where=READING), run)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): remove it, and make it again with saepipe features "
            f"{run}"
        ) from error
    return replace(reading, config=replace(reading.config, run=run))
