"""And of the experiment.

The experiment on images, as tables on the screen.

The experiment on images, with its progress and its tables.
"""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from pipeline.mnist.classifier import LAYERS
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.result import MnistResult, compared
from pipeline.mnist.train import PAIRS
from pipeline.terminal.screen import Screen


def mnist_tables(result: MnistResult) -> Iterator[Table]:
    """S2's figures beside ours, then every simulated network."""
    yield compared_table(result)
    yield networks_table(result)


def compared_table(result: MnistResult) -> Table:
    """S2's figures beside ours; several of ours are of layers h1, h2, h3, or of the pairs."""
    title = f"{result.images}: {result.n_train:,} images to learn from, {result.n_test:,} to test"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("S2", justify="right", no_wrap=True)
    table.add_column("ours", justify="right", no_wrap=True)
    for row in compared(result):
        table.add_row(row.what, row.s2, Text("  ".join(row.ours)))
    table.caption = (
        f"several figures are those of {', '.join(LAYERS)}, or of "
        f"{' and '.join(f'{a} → {b}' for a, b in PAIRS)}; rms is that of the layer"
    )
    return table


def networks_table(result: MnistResult) -> Table:
    """One line a simulated network: accuracy, weights, how well features are predicted."""
    table = Table(title=Text("simulated networks, encoded once"), title_justify="left")
    table.add_column("connectors", no_wrap=True)
    table.add_column("accuracy", justify="right")
    for layer in LAYERS[1:]:
        table.add_column(f"{layer}\nalone", justify="right")
    table.add_column(f"weights\n> {result.config.threshold:g}", justify="right", no_wrap=True)
    table.add_column("FVU", justify="right", no_wrap=True)
    for one in result.networks:
        cells = [f"{one.accuracy:.3f}", *(f"{value:.3f}" for value in one.accuracy_replaced)]
        counts = "+".join(f"{c.n_above:,}" for c in one.connectors)
        unexplained = " ".join(f"{c.fvu:.2f}" for c in one.connectors)
        name = one.name if one.form == "trained" else f"  {one.form}"
        table.add_row(Text(name), *cells, counts, unexplained)
    return table


def run_mnist(config: MnistConfig, *, screen: Screen) -> MnistResult:
    """Run the experiment, unless it is complete already."""
    from pipeline.mnist.experiment import run_experiment

    with screen.progress("mnist", "steps") as show:
        result = run_experiment(config, on_progress=lambda p: show(p.step, p.n_steps, p.stage))
    for table in mnist_tables(result):
        screen.draw(table)
    what = "complete, reused" if result.reused else f"{result.seconds:.0f} s"
    screen.say(f"mnist     {what}: {config.out}/report.html")
    return result
