"""The command line. Each command makes a config, calls one function, and shows what it returns."""

import logging
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer
from typer import Argument, Option

from actstore.errors import StoreError
from pipeline.config.architectures import ARCHS, L0, TopKConfig
from pipeline.config.command_line import (
    layers_of,
    merged,
    names_of,
    single,
    training_settings,
    values_of,
)
from pipeline.config.serialization import from_json
from pipeline.config.settings import parse_count as count, plain_number
from pipeline.config.stages import (
    Documents,
    EvalConfig,
    FeatureOrder,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    LossOn,
    Precision,
    Quantize,
    ReportConfig,
    SpecialTokens,
    SteerConfig,
    StoreDtype,
    Trained,
    Where,
)
from pipeline.config.training import TrainConfig
from pipeline.disk import disk_words
from pipeline.errors import PipelineError
from pipeline.limits import full_memory_told
from pipeline.mnist.config import MnistConfig
from pipeline.terminal.arguments import (
    AnotherModel,
    ConfigFile,
    ContextLength,
    InPrecision,
    JsonOut,
    OnDevice,
    SpelledChats,
    Store as Store,
    TextColumn,
    TrustCode,
    screen_of as _screen,
)
from pipeline.terminal.hub_commands import pull, push
from pipeline.terminal.options import Harmless, as_typed
from pipeline.terminal.sites import sites
from pipeline.terminal.store_commands import store_app
from pipeline.text.token_text import visible

C = TypeVar("C")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"saepipe {version('saepipe')}")
        raise typer.Exit


def _list_recipes(name: str | None) -> str | None:
    if name == "list":
        from pipeline.config.recipes import recipes

        for known, what in recipes().items():
            typer.echo(f"{known:<15}{what}")
        raise typer.Exit
    return name


