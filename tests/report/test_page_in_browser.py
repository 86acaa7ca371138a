"""The page, opened in a browser, which takes long: `test_page.py` opens it once."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.features.feature import BEFORE
from pipeline.report.page import view
from pipeline.report.render import render
from tests.helpers.browser import CONTRAST, Visit, assert_outline, chromium
from tests.helpers.pages import (
    HOSTILE,
    PLAIN,
    VOCABULARY,
    make_exhibit,
    make_feature,
    make_report,
    make_run,
    shown,
)
from tests.helpers.tunings import make_meaning, make_tuned

pytestmark = pytest.mark.slow
ALL = range(len(VOCABULARY))
FEATURES = [make_feature(i, n_active=100 + 7 * (i * 11 % 40)) for i in range(40)]
DEAD = [make_feature(i, n_active=0) for i in (50, 51)]
WICKED = make_feature(45, n_active=9999, tokens=[i for i in ALL if i >= len(PLAIN)])
EVERY = [*FEATURES, WICKED, *DEAD]


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pages")


def written(path: Path, *exhibits) -> Path:
    path.write_bytes(render(view(exhibits)))
    return path


@pytest.fixture(scope="module")
def one(folder) -> Path:
    """A page about one run."""
    return written(folder / "one.html", make_exhibit(make_run(folder / "topk"), *EVERY))


@pytest.fixture(scope="module")
def several(folder, one) -> Path:
    """A page about three runs, of which the last has no features and no evaluation."""
    few = {"inserted": (), "dead": False}  # figures: they take long to draw
    runs = {folder / "topk": FEATURES, make_run(folder / "other", seed=1): FEATURES[5:10]}
    first, second = (
        make_exhibit(path, *features, evaluation=make_report(path, **few), curves=None)
        for path, features in runs.items()
    )
    nothing = {"features": None, "evaluation": None, "curves": None}
    third = make_exhibit(make_run(folder / "bare", seed=2), **nothing)
    return written(folder / "several.html", first, second, third)


@pytest.fixture
def visit_7(browser, one):
    """The page, open at feature 7."""
    with Visit(browser, one, fragment="feature=7") as visit:
        yield visit


def listed(visit: Visit) -> list[int]:
    """The features in the list, in its order."""
    return visit.each("#features-list a", "Number(n.dataset.index)")


def by_frequency(features) -> list[int]:
    return [f.index for f in sorted(features, key=lambda f: (-f.n_active, f.index))]


# --- finding features ------------------------------------------------------------------------


def test_the_page_opens_on_the_most_frequent_feature(browser, one):
    with Visit(browser, one) as visit:
        assert listed(visit) == by_frequency(EVERY)
        visit.sees("#features-heading", f"Feature {WICKED.index}")
        assert visit.text("#features-count") == "43 of 43 features on this page"
        assert visit("document.documentElement.lang") == "en"
        assert visit("scrollY") == 0


def test_a_search_finds_numbers_promoted_tokens_and_texts_of_contexts(browser, one):
    words = "".join(PLAIN[t].decode() for t in FEATURES[7].top.tokens[0].tolist() if t >= 0)
    found = {
        "12": [12],
        "3": [3, WICKED.index, *by_frequency(FEATURES[30:])],  # among numbers first
        "<SCRIPT>window": [WICKED.index],
        words[10:50]: [7],
    }
    with Visit(browser, one) as visit:
        visit.page.fill("#features-search", FEATURES[3].promoted[0].text)
        assert 3 in listed(visit)
        for search, expected in found.items():
            visit.page.fill("#features-search", search)
            assert listed(visit) == expected
        visit.page.press("#features-search", "Enter")
        visit.page.wait_for_url("**#feature=7")
        visit.sees("#features-heading", "Feature 7")
        visit.page.fill("#features-search", "nothing has this")
        assert listed(visit) == []
        assert visit.text("#features-count").startswith("0 of 43 features")


def test_features_can_be_put_in_order(browser, one):
    orders = {
        "max": lambda f: -f.max,
        "dead": lambda f: -f.dead_cosine,
        "index": lambda f: f.index,
        "frequency": lambda f: -f.n_active,
    }
    with Visit(browser, one) as visit:
        for order, key in orders.items():
            visit.page.select_option("#features-sort", order)
            expected = sorted(EVERY, key=lambda f: (key(f), f.index))
            assert listed(visit) == [f.index for f in expected]


def test_a_click_the_buttons_and_the_arrow_keys_lead_through_the_list(browser, one):
    order = by_frequency(EVERY)
    with Visit(browser, one) as visit:
        assert visit.page.is_disabled("#features-previous")
        visit.page.click(f"#features-list a[data-index='{order[3]}']")
        visit.sees("#features-heading", f"Feature {order[3]}")
        assert visit.texts("#features-list a[aria-current]")[0].startswith(str(order[3]))
        for go, place in (
            (lambda: visit.page.click("#features-next"), 4),
            (lambda: visit.page.keyboard.press("ArrowRight"), 5),
            (lambda: visit.page.keyboard.press("ArrowLeft"), 4),
            (lambda: visit.page.click("#features-previous"), 3),
        ):
            go()
            visit.page.wait_for_url(f"**#feature={order[place]}")
            visit.sees("#features-heading", f"Feature {order[place]}")
        visit.page.fill("#features-search", "4")
        visit.page.keyboard.press("ArrowRight")
        visit.sees("#features-heading", f"Feature {order[3]}")  # arrows in a field move its cursor


def test_the_tabulator_passes_the_list_in_one_step(browser, one):
    order = by_frequency(EVERY)
    focused = "document.activeElement.dataset.index ?? document.activeElement.id"
    with Visit(browser, one, fragment=f"feature={order[4]}") as visit:
        visit.page.focus("#features-sort")
        visit.page.keyboard.press("Tab")
        assert visit(focused) == str(order[4])
        visit.page.keyboard.press("ArrowDown")
        visit.sees("#features-heading", f"Feature {order[5]}")
        assert visit(focused) == str(order[5])
        visit.page.keyboard.press("Tab")
        assert visit(focused) == "features-previous"
        visit.page.fill("#features-search", "nothing has this")
        assert visit.page.is_disabled("#features-next")


# --- links -----------------------------------------------------------------------------------


def test_a_link_opens_its_feature_and_the_back_button_returns(visit_7):
    visit_7.sees("#features-heading", "Feature 7")
    box = visit_7.page.locator("#features").bounding_box()
    assert box["y"] < 200, "the reader is where the feature is"
    visit_7.page.click("#features-body a[href='#feature=8']")  # its nearest
    visit_7.sees("#features-heading", "Feature 8")
    visit_7.page.go_back()
    visit_7.sees("#features-heading", "Feature 7")
    visit_7.page.go_forward()
    visit_7.sees("#features-heading", "Feature 8")


def test_links_of_several_runs_name_the_run(browser, several):
    with Visit(browser, several, fragment="run=2&feature=7") as visit:
        visit.sees("#features-heading", "Feature 7")
        assert visit.page.input_value("#features-run") == "1"
        assert sorted(listed(visit)) == [5, 6, 7, 8, 9]
        visit.page.click("#features-next")
        assert "run=2&feature=" in visit.page.url
        visit.page.select_option("#features-run", "0")
        visit.page.wait_for_url("**#run=1")
        assert len(listed(visit)) == 40
        visit.sees("#features-heading", f"Feature {by_frequency(FEATURES)[0]}")
        visit.page.go_back()
        assert sorted(listed(visit)) == [5, 6, 7, 8, 9]


def test_the_page_says_what_it_does_not_show(browser, one, several):
    with Visit(browser, one, fragment="feature=63") as visit:
        visit.sees("#features-heading", "Feature 63")
        assert "not among the features on this page" in visit.text("#features-body")
    with Visit(browser, one, fragment="feature=51") as visit:  # the last one
        assert visit.page.is_disabled("#features-next")
        assert visit.page.is_enabled("#features-previous")
        assert "Dead: above zero on none of the 10,000 tokens" in visit.text("#features-body")
        assert "dead" in visit.text("#features-list a[aria-current]")
    with Visit(browser, several, fragment="run=3") as visit:
        assert "saepipe features" in visit.text("#features-body")
    with Visit(browser, one, fragment="run=9&feature=__proto__") as visit:
        assert "not among the features" in visit.text("#features-body")


# --- one feature -----------------------------------------------------------------------------


def test_tokens_are_lit_by_their_activation(visit_7):
    feature, texts = FEATURES[7], shown().texts
    rows = visit_7.each(
        ".examples li",
        "[...n.querySelectorAll('mark')]"
        ".map((m) => [Number(m.style.getPropertyValue('--share')), m.textContent])",
    )
    values = [*feature.top.value.tolist(), *feature.spread.value.tolist()]
    assert len(rows) == len(values)
    for row, tokens, its in zip(rows, feature.top.tokens, feature.top.values, strict=False):
        lit = its > 0
        assert [text for _, text in row] == [texts.alone(t) for t in tokens[lit].tolist()]
        assert [share for share, _ in row] == pytest.approx(its[lit] / feature.max, abs=0.02)
    told = [float(value) for value in visit_7.texts(".examples .value")]
    assert told == pytest.approx(values, abs=0.02)
    positions = [*feature.top.position.tolist(), *feature.spread.position.tolist()]
    assert min(positions) < BEFORE < max(positions)
    assert visit_7.page.locator("mark.peak").count() == len(values)
    assert len(set(visit_7.each("mark", "getComputedStyle(n).backgroundColor"))) > 5
    titles = visit_7.texts("#features-body h4")
    assert [title for title in titles if "quarter" in title] == [
        f"At random: {name} quarter" for name in ("strongest", "second", "third", "weakest")
    ]


def test_values_of_tokens_are_told_to_mouse_and_keyboard(visit_7):
    peak = visit_7.page.locator("mark.peak").first
    peak.hover()
    told = visit_7.text("#tip")
    assert "100 % of the largest" in told
    assert f"{FEATURES[7].max:.3g}" in told
    visit_7.page.keyboard.press("Escape")
    assert visit_7.page.is_hidden("#tip")
    peak.focus()
    assert "100 %" in visit_7.text("#tip")
    visit_7.page.keyboard.press("ArrowLeft")
    assert "100 %" not in visit_7.text("#tip")
    assert visit_7("document.activeElement.tagName") == "MARK"
    assert visit_7.page.url.endswith("feature=7"), "arrows in a context move from token to token"


def test_the_histogram_holds_every_activation_by_its_token(visit_7):
    legend = visit_7.texts(".legend li")
    counts = [int(words.rsplit(" ", 1)[1]) for words in legend]
    assert sum(counts) == len(FEATURES[7].sample.value)
    assert legend[-1].startswith("other tokens")
    assert counts[:-1] == sorted(counts[:-1], reverse=True)
    assert len(counts) == len(set(visit_7.each(".legend rect", "getComputedStyle(n).fill"))) == 7
    bars = visit_7.each(
        ".histogram > svg rect", "[n.getAttribute('class'), Number(n.getAttribute('height'))]"
    )
    total = sum(height for _, height in bars)
    for name, count in zip([*(f"s{i}" for i in range(6)), "rest"], counts, strict=True):
        share = sum(height for kind, height in bars if kind == name) / total
        assert share == pytest.approx(count / sum(counts), abs=1e-6)


def test_logits_and_neighbours_stand_beside_it(visit_7):
    promotes, suppresses = visit_7.texts(".pair .effects")
    assert [line.split()[0] for line in promotes.splitlines()[::2]] == [
        effect.text.strip() for effect in FEATURES[7].promoted
    ]
    assert f"{FEATURES[7].suppressed[0].effect:.3g}" in suppresses
    assert "feature 8" in visit_7.text("#features-body a[href='#feature=8']")


def test_hostile_texts_appear_as_texts_and_run_nothing(browser, one):
    with Visit(browser, one, fragment=f"feature={WICKED.index}") as visit:
        visit.page.fill("#features-search", "window.pwned")
        text = visit("document.body.textContent")
        for hostile in HOSTILE[:11]:
            assert hostile in text
        for escaped in ("\\u2028", "\\x00", "\\x1b[31m", "\\u202egnp.exe", "\\u2066", "\\xe2"):
            assert escaped in text
        assert visit("document.querySelectorAll('script').length") == 2
        assert visit("document.querySelectorAll('img, b, iframe').length") == 0
        assert visit("getComputedStyle(document.querySelector('.token')).unicodeBidi") == "isolate"


# --- how it looks ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_told_from_what_is_behind_it(browser, one, scheme):
    with Visit(browser, one, color_scheme=scheme) as visit:
        worst = visit(CONTRAST)
        assert worst[0][0] >= 4.5, worst


def test_dark_and_light_follow_the_reader_and_the_button(browser, one):
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('figure path[stroke]')).stroke"
    seen = []
    for scheme in ("light", "dark"):
        with Visit(browser, one, color_scheme=scheme) as visit:
            for _ in range(3):
                seen.append([visit(ground), visit(line)])
                visit.page.click("#theme")
    light, dark = seen[:2]
    assert seen == [light, dark, light, dark, light, dark]
    assert not set(dark) & set(light)


def test_no_screen_is_too_narrow_and_headings_go_down_one_level_at_a_time(browser, one, several):
    for path, fragment in ((one, f"feature={WICKED.index}"), (several, "")):
        with Visit(browser, path, fragment=fragment) as visit:
            assert_outline(visit)
            for width in (320, 360, 800):
                visit.page.set_viewport_size({"width": width, "height": 700})
                assert visit("document.documentElement.scrollWidth") <= width
                rows = visit.each("tbody tr", "n.offsetHeight")
                assert max(rows) < 150, "no word is broken for want of width"
                detail = visit.page.locator("#features-detail").bounding_box()
                assert 0 <= detail["x"] <= detail["x"] + detail["width"] <= width


def test_figures_can_be_seen(browser, one, several):
    with Visit(browser, one) as visit:
        boxes = [f.bounding_box() for f in visit.page.locator("figure svg").all()]
        assert len(boxes) == 7
        assert all(box["width"] > 200 and box["height"] > 100 for box in boxes)
        labels = visit.each("figure svg", "n.getAttribute('aria-label')")
        assert "How often is each feature active?" in labels
        assert len(set(visit.each("figure svg *", "getComputedStyle(n).fill"))) > 4
    with Visit(browser, several) as visit:
        assert visit.page.locator("#frontier svg").bounding_box()["width"] > 200


def test_a_feature_without_logits_or_neighbours_has_none(browser, folder, one):
    bare = replace(FEATURES[2], promoted=(), suppressed=(), neighbours=(), dead_cosine=None)
    exhibit = make_exhibit(folder / "topk", bare, curves=None, evaluation=None)
    with Visit(browser, written(folder / "bare.html", exhibit)) as visit:
        assert "Promotes" not in visit.text("#features-body")
        assert "Nearest" not in visit.text("#features-body")
        assert visit.text("#features-body dl").splitlines()[-1] == "-"


@pytest.fixture(scope="module")
def tuned(folder, one) -> Path:
    """A page about a fine-tuning, whose texts are hostile."""
    run = make_tuned(folder / "topk", folder / "tuned", meaning=make_meaning(texts=HOSTILE))
    exhibit = make_exhibit(folder / "topk", FEATURES[1], tuned=run, evaluation=None)
    return written(folder / "tuned.html", exhibit)


def test_a_link_to_a_feature_that_was_moved_opens_it(browser, tuned):
    with Visit(browser, tuned) as visit:
        opened = "[...document.querySelectorAll('details.moved')].map((n) => n.open)"
        assert visit(opened) == [True, False, False, False, False]
        visit.page.click("#finetuning a[href='#t1-m3'] >> nth=0")
        visit.page.wait_for_function("document.getElementById('t1-m3').open")
        assert visit("document.getElementById('t1-m3').getBoundingClientRect().top") < 700
        visit.sees("#features-heading", "Feature 1")
    with Visit(browser, tuned, fragment="t1-m4") as visit:
        assert visit(opened) == [True, False, False, True, False]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_fine_tuning_can_be_read_anywhere(browser, tuned, scheme):
    with Visit(browser, tuned, color_scheme=scheme) as visit:
        assert visit(CONTRAST)[0][0] >= 4.5
        assert_outline(visit)
        for width in (320, 800):
            visit.page.set_viewport_size({"width": width, "height": 700})
            assert visit("document.documentElement.scrollWidth") <= width
