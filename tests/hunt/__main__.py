"""What no one thought of: every command, with whatever can be wrong with what it is given.

    python -m tests.hunt [arguments] [files] [faults]
        [--share 0.05] [--seed 0] [--part 1/4] [--only TEXT]

arguments  every option and argument of every command, given what it was not made for
files      every file that a command reads, absent, empty, a folder, truncated, of another version
faults     a kill, Ctrl-C, a full disk at every call that changes a file: the same command then
           comes to the same end; or a stop there, the same command meanwhile, and going on

Each trial is a process of its own in a folder of its own, forked from one that has imported what
commands need. A command may do what it was asked for; or it says why not, in one line, with exit
code 1 or 2, and leaves everything as it was. Counts are printed, and what was found; exit code 1
where anything was.
"""

import argparse
import math
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.hunt.child import warm
from tests.hunt.hunts import World, arguments, faults, files, wrong_of
from tests.hunt.world import make_world

HUNTS = {"arguments": lambda world: arguments(), "files": files, "faults": faults}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("hunts", nargs="*", default=[*HUNTS])
    parser.add_argument("--share", type=float, default=1.0, help="Of all trials, at random.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="1/1", help="Of so many that together are all trials.")
    parser.add_argument("--only", default="", help="Trials whose line holds this.")
    args = parser.parse_args()
    began, rng, found = time.monotonic(), random.Random(args.seed), 0
    warm()
    with tempfile.TemporaryDirectory() as name:
        world = World(make_world(Path(name).resolve() / "world"))
        for hunt in args.hunts:
            tried, trials = Counter[str](), [*HUNTS[hunt](world)]
            part, n_parts = map(int, args.part.split("/"))
            chosen = [trial for trial in trials if args.only in str(trial)][part - 1 :: n_parts]
            for trial in rng.sample(chosen, math.ceil(args.share * len(chosen))):
                wrong = wrong_of(trial, world)
                tried[trial.name] += wrong != ""
                if wrong:
                    found += 1
                    print(f"{trial}\n    {' '.join(trial.argv)!r}\n    {wrong}", flush=True)
            told = ", ".join(f"{name} {n}" for name, n in tried.items())
            seconds = time.monotonic() - began
            print(f"{hunt}: {tried.total()} of {len(trials)} tried, {seconds:.0f} s ({told})")
    print(f"{found} found")
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
