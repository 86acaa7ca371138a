"""Connectors evaluated, on the screen: one beside its baselines, or several a line each."""

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from pipeline.connect.evaluation.report import MAP_WORDS, QUANTILES, ConnectorReport, ScoredMap
from pipeline.evaluate.names import names_of
from pipeline.terminal.words import cell

Told = Callable[[ScoredMap], object]


def connector_tables(reports: Sequence[ConnectorReport]) -> Iterator[Table]:
    """What there is to see of some evaluations: of one all, of several what they are chosen by."""
    if len(reports) == 1:
        yield maps_table(reports[0])
        yield bounds_table(reports[0])
    else:
        yield connectors_table(reports)


def maps_table(report: ConnectorReport) -> Table:
    """One connector, and the baselines beside it."""
    table = Table(title=Text(_title(report)), title_justify="left", show_edge=False)
    table.add_column(no_wrap=True)
    for one in report.maps:
        table.add_column(Text(_name(one)), justify="right", no_wrap=True)
    for section in _sections(report.tau, with_losses=report.ce_clean is not None):
        for words, value in section.items():
            table.add_row(words, *(_told(value(one)) for one in report.maps))
        table.add_section()
    return table


def bounds_table(report: ConnectorReport) -> Table:
    """What the connector lies between, and how large."""
    table = Table(show_header=False, show_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", overflow="fold")
    layer = report.layer
    rows: dict[str, object] = {
        "reads": f"{report.n_in:,} features of {report.sites[0]}, {report.l0_in:.1f} active",
        "predicts": f"{report.n_out:,} features of {report.sites[1]}, {report.l0_out:.1f} active",
        "alive among these": report.n_alive,
    }
    if report.ce_clean is not None:
        rows |= {
            "loss, the model alone": report.ce_clean,
            "loss, SAE spliced in (the ceiling)": report.ce_sae,
            f"loss, {report.sites[1]} zeroed (the floor)": report.ce_zero,
            "loss recovered by the SAE": report.loss_recovered_sae,
        }
    if layer is not None:
        rows[f"the MLP's weights > {report.tau:g}"] = f"{layer.n_above:,} of {layer.n:,}"
    for words, value in rows.items():
        table.add_row(words, _told(value))
    return table


def connectors_table(reports: Sequence[ConnectorReport]) -> Table:
    """One line a connector, and one for each baseline of its SAEs."""
    table = Table(title=Text(_title(*reports)), title_justify="left", show_edge=False)
    table.add_column("run", overflow="fold")
    tau = reports[0].tau
    heads = ("l1", "FVU", f"above\n{tau:g}", "not\nzero", "loss\nrecovered", "of the\nSAE's")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    names = dict(zip((r.run for r in reports), names_of([r.run for r in reports]), strict=True))
    between: dict[tuple[object, ...], list[ConnectorReport]] = {}
    for report in reports:
        ends = (report.source, report.target, report.model, report.text)
        between.setdefault(ends, []).append(report)
    for members in between.values():
        for report in members:
            table.add_row(Text(names[report.run]), f"{report.l1:g}", *_line(report.connector))
        for one in members[0].baselines:
            table.add_row(Text(f"  {_name(one)}", style="dim"), "", *_line(one))
        table.add_section()
    table.caption = f"weights above {tau:g} and not zero: on average, of an output that is alive"
    table.caption_justify = "left"
    return table


def _line(one: ScoredMap) -> list[Text]:
    fvu, *recovered = map(_told, (one.fvu, one.loss_recovered, one.recovered_of_sae))
    counts = (one.above_mean, one.nonzero_mean)
    return [fvu, *(Text("-" if n is None else f"{n:.3g}") for n in counts), *recovered]


def _sections(tau: float, *, with_losses: bool) -> list[dict[str, Told]]:
    """What is told of each map, by its words."""
    explained: dict[str, Told] = {
        f"  {_at(q)} of outputs": lambda one, i=i: _quantile(one.explained_quantiles, i)
        for i, q in enumerate(QUANTILES)
    }
    predicts: dict[str, Told] = {
        "FVU": lambda one: one.fvu,
        **_bounds("fvu"),
        "mean squared error": lambda one: one.mse,
        "variance explained": lambda _: "",
        **explained,
    }
    weights: dict[str, Told] = {
        f"weights > {tau:g}": lambda one: one.n_above,
        "  of an output, mean": lambda one: one.above_mean,
        "  median": lambda one: _quantile(one.above_quantiles, QUANTILES.index(0.5)),
        "  most": lambda one: one.above_max,
        "weights not zero": lambda one: one.n_nonzero,
        "  of an output, mean ": lambda one: one.nonzero_mean,
        "mean |W|": lambda one: one.l1,
    }
    losses: dict[str, Told] = {
        "loss": lambda one: one.ce,
        "KL(model || spliced)": lambda one: one.kl,
        "loss recovered": lambda one: one.loss_recovered,
        **_bounds("loss_recovered"),
        "of what the SAE does": lambda one: one.recovered_of_sae,
    }
    return [predicts, weights, *([losses] if with_losses else [])]


def _bounds(metric: str) -> dict[str, Told]:
    """The ends of its 95 % interval; the words differ from those of another's in their length."""

    def end(one: ScoredMap, *, high: bool) -> float | None:
        found = next((i for i in one.intervals if i.metric == metric), None)
        return None if found is None else (found.high if high else found.low)

    return {
        "  95 % from": lambda one: end(one, high=False),
        "  95 % to": lambda one: end(one, high=True),
    }


def _quantile(quantiles: Sequence[float], i: int) -> float | None:
    return quantiles[i] if quantiles else None


def _at(q: float) -> str:
    return "median" if q == 0.5 else f"{100 * q:g} %"


def _name(one: ScoredMap) -> str:
    return MAP_WORDS.get(one.name, one.name)


def _title(*reports: ConnectorReport) -> str:
    """On what connectors were evaluated."""
    n = max(report.n_tokens for report in reports)
    if not reports[0].model:
        return f"connectors on {n:,} rows"
    where = dict.fromkeys(f"{report.model} on {report.text}" for report in reports)
    return f"{', '.join(where)}, {n:,} tokens; losses in nats a token"


def _told(value: object) -> Text:
    """As in every table, but with digits left of what is very small, and few of what is large."""
    if not isinstance(value, float) or 1e-3 <= abs(value) < 100:
        return Text(cell(value))
    return Text(f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2g}")
