"""Pictures of a dashboard that runs and is fed: python -m tests.service.dashboard.pictures URL FOLDER [STREAM]."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import quote

from tests.service.dashboard.browser import DESKTOP, PHONE, Visit, chromium

SETTLE_MS = 15_000
"""For the charts to have some rows that came live, with the forecasts that were made before them."""


def take_pictures(url: str, folder: Path, stream: str | None = None) -> list[Path]:
    """Front page and one stream, dark, light and on a phone; the stream is the first one unless it is named."""
    made: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for scheme, view in (("dark", DESKTOP), ("light", DESKTOP), ("phone", PHONE)):
            colours = "light" if scheme == "light" else "dark"
            scale = 2 if view is PHONE else 1.5
            with Visit(browser, url, color_scheme=colours, viewport=view, device_scale_factor=scale) as visit:
                page = visit.open()
                page.locator(".streams tbody a").first.wait_for()
                page.locator(".spotlight canvas").first.wait_for()
                page.wait_for_timeout(SETTLE_MS)
                made.append(folder / f"front-{scheme}.png")
                page.screenshot(path=made[-1], full_page=view is PHONE)
                name = stream or page.locator(".streams tbody a").first.inner_text()
                page.evaluate("(name) => { location.hash = name; }", f"#/stream/{quote(name, safe='')}")
                page.locator(".live canvas").first.wait_for()
                page.wait_for_timeout(SETTLE_MS)
                made.append(folder / f"stream-{scheme}.png")
                page.screenshot(path=made[-1], full_page=True)
                if view is DESKTOP:
                    made.append(folder / f"stream-{scheme}-top.png")
                    page.screenshot(path=made[-1])
    return made


if __name__ == "__main__":
    for path in take_pictures(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:4]):
        print(path)
