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

pytestmark = pytest.mark.slow
ALL = range(len(VOCABULARY))
FEATURES = [make_feature(i, n_active=100 + 7 * (i * 11 % 40)) for i in range(40)]
DEAD = [make_feature(i, n_active=0) for i in (50, 51)]
WICKED = make_feature(45, n_active=9999, tokens=[i for i in ALL if i >= len(PLAIN)])


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def one(folder) -> Path:
    """A page about one run."""
    exhibit = make_exhibit(make_run(folder / "topk"), *FEATURES, WICKED, *DEAD)
    (folder / "one.html").write_bytes(render(view([exhibit])))
    return folder / "one.html"


@pytest.fixture(scope="module")
def several(folder, one) -> Path:
    """A page about three runs, of which the last has no features and no evaluation."""
    few = {"inserted": (), "dead": False}  # figures: they take long to draw
    first, second = (
        make_exhibit(path, *features, evaluation=make_report(path, **few), curves=None)
        for path, features in (
            (folder / "topk", FEATURES),
            (make_run(folder / "other", seed=1), FEATURES[5:10]),
        )
    )
    nothing = {"features": None, "evaluation": None, "curves": None}
    third = make_exhibit(make_run(folder / "bare", seed=2), **nothing)
    (folder / "several.html").write_bytes(render(view([first, second, third])))
    return folder / "several.html"


def listed(visit: Visit) -> list[int]:
    """The features in the list, in its order."""
    return visit(
        "[...document.querySelectorAll('#features-list a')].map((a) => Number(a.dataset.index))"
    )


def by_frequency(features) -> list[int]:
    return [f.index for f in sorted(features, key=lambda f: (-f.n_active, f.index))]


# --- finding features ------------------------------------------------------------------------


def test_the_page_opens_on_the_most_frequent_feature(browser, one):
    with Visit(browser, one) as visit:
        assert listed(visit) == by_frequency([*FEATURES, WICKED, *DEAD])
        visit.sees("#features-heading", f"Feature {WICKED.index}")
        assert visit.text("#features-count") == "43 of 43 features on this page"
        assert visit("document.documentElement.lang") == "en"
        assert visit("scrollY") == 0


def test_a_search_finds_numbers_promoted_tokens_and_texts_of_contexts(browser, one):
    with Visit(browser, one) as visit:
        visit.page.fill("#features-search", "12")
        assert listed(visit) == [12]
        visit.page.fill("#features-search", "3")  # a number is looked for among numbers first
        assert listed(visit) == [3, WICKED.index, *by_frequency(FEATURES[30:])]
        visit.page.fill("#features-search", "<SCRIPT>window")
        assert listed(visit) == [WICKED.index]
        promoted = FEATURES[3].promoted[0].text
        visit.page.fill("#features-search", promoted)
        found = listed(visit)
        assert 3 in found
        feature = FEATURES[7]
        words = "".join(PLAIN[t].decode() for t in feature.top.tokens[0].tolist() if t >= 0)
        visit.page.fill("#features-search", words[10:50])
        assert listed(visit) == [7]
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
    features = [*FEATURES, WICKED, *DEAD]
    with Visit(browser, one) as visit:
        for order, key in orders.items():
            visit.page.select_option("#features-sort", order)
            expected = sorted(features, key=lambda f: (key(f), f.index))
            assert listed(visit) == [f.index for f in expected]


def test_a_click_the_buttons_and_the_arrow_keys_lead_through_the_list(browser, one):
    order = by_frequency([*FEATURES, WICKED, *DEAD])
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
    order = by_frequency([*FEATURES, WICKED, *DEAD])
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


def test_a_link_opens_its_feature_and_the_back_button_returns(browser, one):
    with Visit(browser, one, fragment="feature=7") as visit:
        visit.sees("#features-heading", "Feature 7")
        box = visit.page.locator("#features").bounding_box()
        assert box["y"] < 200, "the reader is where the feature is"
        visit.page.click("#features-body a[href='#feature=8']")  # its nearest
        visit.sees("#features-heading", "Feature 8")
        visit.page.go_back()
        visit.sees("#features-heading", "Feature 7")
        visit.page.go_forward()
        visit.sees("#features-heading", "Feature 8")


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


def test_tokens_are_lit_by_their_activation(browser, one):
    feature = FEATURES[7]
    with Visit(browser, one, fragment="feature=7") as visit:
        shares = visit(
            "[...document.querySelectorAll('.examples li')].map((li) => [...li.querySelectorAll("
            "'mark')].map((m) => [Number(m.style.getPropertyValue('--share')), m.textContent]))"
        )
        assert len(shares) == len(feature.top.value) + len(feature.spread.value)
        texts = shown().texts
        for row, tokens, values in zip(
            shares, feature.top.tokens, feature.top.values, strict=False
        ):
            lit = [(v, t) for v, t in zip(values.tolist(), tokens.tolist(), strict=True) if v > 0]
            assert [text for _, text in row] == [texts.alone(t) for _, t in lit]
            for (share, _), (value, _) in zip(row, lit, strict=True):
                assert share == pytest.approx(value / feature.max, abs=0.02)
        told = [float(value) for value in visit.texts(".examples .value")]
        values = [*feature.top.value.tolist(), *feature.spread.value.tolist()]
        assert told == pytest.approx(values, abs=0.02)
        positions = [*feature.top.position.tolist(), *feature.spread.position.tolist()]
        assert min(positions) < BEFORE < max(positions)
        assert visit.page.locator("mark.peak").count() == len(values)
        colours = visit(
            "[...document.querySelectorAll('mark')].map((m) => getComputedStyle(m).backgroundColor)"
        )
        assert len(set(colours)) > 5
        titles = visit.texts("#features-body h4")
        assert [title for title in titles if "quarter" in title] == [
            f"At random: {name} quarter" for name in ("strongest", "second", "third", "weakest")
        ]


