"""export_neuronpedia(run, out): the features of a run as Neuronpedia's importer takes them.

    OUT/MODEL/SOURCE/
        release.jsonl                   a paper or project, if one is named
        model.jsonl  sourceset.jsonl    made in the database unless they are there
        source.jsonl                    this SAE: LAYER-SET
        features/batch-N.jsonl.gz       one line a feature
        activations/batch-N.jsonl.gz    one line a context of a feature

Neuronpedia keeps such folders as `v1/MODEL/SOURCE`. Its importer puts the lines of each file into a
table of its database by the names of the columns, which it takes from the first line of the file:
all lines of a file have the same keys, and no file is empty. It lists a thousand files at most.
Dates are left out, so that the database sets them and the same features give the same bytes.

Everything is read from RUN/features (`saepipe features`), from the SAE, and from the model's
unembedding. Its counts of activations are of the drawn sample, scaled to all tokens on which the
feature is active: exact where the sample holds all of them.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.keywords import told_in_settings
from pipeline.device import pick_device
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluate.setup import LoadedSAE, load_sae
from pipeline.exchange.json_lines import clean, write_lines
from pipeline.exchange.whole import whole_folder
from pipeline.features.feature import BEFORE, Examples, Feature, rounded
from pipeline.features.files import FeatureSet
from pipeline.limits import limits_told
from pipeline.lm.families import Shape
from pipeline.lm.hub import ModelFiles
from pipeline.lm.logits import Path as LogitPath, load_path
from pipeline.lm.names import hook_of
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.progress import OnProgress, counter
from pipeline.text.token_text import TokenTexts

CREATOR = "clkht01d40000jv08hvalcvly"
"""The user that Neuronpedia's own scripts name, and that a new database of it has."""
FEATURES_PER_FILE, MAX_FILES = 128, 1000
N_BINS, N_INTERVALS, N_ALIGNED = 50, 5, 3
TOP = -1
"""As the lower end and the share of an interval: these are the contexts of largest activation."""
_CELLS = 2**24
"""Logits in memory at once: 64 MiB."""
_NAME = re.compile(r"[A-Za-z0-9]+(?:[-._][A-Za-z0-9]+)*")

Row = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class NeuronpediaExport:
    """What was written, and what a reader must know of it."""

    folder: Path
    """OUT/MODEL/SOURCE."""
    model: str
    source: str
    n_features: int
    n_alive: int
    n_activations: int
    """Contexts, with their activations."""
    n_bytes: int
    notes: tuple[str, ...]
    reused: bool
    """The same was there already."""


@dataclass(frozen=True, kw_only=True)
class _Ids:
    """What identifies every line."""

    model: str
    source: str
    source_set: str
    hook: str


@dataclass(frozen=True, kw_only=True, eq=False)
class _Logits:
    """Histograms of what features add to the logits: of each the counts, and the bars' middles."""

    heights: Float32[Tensor, "n bins"]
    values: Float32[Tensor, "n bins"]


