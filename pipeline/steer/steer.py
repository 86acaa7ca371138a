"""Steer a language model along features of its SAEs, and read what it then writes.

Every prompt is gone on with by the model alone and once for each strength, from the same seed. All
of these texts are then read by the model alone: how likely it finds them, and how active each
feature is on them, is counted the same way for all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.serialization import with_paths
from pipeline.config.stages import SteerConfig
from pipeline.config.strengths import Strength
from pipeline.device import pick_device, pick_dtype, pick_precision, seeded
from pipeline.disk import require_run_writable
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.setup import LoadedSAE, load_sae
from pipeline.features.files import FeatureSet, has_features
from pipeline.lm.model import LanguageModel, load_model
from pipeline.lm.sites import Site
from pipeline.lm.tokenizer import Tokenizer, load_tokenizer
from pipeline.progress import OnProgress, counter
from pipeline.runs.kinds import says_kind
from pipeline.runs.replaced import has_weights_of, moving_told, replaced_note
from pipeline.steer.prompts import prompts_of
from pipeline.steer.reading import Written, continuation, effect, read
from pipeline.steer.report import Edit, SteeredFeature, SteeredText, SteerReport, keep
from pipeline.steer.steering import Steering

OF_SAES = ("", "sae", "finetune")
"""What a run may say that it is; one that says nothing is refused where it is opened."""


@torch.inference_mode(mode=False)
@torch.no_grad()
def steer(config: SteerConfig, *, on_progress: OnProgress | None = None) -> SteerReport:
    """Go on with each prompt, steered and not; the report is kept in the first run.

    Raises:
        ConfigError: a run, a feature, a prompt or a strength is none that fits here, or the run's
            folder may only be read.
        CheckpointError: a run cannot be used, or the disk is full.
        ModelError: the language model cannot be used.
        TextError: the file of prompts cannot be read.
        DataError: what the model says of a text is not finite.
    """
    prompts, device = prompts_of(config), pick_device(config.device)
    subjects = [_loaded(path, device) for path in config.runs]
    _require_features(config, subjects)
    require_run_writable(config.runs[0], what="steered texts")  # before minutes of work
    amounts = [_amounts(strength, config, subjects) for strength in config.strengths]
    lm, tokenizer = _model(config, subjects, device)
    ids = _token_ids(prompts, tokenizer, lm, config)
    rows = [row for row in ids for _ in range(config.samples)]
    tell = counter(
        on_progress, stage="steer", unit="tokens",
        total=len(rows) * config.tokens * (1 + len(amounts)),
    )  # fmt: skip
    coders = {subject.site: subject.coder for subject in subjects}
    latents = dict(zip(coders, config.features, strict=True))
    passes = list[list[Written]]()
    for steerings in [{}, *(_steerings(its, config, subjects) for its in amounts)]:
        done = len(passes) * len(rows) * config.tokens
        with ExitStack() as stack:
            if steerings:
                stack.enter_context(lm.steered(steerings, where=config.where))
            new = dict(_written(lm, rows, config, lambda n, done=done: tell(done + n)))
        written = read(lm, [(rows[i], new[i]) for i in range(len(rows))], coders, latents)
        passes.append(written)
    clean, *steered = passes
    effects = [
        effect(its, clean, strength="" if strength is None else str(strength), amounts=flat)
        for its, strength, flat in zip(steered, config.strengths, map(_flat, amounts), strict=True)
    ]
    report = SteerReport(
        config=with_paths(config, Path.resolve),
        sha256=subjects[0].sha256,
        features=tuple(
            SteeredFeature(run=subject.path.resolve(), site=str(subject.site), feature=i)
            for subject, its in zip(subjects, config.features, strict=True)
            for i in its
        ),
        edit=_edit(config),
        model=lm.name,
        revision=lm.files.revision,
        precision=pick_precision(config.precision, device=device),
        temperature=_temperature(config),
        clean=effect(clean, clean, strength="", amounts=()),
        effects=tuple(effects),
        texts=tuple(
            SteeredText(
                prompt=prompts[row // config.samples],
                sample=row % config.samples,
                clean=continuation(clean[row], clean[row], tokenizer),
                steered=tuple(continuation(its[row], clean[row], tokenizer) for its in steered),
            )
            for row in range(len(rows))
        ),
        notes=_notes(subjects, lm),
    )
    keep(report)
    return report


def _loaded(path: Path, device: torch.device) -> LoadedSAE:
    if (kind := says_kind(path)) not in OF_SAES:
        raise ConfigError(
            f"{path} is a {kind} run, and steering takes runs of SAEs: name one that saepipe train "
            "or saepipe finetune made"
        )
    return load_sae(path, device=device)


def _require_features(config: SteerConfig, subjects: Sequence[LoadedSAE]) -> None:
    """The features are there, and each SAE has a site of its own."""
    for subject, its in zip(subjects, config.features, strict=True):
        if (wrong := max(its)) >= subject.coder.d_sae:
            raise ConfigError(
                f"{subject.path} has features 0 to {subject.coder.d_sae - 1}, got {wrong}"
            )
    by_site: dict[Site, Path] = {}
    for subject in subjects:
        if subject.site in by_site:
            raise ConfigError(
                f"{by_site[subject.site]} and {subject.path} are both at {subject.site}: name runs "
                "of different sites; several features of one run go into one --feature"
            )
        by_site[subject.site] = subject.path


Amounts = list[list[float]]
"""Of each run, of each of its features."""


def _amounts(
    strength: Strength | None, config: SteerConfig, subjects: Sequence[LoadedSAE]
) -> Amounts:
    """A strength in the units of the sites."""
    found: Amounts = []
    for subject, its in zip(subjects, config.features, strict=True):
        if strength is None or not strength.unit:
            found.append([0.0 if strength is None else strength.number] * len(its))
            continue
        if not has_features(subject.path):
            raise ConfigError(
                f"{strength} is in units of what is known of a feature, and {subject.path} has no "
                f"features yet: type saepipe features {subject.path}, or a number without "
                f"{strength.unit}"
            )
        known = FeatureSet.open(subject.path)
        units = known.mean if strength.unit == "x" else known.max
        for i in its:
            if not known.n_active[i]:
                raise ConfigError(
                    f"feature {i} of {subject.path} was active on none of the "
                    f"{known.facts.n_tokens:,} tokens that its features were found on, so "
                    f"{strength} says nothing: type a number without {strength.unit}"
                )
        found.append([strength.number * float(units[i]) for i in its])
    return found


def _flat(amounts: Amounts) -> tuple[float, ...]:
    return tuple(amount for its in amounts for amount in its)


def _edit(config: SteerConfig) -> Edit:
    return "ablate" if config.ablate else "clamp" if config.clamp else "add"


def _steerings(
    amounts: Amounts, config: SteerConfig, subjects: Sequence[LoadedSAE]
) -> dict[str, Steering]:
    edit, found = _edit(config), dict[str, Steering]()
    for subject, features, its in zip(subjects, config.features, amounts, strict=True):
        values = dict(zip(features, its, strict=True))
        found[str(subject.site)] = Steering(
            subject.coder,
            add=values if edit == "add" else {},
            clamp=values if edit == "clamp" else {},
            ablate=features if edit == "ablate" else (),
        )
    return found


def _model(
    config: SteerConfig, subjects: Sequence[LoadedSAE], device: torch.device
) -> tuple[LanguageModel, Tokenizer]:
    """The one language model, sure to have each SAE's site and width, and its tokenizer."""
    first, names = subjects[0], {subject.model for subject in subjects}
    if config.model is None and len(names) > 1:
        raise ConfigError(
            f"the runs are of {len(names)} models, {' and '.join(sorted(names))}: name runs of "
            "one, or the one to steer with --model"
        )
    name = first.model if config.model is None else config.model
    if not name:
        raise ConfigError(
            f"{first.path} does not say which model its activations are from: name it with --model"
        )
    revision = (first.revision if name == first.model else "") or "main"
    dtype = pick_dtype(config.precision, device)
    with moving_told(first.path, named=config.model):
        lm = load_model(
            name, revision=revision, device=device, dtype=dtype,
            trust_remote_code=config.trust_remote_code,
        )  # fmt: skip
    for subject in subjects:
        lm.require_fits(subject.site, d_in=subject.coder.d_in, ctx_len=1, run=subject.path)
    read_as = first.provenance.special_tokens
    return lm, load_tokenizer(name, revision=revision, special_tokens=read_as)


