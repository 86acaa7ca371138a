"""Evaluate coders inside the language models they were trained on.

Runs that share a model, a text and a context length share its passes: one short pass up to the
sites for their means, then one pass in which each batch runs through the untouched model once and,
for each run, again from the run's site on. What ablating a site costs is measured in the same pass
and kept beside the store, see `ablations.py`. The ablation mean and the mean of explained variance
are the same one, over the evaluation text: a report depends on nothing but the run, the model and
the text, whether or not the store is still there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from pipeline.config import EvalConfig
from pipeline.device import pick_device
from pipeline.errors import ConfigError
from pipeline.evaluate.ablations import Slot, slot_of
from pipeline.evaluate.assemble import report_of
from pipeline.evaluate.geometry import mutual_mmcs
from pipeline.evaluate.grounds import OnTokens, find_grounds
from pipeline.evaluate.passes import measure
from pipeline.evaluate.place import Place
from pipeline.evaluate.report import EvalProgress, EvalReport, Overlap, Stage
from pipeline.evaluate.scene import Scene, load_scene
from pipeline.evaluate.subject import Setting, Subject, load_subject
from pipeline.evaluate.views import AblationView, RunView

OnProgress = Callable[[EvalProgress], None]

COMPARED = 8
"""Most runs whose dictionaries are compared, each with each."""


def evaluate(
    config: EvalConfig, *, on_progress: OnProgress | None = None
) -> tuple[EvalReport, ...]:
    """One report per run, in the order of `config.runs`.

    Raises:
        ConfigError: no run, a run named twice, a model without a run's site, width or context or
            without a layer asked for, or a text of which nothing counts.
        CheckpointError: a run cannot be used.
        ModelError: a language model cannot be used.
        TextError: the text cannot be used.
        DataError: a loss is not finite.
    """
    if not config.runs:
        raise ConfigError("no run to evaluate: type saepipe eval RUN, RUN being a training's --out")
    if len(set(config.runs)) < len(config.runs):
        raise ConfigError(f"a run is named twice in {', '.join(map(str, config.runs))}")
    device = pick_device(config.device)
    subjects = [load_subject(path, device=device) for path in config.runs]
    groups: dict[Setting, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(Setting.of(subject, config), []).append(subject)
    reports: dict[Path, EvalReport] = {}
    for setting, together in groups.items():
        scene = load_scene(setting, together, config, device=device)
        for report in _evaluate_together(scene, together, config, on_progress):
            reports[report.run] = report
    overlaps = _overlaps(subjects)
    return tuple(replace(reports[path], overlaps=overlaps[path]) for path in config.runs)


def _evaluate_together(
    scene: Scene,
    subjects: Sequence[Subject],
    config: EvalConfig,
    on_progress: OnProgress | None,
) -> list[EvalReport]:
    """Reports of runs that share a model, a text and a context length."""
    batches = [batch.to(scene.lm.device) for batch in scene.contexts.split(config.batch_size)]

    def told(stage: Stage) -> OnTokens:
        def tell(n_done: int) -> None:
            if on_progress is not None:
                n_tokens = scene.contexts.numel()
                on_progress(EvalProgress(stage=stage, n_done=n_done, n_tokens=n_tokens))

        return tell

    places = [subject.place(as_trained=config.as_trained) for subject in subjects]
    slots = _slots(scene, places, subjects, config)
    ablations = {place: found for place, slot in slots.items() if (found := slot.load())}
    grounds = {place: found.ground for place, found in ablations.items()}
    unknown = [place for place in slots if place not in ablations]
    if unknown:
        grounds |= find_grounds(scene.lm, batches, unknown, told("mean"))
    ablated = [AblationView(place, grounds[place]) for place in unknown]
    runs = [
        RunView(subject.coder, place, grounds[place], layers=config.layers)
        for subject, place in zip(subjects, places, strict=True)
    ]
    measure(scene.lm, batches, [*ablated, *runs], grounds, told("losses"))
    for view in ablated:
        ablations[view.place] = view.result
        slots[view.place].keep(view.result)
    return [
        report_of(scene, subject, view, ablations[view.place], config)
        for subject, view in zip(subjects, runs, strict=True)
    ]


def _slots(
    scene: Scene, places: Sequence[Place], subjects: Sequence[Subject], config: EvalConfig
) -> dict[Place, Slot]:
    """Where what ablating each place costs is kept: beside the stores of the runs it serves."""
    stores: dict[Place, list[Path]] = {}
    for place, subject in zip(places, subjects, strict=True):
        stores.setdefault(place, []).append(subject.provenance.path)
    return {
        place: slot_of(
            place,
            scene.contexts,
            beside=paths,
            fingerprint=scene.lm.fingerprint(),
            precision=scene.precision,
            device=scene.lm.device.type,
            batch_size=config.batch_size,
        )
        for place, paths in stores.items()
    }


def _overlaps(subjects: Sequence[Subject]) -> dict[Path, tuple[Overlap, ...]]:
    """Of each run, with every other that is as wide; none of more runs than are compared."""
    found: dict[Path, list[Overlap]] = {subject.path: [] for subject in subjects}
    if len(subjects) > COMPARED:
        return dict.fromkeys(found, ())
    for one, other in combinations(subjects, 2):
        if one.coder.d_in == other.coder.d_in:
            there, back = mutual_mmcs(one.coder.W_dec, other.coder.W_dec)
            found[one.path].append(Overlap(run=other.path, mmcs=there))
            found[other.path].append(Overlap(run=one.path, mmcs=back))
    return {path: tuple(overlaps) for path, overlaps in found.items()}
