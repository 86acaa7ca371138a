"""What every stage but training can be told. A config is a value: frozen, comparable.

Paths and counts may be given as text: `HarvestConfig(out="a.actstore", tokens="500k")`.
"""

from pathlib import Path
from typing import Any, Literal

from pipeline.config.checks import require_not_negative, require_positive, require_seed
from pipeline.config.settings import Count, Strengths, settings
from pipeline.config.strengths import Strength, parse_strengths
from pipeline.errors import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
StoreDtype = Literal["bf16", "fp16", "fp32"]
SpecialTokens = Literal["literal", "parse"]
Documents = Literal["joined", "separate"]
Trained = Literal["both", "scale", "bias"]
LossOn = Literal["all", "completion"]
Goal = Literal["start", "zero"]
Quantize = Literal["8bit", "4bit"]
UNSAID: dict[str, Any] = {"special_tokens": "parse", "documents": "joined", "chat_template": "none"}
"""How stores read their text that do not say it."""


@settings
class HarvestConfig:
    """One harvest: which model reads which text, and what of it is kept."""

    out: Path
    model: str = "builtin"
    """Hub id, local folder, or `builtin` for the embedded model."""
    revision: str = "main"
    trust_remote_code: bool = False
    """Run the code that a model brings; without it such a model is refused."""
    text: str = "builtin"
    text_column: str = "text"
    chat_template: bool = False
    """Take the column's values as conversations, spelled by the model's chat template."""
    special_tokens: SpecialTokens = "literal"
    """Where the text spells one: literal takes it as text, parse as the token."""
    documents: Documents = "joined"
    """Contexts run on from one document into the next, without a mask; or separate: the end of
    each document that does not fill a context is left out."""
    sites: tuple[str, ...] = ()
    tokens: Count = 1_000_000
    """Rows to store per site; rounded up to whole contexts."""
    ctx_len: int = 128
    """Tokens of a context."""
    batch_size: int | None = None
    """Contexts per forward pass; None lets the device decide."""
    device: Device = "auto"
    """That computes; auto takes cuda, else mps, else cpu."""
    precision: Precision = "auto"
    """Of the model's weights and arithmetic; auto is fp32 on a CPU, bf16 on a GPU that has it."""
    dtype: StoreDtype = "bf16"
    codec: str = "lz4"
    """lz4, zstd, raw, or the lossy bitround:N, which keeps N bits of mantissa."""
    seed: int = 0
    """Of the order of rows inside a shard."""
    shard_rows: Count | None = None
    """Rows per shard; None means about 64 MiB of the widest site."""
    check_model: bool = True
    """Hold a few tokens to what transformers computes, before the first row of a site."""

    def __post_init__(self) -> None:
        require_positive(self, "tokens", "ctx_len", "batch_size", "shard_rows")
        require_seed(self, "seed")
        if len(set(self.sites)) < len(self.sites):
            raise ConfigError(f"a site is named twice in {', '.join(self.sites)}")
        if self.chat_template and self.special_tokens == "parse":
            raise ConfigError(
                "`chat_template` parses special tokens, those of the template among them: leave "
                "out `special_tokens`"
            )


@settings
class EvalConfig:
    """One evaluation of one or more runs."""

    runs: tuple[Path, ...]
    out: Path | None = None
    """Folder of several runs' table; None means the one that they have in common."""
    model: str | None = None
    """Another model than the one the store was harvested from; None means that one."""
    trust_remote_code: bool = False
    """Run the code that a model brings; without it such a model is refused."""
    text: str | None = None
    """None means held-out text: the embedded one for the embedded text, WikiText-103 otherwise;
    where that cannot be had, or the store is of conversations, what lies in the store's own text
    behind what the store holds."""
    text_column: str = "text"
    chat_template: bool = False
    """Take the column's values as conversations, spelled by the model's chat template."""
    tokens: Count = 100_000
    as_trained: bool = False
    """Leave as they are, and do not count, the rows that training left out."""
    layers: tuple[int, ...] = ()
    """Also splice each SAE, alone, into these layers."""
    n_worst: int = 10
    """Contexts to name whose loss an SAE raises most."""
    n_bootstrap: int = 1000
    """Resamplings of the contexts that intervals are made of; 0 makes none."""
    seed: int = 0
    """Of the resampling."""
    batch_size: int = 8
    device: Device = "auto"
    """That computes; auto takes cuda, else mps, else cpu."""
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        require_positive(self, "tokens", "batch_size")
        require_seed(self, "seed")
        require_not_negative(self, "n_worst", "n_bootstrap")
        if any(layer < 0 for layer in self.layers):
            raise ConfigError(f"layers start at 0, got {min(self.layers)}")
        if self.chat_template and self.text is None:
            raise ConfigError(
                "`chat_template` says how a text is read, and none is named: add --text, or leave "
                "it out, since conversations of a store's own are spelled without it"
            )


