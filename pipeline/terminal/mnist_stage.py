"""The experiment on images, with its progress and its tables."""

from pipeline.mnist.config import MnistConfig
from pipeline.mnist.result import MnistResult
from pipeline.terminal.mnist_tables import mnist_tables
from pipeline.terminal.screen import Screen


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
