"""The page about connectors, opened in a browser."""

from dataclasses import replace

import pytest

from pipeline.report.page import view
from pipeline.report.render import render
from tests.helpers.browser import CONTRAST, Visit, assert_outline, chromium
from tests.helpers.connector_pages import make_connections, make_connector_exhibit, make_reading
from tests.helpers.pages import HOSTILE, PLAIN, VOCABULARY, make_exhibit, make_feature, make_run

pytestmark = pytest.mark.slow
MINUS = "\N{MINUS SIGN}"
WICKED = range(len(PLAIN), len(VOCABULARY))


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def exhibit(tmp_path_factory):
    return make_connector_exhibit(tmp_path_factory.mktemp("pages") / "small")


@pytest.fixture(scope="module")
def reading(exhibit):
    return exhibit.connections.reading


@pytest.fixture(scope="module")
def one(exhibit):
    """A page about one connector."""
    path = exhibit.path.parent / "one.html"
    path.write_bytes(render(view([exhibit])))
    return path


@pytest.fixture(scope="module")
def mixed(exhibit):
    """A page about two connectors, of hostile texts and of no examples, and an autoencoder."""
    folder, bare = exhibit.path.parent, replace(exhibit, evaluation=None)
    reading = make_reading(exhibit.run, effects=None)
    wicked = replace(bare, connections=make_connections(reading, tokens=WICKED))
    reading = make_reading(exhibit.run, n=5, effects=None, relations=())
    unread = replace(bare, name="unread", connections=make_connections(reading, collected=False))
    features = [make_feature(i) for i in range(9)]
    coder = make_exhibit(make_run(folder / "coder"), *features, curves=None, evaluation=None)
    path = folder / "mixed.html"
    path.write_bytes(render(view([wicked, coder, unread])))
    return path


def listed(visit, section="connections"):
    """What is in a list, in its order."""
    links = f"[...document.querySelectorAll('#{section}-list a')]"
    return visit(f"{links}.map((a) => Number(a.dataset.index))")


def test_outputs_stand_best_explained_first_and_can_be_found_and_put_in_order(
    browser, one, reading
):
    equations, best = reading.equations, [e.output for e in reading.clearest]
    orders = {
        "frequency": lambda e: -e.n_active,
        "terms": lambda e: e.n_above,
        "index": lambda e: e.output,
    }
    with Visit(browser, one) as visit:
        assert listed(visit) == best
        visit.sees("#connections-heading", f"Output {best[0]}")
        assert visit.text("#connections-count") == "12 of 12 outputs on this page"
        assert visit("scrollY") == 0
        for order, key in orders.items():
            visit.page.select_option("#connections-sort", order)
            expected = sorted(equations, key=lambda e: (key(e), e.output))
            assert listed(visit) == [e.output for e in expected]
        visit.page.fill("#connections-search", "27")
        assert listed(visit)[0] == 27
        term = equations[4].adding[0].feature
        visit.page.fill("#connections-search", f"if{term} ")
        named = {e.output for e in equations if term in {t.feature for t in e.terms}}
        assert set(listed(visit)) == named
        visit.page.fill("#connections-search", "nothing has this")
        assert listed(visit) == []


def test_an_equation_names_its_terms_in_order_with_their_signs(browser, one, reading):
    equation = reading.equation(25)
    with Visit(browser, one, fragment="output=25") as visit:
        visit.sees("#connections-heading", "Output 25")
        told = visit.text(".equation")
        numbers = [f"{float(f'{abs(t.weight):.2g}'):g} IF{t.feature}" for t in equation.terms]
        assert told.startswith(f"OF25 = {numbers[0]} + {numbers[1]} + ")
        assert f"{MINUS} {numbers[-1]}" in told
        assert told.endswith(f"{MINUS} 0.031 + 3 more")
        assert "fires on" in visit.text("#connections-body dl")


def test_the_graph_has_an_edge_a_term_as_wide_as_its_weight_and_by_colour_its_sign(
    browser, one, reading
):
    equation = reading.equation(25)
    with Visit(browser, one, fragment="output=25") as visit:
        edges = visit(
            "[...document.querySelectorAll('.graph path')].map((p) => [p.getAttribute('class'),"
            "Number(p.getAttribute('stroke-width')), getComputedStyle(p).stroke])"
        )
        assert [kind for kind, _, _ in edges] == [
            "plus" if term.weight > 0 else "minus" for term in equation.terms
        ]
        largest = max(abs(term.weight) for term in equation.terms)
        for (_, width, _), term in zip(edges, equation.terms, strict=True):
            assert width == pytest.approx(1 + 7 * abs(term.weight) / largest, abs=0.05)
        assert len({colour for _, _, colour in edges}) == 2
        nodes = visit.texts(".graph li")
        assert [node.split()[0] for node in nodes] == [f"IF{t.feature}" for t in equation.terms]
        rows = visit("[...document.querySelectorAll('.graph li')].map((n) => n.offsetTop)")
        assert rows == sorted(set(rows))
        svg = visit.page.locator(".graph svg").bounding_box()
        assert svg["width"] > 50
        assert svg["height"] > 100