@app.callback()
def saepipe(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Sparse autoencoders on cached activations: harvest once, train many times."""


app.add_typer(store_app, name="store")
app.command()(sites)

# Whatever is wrong with a command line: a class of click, or of typer itself since 0.26.
USAGE_ERROR: Any = typer.BadParameter.__base__
Source = "builtin, NAME:CONFIG@SPLIT of the hub (both optional), or a file or folder."


@app.command()
def harvest(
    ctx: typer.Context,
    out: Annotated[Path, Option(help="The store to make, NAME.actstore.")],
    site: Annotated[
        list[str] | None, Option(help="As saepipe sites lists them; several with commas.")
    ] = None,
    model: Annotated[str, Option(help="Hub id, local folder, or builtin.")] = "builtin",
    revision: Annotated[str, Option(help="Branch, tag or commit.")] = HarvestConfig.revision,
    trust_remote_code: TrustCode = HarvestConfig.trust_remote_code,
    text: Annotated[str, Option(help=Source)] = HarvestConfig.text,
    text_column: TextColumn = HarvestConfig.text_column,
    chat_template: SpelledChats = HarvestConfig.chat_template,
    special_tokens: Annotated[
        SpecialTokens,
        Option(help="Special tokens spelt in the text: as characters or tokens."),
    ] = HarvestConfig.special_tokens,
    documents: Annotated[
        Documents, Option(help="Whether contexts run on from one into the next.")
    ] = HarvestConfig.documents,
    tokens: Annotated[str, Option(help="Rows to store: 500k, 20M, 1B.")] = "1M",
    ctx_len: ContextLength = HarvestConfig.ctx_len,
    batch_size: Annotated[
        int | None, Option(help="Contexts a forward pass; default: by device.")
    ] = HarvestConfig.batch_size,
    device: OnDevice = HarvestConfig.device,
    precision: InPrecision = HarvestConfig.precision,
    dtype: Annotated[StoreDtype, Option(help="Numbers that are stored.")] = HarvestConfig.dtype,
    check_model: Annotated[
        bool,
        Option("--check-model/--no-check-model", help="Hold a few tokens to transformers first."),
    ] = HarvestConfig.check_model,
    codec: Annotated[str, Option(help="lz4, zstd, raw or bitround:N.")] = HarvestConfig.codec,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Run a language model over a text, once, and store its activations."""
    what = _config(ctx, HarvestConfig, config, sites=names_of(site), tokens=count(tokens))
    from pipeline.terminal.commands import run_harvest

    screen = _screen(json)
    screen.emit(run_harvest(what, screen=screen))


@app.command()
def train(
    ctx: typer.Context,
    store: Annotated[Path, Argument(help="Activation store, from `saepipe harvest`.")],
    out: Annotated[Path, Option(help="Folder of the run, or of the sweep.")],
    site: Annotated[
        list[str] | None, Option(help="Default: the store's only one; several with commas.")
    ] = None,
    arch: Annotated[str, Option(help=f"{', '.join(ARCHS)}.")] = TopKConfig.kind,
    expansion: Annotated[str, Option(help="Latents per input.")] = str(TrainConfig.expansion),
    l0: Annotated[str | None, Option(help=f"Active latents of a row; default: {L0}.")] = None,
    l1: Annotated[str | None, Option(help="L1 coefficient, where it is not found by --l0.")] = None,
    connect: Annotated[
        list[str] | None,
        Option(metavar="RUN_IN:RUN_OUT", help="A connector between these SAEs; repeatable."),
    ] = None,
    target: Annotated[str | None, Option(help="Share of latents to be active; adjusts l1.")] = None,
    k: Annotated[str | None, Option(help="--l0 of topk and its kin.")] = None,
    lr: Annotated[str | None, Option(help="Of Adam; default: by width and length.")] = None,
    tokens: Annotated[str | None, Option(help="Rows; default: one pass.")] = None,
    batch_size: Annotated[
        int | None, Option(help="Rows a step; default: 1024, or fewer in short runs.")
    ] = None,
    seed: Annotated[str, Option(help="Random seed of the first weights.")] = str(TrainConfig.seed),
    device: OnDevice = TrainConfig.device,
    precision: Annotated[Precision, Option()] = TrainConfig.precision,
    assign: Annotated[list[str] | None, Option("--set", help="NAME=VALUE; repeatable.")] = None,
    log: Annotated[str, Option(help="Live: tensorboard, wandb, trackio.")] = "",
    resume: Annotated[
        bool, Option("--resume/--no-resume", help="Go on with a run that was stopped.")
    ] = True,
    recipe: Annotated[
        str | None,
        Option(
            metavar="NAME|list", callback=_list_recipes, is_eager=True, help="Published settings."
        ),
    ] = None,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Train SAEs from a store, or connectors between SAEs; values with commas make a sweep.

    Every combination is trained in one pass over the store; no language model is loaded.
    """
    options: dict[str, Any] = {
        "store": store, "site": single(names_of(site)),
        "expansion": values_of("expansion", expansion, plain_number),
        "lr": values_of("lr", lr, float),
        "tokens": None if tokens is None else count(tokens),
        "batch_size": batch_size, "seed": values_of("seed", seed, int), "device": device,
        "precision": precision, "arch": values_of("arch", arch, str),
    }  # fmt: skip
    knobs = {
        "l0": values_of("l0", l0, plain_number), "l1": values_of("l1", l1, float),
        "k": values_of("k", k, plain_number), "target": values_of("target", target, float),
    }  # fmt: skip
    kind, settings = training_settings(
        config, options, knobs, assign or [], connect=connect, recipe=recipe, given=_given(ctx)
    )
    from pipeline.config.grid import expand
    from pipeline.terminal.commands import run_train

    screen, loggers = _screen(json), log.split(",") if log else []
    points = expand(settings, out=out, kind=kind)
    reports = run_train(points, resume=resume, log=loggers, screen=screen)
    screen.emit(reports if len(points) > 1 else reports[0])


@app.command("eval")
def evaluate(
    ctx: typer.Context,
    runs: Annotated[list[Path], Argument(help="Folders of runs, or of a sweep.")],
    text: Annotated[str | None, Option(help=f"Default: held out. Else {Source}")] = EvalConfig.text,
    text_column: TextColumn = EvalConfig.text_column,
    chat_template: SpelledChats = EvalConfig.chat_template,
    tokens: Annotated[str, Option(help="Tokens of text to evaluate on.")] = "100k",
    layers: Annotated[str | None, Option(help="Also splice each into these: 0-5, or 1,3.")] = None,
    n_worst: Annotated[
        int, Option("--worst", help="Contexts to show whose loss rises.")
    ] = EvalConfig.n_worst,
    as_trained: Annotated[
        bool, Option("--as-trained", help="Leave out the rows that training left out.")
    ] = EvalConfig.as_trained,
    out: Annotated[
        Path | None,
        Option(help="Folder for what compares several runs; default: beside them."),
    ] = None,
    model: AnotherModel = EvalConfig.model,
    trust_remote_code: TrustCode = EvalConfig.trust_remote_code,
    batch_size: Annotated[int, Option(help="Contexts a pass.")] = EvalConfig.batch_size,
    device: OnDevice = EvalConfig.device,
    precision: InPrecision = EvalConfig.precision,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Put SAEs, or connectors, into the model: loss recovered, L0, dead features and more."""
    what = _config(ctx, EvalConfig, config, tokens=count(tokens), layers=layers_of(layers))
    from pipeline.terminal.commands import run_eval

    screen = _screen(json)
    screen.emit(run_eval(what, screen=screen))


@app.command()
def features(
    ctx: typer.Context,
    run: Annotated[Path, Argument(help="Folder of a run.")],
    feature: Annotated[list[int] | None, Option(min=0, help="One to look at; repeatable.")] = None,
    sort: Annotated[FeatureOrder, Option(help="Order of the table.")] = "frequency",
    rows: Annotated[int, Option(min=1, help="Rows of the table.")] = 20,
    store: Annotated[Path | None, Option(help="Default: its own.")] = FeaturesConfig.store,
    tokens: Annotated[str | None, Option(help="Rows to read; default: all.")] = None,
    device: OnDevice = FeaturesConfig.device,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """What the features of an SAE fire on; of a connector, which feature makes which.

    One pass over the store; what it finds is kept beside the run.
    """
    what = _config(ctx, FeaturesConfig, config, tokens=None if tokens is None else count(tokens))
    from pipeline.terminal.commands import run_features

    screen = _screen(json)
    screen.emit(run_features(what, feature or [], order=sort, rows=rows, screen=screen))


@app.command()
def report(
    ctx: typer.Context,
    runs: Annotated[list[Path], Argument(help="Folders of runs, or of a sweep.")],
    out: Annotated[Path | None, Option(help="The page; default: report.html beside them.")] = None,
    n_features: Annotated[int, Option("--features", help="Of each run.")] = ReportConfig.n_features,
    store: Annotated[Path | None, Option(help="Default: each its own.")] = ReportConfig.store,
    text: Annotated[
        str | None, Option(help=f"Of evaluations that are missing, as of eval. {Source}")
    ] = ReportConfig.text,
    text_column: TextColumn = ReportConfig.text_column,
    tokens: Annotated[str, Option(help="Tokens of text to evaluate on.")] = "100k",
    device: OnDevice = ReportConfig.device,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """One HTML page about runs, that opens anywhere; what is missing for it is made first."""
    from pipeline.runs.names import beside
    from pipeline.terminal.commands import brought_in, run_report

    screen = _screen(json)
    runs = brought_in(runs, screen)
    page = out or beside(runs) / "report.html"
    what = _config(ctx, ReportConfig, config, runs=runs, out=page, tokens=count(tokens))
    screen.emit({"report": run_report(what, screen=screen)})


@app.command()
def plot(
    runs: Annotated[list[Path], Argument(help="Folders of runs, or of a sweep.")],
    json: JsonOut = None,
) -> None:
    """Draw curves and evaluations of runs into their folders, and what compares them."""
    from pipeline.terminal.commands import run_plot

    screen = _screen(json)
    screen.emit(run_plot(runs, screen=screen))


@app.command()
def finetune(
    ctx: typer.Context,
    runs: Annotated[list[Path], Argument(help="Folder of a trained SAE; or several, a site each.")],
    out: Annotated[Path, Option(help="Folder of the fine-tuned run.")],
    text: Annotated[str, Option(help=Source)] = FinetuneConfig.text,
    text_column: TextColumn = FinetuneConfig.text_column,
    model: AnotherModel = FinetuneConfig.model,
    trust_remote_code: TrustCode = FinetuneConfig.trust_remote_code,
    train: Annotated[Trained, Option(help="What is learned of a feature.")] = FinetuneConfig.train,
    loss_on: Annotated[LossOn, Option(help="Tokens that count.")] = FinetuneConfig.loss_on,
    keep_error: Annotated[
        bool, Option("--keep-error", help="Put back what the SAE does not explain.")
    ] = FinetuneConfig.keep_error,
    change_l1: Annotated[
        float, Option(help="Price of a change by one, in nats: few features change.")
    ] = FinetuneConfig.change_l1,
    compare: Annotated[
        bool, Option("--compare", help="Learn by other means, too: the MLP, LoRA and more.")
    ] = FinetuneConfig.compare,
    lr: Annotated[float, Option(help="Learning rate of AdamW.")] = FinetuneConfig.lr,
    epochs: Annotated[int, Option(help="Passes over the contexts.")] = FinetuneConfig.epochs,
    steps_per_epoch: Annotated[int, Option(help="At most.")] = FinetuneConfig.steps_per_epoch,
    batch_size: Annotated[int, Option(help="Contexts a step.")] = FinetuneConfig.batch_size,
    ctx_len: ContextLength = FinetuneConfig.ctx_len,
    seed: Annotated[int, Option(help="Random seed of the contexts' order.")] = FinetuneConfig.seed,
    device: OnDevice = FinetuneConfig.device,
    precision: InPrecision = FinetuneConfig.precision,
    quantize: Annotated[Quantize | None, Option(help="Weights in few bits.")] = None,
    checkpointing: Annotated[
        bool, Option("--checkpointing", help="Compute the layers above the site twice.")
    ] = FinetuneConfig.checkpointing,
    plan: Annotated[bool, Option("--plan", help="Only tell the memory, part by part.")] = False,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Freeze model and SAE; learn one scale and one bias per feature."""
    what = _config(ctx, FinetuneConfig, config, run=runs[0], beside=runs[1:])
    from pipeline.terminal.commands import run_finetune, run_finetune_plan

    screen = _screen(json)
    if plan:
        run_finetune_plan(what, screen=screen)
    else:
        screen.emit(run_finetune(what, screen=screen))


@app.command()
def fold(
    run: Annotated[Path, Argument(help="Folder of a fine-tuned run.")],
    out: Annotated[Path, Option(help="Folder of the plain SAE's run.")],
    json: JsonOut = None,
) -> None:
    """Make a fine-tuned SAE a plain one that computes the same."""
    from pipeline.terminal.commands import run_fold

    screen = _screen(json)
    screen.emit(run_fold(run, out, screen=screen))


@app.command("import")
def import_sae(
    source: Annotated[str, Argument(help="Folder, file, or ORG/NAME/FOLDER@REVISION of the hub.")],
    out: Annotated[Path, Option(help="Folder of the run.")],
    site: Annotated[str | None, Option(help="KIND.LAYER; default: what it says.")] = None,
    model: Annotated[str | None, Option(help="Its model; default: what it says.")] = None,
    arch: Annotated[str | None, Option(help="Of a file of matrices, of no library.")] = None,
    k: Annotated[int | None, Option(help="Active latents of a row, of such a file.")] = None,
    centred: Annotated[
        bool, Option("--centred/--uncentred", help="Such a one takes b_dec from its input.")
    ] = True,
    json: JsonOut = None,
) -> None:
    """Make a run of an SAE of SAELens, dictionary_learning, sparsify and others."""
    from pipeline.terminal.commands import run_import

    told: dict[str, Any] = {"site": site, "model": model, "arch": arch, "k": k}
    screen = _screen(json)
    screen.emit(run_import(source, out, **told, centred=centred, screen=screen))


@app.command()
def export(
    run: Annotated[Path, Argument(help="Folder of a run of an SAE.")],
    to: Annotated[
        str,
        Option(help="saelens, dictionary-learning, sparsify, safetensors; neuronpedia, delphi."),
    ],
    out: Annotated[Path, Option(help="The folder to make.")],
    creator: Annotated[str | None, Option(help="Of neuronpedia: who made it.")] = None,
    release: Annotated[str | None, Option(help="Of neuronpedia: of a paper or project.")] = None,
    model_id: Annotated[str | None, Option(help="Of neuronpedia: what it calls the model.")] = None,
    source_set: Annotated[str | None, Option(help="Of neuronpedia: of all layers.")] = None,
    store: Annotated[Path | None, Option(help="Of delphi; default: the run's.")] = None,
    tokens: Annotated[str | None, Option(help="Of delphi; default: all of the store.")] = None,
    json: JsonOut = None,
) -> None:
    """Write a run as another tool opens it: its SAE, or what its features do."""
    from pipeline.terminal.commands import run_export

    about = {"creator": creator, "release": release, "model_id": model_id}
    about |= {"source_set": source_set, "store": store, "tokens": tokens and count(tokens)}
    told = {name: value for name, value in about.items() if value is not None}
    screen = _screen(json)
    screen.emit(run_export(run, to, out, told=told, screen=screen))


@app.command()
def steer(
    ctx: typer.Context,
    runs: Annotated[list[Path], Argument(help="Folders of runs of SAEs, a site each.")],
    feature: Annotated[
        list[str], Option(help="As 12 or 12,40; of several runs one for each, in turn.")
    ],
    scale: Annotated[
        str | None, Option(help="To add: 8, 5x its mean, 2max; with commas a sweep.")
    ] = None,
    clamp: Annotated[str | None, Option(help="To set it to, as --scale has it.")] = None,
    ablate: Annotated[bool, Option("--ablate", help="Set it to 0.")] = SteerConfig.ablate,
    prompt: Annotated[list[str] | None, Option(help="To go on with; repeatable.")] = None,
    prompt_file: Annotated[
        Path | None, Option(help="A prompt a line; or .jsonl, with prompt or text.")
    ] = SteerConfig.prompt_file,
    tokens: Annotated[str, Option(help="New tokens.")] = str(SteerConfig.tokens),
    samples: Annotated[
        int, Option(help="Texts of each prompt; several are drawn at random.")
    ] = SteerConfig.samples,
    temperature: Annotated[
        float | None, Option(help="To draw at; default: 1 for several samples.")
    ] = SteerConfig.temperature,
    seed: Annotated[int, Option(help="Random seed of samples.")] = SteerConfig.seed,
    where: Annotated[Where, Option(help="Tokens to steer at.")] = SteerConfig.where,
    model: AnotherModel = SteerConfig.model,
    trust_remote_code: TrustCode = SteerConfig.trust_remote_code,
    device: OnDevice = SteerConfig.device,
    precision: InPrecision = SteerConfig.precision,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Let a model write with features raised, held or off, beside what it writes alone."""
    what = _config(
        ctx, SteerConfig, config, tokens=count(tokens), prompt=prompt or [],
        feature=[values_of("feature", its, int, alone=False) for its in feature],
        scale=[scale] if scale else [], clamp=[clamp] if clamp else [],
    )  # fmt: skip
    from pipeline.terminal.commands import run_steer

    screen = _screen(json)
    screen.emit(run_steer(what, screen=screen))


@app.command()
def mnist(
    ctx: typer.Context,
    out: Annotated[Path, Option(help="Folder of the experiment.")] = Path("runs/mnist"),
    images: Annotated[
        str, Option(help="digits, a hub dataset as ylecun/mnist, or a path of IDX files.")
    ] = MnistConfig.images,
    seed: Annotated[int, Option(help="Random seed.")] = MnistConfig.seed,
    device: OnDevice = MnistConfig.device,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Simulate a classifier of digits by features and sparse connectors alone."""
    what = _config(ctx, MnistConfig, config)
    from pipeline.terminal.mnist import run_mnist

    screen = _screen(json)
    screen.emit(run_mnist(what, screen=screen))


@app.command()
def demo(
    out: Annotated[Path, Option(help="For store, runs and figures.")] = Path("runs/demo"),
    json: JsonOut = None,
) -> None:
    """All of it on the embedded model and text, on a CPU, in about two minutes."""
    from pipeline.terminal.commands import run_demo

    screen = _screen(json)
    screen.emit(run_demo(out, screen=screen))


app.command()(push)
app.command()(pull)


@app.command()
def runs(
    folder: Annotated[Path, Argument(help="With all its folders.")] = Path(),
    json: JsonOut = None,
) -> None:
    """Which runs are in a folder: what, when, how far, how good; the newest last."""
    from pipeline.terminal.runs import run_runs

    screen = _screen(json)
    screen.emit(run_runs(folder, screen=screen))


# --- settings --------------------------------------------------------------------------------


def _given(ctx: typer.Context) -> frozenset[str]:
    """The settings whose options were typed."""
    sources = {name: getattr(ctx.get_parameter_source(name), "name", None) for name in ctx.params}
    typed = {name for name, source in sources.items() if source == "COMMANDLINE"}
    return frozenset(typed | ({"sites"} if "site" in typed else set()))


def _config(ctx: typer.Context, made: type[C], file: Path | None, **others: object) -> C:
    """What the options say that are named as its fields are, and these others, over the file."""
    own = {field.name for field in fields(cast("Any", made))}
    options = {name: value for name, value in ctx.params.items() if name in own}
    return from_json(made, merged(file, options | others, given=_given(ctx)))


# --- errors ----------------------------------------------------------------------


def _say_error(message: str) -> None:
    """On stderr, in one line: names in it may hold what moves a terminal."""
    typer.secho(f"error: {visible(message)}", fg="red", err=True)


GOES_ON = ("harvest", "train", "finetune", "mnist", "demo", "store import", "push", "pull")
"""Commands that keep what is done when they are stopped."""


def main() -> None:
    """Run the command line; turn what the user can fix into one line on stderr.

    What schedulers and closing terminals send stops it as Ctrl-C does; `nohup` keeps its meaning.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Harmless())
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        with full_memory_told():
            code = app(standalone_mode=False)  # it, too, answers 130 to Ctrl-C
    except USAGE_ERROR as error:
        if message := error.format_message():  # nothing was typed, and help was shown
            _say_error(" ".join(message.replace("Value error, ", "").split()))
        sys.exit(error.exit_code)
    except (PipelineError, StoreError) as error:
        _say_error(as_typed(str(error)))
        sys.exit(1)
    except OSError as error:
        _say_error(disk_words(error))
        sys.exit(1)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    if code == 130:
        typed = {" ".join(sys.argv[1:2]), " ".join(sys.argv[1:3])}
        does = "begins again" if typed.isdisjoint(GOES_ON) else "goes on"
        typer.secho(f"stopped; the same command {does}", err=True)
    sys.exit(code)