def test_values_of_tokens_are_told_to_mouse_and_keyboard(browser, one):
    feature = FEATURES[7]
    with Visit(browser, one, fragment="feature=7") as visit:
        peak = visit.page.locator("mark.peak").first
        peak.hover()
        told = visit.text("#tip")
        assert "100 % of the largest" in told
        assert f"{feature.max:.3g}" in told
        visit.page.keyboard.press("Escape")
        assert visit.page.is_hidden("#tip")
        peak.focus()
        assert "100 %" in visit.text("#tip")
        visit.page.keyboard.press("ArrowLeft")
        assert "100 %" not in visit.text("#tip")
        assert visit("document.activeElement.tagName") == "MARK"
        assert visit.page.url.endswith("feature=7"), "arrows in a context move from token to token"


def test_the_histogram_holds_every_activation_by_its_token(browser, one):
    feature = FEATURES[7]
    with Visit(browser, one, fragment="feature=7") as visit:
        legend = visit.texts(".legend li")
        counts = [int(words.rsplit(" ", 1)[1]) for words in legend]
        assert sum(counts) == len(feature.sample.value)
        assert legend[-1].startswith("other tokens")
        assert counts[:-1] == sorted(counts[:-1], reverse=True)
        assert len(counts) == 7
        colours = visit(
            "[...document.querySelectorAll('.legend rect')].map((r) => getComputedStyle(r).fill)"
        )
        assert len(set(colours)) == 7
        heights = visit(
            "[...document.querySelectorAll('.histogram > svg rect')].map("
            "(r) => [r.getAttribute('class'), Number(r.getAttribute('height'))])"
        )
        total = sum(height for _, height in heights)
        for i, count in enumerate(counts):
            name = f"s{i}" if i < 6 else "rest"
            share = sum(height for kind, height in heights if kind == name) / total
            assert share == pytest.approx(count / sum(counts), abs=1e-6)


def test_logits_and_neighbours_stand_beside_it(browser, one):
    feature = FEATURES[7]
    with Visit(browser, one, fragment="feature=7") as visit:
        promotes, suppresses = visit.texts(".pair .effects")
        assert [line.split()[0] for line in promotes.splitlines()[::2]] == [
            effect.text.strip() for effect in feature.promoted
        ]
        assert f"{feature.suppressed[0].effect:.3g}" in suppresses
        assert "feature 8" in visit.text("#features-body a[href='#feature=8']")


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
    with Visit(browser, one, color_scheme="light") as visit:
        light = [visit(ground), visit(line)]
        visit.page.click("#theme")
        toggled = [visit(ground), visit(line)]
        visit.page.click("#theme")
        assert [visit(ground), visit(line)] == light
    with Visit(browser, one, color_scheme="dark") as visit:
        dark = [visit(ground), visit(line)]
        visit.page.click("#theme")
        assert [visit(ground), visit(line)] == light
    assert dark == toggled
    assert not set(dark) & set(light)


def test_no_screen_is_too_narrow(browser, one, several):
    for path, fragment in ((one, f"feature={WICKED.index}"), (several, "")):
        with Visit(browser, path, fragment=fragment) as visit:
            for width in (320, 360, 800):
                visit.page.set_viewport_size({"width": width, "height": 700})
                assert visit("document.documentElement.scrollWidth") <= width
                rows = "[...document.querySelectorAll('tbody tr')].map((r) => r.offsetHeight)"
                assert max(visit(rows)) < 150, "no word is broken for want of width"
                detail = visit.page.locator("#features-detail").bounding_box()
                assert 0 <= detail["x"] <= detail["x"] + detail["width"] <= width


def test_figures_can_be_seen(browser, one, several):
    with Visit(browser, one) as visit:
        boxes = [f.bounding_box() for f in visit.page.locator("figure svg").all()]
        assert len(boxes) == 7
        assert all(box["width"] > 200 and box["height"] > 100 for box in boxes)
        labels = visit(
            "[...document.querySelectorAll('figure svg')].map((s) => s.getAttribute('aria-label'))"
        )
        assert "How often is each feature active?" in labels
        fills = visit(
            "[...document.querySelectorAll('figure svg *')].map((n) => getComputedStyle(n).fill)"
        )
        assert len(set(fills)) > 4
    with Visit(browser, several) as visit:
        assert visit.page.locator("#frontier svg").bounding_box()["width"] > 200


def test_headings_go_down_one_level_at_a_time(browser, one, several):
    for path in (one, several):
        with Visit(browser, path) as visit:
            assert_outline(visit)


def test_a_feature_without_logits_or_neighbours_has_none(browser, folder, one):
    bare = replace(FEATURES[2], promoted=(), suppressed=(), neighbours=(), dead_cosine=None)
    exhibit = make_exhibit(folder / "topk", bare, curves=None, evaluation=None)
    (folder / "bare.html").write_bytes(render(view([exhibit])))
    with Visit(browser, folder / "bare.html") as visit:
        assert "Promotes" not in visit.text("#features-body")
        assert "Nearest" not in visit.text("#features-body")
        assert visit.text("#features-body dl").splitlines()[-1] == "-"
