"""A real browser without a window, and what a page did while it was open."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")

LISTEN = """
  window.violations = [];
  addEventListener("securitypolicyviolation", (event) =>
    window.violations.push(`${event.violatedDirective} ${event.sample} ${event.blockedURI}`));
"""


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
    """One page, open; `close` checks that nothing went wrong in it and that it asked for nothing.

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
                self.check()
        finally:
            self._context.close()

    def check(self) -> None:
        """Nothing was complained about, nothing foreign ran, nothing was asked for."""
        assert not self.troubles
        assert self.page.evaluate("window.violations") == []
        assert self.page.evaluate("window.pwned") is None
        assert {url.partition("#")[0] for url in self.requests} == {self.url}

    def __call__(self, script: str) -> Any:
        """What a script says in the page."""
        return self.page.evaluate(script)

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
