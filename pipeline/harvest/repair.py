"""Harvest again what was damaged of a store, and nothing else."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actstore.errors import StoreError
from actstore.repair import Repair, beyond_repair, repairing
from actstore.verify import Finding
from actstore.writer import Shard
from pipeline.config.stages import UNSAID, Device, HarvestConfig
from pipeline.errors import ConfigError
from pipeline.harvest.forward import forward_of, harvest_shard
from pipeline.harvest.harvest import context_stream
from pipeline.harvest.plan import DTYPES, HarvestPlan
from pipeline.lm.chat import ChatTemplate, load_chat_template
from pipeline.lm.hub import ModelFiles
from pipeline.lm.tokenizer import Tokenizer, load_tokenizer
from pipeline.progress import OnProgress, Progress
from pipeline.tables import many
from pipeline.text.contexts import Cursor
from pipeline.text.open import open_text
from pipeline.text.source import TextSource


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What was put back."""

    shards: tuple[int, ...]
    rows: int
    """Rows a site of these shards: what went through the model again."""
    files: tuple[Path, ...]
    """Replaced, byte for byte as they were; of a summary its folder."""


def repair(
    path: str | Path,
    findings: Sequence[Finding],
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    on_progress: OnProgress | None = None,
) -> RepairReport:
    """Put back what `verify` found damaged, harvesting the damaged shards again.

    Args:
        path: The store.
        findings: What `actstore.verify.verify` found there.
        device: That runs the model: of the kind that harvested, or rows may round otherwise.
        batch_size: Contexts per forward pass, as it was harvested with; None lets the device
            decide, as harvesting does.
        on_progress: Told of each forward pass.

    Raises:
        ConfigError: the store was not written by a harvest, its model or text has changed, or the
            device is not there.
        ModelError: the model cannot be found, reached or read.
        TextError: the text cannot be found, reached or read.
        StoreError: a writer is at work, a shard came out different from what was stored, or
            something is damaged that nothing else tells; what could be put back is.
    """
    path = Path(path)
    for finding in findings:
        if finding.path == path:
            raise StoreError(finding.what)
    with repairing(path, findings) as job:
        files, done, total = list(job.files), 0, sum(map(job.rows_in, job.lost))

        def told(n_rows: int) -> None:
            if on_progress is not None:
                on_progress(Progress(stage="repair", done=done + n_rows, total=total, unit="rows"))

        if job.lost:
            lost = _lost_shards(job, told, device=device, batch_size=batch_size)
            with closing(lost):  # also where a shard is refused
                for shard in lost:
                    files += job.restore(shard)
                    done += job.rows_in(shard.index)
    beyond = beyond_repair(path, findings)
    if beyond is not None:
        rest = f"; {many(len(files), 'other file')} put back" if files else ""
        raise StoreError(beyond + rest)
    return RepairReport(shards=tuple(job.lost), rows=total, files=tuple(files))


def _lost_shards(
    job: Repair, told: Callable[[int], None], *, device: Device, batch_size: int | None
) -> Generator[Shard]:
    """The lost shards as they were harvested, once model and text are seen to be the store's."""
    plan = _plan(job, device=device, batch_size=batch_size)
    cursors = {index: Cursor.from_json(job.cursor(index)) for index in job.lost}
    config, ctx_len = plan.config, plan.spec.ctx_len
    tokenizer = load_tokenizer(config.model, revision=config.revision)
    text = open_text(config.text, column=config.text_column)
    chat = None
    if config.chat_template:
        chat = load_chat_template(config.model, revision=config.revision)
    _require_same(job, tokenizer=tokenizer, text=text, chat=chat)
    with forward_of(plan) as forward:
        for index, start in cursors.items():
            n_rows = job.rows_in(index)
            with context_stream(config, start=start) as stream:
                filled = harvest_shard(
                    plan,
                    index,
                    n_rows // ctx_len,
                    forward=forward,
                    stream=stream,
                    on_batch=lambda n_contexts: told(n_contexts * ctx_len),
                )
            if filled is None or filled.shard.n_rows < n_rows:
                raise ConfigError(
                    f"{job.path} cannot be repaired: {text.name} ends before shard {index} does; "
                    "bring back the text it was harvested from"
                )
            yield filled.wait()


def _plan(job: Repair, *, device: Device, batch_size: int | None) -> HarvestPlan:
    """A harvest as it stands in the store, with nothing left to do."""
    spec = job.spec
    source: Mapping[str, Any] = UNSAID | dict(spec.source)
    if "model_fingerprint" not in source or "text_fingerprint" not in source:
        raise ConfigError(
            f"{job.path} was not written by saepipe harvest, so it cannot be harvested again: "
            "write it anew with the program that made it"
        )
    config = HarvestConfig(
        out=job.path,
        model=source["model"],
        revision=source["revision"],
        trust_remote_code=source.get("trust_remote_code", False),
        text=source["text"],
        text_column=source["text_column"],
        chat_template=source["chat_template"] != UNSAID["chat_template"],
        special_tokens=source["special_tokens"],
        documents=source["documents"],
        sites=tuple(site.name for site in spec.sites),
        tokens=job.manifest.n_rows,
        ctx_len=spec.ctx_len,
        batch_size=batch_size,
        device=device,
        precision=source["model_precision"],
        dtype=next(name for name, stored in DTYPES.items() if stored == spec.dtype),  # pyright: ignore[reportArgumentType]
        codec=spec.codec,
        seed=spec.seed,
        shard_rows=spec.shard_rows,
    )
    n_rows = job.manifest.n_rows
    return HarvestPlan(config=config, spec=spec, state="complete", n_rows=n_rows, rows_to_write=0)


def _require_same(
    job: Repair, *, tokenizer: Tokenizer, text: TextSource, chat: ChatTemplate | None
) -> None:
    """Hold model, tokenizer and text to what the store was harvested from."""
    source = job.spec.source
    files = ModelFiles(str(source["model"]), str(source["revision"]))
    now = {
        "model_fingerprint": (
            f"model {files.name}", files.fingerprint_like(str(source["model_fingerprint"]))
        ),
        "tokenizer_fingerprint": (f"tokenizer of {files.name}", tokenizer.fingerprint),
        "text_fingerprint": (
            f"text {text.name}", text.fingerprint_like(str(source["text_fingerprint"]))
        ),
    }  # fmt: skip
    if chat is not None:
        now["chat_template"] = (f"chat template of {files.name}", chat.fingerprint)
    for key, (name, fingerprint) in now.items():
        if source[key] != fingerprint:
            raise ConfigError(
                f"{job.path} cannot be repaired: the {name} is not what it was "
                f"({key}: {source[key]} there, {fingerprint} now); bring that back, or harvest anew"
            )
