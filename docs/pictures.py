"""Draw the pictures of README and these pages again, from the program as it is.

    python docs/pictures.py [curves report house notebook beta connectors mnist superposition]

`house` takes seconds, `notebook` (its outputs) a minute, `curves` and `report` a demo, the others
some minutes each on two cores. Runs go into `runs/pictures`, and are reused. `report` needs
chromium and playwright; `mnist` takes the digits of `saepipe[mnist]`.
"""

import argparse
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.plots.style import BLUE, GRAY, INK, make_figure, save  # noqa: E402
from tests.test_architecture import (  # noqa: E402
    MODULES,
    ORDER,
    SOURCE_OF,
    imports_of,
    room_of,
)

IMG, RUNS = ROOT / "docs" / "img", ROOT / "runs" / "pictures"
DEMO = RUNS / "demo"


def saepipe(line: str) -> None:
    """A command of saepipe, in the folder of these runs."""
    RUNS.mkdir(parents=True, exist_ok=True)
    subprocess.run([shutil.which("saepipe") or "saepipe", *line.split()], cwd=RUNS, check=True)


def curves() -> None:
    """The training curves of the demo."""
    saepipe("demo --out demo")
    shutil.copy(DEMO / "sae" / "curves.png", IMG / "curves.png")


_TO_FEATURES = """scrollTo({
    top: document.querySelector("#features").getBoundingClientRect().top + scrollY - 60,
    behavior: "instant",
})"""


def report() -> None:
    """A feature on the demo's page."""
    from playwright.sync_api import sync_playwright

    saepipe("demo --out demo")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 940})
        page.goto((DEMO / "report.html").as_uri() + f"#feature={strongest_of_the_rare()}")
        page.evaluate(_TO_FEATURES)
        page.wait_for_timeout(1000)  # the list is filled where it is seen
        page.screenshot(path=IMG / "report.png")
        browser.close()


def strongest_of_the_rare() -> int:
    """Of the features on the demo's page, the strongest that is active on 1 token in 100 at most.

    The most frequent say least.
    """
    from pipeline.config.stages import ReportConfig
    from pipeline.report.feature_data import shown_features

    shown = shown_features(DEMO / "sae", n=ReportConfig.n_features)
    assert shown is not None
    rare = [one for one in shown.features if 0 < one.frequency <= _RARE]
    return max(rare, key=lambda one: one.max).index


_RARE = 0.01


def house() -> None:
    """The rooms of the code, each importing only what stands below it; files alone are left out."""
    lines, needs = Counter[str](), dict[str, set[str]]()
    for module in MODULES:
        room = room_of(module)
        lines[room] += len(SOURCE_OF[module].read_text().splitlines())
        found = {room_of(name) for name in imports_of(module) & MODULES}
        needs[room] = needs.get(room, set()) | found - {room}
    shown = {room for room in needs if (ROOT / "pipeline" / room).is_dir()}
    shown |= {"actstore", "verbs", "cli"}
    floors = [[r for r in names if r in shown] for names in ORDER if shown & set(names)]
    place = {
        room: (10 * (i + 1) / (len(names) + 1), level)
        for level, names in enumerate(floors)
        for i, room in enumerate(names)
    }
    figure = make_figure(width=7, height=7.6)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set(xlim=(1.5, 8.5), ylim=(-0.4, len(floors) - 0.6))
    for room, (x, y) in place.items():
        direct = reached_by(needs, [room], by_way_of=needs.keys() - shown) & shown - {room}
        for other in direct - reached_by(needs, direct, by_way_of=needs):
            (x1, y1) = place[other]
            axes.add_patch(
                FancyArrowPatch(
                    (x, y - 0.28), (x1, y1 + 0.28), color=GRAY, arrowstyle="-|>",
                    mutation_scale=9, linewidth=0.9, shrinkA=0, shrinkB=0,
                )
            )  # fmt: skip
        box = FancyBboxPatch(
            (x - 0.8, y - 0.28), 1.6, 0.56, boxstyle="round,pad=0,rounding_size=0.12",
            facecolor="white", edgecolor=BLUE, zorder=3,
        )  # fmt: skip
        axes.add_patch(box)
        words = f"{lines[room]:,} lines"
        axes.text(x, y + 0.08, room, ha="center", va="center", color=INK, fontsize=9, zorder=4)
        axes.text(x, y - 0.16, words, ha="center", va="center", color=GRAY, fontsize=6.5, zorder=4)
    save(figure, IMG / "house.png")


def reached_by(
    needs: dict[str, set[str]], rooms: Iterable[str], *, by_way_of: Collection[str]
) -> set[str]:
    """What these rooms need, in turn through those that may be passed."""
    found: set[str] = set()
    todo = [need for room in rooms for need in needs[room]]
    while todo:
        if (room := todo.pop()) not in found:
            found.add(room)
            todo += needs[room] if room in by_way_of else ()
    return found


def notebook() -> None:
    """What the cells of the tutorial end in."""
    import nbformat
    from nbclient import NotebookClient

    place = RUNS / "notebook"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    book = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": place}}).execute()
    for cell in book.cells:
        cell.get("metadata", {}).pop("execution", None)
        shown = [out for out in cell.get("outputs", []) if out.get("name") != "stderr"]
        if cell.cell_type == "code":
            cell["outputs"] = shown
    told = nbformat.writes(book).replace(f"file://{place}/", "").replace(f"{place}/", "")
    (ROOT / "docs" / "tutorial.ipynb").write_text(told + "\n")


def beta() -> None:
    """A run whose l1 is steered to a share of active latents."""
    saepipe("demo --out demo")
    saepipe(
        "train demo/acts.actstore --arch relu --target 0.01 --set hold=300k --set clip=0 "
        "--lr 1e-3 --tokens 2M --out beta"
    )
    saepipe("plot beta")
    shutil.copy(RUNS / "beta" / "curves.png", IMG / "beta.png")


def connectors() -> None:
    """Connectors between two sites of the embedded model, and baselines."""
    sites = ("resid_pre.1", "mlp_out.1")
    saepipe(f"harvest --site {','.join(sites)} --tokens 400k --out mlp1.actstore")
    saepipe(f"train mlp1.actstore --site {','.join(sites)} --l0 16 --out saes")
    saepipe(
        f"train mlp1.actstore --connect saes/{sites[0]}:saes/{sites[1]} --l1 1e-3,3e-3,1e-2 "
        "--set start=random,regression,weights --tokens 1.2M --out mlp1"
    )
    saepipe("eval mlp1 --tokens 50k")
    shutil.copy(RUNS / "mlp1" / "connectors.png", IMG / "connectors.png")


def mnist() -> None:
    """The weights between neurons, and between features."""
    saepipe("mnist --out digits")
    shutil.copy(RUNS / "digits" / "weights-h1-h2.png", IMG / "mnist.png")


def superposition() -> None:
    """Known features that are found."""
    script = ROOT / "tests" / "bench" / "superposition.py"
    told = ["--archs", "topk", "relu", "--seeds", "0", "--figure", str(IMG / "superposition.png")]
    subprocess.run([sys.executable, script, *told], check=True, cwd=ROOT)


PICTURES: tuple[Callable[[], None], ...] = (
    curves, report, house, notebook, beta, connectors, mnist, superposition,
)  # fmt: skip


def main() -> None:
    """Draw those that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {picture.__name__: picture for picture in PICTURES}
    parser.add_argument("pictures", nargs="*", choices=known, default=[*known])
    for name in parser.parse_args().pictures:
        known[name]()


if __name__ == "__main__":
    main()
