"""The command line. Each command makes a config, calls one function, and shows what it returns."""

import json as jsonlib
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.errors import StoreError
from pipeline.codec import from_json, load_toml, to_json
from pipeline.config import (
    ARCHS,
    Arch,
    Codec,
    Device,
    EvalConfig,
    FinetuneConfig,
    HarvestConfig,
    Precision,
    ReluConfig,
    StoreDtype,
    TopKConfig,
    TrainConfig,
)
from pipeline.errors import ConfigError, PipelineError

if TYPE_CHECKING:  # torch takes seconds to import, and --help must not wait for it
    from rich.console import Console

    from pipeline.curves import TrainReport
    from pipeline.evaluate.report import EvalReport
    from pipeline.finetune_run import FinetuneReport
    from pipeline.harvest import HarvestSummary
    from pipeline.plan import HarvestPlan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Sparse autoencoders on cached activations: harvest once, train many times.",
)
store_app = typer.Typer(no_args_is_help=True, help="Look at activation stores.")
app.add_typer(store_app, name="store")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file with further settings.")
]
JsonOut = Annotated[
    str | None, typer.Option("--json", help="Write the result as JSON there; - is stdout.")
]
Source = "builtin, a hub dataset (name[:config][@split]), or a local file or folder."


@app.command()
def harvest(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="The store to make, NAME.actstore.")],
    site: Annotated[
        list[str] | None, typer.Option(help="KIND.LAYER, as mlp_out.1; repeatable.")
    ] = None,
    model: Annotated[str, typer.Option(help="Hub id, local folder, or builtin.")] = "builtin",
    revision: Annotated[str, typer.Option(help="Of the model.")] = HarvestConfig.revision,
    text: Annotated[str, typer.Option(help=Source)] = HarvestConfig.text,
    tokens: Annotated[str, typer.Option(help="Rows to store: 500k, 20M, 1B.")] = "1M",
    ctx_len: Annotated[int, typer.Option(help="Tokens of a context.")] = HarvestConfig.ctx_len,
    batch_size: Annotated[
        int | None, typer.Option(help="Contexts a forward pass; default: by device.")
    ] = HarvestConfig.batch_size,
    device: Annotated[Device, typer.Option()] = HarvestConfig.device,
    precision: Annotated[Precision, typer.Option(help="Of the model.")] = HarvestConfig.precision,
    dtype: Annotated[StoreDtype, typer.Option(help="Of the store.")] = HarvestConfig.dtype,
    codec: Annotated[Codec, typer.Option(help="Of the store.")] = HarvestConfig.codec,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Run a language model over a text, once, and store its activations."""
    settings = _settings(
        ctx, config, out=out, sites=site or [], model=model, revision=revision, text=text,
        tokens=_count(tokens), ctx_len=ctx_len, batch_size=batch_size, device=device,
        precision=precision, dtype=dtype, codec=codec,
    )  # fmt: skip
    summary = run_harvest(from_json(HarvestConfig, settings), screen=_screen(json))
    _emit(json, to_json(summary))


@app.command()
def train(
    ctx: typer.Context,
    store: Annotated[Path, typer.Argument(help="Activation store, from `saepipe harvest`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    site: Annotated[str | None, typer.Option(help="Default: the store's only site.")] = None,
    arch: Annotated[Arch, typer.Option(help="How latents are made sparse.")] = "relu",
    expansion: Annotated[int, typer.Option(help="Latents per input.")] = TrainConfig.expansion,
    l1: Annotated[float, typer.Option(help="L1 coefficient of relu.")] = ReluConfig.l1,
    k: Annotated[int, typer.Option(help="Active latents of topk.")] = TopKConfig.k,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = TrainConfig.lr,
    tokens: Annotated[str | None, typer.Option(help="Rows; default: one pass.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = TrainConfig.batch_size,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = TrainConfig.seed,
    device: Annotated[Device, typer.Option()] = TrainConfig.device,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run.")] = False,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Train a sparse autoencoder from a store; no language model is loaded."""
    settings = _settings(
        ctx, config, store=store, out=out, site=site, expansion=expansion, lr=lr,
        tokens=None if tokens is None else _count(tokens), batch_size=batch_size, seed=seed,
        device=device, arch=arch,
    )  # fmt: skip
    settings["arch"] = _arch(ctx, settings["arch"], l1=l1, k=k)
    report = run_train(from_json(TrainConfig, settings), resume=resume, screen=_screen(json))
    _emit(json, to_json(report))