def _token_ids(
    prompts: Sequence[str], tokenizer: Tokenizer, lm: LanguageModel, config: SteerConfig
) -> list[list[int]]:
    """Of each prompt, sure to leave room for what is new."""
    found, most = tokenizer.encode(prompts, end=False), lm.n_positions
    for number, ids in enumerate(found, start=1):
        if not ids:
            raise ConfigError(f"prompt {number} has no token: give it some text")
        if len(ids) + config.tokens > most:
            room = most - len(ids)
            hint = f"lower --tokens to {room}, or shorten it" if room > 0 else "shorten it"
            raise ConfigError(
                f"prompt {number} has {len(ids):,} tokens, with {config.tokens:,} new ones "
                f"{len(ids) + config.tokens:,}, and {lm.name} takes {most:,}: {hint}"
            )
    return found


def _temperature(config: SteerConfig) -> float:
    """0 where nothing is drawn."""
    if config.temperature is not None:
        return config.temperature
    return 1.0 if config.samples > 1 else 0.0


def _written(
    lm: LanguageModel,
    rows: Sequence[list[int]],
    config: SteerConfig,
    tell: Callable[[int], None],
) -> Iterator[tuple[int, list[int]]]:
    """The number of each row, and its new tokens; rows of one length are gone on with together.

    What is drawn depends on the seed and on which rows there are, not on how they are steered.
    """
    options: dict[str, Any] = {}
    if temperature := _temperature(config):
        options = {"do_sample": True, "temperature": temperature, "top_k": 0}
    options["logits_processor"] = [_Finite(lm.name)]
    ends, done = lm.end_ids, 0
    for chunk, numbers in enumerate(_chunks(rows, config.batch_size)):
        tokens = torch.tensor([rows[i] for i in numbers], device=lm.device)
        with seeded(lm.device, seed=config.seed, part=chunk):
            out = lm.generate(tokens, max_new_tokens=config.tokens, **options)
        for i, ids in zip(
            numbers, torch.as_tensor(out)[:, tokens.shape[1] :].tolist(), strict=True
        ):
            cut = next((at + 1 for at, one in enumerate(ids) if one in ends), len(ids))
            yield i, ids[:cut]
        done += len(numbers) * config.tokens
        tell(done)


class _Finite:
    """Lets predictions pass as they are, but not what is no number: it would be drawn from."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if not torch.isfinite(scores).all():
            raise DataError(
                f"what {self._name} predicts is not finite: steer less far, or try --precision fp32"
            )
        return scores


def _chunks(rows: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    """The numbers of rows of one length, at most so many at once."""
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for _, some in groupby(by_length, key=lambda i: len(rows[i])):
        numbers = list(some)
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def _notes(subjects: Sequence[LoadedSAE], lm: LanguageModel) -> tuple[str, ...]:
    """What a reader must know of the runs and the model, each thing once."""
    found = list[str]()
    for subject in subjects:
        trained = subject.provenance
        if lm.name != trained.model and not has_weights_of(lm.files, trained):
            found.append(f"trained on activations of {trained.model}, steered in {lm.name}")
        found += (*subject.notes, *replaced_note(trained, lm.files))
    return tuple(dict.fromkeys(found))
