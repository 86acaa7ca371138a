"""The experiment on images: its progress, and its tables on the screen."""

from collections.abc import Iterator

from pipeline.mnist.classifier import LAYERS
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.result import MnistResult, compared, fvu_words
from pipeline.mnist.train import PAIRS
from pipeline.tables import Column, Table
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
    n_train, n_test = f"{result.n_train:,} images to learn from", f"{result.n_test:,} to test"
    yield Table(
        title=f"{result.images}: {n_train}, {n_test}",
        columns=_columns("", "S2", "ours"),
        sections=[[[what, s2, "  ".join(ours)] for what, (s2, ours) in compared(result).items()]],
        caption=f"several figures are those of {', '.join(LAYERS)}, or of "
        f"{' and '.join(f'{a} → {b}' for a, b in PAIRS)}; rms is that of the layer",
        edged=True,
    )
    alone = [f"{layer}\nalone" for layer in LAYERS[1:]]
    weights = f"weights\n> {result.config.threshold:g}"
    rows = [
        [
            one.name if one.form == "trained" else f"  {one.form}",
            *(f"{value:.3f}" for value in (one.accuracy, *one.accuracy_replaced)),
            "+".join(f"{c.n_above:,}" for c in one.connectors),
            fvu_words(one.connectors, between=" ", digits=2),
        ]
        for one in result.networks
    ]
    yield Table(
        title="simulated networks, encoded once",
        columns=_columns("connectors", "accuracy", *alone, weights, "FVU"),
        sections=[rows],
        edged=True,
    )


def _columns(first: str, *others: str) -> list[Column]:
    """A column of names, and others of numbers."""
    return [Column(head=first), *(Column(head=name, align="right") for name in others)]
