"""The dashboard in a real browser: live charts, both themes, a phone, a key, hostile names, a service that ends."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect
from tests.service.dashboard.browser import PHONE, Visit
from tests.service.http.served import HOUR, Served, served
from tests.service.peers import free_port
from tests.service.predictors import limits

HOSTILE = '<img src=x onerror="window.hurt=1">/\'"</script><script>window.hurt=1</script>'

LARGEST = """([kind, most]) => Math.max(0, ...[...Bokeh.index].flatMap((view) => (view.model.renderers ?? [])
    .filter((one) => one.glyph.type === kind).map((one) => one.data_source.get_length() ?? 0))) > most"""
"""Whether some renderer of a kind of glyph has more rows than so many."""


def test_the_front_page_shows_streams_alerts_and_a_live_chart_that_grow_by_themselves(
    browser: Browser, service: Served
) -> None:
    with Visit(browser, str(service.base_url)) as visit:
        page = visit.open()
        expect(page.locator(".streams tbody tr")).to_have_count(2)
        expect(page.locator("#connection")).to_have_text("Live")
        page.locator(".spotlight canvas").first.wait_for()
        page.wait_for_function(LARGEST, arg=["Line", 59])
        service.observe("boiler/2", range(60, 64))
        service.observe("boiler/1", range(60, 64))
        expect(page.locator(".streams tbody tr").first).to_contain_text("64")
        expect(page.locator(".alerts")).to_contain_text("since you came")
        expect(page.locator(".ledger .feed")).to_contain_text("forgotten")
        page.wait_for_function(LARGEST, arg=["Line", 60])
        page.get_by_label("Search streams").fill("ER/2")
        expect(page.locator(".streams tbody tr")).to_have_count(1)
        page.get_by_label("Search streams").fill("nothing like it")
        expect(page.locator(".list")).to_contain_text("No stream has that in its name")


def test_a_stream_is_drilled_into_and_its_charts_get_new_rows_bands_and_state(
    browser: Browser, service: Served
) -> None:
    with Visit(browser, str(service.base_url)) as visit:
        page = visit.open()
        page.get_by_role("link", name="boiler/1").first.click()
        expect(page.locator("h1")).to_have_text("boiler/1")
        page.locator(".live canvas").first.wait_for()
        page.wait_for_function(LARGEST, arg=["VArea", 0])
        drawn = visit.glyphs("x")
        assert drawn["VArea"] > 0, "bands"
        assert visit.glyphs("surprise")["Rect"] > 0
        last = int(service.get("/v1/streams/boiler%2F1/state").json()["clock"]) // HOUR
        rows = len(service.get("/v1/streams/boiler%2F1/recent").json()["times"])
        for step in range(last + 1, last + 4):
            service.observe("boiler/1", [step])
        page.wait_for_function(LARGEST, arg=["Line", rows + 2])
        expect(page.locator(".channel-value").first).to_have_text(f"{last + 3}")
        page.locator(".live .channels").press("ArrowLeft")
        expect(page.locator(".channel-value").first).to_have_text(f"{last + 2}")
        page.locator(".live .channels").press("Escape")
        expect(page.locator(".channel-value").first).to_have_text(f"{last + 3}")
        expect(page.locator(".occupied tbody tr")).to_have_count(2)
        assert visit.glyphs("half-lives")["Scatter"] > 0
        assert visit.glyphs("evictions")["Scatter"] > 0
        expect(page.locator(".evictions table")).to_contain_text(re.compile("decay|erase"))
        page.get_by_role("link", name="← All streams").click()
        page.locator(".streams tbody tr").first.wait_for()
        assert not visit.glyphs("half-lives"), "what was left is taken down"


OVERHANGING = """() => [...document.querySelectorAll("main :is(h1, h2, h3, p, dd, .panel, .chart, table)")]
    .filter((one) => one.getClientRects().length && !one.closest(".scroll, .hidden"))
    .filter((one) => one.getBoundingClientRect().right > window.innerWidth + 1).map((one) => one.outerHTML)"""
"""What sticks out of the window, though nothing scrolls."""
SERIES = """async () => {
    const { Series, MOST } = await import("/dashboard/series.js");
    const made = new Series(["x"], 10);
    const steps = (times, value) => times.map(() => [[value - 1, value, value + 1]]);
    const ahead = (times, value) => made.forecast(times, steps(times, value), [0.1, 0.5, 0.9]);
    const text = (value) => JSON.stringify(value).replaceAll("null", "NaN");
    const found = [];
    found.push(made.take([10, 20], [[1], [null]], [[null], [null]]));
    ahead([30, 40, 50], 5);
    found.push(made.take([30, 50], [[3], [5]], [[2], [1]]));
    ahead([60, 70], 6);
    found.push(text([made.bandTimes, made.bands[0][1], made.ahead]));
    found.push(made.take([40, 20], [[4], [2]], [[null], [null]]), text([made.times, made.values[0]]));
    found.push(made.take([20], [[null]], [[9]]), text([made.values[0], made.surprise[0]]));
    ahead([110], 7);
    found.push(text([made.bandTimes, made.bands[0][1], made.ahead]));
    found.push(text([made.expected(0, 31), made.expected(0, 100), made.extent(0, 0), made.alerts(0, 9)]));
    made.take(Array.from({length: 2 * MOST}, (_, n) => 1000 + n), Array(2 * MOST).fill([1]), Array(2 * MOST).fill([1]));
    found.push(made.times.length === MOST, made.last);
    return found;
}"""


def test_a_series_keeps_rows_by_time_and_of_each_moment_the_newest_forecast_before_it(
    browser: Browser, service: Served
) -> None:
    with Visit(browser, str(service.base_url)) as visit:
        visit.open()
        assert visit.page.evaluate(SERIES) == [
            2, 2, "[[30,40,50,60,70],[5,5,5,6,6],3]",
            -1, "[[10,20,30,40,50],[1,2,3,4,5]]",
            -1, "[[1,2,3,4,5],[NaN,9,2,NaN,1]]",
            "[[30,40,50,60,70,80,110],[5,5,5,6,6,NaN,7],6]",
            '[[4,5,6],NaN,[1,8],{"t":[20],"y":[2]}]',
            True, 3_999,
        ]  # fmt: skip


def test_it_is_dark_or_light_as_the_system_or_the_reader_says_and_remembers(browser: Browser, service: Served) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    with Visit(browser, str(service.base_url)) as visit:
        page = visit.open()
        page.locator(".spotlight canvas").first.wait_for()
        dark = page.evaluate(ground)
        page.emulate_media(color_scheme="light")
        page.wait_for_function(f"(dark) => {ground} !== dark", arg=dark)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(f"(dark) => {ground} === dark", arg=dark)
        page.get_by_role("button", name="Theme").press("Enter")
        light = page.evaluate(ground)
        assert light != dark
        page.reload()
        assert page.evaluate(ground) == light
        page.locator(".spotlight canvas").first.wait_for()


def test_nothing_is_wider_than_a_phone_and_names_are_text_whatever_is_in_them(browser: Browser, folder: Path) -> None:
    long = "a" * 200
    with (
        served(folder, alert_bits=0.001) as client,
        Visit(browser, str(client.base_url), expected="404", viewport=PHONE) as visit,
    ):
        page = visit.open()
        expect(page.locator(".list")).to_contain_text("No stream yet")
        expect(page.locator("pre")).to_contain_text("/v1/observe")
        assert visit.fits()
        for stream in (HOSTILE, long):
            client.observe(stream, range(12))
        expect(page.locator(".streams tbody tr")).to_have_count(2)
        expect(page.locator(".alerts .feed")).to_contain_text(HOSTILE)
        page.locator(".spotlight canvas").first.wait_for()
        assert visit.fits()
        assert page.evaluate(OVERHANGING) == []
        for stream in (HOSTILE, long):
            visit.open(f"/#/stream/{quote(stream, safe='')}")
            expect(page.locator("h1")).to_have_text(stream)
            page.locator(".live canvas").first.wait_for()
            assert visit.fits()
            assert page.evaluate(OVERHANGING) == []
        assert page.evaluate("window.hurt") is None
        assert page.locator("main img, main script").count() == 0
        visit.open("/#/stream/unknown")
        expect(page.locator("main")).to_contain_text("There is no such stream")


def test_a_key_is_asked_for_once_and_a_tenant_sees_its_own_streams_only(browser: Browser, folder: Path) -> None:
    with served(folder, keys="required") as admin, Visit(browser, str(admin.base_url), expected="401") as visit:
        acme = admin.keyed("write", "acme")
        acme.observe("mine", range(12))
        admin.keyed("write", "other").observe("theirs", range(12))
        page = visit.open()
        expect(page.get_by_role("dialog")).to_be_visible()
        page.get_by_label("API key").fill("tsgdn2_000000000000_wrong")
        page.get_by_label("API key").press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text("refused")
        page.get_by_label("API key").fill(acme.headers["Authorization"].split()[1])
        page.get_by_label("API key").press("Enter")
        expect(page.locator(".streams tbody tr")).to_have_count(1)
        expect(page.locator(".streams tbody")).to_contain_text("mine")
        expect(page.locator("#connection")).to_have_text("Live")
        page.reload()
        expect(page.locator(".streams tbody tr")).to_have_count(1)
        assert page.evaluate("Object.values(localStorage).join()") == ""
        assert not any("tsgdn2_" in url for url in visit.asked)
        page.get_by_role("button", name="Forget key").click()
        expect(page.get_by_role("dialog")).to_be_visible()


def test_it_says_that_the_service_is_away_and_goes_on_when_it_is_back(browser: Browser, folder: Path) -> None:
    port = free_port()
    with Visit(browser, f"http://127.0.0.1:{port}", expected="ERR_") as visit:
        with served(folder, port=port) as client:
            client.observe("s", range(12))
            page = visit.open("/#/stream/s")
            page.locator(".live canvas").first.wait_for()
            expect(page.locator("#connection")).to_have_text("Live")
        expect(page.locator("#connection")).to_contain_text("Disconnected, again in")
        with served(folder, port=port) as client:
            page.get_by_role("button", name="Connect again now").click()
            expect(page.locator("#connection")).to_have_text("Live")
            client.observe("s", [12])
            expect(page.locator(".channel-value").first).to_have_text("12")


def test_thousands_of_streams_are_pages_of_fifty(browser: Browser, folder: Path) -> None:
    names = [f"s{number:05}" for number in range(3_000)]
    with served(folder, bounds=limits(3_000)) as client, Visit(browser, str(client.base_url)) as visit:
        body = {"streams": names, "times": [HOUR] * len(names), "values": {"x": [1.0] * len(names)}}
        assert client.post("/v1/observe/batch?results=counts", json=body).json()["counts"] == {"new": 3_000}
        page = visit.open()
        expect(page.locator(".streams tbody tr")).to_have_count(50)
        expect(page.locator(".strip")).to_contain_text("3,000")
        page.get_by_role("button", name="After").click()
        expect(page.locator(".streams tbody tr").first).to_contain_text("s00050")
        page.get_by_label("Search streams").fill("S02999")
        expect(page.locator(".streams tbody tr")).to_have_count(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place for a store."""
    return tmp_path
