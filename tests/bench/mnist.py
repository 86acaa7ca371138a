"""The MNIST experiment by the number of images it learns from, and by seed.

    python tests/bench/mnist.py --images FOLDER [--counts 1000 2000 4000 8000] [--seeds 0 1 2]

FOLDER has IDX files. Every count learns from the first so many of the images to learn from and is
tested on the same others; nothing else is told. Printed: accuracy of the classifier, and in points
of it what is lost by the connectors as they were trained, and cut and refitted, with the weights
above the threshold that these have and that the classifier has between the same layers.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from pipeline.mnist.config import MnistConfig
from pipeline.mnist.experiment import run_experiment
from pipeline.mnist.images import Labelled, open_images
from pipeline.mnist.result import MnistResult
from tests.helpers.images import write_idx


def points(result: MnistResult, form: str) -> float:
    return 100 * (result.network(result.chosen, form).accuracy - result.accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True)
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 2000, 4000, 8000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = open_images(args.images)
    print("images seed accuracy  trained  refitted  weights of features, of neurons  seconds")
    for count in args.counts:
        learned = Labelled(pixels=images.train.pixels[:count], labels=images.train.labels[:count])
        lost = []
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                for part, of in (("train", learned), ("t10k", images.test)):
                    write_idx(folder, part, np.rint(255 * of.pixels), of.labels)
                result = run_experiment(
                    MnistConfig(images=name, out=folder / "out", seed=seed, device="cpu")
                )
            refitted = result.network(result.chosen, "refitted")
            lost.append(points(result, "refitted"))
            print(
                f"{count:6d}{seed:5d}{result.accuracy:9.4f}{points(result, 'trained'):9.2f}"
                f"{lost[-1]:10.2f}  {' + '.join(str(c.n_above) for c in refitted.connectors):>20s}"
                f", {' + '.join(map(str, result.neuron_weights)):>11s}{result.seconds:9.0f}",
                flush=True,
            )
        print(f"{count:6d} mean{'':18s}{statistics.mean(lost):10.2f}", flush=True)


if __name__ == "__main__":
    main()
