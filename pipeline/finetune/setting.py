"""What a fine-tuning works in: the model, the site, and rows of text."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial

from pipeline.config.stages import FinetuneConfig
from pipeline.device import pick_device, pick_dtype
from pipeline.errors import ModelError, TextError
from pipeline.finetune.measure import Edits, Measured, measure
from pipeline.finetune.memory import plan_memory
from pipeline.finetune.sources import model_needed
from pipeline.finetune.task import Rows, Task, load_task
from pipeline.lm.chat import ChatTemplate, load_chat_template
from pipeline.lm.checkpointing import checkpointed
from pipeline.lm.hooks import splice
from pipeline.lm.model import LanguageModel, load_model
from pipeline.lm.sites import Site
from pipeline.lm.tokenizer import Tokenizer, load_tokenizer
from pipeline.runs.default_text import DefaultTexts, EvalText
from pipeline.runs.imported import site_named
from pipeline.runs.replaced import moving_told
from pipeline.runs.sae_run import SAERun
from pipeline.text.heldout import load_contexts


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """A model with one or several sites, and what is learned and measured there."""

    config: FinetuneConfig
    lm: LanguageModel
    tokenizer: Tokenizer
    sites: tuple[Site, ...]
    task: Task
    general: Rows | None
    """Contexts of another text, which tell what is forgotten."""
    general_text: str
    notes: tuple[str, ...]

    @contextmanager
    def learning(self, edits: Edits) -> Generator[None]:
        """Within the block, the model has these edits, and checkpoints if that is asked for."""
        lm, twice = self.lm, self.config.checkpointing
        again = checkpointed(lm, above=min(self.sites)) if twice else nullcontext()
        with splice(lm, edits), again:
            yield

    def measure(self, edits: Edits) -> Measured:
        """What the model with these edits makes of the held-out rows.

        Raises:
            DataError: a loss is not finite.
        """
        return measure(
            self.lm, self.task, edits, general=self.general, batch_size=self.config.batch_size
        )


def open_setting(config: FinetuneConfig, runs: Sequence[SAERun]) -> Setting:
    """Load the model that the SAEs go into, and read the texts.

    Raises:
        ConfigError: the site, the width or the context does not fit, or the memory does not do.
        ModelError: the language model cannot be used.
        TextError: a text cannot be read, or is too short to learn from and to measure on.
    """
    plan_memory(config, runs).fitting(runs)
    name, revision = model_needed(config, runs)
    device = pick_device(config.device)
    with moving_told(runs[0].path, named=config.model):
        lm = load_model(
            name, revision=revision, device=device, dtype=pick_dtype(config.precision, device),
            quantize=config.quantize, trust_remote_code=config.trust_remote_code,
        )  # fmt: skip
    read_as = runs[0].provenance.special_tokens
    tokenizer = load_tokenizer(name, revision=revision, special_tokens=read_as)
    chat = cache(partial(load_chat_template, name, revision=revision))
    task = load_task(config, tokenizer, chat=chat)
    general, words, notes = _general(config, runs[0], tokenizer, chat=chat)
    sites = tuple(site_named(config.site or run.provenance.site, run.path) for run in runs)
    return Setting(
        config=config, lm=lm, tokenizer=tokenizer, sites=sites, task=task, general=general,
        general_text=words, notes=(*task.notes, *notes),
    )  # fmt: skip


def _general(
    config: FinetuneConfig, run: SAERun, tokenizer: Tokenizer, *, chat: Callable[[], ChatTemplate]
) -> tuple[Rows | None, str, tuple[str, ...]]:
    """Contexts of the text that tells what is forgotten, its name, and why there is none."""
    try:
        if config.general_text is not None:
            text = EvalText(source=config.general_text, column=config.text_column)
        else:
            text = DefaultTexts("text").of(run.provenance, config.run)
        tokens = load_contexts(
            text.source, tokenizer, ctx_len=config.ctx_len, n=config.heldout_contexts,
            column=text.column, chat=chat() if text.chat else None, start=text.start,
        )  # fmt: skip
    except (TextError, ModelError):  # of conversations, where the model has no template
        if config.general_text is not None:
            raise
        note = (
            "what was forgotten is not measured, for no other text could be had: name one as "
            "general_text, in a file for --config"
        )
        return None, "", (note,)
    return Rows(tokens=tokens), text.words, ()