def test_a_node_leads_to_the_examples_of_its_input(browser, one, reading, exhibit):
    equation = reading.equation(25)
    last = equation.terms[-1].feature
    with Visit(browser, one, fragment="output=25") as visit:
        closed = visit.page.locator(f"#input-{last}")
        assert closed.get_attribute("open") is None
        visit.page.locator(".graph li button").last.click()
        assert closed.get_attribute("open") is not None
        assert visit("document.activeElement.tagName") == "SUMMARY"
        told = [float(x) for x in closed.locator(".value").all_inner_texts()]
        feature = exhibit.connections.source.features[last]
        assert told[:4] == pytest.approx(feature.top.value[:4].tolist(), abs=0.02)
        assert visit.page.url.endswith("#output=25")
        outputs = exhibit.connections.target.features[25]
        shown = visit.page.locator(".columns.even").last.locator("> div").last
        told = [float(x) for x in shown.locator(".value").all_inner_texts()]
        assert told[:6] == pytest.approx(outputs.top.value[:6].tolist(), abs=0.02)
        shown.locator("mark").first.hover()
        assert "of the largest" in visit.text("#tip")


def test_predicted_and_true_effects_stand_side_by_side(browser, one, reading):
    points = {p.input: p for p in reading.effects.points if p.output == 20 and not p.control}
    with Visit(browser, one, fragment="output=20") as visit:
        rows = visit.page.locator(".terms tbody tr").all()
        assert len(rows) == 6
        largest = max(abs(x) for p in points.values() for x in (p.linear, p.true))
        for row, term in zip(rows, reading.equation(20).terms, strict=True):
            point = points[term.feature]
            cells = row.locator("td").all_inner_texts()
            assert [float(cell) for cell in (cells[0], *cells[2:])] == pytest.approx(
                [term.contribution, point.linear, point.true], rel=6e-3
            )
            bars = row.locator(".bar-of rect:last-child").all()
            wide = [float(bar.get_attribute("width")) for bar in bars]
            wanted = [100 * abs(x) / largest for x in (point.linear, point.true)]
            assert wide == pytest.approx(wanted, abs=1)
    with Visit(browser, one, fragment="output=28") as visit:
        assert "predicted" not in visit.text(".terms"), "nothing was removed for it"


def test_a_relation_leads_to_its_output_which_tells_the_same(browser, one, reading):
    relation = reading.relations[1]
    with Visit(browser, one) as visit:
        visit.page.click(f"#logic a[href='#output={relation.output}']")
        visit.sees("#connections-heading", f"Output {relation.output}")
        box = visit.page.locator("#connections-detail").bounding_box()
        assert 0 < box["y"] < 600, "the reader is where the output is"
        cells = visit.page.locator(".cells li").all_inner_texts()
        assert [cell.split("\n")[0].strip() for cell in cells] == [
            "first only", "second only", "both", "neither",
        ]  # fmt: skip
        assert "85 %" in cells[0]
        assert "412" in cells[0]
        assert f"IF{relation.a} AND NOT IF{relation.b}" in visit.text("#connections-body")
        visit.page.go_back()
        visit.sees("#connections-heading", f"Output {reading.clearest[0].output}")


def test_on_a_phone_a_link_leads_to_the_output_itself(browser, one):
    size = {"width": 360, "height": 700}
    with Visit(browser, one, fragment="output=22", viewport=size) as visit:
        assert 0 <= visit.page.locator("#connections-detail").bounding_box()["y"] < 120


def test_links_and_arrows_belong_to_the_browser_they_are_about(browser, mixed):
    with Visit(browser, mixed, fragment="connector=2&output=23") as visit:
        visit.sees("#connections-heading", "Output 23")
        assert visit.page.input_value("#connections-run") == "1"
        before = visit.text("#features-heading")
        visit.page.keyboard.press("ArrowRight")
        visit.page.wait_for_url("**#connector=2&output=*")
        assert visit.text("#features-heading") == before
        visit.page.focus("#features-list a[tabindex='0']")
        visit.page.keyboard.press("ArrowDown")
        visit.page.wait_for_url("**#feature=*")
        assert visit.page.input_value("#connections-run") == "1", "the other stays where it is"
        visit.page.select_option("#connections-run", "0")
        visit.page.wait_for_url("**#connector=1")
        assert len(listed(visit)) == 12
        assert len(listed(visit, "features")) == 9


def test_an_output_without_examples_says_so(browser, mixed):
    with Visit(browser, mixed, fragment="connector=2&output=23") as visit:
        text = visit.text("#connections-body")
        assert "have not been collected yet" in text
        assert visit.page.locator(".graph li").count() == 6
        assert visit.page.locator("#connections-body mark").count() == 0
    with Visit(browser, mixed, fragment="connector=2&output=40") as visit:
        assert "not among the outputs on this page" in visit.text("#connections-body")


def test_hostile_texts_appear_as_texts_and_run_nothing(browser, mixed):
    with Visit(browser, mixed, fragment="connector=1&output=20") as visit:
        text = visit("document.body.textContent")
        for hostile in HOSTILE[:11]:
            assert hostile in text
        visit.page.fill("#connections-search", "<script>")
        assert listed(visit)
        assert visit("document.querySelectorAll('script').length") == 2
        assert visit("document.querySelectorAll('img, b script, iframe').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_told_from_what_is_behind_it(browser, one, scheme):
    with Visit(browser, one, color_scheme=scheme, fragment="output=21") as visit:
        worst = visit(CONTRAST)
        assert worst[0][0] >= 4.5, worst


def test_no_screen_is_too_narrow(browser, one, mixed):
    for path in (one, mixed):
        with Visit(browser, path, fragment="output=21") as visit:
            for width in (320, 360, 800):
                visit.page.set_viewport_size({"width": width, "height": 700})
                assert visit("document.documentElement.scrollWidth") <= width
                for name in ("#connections-detail", ".graph", ".graph .out"):
                    box = visit.page.locator(name).first.bounding_box()
                    assert 0 <= box["x"] <= box["x"] + box["width"] <= width


def test_headings_go_down_one_level_at_a_time(browser, one, mixed):
    for path in (one, mixed):
        with Visit(browser, path) as visit:
            assert_outline(visit)