@app.command("eval")
def evaluate(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    text: Annotated[
        str | None, typer.Option(help=f"Default: held-out text. Else {Source}")
    ] = EvalConfig.text,
    tokens: Annotated[str, typer.Option(help="Of the text.")] = "100k",
    model: Annotated[str | None, typer.Option(help="Default: the run's.")] = EvalConfig.model,
    batch_size: Annotated[int, typer.Option(help="Contexts a pass.")] = EvalConfig.batch_size,
    device: Annotated[Device, typer.Option()] = EvalConfig.device,
    precision: Annotated[Precision, typer.Option(help="Of the model.")] = EvalConfig.precision,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Put trained SAEs back into the model: loss recovered, L0, dead features and more."""
    settings = _settings(
        ctx, config, runs=runs, text=text, tokens=_count(tokens), model=model,
        batch_size=batch_size, device=device, precision=precision,
    )  # fmt: skip
    reports = run_eval(from_json(EvalConfig, settings))
    _show_reports(_screen(json), reports)
    _emit(json, [to_json(report) for report in reports])


@app.command()
def finetune(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a trained SAE.")],
    out: Annotated[Path, typer.Option(help="Folder of the fine-tuned run.")],
    text: Annotated[str, typer.Option(help=Source)] = FinetuneConfig.text,
    model: Annotated[str | None, typer.Option(help="Default: the run's.")] = FinetuneConfig.model,
    lr: Annotated[float, typer.Option(help="Of AdamW.")] = FinetuneConfig.lr,
    epochs: Annotated[int, typer.Option()] = FinetuneConfig.epochs,
    steps_per_epoch: Annotated[int, typer.Option()] = FinetuneConfig.steps_per_epoch,
    batch_size: Annotated[int, typer.Option(help="Contexts a step.")] = FinetuneConfig.batch_size,
    seed: Annotated[int, typer.Option()] = FinetuneConfig.seed,
    device: Annotated[Device, typer.Option()] = FinetuneConfig.device,
    precision: Annotated[Precision, typer.Option(help="Of the model.")] = FinetuneConfig.precision,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Freeze model and SAE; learn one scale and one bias per feature."""
    settings = _settings(
        ctx, config, run=run, out=out, text=text, model=model, lr=lr, epochs=epochs,
        steps_per_epoch=steps_per_epoch, batch_size=batch_size, seed=seed, device=device,
        precision=precision,
    )  # fmt: skip
    screen = _screen(json)
    report = run_finetune(from_json(FinetuneConfig, settings), screen=screen)
    rows = {words: getattr(report, key) for key, words in TUNED_ROWS.items()}
    _show(screen, f"loss on held-out {report.text}, nats a token", rows, notes=report.notes)
    _emit(json, to_json(report))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for store, runs and figures.")] = Path(
        "runs/demo"
    ),
    json: JsonOut = None,
) -> None:
    """All of it on the embedded model and text, on a CPU, in under 3 minutes."""
    from pipeline.demo import demo_configs

    configs, screen = demo_configs(out), _screen(json)
    run_harvest(configs.harvest, screen=screen)
    run_train(configs.train, resume=True, screen=screen)
    (report,) = run_eval(configs.evaluate)
    tuned = run_finetune(configs.finetune, screen=screen)
    rows = {words: getattr(report, key) for key, words in EVAL_ROWS.items()}
    learned = {f"on arithmetic: {words}": getattr(tuned, key) for key, words in TUNED_ROWS.items()}
    title = f"{report.arch} SAE at {report.site}, {report.d_sae:,} features"
    _show(screen, f"{title}; losses in nats a token", {**rows, **learned})
    for figure in sorted(out.glob("*/*.png")):
        screen.print(f"figure: {figure}", soft_wrap=True)
    _emit(json, {"eval": to_json(report), "finetune": to_json(tuned)})


@store_app.command("info")
def store_info(
    path: Annotated[Path, typer.Argument(help="NAME.actstore.")], json: JsonOut = None
) -> None:
    """What is in a store."""
    from actstore.reader import ActStore

    store = ActStore.open(path)
    spec = store.spec.as_json()
    facts = {
        "rows a site": store.n_rows,
        "shards": store.n_shards,
        "sites": ", ".join(f"{site['name']} ({site['width']})" for site in spec.pop("sites")),
        **spec.pop("source"),
        **spec,
        "fingerprint": store.fingerprint,
    }
    _show(_screen(json), path.name, facts)
    _emit(json, {**facts, "sites": {site.name: site.width for site in store.spec.sites}})


@store_app.command("list")
def store_list(
    folder: Annotated[Path, typer.Argument(help="Searched with all its folders.")] = Path(),
) -> None:
    """Which stores are here."""
    from actstore.catalog import find_stores

    screen = _screen(None)
    for path, told in find_stores(folder):
        if not isinstance(told, str):
            sites = ", ".join(site.name for site in told.spec.sites)
            model = told.spec.source.get("model", "unknown")
            told = f"{told.state}, {told.n_rows:,} rows a site, {sites} of {model}"
        screen.print(f"{path}: {told}", soft_wrap=True, markup=False)


