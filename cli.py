"""The command line. Each command makes a config, calls one function, and shows what it returns."""

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.errors import StoreError
from pipeline.codec import from_json, load_toml, to_json
from pipeline.config import (
    ARCHS,
    Arch,
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
from pipeline.terminal.words import count, size

if TYPE_CHECKING:  # torch takes seconds to import, and --help must not wait for it
    from actstore.verify import Finding
    from pipeline.curves import TrainReport
    from pipeline.evaluate.report import EvalReport
    from pipeline.finetune_run import FinetuneReport
    from pipeline.harvest import HarvestSummary
    from pipeline.terminal.screen import Screen

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Sparse autoencoders on cached activations: harvest once, train many times.",
)
store_app = typer.Typer(no_args_is_help=True, help="Look at, check, repair and remove stores.")
app.add_typer(store_app, name="store")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file with further settings.")
]
JsonOut = Annotated[
    str | None, typer.Option("--json", help="Write the result as JSON there; - is stdout.")
]
Store = Annotated[Path, typer.Argument(help="NAME.actstore.")]
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
    codec: Annotated[str, typer.Option(help="lz4, zstd, raw or bitround:N.")] = HarvestConfig.codec,
    config: ConfigFile = None,
    json: JsonOut = None,
) -> None:
    """Run a language model over a text, once, and store its activations."""
    settings = _settings(
        ctx, config, out=out, sites=site or [], model=model, revision=revision, text=text,
        tokens=count(tokens), ctx_len=ctx_len, batch_size=batch_size, device=device,
        precision=precision, dtype=dtype, codec=codec,
    )  # fmt: skip
    screen = _screen(json)
    screen.emit(run_harvest(from_json(HarvestConfig, settings), screen=screen))


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
        tokens=None if tokens is None else count(tokens), batch_size=batch_size, seed=seed,
        device=device, arch=arch,
    )  # fmt: skip
    settings["arch"] = _arch(ctx, settings["arch"], l1=l1, k=k)
    screen = _screen(json)
    screen.emit(run_train(from_json(TrainConfig, settings), resume=resume, screen=screen))


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
        ctx, config, runs=runs, text=text, tokens=count(tokens), model=model,
        batch_size=batch_size, device=device, precision=precision,
    )  # fmt: skip
    from pipeline.terminal.tables import reports_table

    screen = _screen(json)
    reports = run_eval(from_json(EvalConfig, settings), screen=screen)
    screen.draw(reports_table(reports))
    screen.note(note for report in reports for note in report.notes)
    screen.emit(reports)


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
    from pipeline.terminal.tables import TUNED_ROWS, named

    screen = _screen(json)
    report = run_finetune(from_json(FinetuneConfig, settings), screen=screen)
    screen.show(f"loss on held-out {report.text}, nats a token", named(report, TUNED_ROWS))
    screen.note(report.notes)
    screen.emit(report)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for store, runs and figures.")] = Path(
        "runs/demo"
    ),
    json: JsonOut = None,
) -> None:
    """All of it on the embedded model and text, on a CPU, in under 3 minutes."""
    from pipeline.demo import demo_configs
    from pipeline.terminal.tables import EVAL_ROWS, TUNED_ROWS, named

    configs, screen = demo_configs(out), _screen(json)
    run_harvest(configs.harvest, screen=screen)
    run_train(configs.train, resume=True, screen=screen)
    (report,) = run_eval(configs.evaluate, screen=screen)
    tuned = run_finetune(configs.finetune, screen=screen)
    learned = {f"on arithmetic: {key}": x for key, x in named(tuned, TUNED_ROWS).items()}
    title = f"{report.arch} SAE at {report.site}, {report.d_sae:,} features"
    screen.show(f"{title}; losses in nats a token", {**named(report, EVAL_ROWS), **learned})
    for figure in sorted(out.glob("*/*.png")):
        screen.say(f"figure: {figure}")
    screen.emit({"eval": report, "finetune": tuned})


@store_app.command("info")
def store_info(path: Store, json: JsonOut = None) -> None:
    """What is in a store: where from, how much, how well kept."""
    from pipeline.terminal.store_facts import store_facts
    from pipeline.terminal.store_tables import store_tables

    screen, facts = _screen(json), store_facts(path)
    for table in store_tables(facts):
        screen.draw(table)
    screen.emit(facts)


@store_app.command("list")
def store_list(
    folder: Annotated[
        Path | None, typer.Argument(help="Default: those in $SAEPIPE_STORES, or else this one.")
    ] = None,
    json: JsonOut = None,
) -> None:
    """Which stores are in a folder and in all its folders."""
    from actstore.catalog import find_stores
    from pipeline.reuse import known_folders
    from pipeline.terminal.store_facts import listed
    from pipeline.terminal.store_tables import stores_table

    screen, result = _screen(json), list[object]()
    for place in [folder] if folder else known_folders() or [Path()]:
        found = find_stores(place)
        if found:
            screen.draw(stores_table(place, found))
        else:
            screen.say(f"no store in {place}")
        for path, told in found:
            if isinstance(told, str):
                screen.say(f"{path}: {told}")
            result.append(listed(path, told))
    screen.emit(result)


