"""`saepipe store import` and `export`: what is said before, while and after they run."""

from pipeline.config.rows import ExportConfig, ImportConfig
from pipeline.exchange.rows.export import ExportSummary, export_rows
from pipeline.exchange.rows.importing import ImportSummary, import_rows
from pipeline.exchange.rows.plan import plan_words
from pipeline.progress import size
from pipeline.terminal.screen import Screen


def run_import(config: ImportConfig, *, screen: Screen) -> ImportSummary:
    """Read what is missing."""
    with screen.progress("import") as show:
        summary = import_rows(
            config,
            on_plan=lambda plan: screen.say(f"import    {plan_words(plan)}"),
            on_progress=show,
        )
    rows = f"{summary.n_rows:,} rows a site"
    if summary.reused:
        screen.say(f"import    complete, reused: {rows} in {summary.store}")
    else:
        screen.say(
            f"import    {rows}, {size(summary.n_bytes)} in {summary.store}, "
            f"{summary.rows_per_s:,.0f} rows/s"
        )
    screen.note(summary.notes)
    return summary


def run_export(config: ExportConfig, *, screen: Screen) -> ExportSummary:
    """Write a site."""
    with screen.progress("export") as show:
        summary = export_rows(config, on_progress=show)
    beside = "".join(f", tokens in {file}" for file in summary.files[1:2] if file != summary.path)
    screen.say(
        f"export    {config.site}: {summary.n_rows:,} rows, {size(summary.n_bytes)} in "
        f"{summary.path}{beside if config.to == 'npy' else ''}, {summary.rows_per_s:,.0f} rows/s"
    )
    screen.note(summary.notes)
    return summary