@store_app.command("verify")
def store_verify(path: Annotated[Path, typer.Argument(help="NAME.actstore.")]) -> None:
    """Check every byte of a store."""
    from actstore.verify import verify

    screen = _screen(None)
    with _progress("verify", "B") as show:
        findings = verify(path, on_progress=lambda done, total: show(done, total, ""))
    for finding in findings:
        place = {"shard": finding.shard, "chunk": finding.chunk}
        where = [f"{name} {i}" for name, i in place.items() if i is not None]
        what = ", ".join([finding.array or "store", *where])
        screen.print(f"{finding.path}: {what}: {finding.what}", soft_wrap=True, markup=False)
    if findings:
        raise StoreError(f"{path} is damaged, {len(findings)} findings: harvest it anew")
    screen.print(f"{path}: every byte is as it was written")


# --- one stage each, with its progress; the demo is made of them -----------------------------


def run_harvest(config: HarvestConfig, *, screen: "Console") -> "HarvestSummary | None":
    """Plan, harvest what is missing, say what was done; None when nothing was missing."""
    from pipeline.plan import make_plan

    plan = make_plan(config)
    if plan.state == "complete":
        screen.print(
            f"harvest   complete, reused: {plan.n_rows:,} rows a site in {config.out}",
            soft_wrap=True,
        )
        return None
    from pipeline.harvest import harvest as run

    def announce(plan: "HarvestPlan", seconds: float) -> None:
        screen.print(
            f"harvest   {', '.join(config.sites)} of {config.model} on {config.text}: "
            f"{plan.n_rows:,} rows a site ({plan.state}), {_bytes(plan.bytes_to_write)} to write, "
            f"{_bytes(plan.bytes_free)} free, about {_duration(seconds)}",
            soft_wrap=True,
        )

    with _progress("harvest", "tokens") as show:
        summary = run(
            plan,
            on_plan=announce,
            on_progress=lambda p: show(p.rows, p.n_rows, f"{_bytes(p.n_bytes)} on disk"),
        )
    screen.print(
        f"harvest   {summary.n_rows:,} rows a site, {_bytes(summary.n_bytes)} in {config.out}, "
        f"{summary.tokens_per_s:,.0f} tokens/s"
        + ("; the text ended there" if summary.source_exhausted else ""),
        soft_wrap=True,
    )
    return summary


def run_train(config: TrainConfig, *, resume: bool, screen: "Console") -> "TrainReport":
    """Train, unless that run is complete already, and draw its curves."""
    from pipeline.plots import training_curves
    from pipeline.train import train as run

    def told(r: "TrainReport") -> str:
        return f"loss {r.loss:.4g}  L0 {r.l0:.1f}  EV {r.explained_variance:.3f}  dead {r.n_dead}"

    with _progress("train", "rows") as show:
        report = run(
            config,
            resume=resume,
            on_step=lambda r: show(r.rows, r.n_steps * config.batch_size, told(r)),
        )
    training_curves(config.out / "metrics.jsonl", config.out / "curves.png")
    what = "complete, reused" if report.reused else f"{report.rows:,} rows"
    screen.print(f"train     {what}: {config.out} ({told(report)})", soft_wrap=True)
    return report


def run_eval(config: EvalConfig) -> "tuple[EvalReport, ...]":
    """Evaluate, and draw the figures into the folders of the runs."""
    from pipeline.evaluate.evaluation import evaluate as run
    from pipeline.evaluate.figures import save_figures

    with _progress("eval", "tokens") as show:
        reports = run(config, on_progress=lambda p: show(p.n_done, p.n_tokens, p.stage))
    for report in reports:
        save_figures(report)
    return reports


def run_finetune(config: FinetuneConfig, *, screen: "Console") -> "FinetuneReport":
    """Fine-tune, unless that run is complete already."""
    from pipeline.finetune import finetune as run

    with _progress("finetune", "steps") as show:
        report = run(config, on_step=lambda s: show(s.step, s.n_steps, f"loss {s.loss:.4f}"))
    what = "complete, reused" if report.reused else f"{report.n_steps} steps"
    screen.print(f"finetune  {what}: {config.out}", soft_wrap=True)
    return report


# --- settings --------------------------------------------------------------------------------


def _settings(ctx: typer.Context, file: Path | None, **options: object) -> dict[str, Any]:
    """Flag before file before default."""
    settings: dict[str, Any] = dict(load_toml(file)) if file is not None else {}
    for name, value in options.items():
        option = "site" if name == "sites" else name
        given = getattr(ctx.get_parameter_source(option), "name", None) == "COMMANDLINE"
        if given or name not in settings:
            settings[name] = to_json(value)
    return settings


