"""The experiment on images: its progress, and its tables on the screen."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from pipeline.mnist.classifier import LAYERS
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.result import MnistResult, compared, fvu_words
from pipeline.mnist.train import PAIRS
from pipeline.terminal.screen import Screen


def run_mnist(config: MnistConfig, *, screen: Screen) -> MnistResult:
    """Run the experiment, unless it is complete already."""
    from pipeline.mnist.experiment import run_experiment

    with screen.progress("mnist") as show:
        result = run_experiment(config, on_progress=show)
    for table in mnist_tables(result):
        screen.draw(table)
    what = "complete, reused" if result.reused else f"{result.seconds:.0f} s"
    screen.say(f"mnist     {what}: {config.out}/report.html")
    return result


def mnist_tables(result: MnistResult) -> Iterator[Table]:
    """S2's figures beside ours, then one line a simulated network."""
    title = f"{result.images}: {result.n_train:,} images to learn from, {result.n_test:,} to test"
    table = _table(title, "", "S2", "ours")
    for what, (s2, ours) in compared(result).items():
        table.add_row(what, s2, Text("  ".join(ours)))
    table.caption = (
        f"several figures are those of {', '.join(LAYERS)}, or of "
        f"{' and '.join(f'{a} → {b}' for a, b in PAIRS)}; rms is that of the layer"
    )
    yield table
    alone = [f"{layer}\nalone" for layer in LAYERS[1:]]
    weights = f"weights\n> {result.config.threshold:g}"
    networks = "simulated networks, encoded once"
    table = _table(networks, "connectors", "accuracy", *alone, weights, "FVU")
    for one in result.networks:
        table.add_row(
            Text(one.name if one.form == "trained" else f"  {one.form}"),
            *(f"{value:.3f}" for value in (one.accuracy, *one.accuracy_replaced)),
            "+".join(f"{c.n_above:,}" for c in one.connectors),
            fvu_words(one.connectors, between=" ", digits=2),
        )
    yield table


def _table(title: str, first: str, *others: str) -> Table:
    """A column of names, and others of numbers."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
