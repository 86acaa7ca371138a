"""A real browser without a window, and what a page did while it was open."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")

LISTEN = """
  window.violations = [];
  addEventListener("securitypolicyviolation", (event) =>
    window.violations.push(`${event.violatedDirective} ${event.sample} ${event.blockedURI}`));
"""

CONTRAST = """() => {
  const light = (colour) => {
    const part = (x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.map((x) => part(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const layered = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const worst = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !node.checkVisibility() || node.matches(":disabled, script, style")) continue;
    const behind = [];
    for (let n = node; n; n = n.parentElement) {
      if (!n.closest("svg")) behind.unshift(getComputedStyle(n).backgroundColor);
    }
    const style = getComputedStyle(node);
    const front = layered([...behind, node.closest("svg") ? style.fill : style.color]);
    const [a, b] = [light(front), light(layered(behind))].sort((x, y) => y - x);
    worst.push([(a + 0.05) / (b + 0.05), node.outerHTML.slice(0, 80)]);
  }
  return worst.sort((x, y) => x[0] - y[0]).slice(0, 3);
}"""
"""The three texts that are hardest to tell from what is behind them, and their contrast."""


@contextmanager
def chromium() -> Generator[Any]:
    """Chromium, or a skipped test that says what is missing."""
    reason = "needs a browser's remote control: pip install playwright"
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page, open; its end checks that nothing went wrong in it and that it asked for nothing.

    Args:
        browser: Of `chromium`.
        path: The file.
        fragment: What stands behind the `#`.
        context: As `browser.new_context` takes it: `viewport`, `color_scheme`, ...
    """

    def __init__(self, browser: Any, path: Path, *, fragment: str = "", **context: Any) -> None:
        self.url = path.absolute().as_uri()
        self._context = browser.new_context(**context)
        self._context.add_init_script(LISTEN)
        self.page = self._context.new_page()
        self.page.set_default_timeout(5000)
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(self.url + (f"#{fragment}" if fragment else ""))

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                assert not self.troubles
                assert self.page.evaluate("window.violations") == []
                assert self.page.evaluate("window.pwned") is None
                assert {url.partition("#")[0] for url in self.requests} == {self.url}
        finally:
            self._context.close()

    def __call__(self, script: str) -> Any:
        """What a script says in the page."""
        return self.page.evaluate(script)

    def each(self, selector: str, script: str) -> list[Any]:
        """What a script says of each such element `n`."""
        return self.page.eval_on_selector_all(selector, f"(them) => them.map((n) => {script})")

    def sees(self, selector: str, text: str) -> None:
        """Wait until the element has this text: links take effect a moment later."""
        from playwright.sync_api import expect

        expect(self.page.locator(selector)).to_have_text(text, timeout=5000)

    def text(self, selector: str) -> str:
        """What a reader sees of the first such element."""
        return self.page.locator(selector).first.inner_text()

    def texts(self, selector: str) -> list[str]:
        """What a reader sees of each."""
        return self.page.locator(selector).all_inner_texts()


def assert_outline(visit: Visit) -> None:
    """Headings go down one level at a time, and whatever can be used has a name."""
    levels = visit.each("h1, h2, h3, h4", "+n.tagName[1]")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all(visit.each("button, input, select", "n.labels?.length || n.textContent.trim()"))
