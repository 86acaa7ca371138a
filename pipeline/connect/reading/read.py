"""Read a connector: everything in `RUN/connections.json`, found and written, or reused."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from actstore.reader import ActStore
from pipeline.config import Device
from pipeline.connect.connector import Connector
from pipeline.connect.feed import PairFeeder
from pipeline.connect.pair import Pair
from pipeline.connect.reading.effects import Link, chosen_links, measure
from pipeline.connect.reading.equation import equations
from pipeline.connect.reading.files import load_reading, save_reading
from pipeline.connect.reading.logic import relations
from pipeline.connect.reading.observe import observe
from pipeline.connect.reading.scene import check_widths, features_of, open_scene, open_store
from pipeline.connect.reading.values import Effect, Effects, Reading, ReadingConfig
from pipeline.connect.run import ConnectorRun
from pipeline.device import pick_device
from pipeline.errors import CheckpointError, ConfigError, ModelError

_TERMS_MEASURED = 4
"""Of each output drawn for the effects."""


@dataclass(frozen=True, kw_only=True)
class ReadingProgress:
    """Where a reading stands."""

    stage: str
    n_done: int
    n_total: int


Told = Callable[[ReadingProgress], None]


def read_connector(config: ReadingConfig, *, on_progress: Told | None = None) -> Reading:
    """Equations, logic and effects of a connector, and what both its SAEs' features fire on.

    What is there already, of the same connector, store and settings, is reused.

    Raises:
        ConfigError: the store does not fit the run, or is gone.
        CheckpointError: the connector or one of its SAEs cannot be used.
        StoreError: a store cannot be read.
        DataError: a latent is not finite.
        OSError: the disk is full or fails.
    """
    store_path = config.store and config.store.resolve()
    config = replace(config, run=config.run.resolve(), store=store_path)
    run = ConnectorRun.open(config.run)
    store = open_store(run, config.store)
    blank = _blank(config, run, store)
    there = _same(blank)
    if there is not None:
        return there
    device = pick_device(config.device)
    pair, connector = run.load_pair(device), run.load_connector(device)
    check_widths(run, pair, store)

    def tell(stage: str, n_done: int, n_total: int) -> None:
        if on_progress is not None:
            on_progress(ReadingProgress(stage=stage, n_done=n_done, n_total=n_total))

    n_rows = min(config.tokens, store.n_rows)
    feeder = PairFeeder(store, [run], device=device)
    feed = feeder.sample((run.source, run.target), n_rows=n_rows, seed=config.seed)
    with closing(feed):
        seen = observe(feed, connector, on_rows=lambda n: tell("rows", n, n_rows))
    found = equations(seen, connector, n_terms=config.n_terms)
    blank = replace(
        blank, n_tokens=seen.n_rows, equations=found, relations=relations(seen, connector, found)
    )
    reading = _with_effects(blank, run, pair, connector, tell)
    save_reading(reading)
    return reading


def effects_on(reading: Reading, output: int, *, device: Device = "auto") -> tuple[Effect, ...]:
    """What removing each input in the equation of an output does to it; none without a model.

    Raises:
        ConfigError: there is no such feature, or it was never active.
        CheckpointError: the connector or one of its SAEs cannot be used.
        StoreError: the store that the features were found in cannot be read.
    """
    links = [Link(input=term.feature, output=output) for term in reading.equation(output).terms]
    if reading.effects is None:
        return ()
    run, where = ConnectorRun.open(reading.config.run), pick_device(device)
    features = features_of(reading.source, store=reading.config.store, device=device)
    scene = open_scene(run, run.load_pair(where), run.load_connector(where), features)
    return measure(scene, links)


def _blank(config: ReadingConfig, run: ConnectorRun, store: ActStore) -> Reading:
    """All that can be told before the store is read."""
    notes: list[str] = []
    if store.fingerprint != run.provenance.fingerprint:
        notes.append(
            f"{store.path} is not the store that the connector was trained from, or has changed "
            "since"
        )
    if config.tokens > store.n_rows:
        notes.append(f"the store holds {store.n_rows:,} tokens; {config.tokens:,} were asked for")
    return Reading(
        config=config,
        connector=run.sha256,
        source=run.source,
        target=run.target,
        store=store.path.resolve(),
        store_fingerprint=store.fingerprint,
        model=run.provenance.model,
        revision=run.provenance.revision,
        n_tokens=0,
        equations=(),
        relations=(),
        effects=None,
        notes=tuple(notes),
    )


def _same(wanted: Reading) -> Reading | None:
    """What is there, if it is whole and what would be found again."""
    try:
        there = load_reading(wanted.config.run)
    except CheckpointError:
        return None
    if there is None or (there.effects is None and wanted.model):  # the model may be there now
        return None
    config = replace(there.config, device=wanted.config.device, store=wanted.config.store)
    found = ("n_tokens", "equations", "relations", "effects", "notes", "store")
    free = {name: getattr(wanted, name) for name in found}
    return there if replace(there, config=config, **free) == wanted else None


def _with_effects(
    reading: Reading,
    run: ConnectorRun,
    pair: Pair,
    connector: Connector,
    tell: Callable[[str, int, int], None],
) -> Reading:
    """The same with effects in the model, or with a note on why there are none."""
    config = reading.config
    if not reading.model:
        why = "neither examples nor effects: the store does not say which model it is of"
        return replace(reading, notes=(*reading.notes, why))
    source, _ = (
        features_of(
            end,
            store=config.store,
            device=config.device,
            on_tokens=lambda n, total, name=end.site: tell(f"features of {name}", n, total),
        )
        for end in (run.source, run.target)
    )
    try:
        scene = open_scene(run, pair, connector, source)
    except (ModelError, ConfigError) as error:
        return replace(reading, notes=(*reading.notes, f"effects were not measured: {error}"))
    links = chosen_links(
        reading.equations,
        connector.W.detach().cpu(),
        n_outputs=config.n_outputs,
        n_terms=_TERMS_MEASURED,
        seed=config.seed,
    )
    points = measure(scene, links, on_inputs=lambda n, total: tell("effects", n, total))
    return replace(reading, effects=Effects(points=points))