FeatureOrder = Literal["frequency", "max", "index", "random"]


@settings
class FeaturesConfig:
    """What every feature of a run fires on: one pass over the store it was trained from."""

    run: Path
    store: Path | None = None
    """None means the one it was trained from."""
    tokens: Count | None = None
    """Rows to read, in whole contexts from the store's first; None means all."""
    n_top: int = 12
    """Contexts with the largest activations, a feature."""
    n_spread: int = 16
    """Contexts drawn at random from all in which it is active, a feature."""
    n_values: int = 128
    """Tokens drawn at random from all on which it is active, a feature."""
    seed: int = 0
    """Of what is drawn."""
    device: Device = "auto"
    """That computes; auto takes cuda, else mps, else cpu."""

    def __post_init__(self) -> None:
        require_positive(self, "tokens", "n_top", "n_spread", "n_values")
        require_seed(self, "seed")


@settings
class ReportConfig:
    """A page about one or more runs."""

    runs: tuple[Path, ...]
    out: Path
    store: Path | None = None
    """Where features are to be found; None means the one that each run was trained from."""
    n_features: int = 200
    """Features a run to show, evenly by frequency among those that are alive; of a connector,
    outputs."""
    text: str | None = None
    """Of evaluations that are missing, as `EvalConfig` has it."""
    text_column: str = "text"
    tokens: Count = 100_000
    """Of that text."""
    device: Device = "auto"
    """That computes; auto takes cuda, else mps, else cpu."""

    def __post_init__(self) -> None:
        require_positive(self, "n_features", "tokens")


@settings
class FinetuneConfig:
    """Learn one scale `c` and one bias `d` per latent, everything else frozen."""

    run: Path
    """Of an SAE."""
    out: Path
    beside: tuple[Path, ...] = ()
    """Runs of SAEs at other sites of the same model, which learn together with it."""
    text: str = "builtin:arithmetic"
    text_column: str = "text"
    model: str | None = None
    """Another model to transplant the SAE into; None means its own."""
    trust_remote_code: bool = False
    """Run the code that a model brings; without it such a model is refused."""
    site: str | None = None
    """Another site to transplant the SAE to; None means its own."""
    train: Trained = "both"
    """Which of scales and biases are learned."""
    loss_on: LossOn = "all"
    """Tokens whose prediction counts: all, or those of the answers, of a text of questions or
    conversations, one a row."""
    keep_error: bool = False
    """Put back what the SAE does not explain, so that at the start the model is untouched."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 1e-2
    """Of AdamW; it pulls scales and biases where `decay_to` says."""
    decay_to: Goal = "start"
    """To no change, a scale of 1 and a bias of 0; or to zero, which inhibits what is not needed."""
    change_l1: float = 0.0
    """Price of a change by one, in nats: latents whose change gains less do not change at all."""
    batch_size: int = 8
    """Contexts per step."""
    epochs: int = 10
    """Passes over the contexts to learn from."""
    steps_per_epoch: int = 200
    """As many contexts are read as these take; of a short text fewer."""
    patience: int | None = None
    """Epochs without a better held-out loss after which learning ends, with the best epoch's
    numbers; None means all epochs, and the last one's."""
    ctx_len: int = 128
    """Tokens of a context."""
    heldout_contexts: int = 64
    """Contexts kept apart to measure the loss before and after."""
    heldout_questions: int = 256
    """Of a text of questions, those kept apart to count exact answers."""
    general_text: str | None = None
    """Text to measure what is forgotten; None means the one that `eval` takes."""
    compare: bool = False
    """Learn by other means, too, at equal steps: a bias vector, random features, the MLP, LoRA."""
    compare_lrs: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """Learning rates that each of them is tried at."""
    seed: int = 0
    """Random seed of the order of contexts."""
    device: Device = "auto"
    """That computes; auto takes cuda, else mps, else cpu."""
    precision: Precision = "auto"
    quantize: Quantize | None = None
    """Of how many bits the weights of the model's layers are; None means as `precision` says."""
    checkpointing: bool = False
    """Compute each layer above the site again in the backward pass, in place of keeping it."""

    def __post_init__(self) -> None:
        require_positive(
            self, "lr", "batch_size", "epochs", "steps_per_epoch", "ctx_len", "heldout_contexts",
            "heldout_questions",
        )  # fmt: skip
        require_not_negative(self, "weight_decay", "change_l1")
        if not self.compare_lrs or min(self.compare_lrs) <= 0:
            raise ConfigError(f"compare_lrs must be positive, got {list(self.compare_lrs)}")
        if self.patience is not None:
            require_positive(self, "patience")
        if self.lr * self.weight_decay >= 1:
            raise ConfigError(
                f"weight_decay must be below 1 / lr, which is {1 / self.lr:g}, got "
                f"{self.weight_decay:g}"
            )
        if self.beside and self.site is not None:
            raise ConfigError(f"one SAE goes to {self.site}, and {1 + len(self.beside)} are named")
        if self.beside and self.compare:
            raise ConfigError("--compare is of one site: compare each run alone")
        require_seed(self, "seed")