@store_app.command("verify")
def store_verify(
    path: Store,
    repair: Annotated[bool, typer.Option("--repair", help="Get back what is damaged.")] = False,
    device: Annotated[Device, typer.Option(help="Of a repair.")] = HarvestConfig.device,
    batch_size: Annotated[
        int | None, typer.Option(help="Of a repair: contexts a forward pass.")
    ] = HarvestConfig.batch_size,
    json: JsonOut = None,
) -> None:
    """Check every byte of a store, and with --repair harvest again what is damaged."""
    from pipeline.terminal.damage import damage_words
    from pipeline.terminal.lines import repair_line

    screen, repaired = _screen(json), None
    findings = run_verify(path, screen=screen)
    if findings and repair:
        from pipeline.repair import repair as run

        with screen.progress("repair", "rows") as show:
            repaired = run(
                path, findings, device=device, batch_size=batch_size,
                on_progress=lambda done, total: show(done, total, ""),
            )  # fmt: skip
        screen.say(repair_line(repaired, path))
        findings = run_verify(path, screen=screen)
    screen.emit({"path": path, "findings": findings, "repaired": repaired})
    if findings:
        raise StoreError(
            f"{path} is damaged ({damage_words(findings)}); "
            f"get it back: saepipe store verify {path} --repair"
        )
    screen.say(f"verify    every byte of {path} is as it was written")


@store_app.command("rm")
def store_remove(
    path: Store, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Remove a store; never what is none."""
    from actstore.removal import removable, remove_store
    from pipeline.terminal.lines import removal_line

    screen = _screen()
    screen.say(removal_line(removable(path)))
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"there is nobody to ask: saepipe store rm {path} --yes")
        if not typer.confirm("remove it?"):
            raise typer.Exit(1)
    remove_store(path)
    screen.say(f"removed   {path}")


# --- one stage each, with its progress; the demo is made of them -----------------------------


def run_harvest(config: HarvestConfig, *, screen: "Screen") -> "HarvestSummary | None":
    """Harvest what is missing, in as many plans as it takes; None when nothing was."""
    from pipeline.plan import make_plan
    from pipeline.terminal.lines import harvest_lines, plan_line, reused_line

    summary = None
    while (plan := make_plan(config)).state != "complete":
        from pipeline.harvest import harvest as run  # it brings torch

        with screen.progress("harvest", "tokens") as show:
            summary = run(
                plan,
                on_plan=lambda plan, seconds: screen.say(plan_line(plan, seconds)),
                on_progress=lambda p: show(p.rows, p.n_rows, f"{size(p.n_bytes)} on disk"),
            )
        for line in harvest_lines(summary, config.out):
            screen.say(line)
        if plan.state != "add":
            break  # only an addition of sites may leave rows to write: do not ask the hub again
    if plan.found is not None:
        from pipeline.reuse import link

        link(plan.found, config.out)
    if summary is None:
        screen.say(reused_line(plan))
    return summary


def run_train(config: TrainConfig, *, resume: bool, screen: "Screen") -> "TrainReport":
    """Train, unless that run is complete already, and draw its curves."""
    from pipeline.plots import training_curves
    from pipeline.terminal.lines import curve_words, train_line
    from pipeline.train import train as run

    with screen.progress("train", "rows") as show:
        report = run(
            config,
            resume=resume,
            on_step=lambda r: show(r.rows, r.n_steps * config.batch_size, curve_words(r)),
        )
    training_curves(config.out / "metrics.jsonl", config.out / "curves.png")
    screen.say(train_line(report, config.out))
    return report


def run_eval(config: EvalConfig, *, screen: "Screen") -> "tuple[EvalReport, ...]":
    """Evaluate, and draw the figures into the folders of the runs."""
    from pipeline.evaluate.evaluation import evaluate as run
    from pipeline.evaluate.figures import save_figures

    with screen.progress("eval", "tokens") as show:
        reports = run(config, on_progress=lambda p: show(p.n_done, p.n_tokens, p.stage))
    for report in reports:
        save_figures(report)
    return reports


def run_finetune(config: FinetuneConfig, *, screen: "Screen") -> "FinetuneReport":
    """Fine-tune, unless that run is complete already."""
    from pipeline.finetune import finetune as run
    from pipeline.terminal.lines import finetune_line

    with screen.progress("finetune", "steps") as show:
        report = run(config, on_step=lambda s: show(s.step, s.n_steps, f"loss {s.loss:.4f}"))
    screen.say(finetune_line(report, config.out))
    return report


def run_verify(path: Path, *, screen: "Screen") -> "list[Finding]":
    """Check every byte, and say what is wrong, a line a finding."""
    from actstore.verify import verify
    from pipeline.terminal.damage import finding_line

    with screen.progress("verify", "B") as show:
        findings = verify(path, on_progress=lambda done, total: show(done, total, ""))
    for finding in findings:
        if finding.path == path:
            raise StoreError(finding.what)  # there is no whole store to check
        screen.say(finding_line(finding))
    return findings


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


# --- results and errors ----------------------------------------------------------------------


def _screen(json: str | None = None) -> "Screen":
    """Where results go; made inside of commands, since it brings rich."""
    from pipeline.terminal.screen import Screen

    return Screen(json=json)


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
