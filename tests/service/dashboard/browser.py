"""Headless Chromium for the tests of the dashboard, which tells of everything that must not happen in a page.

Playwright's loop runs in the thread that starts it, so a browser lives no longer than the file whose tests need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright
from tests.service.brokers import binary

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
WAIT_MS = 20_000
GLYPHS = """
() => [...Bokeh.index].flatMap((view) => (view.model.renderers ?? []).map((one) =>
    ({figure: view.model.name, glyph: one.glyph.type, rows: one.data_source.get_length() ?? 0})))
"""
"""What is drawn: figure, kind of glyph and number of rows of each renderer."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary("chromium"), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page in a context of its own; at its end nothing may have gone wrong and nothing may have left the origin."""

    def __init__(self, browser: Browser, url: str, *, expected: str = "", **context: Any) -> None:
        """expected: what is in every message of the console that may come, such as the status of an answer."""
        self.url, self._expected = url.rstrip("/"), expected
        self.context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "dark"} | context)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on(
            "console", lambda said: self.wrong.append(f"console: {said.text}") if said.type == "error" else None
        )
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, path: str = "/") -> Page:
        """Go to a path of the service."""
        self.page.goto(self.url + path)
        return self.page

    def glyphs(self, figure: str | None = None) -> dict[str, int]:
        """Rows by kind of glyph, of all figures or of one."""
        found: dict[str, int] = {}
        for one in self.page.evaluate(GLYPHS):
            if figure in (None, one["figure"]):
                found[one["glyph"]] = found.get(one["glyph"], 0) + one["rows"]
        return found

    def fits(self) -> bool:
        """Whether the page is no wider than the window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.context.close()
        if error is None:
            wrong = [text for text in self.wrong if not self._expected or self._expected not in text]
            assert not wrong, wrong
            assert {urlsplit(url).netloc for url in self.asked} <= {urlsplit(self.url).netloc, ""}