@told_in_settings
@limits_told()
def export_neuronpedia(
    run: str | PathLike[str],
    *,
    out: str | PathLike[str],
    model_id: str | None = None,
    source_set: str | None = None,
    description: str | None = None,
    release: str | None = None,
    creator: str = "",
    url: str = "",
    weights: str = "",
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> NeuronpediaExport:
    """Write the features that were found for a run as Neuronpedia imports them.

        sp.features("runs/topk")
        sp.export_neuronpedia("runs/topk", out="neuronpedia", creator="Ada")

    Args:
        run: Of an SAE, plain or fine-tuned.
        out: The folder that gets MODEL/SOURCE; several layers and SAEs can share it.
        model_id: What Neuronpedia calls the model; None takes the last part of its name.
        source_set: What the SAEs of all layers are called together; None says where they are, of
            which architecture and width: `mlp-out-topk-512`.
        description: Of that set, in words.
        release: The name of a paper or project whose sets these are; None leaves it out.
        creator: Who made them.
        url: Of the release.
        weights: Where the SAE is on the hub: `org/repo`, or `org/repo/folder`.
        device: That computes logits.
        on_progress: Told the features done.

    Raises:
        CheckpointError: the run, or its features, are missing or damaged; or the disk fails.
        ConfigError: a name is none that Neuronpedia takes, or the folder holds something else.
    """
    run, out = Path(run).resolve(), Path(out).resolve()
    found = FeatureSet.open(run)
    found.check()
    subject = load_sae(run, device=pick_device(device))
    facts, site = found.facts, subject.site.of_layer("--to neuronpedia")
    own_set = re.sub(r"[^A-Za-z0-9]+", "-", f"{site.kind.name}-{subject.arch}-{len(found)}")
    set_name = _named(source_set or own_set, what="source_set")
    ids = _Ids(
        model=_named(model_id or _model_id(facts.model, run), what="model_id"),
        source=f"{site.layer}-{set_name}",
        source_set=set_name,
        hook=hook_of(str(site)),
    )
    shape, lack_of_shape = _shape(subject)
    path, lack_of_logits = _logit_path(subject)
    if path is None:
        lack_of_logits = f"no histograms of logits: {lack_of_logits}"
    notes = (*facts.notes, *filter(None, (lack_of_shape, lack_of_logits)))
    tell = counter(on_progress, stage="export", total=len(found), unit="features")
    with whole_folder(out / ids.model / ids.source, option="source_set or --out") as folder:
        about = _about(
            ids, found, shape,
            description=description or f"{site.kind.name}, {subject.arch}, {len(found):,} features",
            release=release, creator=creator, url=url, weights=weights,
        )  # fmt: skip
        for name, row in about.items():
            write_lines(folder.partial / f"{name}.jsonl", [row])
        n_activations = 0
        size = max(FEATURES_PER_FILE, -(-len(found) // MAX_FILES))
        for batch, start in enumerate(range(0, len(found), size)):
            few = range(start, min(start + size, len(found)))
            features = [found.feature(i) for i in few]
            logits = path and _logits(path, subject.coder.W_dec[few.start : few.stop])
            aligned = _aligned(subject, few, n_heads=shape and _n_heads(subject, shape))
            rows = [
                _feature(ids, feature, logits, aligned[i], i) for i, feature in enumerate(features)
            ]
            acts = [act for one in features for act in _activations(ids, one, found.texts)]
            (folder.partial / "features").mkdir(exist_ok=True)
            write_lines(folder.partial / "features" / f"batch-{batch}.jsonl.gz", rows)
            if acts:
                (folder.partial / "activations").mkdir(exist_ok=True)
                write_lines(folder.partial / "activations" / f"batch-{batch}.jsonl.gz", acts)
            n_activations += len(acts)
            tell(few.stop)
    files = [path for path in folder.out.rglob("*") if path.is_file()]
    return NeuronpediaExport(
        folder=folder.out,
        model=ids.model,
        source=ids.source,
        n_features=len(found),
        n_alive=int((found.n_active > 0).sum()),
        n_activations=n_activations,
        n_bytes=sum(path.stat().st_size for path in files),
        notes=notes,
        reused=folder.reused,
    )


def _model_id(model: str, run: Path) -> str:
    """The last part of a name, in the letters that Neuronpedia takes."""
    if not model:
        raise ConfigError(f"{run} does not say which model it is of: name it with model_id")
    name = re.sub(r"[^a-z0-9.]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-.")
    return name or "model"


def _named(name: str, *, what: str) -> str:
    """A name that can stand in an address: `__` would cut it in two, a slash make a folder."""
    if not _NAME.fullmatch(name) or len(name) > 128:
        raise ConfigError(
            f"{what} {name!r} is no name of Neuronpedia's: up to 128 letters and digits with "
            "single hyphens, dots or underscores between them, as in mlp-out-topk-512"
        )
    return name


def _shape(subject: LoadedSAE) -> tuple[Shape | None, str]:
    files = ModelFiles(subject.model, subject.revision or "main")
    try:
        return Shape.of(files.config, name=subject.model), ""
    except (ModelError, ConfigError) as error:
        return None, f"the numbers of layers and neurons are left at 0: {error}"


def _n_heads(subject: LoadedSAE, shape: Shape) -> int | None:
    """How many heads share the site; None where none do."""
    key = shape.family.keys.n_heads
    if not str(subject.site).startswith("attn_z.") or key is None:
        return None
    config = ModelFiles(subject.model, subject.revision or "main").config
    n_heads: int = shape.family.said_in(config, name=subject.model)[key]
    return n_heads


def _logit_path(subject: LoadedSAE) -> tuple[LogitPath | None, str]:
    revision = subject.revision or "main"
    try:
        head = load_tokenizer(subject.model, revision=revision)
        device = subject.coder.W_dec.device
        site, n_vocab = subject.site, head.n_vocab
        return load_path(subject.model, site, revision=revision, n_vocab=n_vocab, device=device), ""
    except (ModelError, ConfigError) as error:
        return None, str(error)


def _about(
    ids: _Ids,
    found: FeatureSet,
    shape: Shape | None,
    *,
    description: str,
    release: str | None,
    creator: str,
    url: str,
    weights: str,
) -> dict[str, Row]:
    """What is told of all features together, by the file that it goes into."""
    facts, by = found.facts, {"creatorId": CREATOR, "visibility": "PUBLIC"}
    owner, _, name = facts.model.rpartition("/")
    local = not owner or facts.model.startswith(("/", ".", "~"))
    repo, folder = _hub_place(weights)
    rows: dict[str, Row] = {}
    if release is not None:
        rows["release"] = {
            "name": _named(release, what="release"),
            "description": clean(release),
            "urls": [clean(url)] if url else [],
            "creatorName": clean(creator),
            **by,
        }
    rows["model"] = {
        "id": ids.model,
        "displayName": ids.model,
        "displayNameShort": ids.model,
        "layers": shape.n_layers if shape else 0,
        "neuronsPerLayer": shape.d_mlp if shape else 0,
        "owner": "" if local else clean(owner),
        "instruct": name.lower().endswith(("-it", "-instruct", "-chat")),
        "inferenceEnabled": False,
        **({"dimension": shape.d_model} if shape else {}),
        **by,
    }
    rows["sourceset"] = {
        "modelId": ids.model,
        "name": ids.source_set,
        "description": clean(description),
        "creatorName": clean(creator),
        "urls": [clean(url)] if url else [],
        **({} if release is None else {"releaseName": release}),
        **by,
    }
    rows["source"] = {
        "id": ids.source,
        "modelId": ids.model,
        "setName": ids.source_set,
        "num_prompts": facts.n_tokens // facts.ctx_len,
        "num_tokens_in_prompt": facts.ctx_len,
        "dataset": clean(_public(facts.text)),
        **({"hfRepoId": repo} if repo else {}),
        **({"hfFolderId": folder} if folder else {}),
        **by,
    }
    return rows


def _hub_place(weights: str) -> tuple[str, str]:
    """A repository and a folder in it, either empty."""
    org, name, *folders = [*clean(weights).strip("/").split("/"), ""]
    if weights and not (org and name):
        raise ConfigError(
            f"weights {weights!r} is no place on the hub: org/repo, or org/repo/folder"
        )
    return f"{org}/{name}" if weights else "", "/".join(filter(None, folders))


def _public(text: str) -> str:
    """The name of a text, of a local file its last part alone."""
    return Path(text).name if text.startswith(("/", ".", "~")) else text


@torch.no_grad()
def _logits(path: LogitPath, W_dec: Float[Tensor, "n d_in"]) -> _Logits:
    """Of each row how many logits fall into each of 50 equal parts of their range."""
    heights, values = list[Tensor](), list[Tensor]()
    for rows in W_dec.detach().split(max(1, _CELLS // len(path.unembedding))):
        logits = path.logits(rows)
        low, high = logits.aminmax(dim=1, keepdim=True)
        width = (high - low) / N_BINS
        place = ((logits - low) / width.clamp_min(torch.finfo().tiny)).long().clamp(0, N_BINS - 1)
        counts = torch.zeros(len(rows), N_BINS, device=logits.device)
        heights.append(counts.scatter_add_(1, place, torch.ones_like(logits)).cpu())
        values.append((low + width * (torch.arange(N_BINS, device=low.device) + 0.5)).cpu())
    return _Logits(heights=torch.cat(heights), values=torch.cat(values))


@torch.no_grad()
def _aligned(subject: LoadedSAE, few: range, *, n_heads: int | None) -> list[Row]:
    """Of each feature the coordinates that it writes to most, and how much to each head."""
    rows = subject.coder.W_dec[few.start : few.stop].detach().float()
    best = F.normalize(rows, dim=1).topk(min(N_ALIGNED, rows.shape[1]), dim=1)
    total = rows.abs().sum(1, keepdim=True).clamp_min(torch.finfo().tiny)
    share = rows.gather(1, best.indices).abs() / total
    heads = torch.empty(len(rows), 0)
    if n_heads is not None:
        heads = rows.unflatten(1, (n_heads, -1)).norm(dim=2)
        heads /= heads.sum(1, keepdim=True).clamp_min(torch.finfo().tiny)
    return [
        {
            "neuron_alignment_indices": indices.tolist(),
            "neuron_alignment_values": rounded(values.numpy()),
            "neuron_alignment_l1": rounded(l1.numpy()),
            "decoder_weights_dist": rounded(dist.numpy()),
        }
        for indices, values, l1, dist in zip(
            best.indices.cpu(), best.values.cpu(), share.cpu(), heads.cpu(), strict=True
        )
    ]


def _feature(ids: _Ids, feature: Feature, logits: _Logits | None, aligned: Row, place: int) -> Row:
    """A line of the table `Neuron`."""
    heights, values = _histogram(feature)
    return {
        "modelId": ids.model,
        "layer": ids.source,
        "index": str(feature.index),
        "sourceSetName": ids.source_set,
        "creatorId": CREATOR,
        "maxActApprox": _short(feature.max),
        "hasVector": False,
        "hookName": ids.hook,
        "topkCosSimIndices": [one.index for one in feature.neighbours],
        "topkCosSimValues": [_short(one.cosine) for one in feature.neighbours],
        **aligned,
        "neg_str": [clean(one.text) for one in feature.suppressed],
        "neg_values": [_short(one.effect) for one in feature.suppressed],
        "pos_str": [clean(one.text) for one in feature.promoted],
        "pos_values": [_short(one.effect) for one in feature.promoted],
        "frac_nonzero": feature.frequency,
        "freq_hist_data_bar_heights": heights,
        "freq_hist_data_bar_values": values,
        "logits_hist_data_bar_heights": [] if logits is None else logits.heights[place].tolist(),
        "logits_hist_data_bar_values": []
        if logits is None
        else rounded(logits.values[place].numpy()),
    }


def _histogram(feature: Feature) -> tuple[list[float], list[float]]:
    """Of activations above zero: how many tokens are in each of 50 equal parts, and the middles."""
    sample = feature.sample.value
    if not len(sample):
        return [], []
    counts, edges = np.histogram(sample, N_BINS)
    heights = counts * (feature.n_active / len(sample))
    middles = (edges[:-1] + edges[1:]) / 2
    return rounded(heights.astype(np.float32)), rounded(middles.astype(np.float32))


def _activations(ids: _Ids, feature: Feature, texts: TokenTexts) -> Iterator[Row]:
    """Lines of the table `Activation`: the largest first, then those drawn, by interval."""
    top = [(TOP, feature.max, TOP)] * len(feature.top)
    yield from _examples(ids, feature, feature.top, texts, kind="top", intervals=top)
    yield from _examples(
        ids, feature, feature.spread, texts, kind="spread", intervals=_intervals(feature)
    )


def _intervals(feature: Feature) -> list[tuple[float, float, float]]:
    """Of each drawn context the fifth of the range in which its activation lies: from, to, share.

    The share is that of all tokens; where the feature is not active belongs to the lowest.
    """
    if not len(feature.spread):
        return []
    sample, edges = feature.sample.value, np.linspace(0, feature.max, N_INTERVALS + 1)
    shares = [
        feature.frequency * float(((sample >= low) & (sample <= high)).mean())
        + (1 - feature.frequency) * (low == 0)
        for low, high in pairwise(edges)
    ]
    of = np.searchsorted(edges[1:-1], feature.spread.value, side="right")
    return [(float(edges[i]), float(edges[i + 1]), shares[i]) for i in of.tolist()]


def _examples(
    ids: _Ids,
    feature: Feature,
    examples: Examples,
    texts: TokenTexts,
    *,
    kind: str,
    intervals: Sequence[tuple[float, float, float]],
) -> Iterator[Row]:
    for rank, ((context, position, tokens, values), (low, high, share)) in enumerate(
        zip(examples.inside(), intervals, strict=True)
    ):
        acts, at = rounded(values), min(BEFORE, position)
        pieces = [*texts.pieces(tokens)]
        pieces[at] = pieces[at] or texts.alone(tokens[at])  # or nothing would be marked
        yield {
            "id": _cuid(ids.model, ids.source, feature.index, kind, rank, context, position),
            "tokens": [clean(piece) for piece in pieces],
            "index": str(feature.index),
            "layer": ids.source,
            "modelId": ids.model,
            "maxValue": max(acts),
            "maxValueTokenIndex": acts.index(max(acts)),
            "minValue": min(acts),
            "values": acts,
            "creatorId": CREATOR,
            "binMin": _short(low),
            "binMax": _short(high),
            "binContains": _short(share),
            "qualifyingTokenIndex": at,
        }


def _cuid(*parts: object) -> str:
    """A key that no other line has, the same each time: an import made twice adds nothing."""
    return "c" + hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _short(value: float) -> float:
    """Six digits, as `rounded` has them."""
    return float(f"{value:.6g}")