def _arch(ctx: typer.Context, arch: object, **knobs: float) -> dict[str, object]:
    """The table that describes an architecture, from its name and the options that shape it."""
    table: dict[str, object] = (
        {str(k): v for k, v in arch.items()} if isinstance(arch, Mapping) else {"kind": arch}
    )
    kind = ARCHS.get(table.get("kind"))  # pyright: ignore[reportArgumentType]
    known = {f.name for f in fields(kind)} if kind is not None else set[str]()
    for name, value in knobs.items():
        given = getattr(ctx.get_parameter_source(name), "name", None) == "COMMANDLINE"
        if given and name not in known:
            raise ConfigError(f"--{name} means nothing to --arch {table.get('kind')}")
        if name in known and (given or name not in table):
            table[name] = value
    return table


def _count(text: str) -> int:
    """Read `500k`, `20M`, `1.5B` or a plain number."""
    factor = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        return round(float(digits.replace("_", "")) * factor)
    except ValueError:
        raise ConfigError(f"expected a number like 500k, 20M or 1B, got {text!r}") from None


# --- showing ---------------------------------------------------------------------------------


@contextmanager
def _progress(title: str, unit: str) -> Generator[Callable[[int, int, str], None], None, None]:
    """A bar on stderr with rate and time left; yields `show(done, total, words)`."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    rate, words = TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[words]}")
    name, bar = TextColumn(f"{title:<9}"), BarColumn(bar_width=24)
    screen = _screen("-")
    columns = (name, bar, rate, TimeRemainingColumn(), words)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        task = bars.add_task(title, total=None, rate="", words="")

        def show(done: int, total: int, words: str) -> None:
            speed = bars.tasks[0].speed
            rate = f"{_short(speed)} {unit}/s" if speed else ""
            bars.update(task, completed=done, total=total, rate=rate, words=words)

        yield show


def _screen(json: str | None) -> "Console":
    """Where people read: stdout, or stderr where stdout is for JSON."""
    from rich.console import Console

    return Console(stderr=json == "-", highlight=False)


def _show(
    screen: "Console", title: str, rows: Mapping[str, object], *, notes: Iterable[str] = ()
) -> None:
    """Names and values in two columns."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", overflow="fold")
    for name, value in rows.items():
        table.add_row(name, _text(value))
    screen.print(table)
    for note in notes:
        screen.print(f"note: {note}", markup=False)


EVAL_ROWS = {
    "ce_clean": "loss, the model alone",
    "ce_patched": "loss, SAE spliced in",
    "ce_zero": "loss, site zeroed",
    "ce_mean": "loss, site at its mean",
    "loss_recovered": "loss recovered (zero)",
    "loss_recovered_mean": "loss recovered (mean)",
    "kl": "KL(model || spliced)",
    "l0": "L0",
    "explained_variance": "explained variance",
    "mse": "mean squared error",
    "cosine": "cosine(x, x_hat)",
    "n_dead": "dead features",
    "dead_cosine_mean": "dead-feature cosine, dead",
    "alive_cosine_mean": "dead-feature cosine, alive",
}
TUNED_ROWS = {
    "ce_base": "loss, the model alone",
    "ce_spliced": "loss, SAE spliced in",
    "ce_finetuned": "loss, after learning c and d",
}


def _show_reports(screen: "Console", reports: "Sequence[EvalReport]") -> None:
    """One column a run."""
    from rich.table import Table

    first = reports[0]
    title = f"{first.model} on {first.text}, {first.n_tokens:,} tokens; losses in nats a token"
    table = Table("", title=title, title_justify="left")
    for report in reports:
        table.add_column(f"{report.run.name}\n{report.arch} {report.site}", justify="right")
    for key, words in EVAL_ROWS.items():
        table.add_row(words, *(_text(getattr(report, key)) for report in reports))
    screen.print(table)
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        screen.print(f"note: {note}", markup=False)


def _text(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4f}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)


def _short(value: float) -> str:
    """1234567 as 1.23M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def _bytes(n: float) -> str:
    return f"{_short(n)}B"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _emit(path: str | None, result: object) -> None:
    """Write a result as JSON, whole or not at all."""
    text = jsonlib.dumps(result, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
    elif path is not None:
        from actstore.files import write_file

        write_file(Path(path), [text.encode()])


def main() -> None:
    """Run the command line; turn what the user can fix into one line on stderr."""
    try:
        code = app(standalone_mode=False)  # it, too, answers 130 to Ctrl-C
    except typer.TyperException as error:
        typer.secho(f"error: {error.format_message()}", fg="red", err=True)
        sys.exit(error.exit_code)
    except (PipelineError, StoreError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except OSError as error:
        typer.secho(f"error: {error.filename or ''}: {error.strerror or error}", fg="red", err=True)
        sys.exit(1)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    if code == 130:
        typer.secho("stopped; the same command goes on", err=True)
    sys.exit(code)