Where = Literal["all", "prompt", "new"]


@settings
class SteerConfig:
    """Steer a model along features of SAEs, and put what it then writes beside what it wrote."""

    runs: tuple[Path, ...]
    """Of SAEs, plain or fine-tuned, each at a site of its own, all of one model."""
    feature: tuple[tuple[int, ...], ...]
    """Those to steer; of several runs a list for each."""
    scale: tuple[Strengths, ...] = ()
    """What is added to each feature's activation; several make a sweep."""
    clamp: tuple[Strengths, ...] = ()
    """What each feature's activation is set to; several make a sweep."""
    ablate: bool = False
    """Set each feature's activation to 0."""
    prompt: tuple[str, ...] = ()
    prompt_file: Path | None = None
    """A prompt a line, or of .jsonl its `prompt` or else its `text`."""
    tokens: Count = 50
    """New tokens of each text; fewer where the model ends it."""
    samples: int = 1
    """Texts of each prompt; of more than one each is drawn at random."""
    temperature: float | None = None
    """What tokens are drawn at; None means 1 for several samples, and the likeliest for one."""
    seed: int = 0
    """Of what is drawn."""
    where: Where = "all"
    """Positions that are steered: all, those of the prompt, or those of new tokens."""
    model: str | None = None
    """Another model than the one the SAE was trained on; None means that one."""
    trust_remote_code: bool = False
    """Run the code that a model brings; without it such a model is refused."""
    batch_size: int = 32
    """Texts a pass."""
    device: Device = "auto"
    """That computes; auto takes cuda, else mps, else cpu."""
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        require_positive(self, "tokens", "samples", "temperature", "batch_size")
        require_seed(self, "seed")
        edits = ("--scale", self.scale), ("--clamp", self.clamp), ("--ablate", self.ablate)
        given = [option for option, value in edits if value]
        if len(given) != 1:
            found = f"{' and '.join(given)} say" if given else "nothing says"
            raise ConfigError(f"{found} how to steer: type one of --scale, --clamp and --ablate")
        _ = self.strengths
        if not self.runs:
            raise ConfigError("no run to steer with: type saepipe steer RUN --feature N --scale 5x")
        features = self.features
        if len(features) != len(self.runs):
            raise ConfigError(
                f"{len(self.runs)} runs take a --feature each, got {len(features)}: type "
                "--feature 12,40 for several of one run"
            )
        for its in features:
            if len(set(its)) < len(its) or not its or min(its) < 0:
                told = ", ".join(map(str, its)) or "none"
                raise ConfigError(f"--feature takes numbers of features, each once, got {told}")

    @property
    def features(self) -> tuple[tuple[int, ...], ...]:
        """Those of each run: where there is one run, all are its."""
        return (sum(self.feature, ()),) if len(self.runs) == 1 else self.feature

    @property
    def strengths(self) -> tuple[Strength | None, ...]:
        """What is tried, one after the other; None for ablating."""
        if self.ablate:
            return (None,)
        option = "scale" if self.scale else "clamp"
        return parse_strengths(self.scale or self.clamp, option=option)
