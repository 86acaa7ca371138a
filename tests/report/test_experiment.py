"""The page of an experiment: chapters of words, tables and pictures."""

import re
from base64 import b64decode

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.plots.style import BLUE, as_png, axes_in, make_figure
from pipeline.report.experiment import Chapter, Picture, Table
from pipeline.report.page import write_experiment
from pipeline.report.render import Tile
from tests.helpers.browser import Visit, chromium
from tests.helpers.pages import HOSTILE
from tests.helpers.reading_pages import Reader

RNG = np.random.default_rng(0)


PNG = as_png(make_figure(width=0.1, height=0.1))


def bars():
    figure = make_figure(width=4.0, height=3.0)
    axes_in(figure, (1, 1, 1), title="Bars", y="share").bar([1, 2], [0.2, 0.4], color=BLUE)
    return figure


def squares():
    """Two images of few pixels."""
    figure = make_figure(width=4.0, height=2.0)
    for i in (1, 2):
        figure.add_subplot(1, 2, i).imshow(RNG.normal(size=(16, 16)), interpolation="none")
    return figure


def dots():
    """So many that they are more as shapes than as an image."""
    figure = make_figure(width=4.0, height=3.0)
    axes_in(figure, (1, 1, 1), title="Dots", y="y").scatter(*RNG.normal(size=(2, 9000)), s=2)
    return figure


def make_page(folder, **changes):
    chapters = [
        Chapter(
            title="Beside <others>",
            words=["Plain words.", *HOSTILE],
            tables=[
                Table(
                    title="Scores",
                    columns=["ours", "theirs"],
                    rows={"accuracy": ["0.97", "0.94"], "weights\nabove 0.1": ["301", "458"]},
                    note="Theirs saw more.",
                )
            ],
        ),
        Chapter(
            title="Pictures",
            pictures=[
                Picture(content=squares(), title="Squares", caption="Two.", wide=True),
                Picture(content=bars(), title="Bars"),
                Picture(content=dots(), title="Dots"),
                Picture(content=PNG, title='A "file"'),
            ],
            formulas=["OF1 = 0.5 IF2 <b>"],
        ),
    ]
    given = {
        "lead": "8 images",
        "tiles": [Tile(name="accuracy", value="97 %", note="of all")],
        "chapters": chapters,
    } | changes
    return write_experiment("Digits", out=folder / "report.html", **given)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return make_page(tmp_path_factory.mktemp("experiment"))


def test_what_an_experiment_says_stands_in_its_page_in_order(page):
    text = Reader(page.read_bytes()).text
    parts = (
        "Experiment Digits 8 images accuracy 97 % of all", "Beside <others> Plain words.",
        "Scores ours theirs accuracy 0.97 0.94 weights above 0.1 301 458 Theirs saw more.",
        "Pictures", "Squares Two.", "OF1 = 0.5 IF2 <b>",
    )  # fmt: skip
    place = 0
    for part in parts:
        place = text.index(part, place) + len(part)


def test_figures_are_shapes_and_what_has_too_many_of_them_is_an_image(page):
    tags = Reader(page.read_bytes()).tags
    svgs, images, raster = (
        [attrs for tag, attrs in tags if tag == name] for name in ("svg", "img", "image")
    )
    assert [svg.get("aria-label") for svg in svgs] == ["Squares", "Bars"]
    assert [image["alt"] for image in images] == ["Dots", 'A "file"']
    assert b64decode(images[1]["src"].partition("base64,")[2]) == PNG
    assert len(raster) == 2
    assert all(image["href"].startswith("data:image/png;base64,") for image in raster)
    assert page.stat().st_size < 500_000


def test_chapters_of_one_name_have_places_of_their_own(tmp_path):
    chapters = [Chapter(title="Same", words=[word]) for word in "ab"]
    raw = make_page(tmp_path, chapters=chapters).read_bytes().decode()
    ids = re.findall(r'<section id="([^"]+)"', raw)
    assert ids == ["c1-same", "c2-same"]
    assert re.findall(r'<a href="#(c[^"]+)"', raw) == ids


def test_a_folder_in_the_place_of_the_page_is_one_line(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ConfigError, match=r"is a folder"):
        make_page(tmp_path, chapters=[])


@pytest.mark.slow
def test_the_page_opens_in_any_theme_and_width_and_asks_for_nothing(page):
    with chromium() as browser:
        for scheme, width in (("light", 1280), ("dark", 320)):
            size = {"width": width, "height": 700}
            with Visit(browser, page, color_scheme=scheme, viewport=size) as visit:
                assert visit("document.documentElement.scrollWidth") <= width
                shown = visit.each(
                    "figure svg, figure img",
                    "(n.naturalWidth ?? 1) && Math.min(n.clientWidth, n.clientHeight)",
                )
                assert len(shown) == 4
                assert min(shown) > 80
                text = visit("document.body.textContent")
                assert all(hostile in text for hostile in HOSTILE[:11])
                visit.page.click("#theme")
                visit.page.click("nav a:nth-child(2)")
                assert visit.page.url.endswith("#c2-pictures")
