"""What the dashboard asks for: last rows, glances, newest entries; each tenant its own, each answer bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.service.http.served import BLOB, HOUR, Served, served, until
from tests.service.http.test_events import listening

from tsgdn2.service.routes_dashboard import BOKEH, names


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, keys="required", alert_bits=0.01, forecast_every_s=0.02) as client:
        yield client


def recent(client: Served, stream: str, **query: int) -> dict[str, list]:
    answer = client.get(f"/v1/streams/{stream}/recent", params=query)
    assert answer.status_code == 200
    return answer.json()


def test_the_last_rows_have_one_moment_each_with_its_last_values_and_its_surprise(keyed: Served) -> None:
    client = keyed.keyed("write", "acme")
    client.observe("s", range(12))
    client.post("/v1/observe", json={"stream": "s", "time": 11 * HOUR, "values": {"y": 7.5}})
    client.post("/v1/observe", json={"stream": "s", "time": 11 * HOUR, "values": {"x": 3.5}})
    found = recent(client, "s")
    assert found["times"] == [step * HOUR for step in range(12)]
    assert found["values"][:11] == [[float(step), None] for step in range(11)]
    assert found["values"][11] == [3.5, 7.5]
    assert found["surprise"][0] == [None, None], "before the first forecast"
    assert all(x is not None and y is None for x, y in found["surprise"][3:11])
    assert recent(client, "s", limit=4)["times"] == [10 * HOUR, 11 * HOUR]


def test_rows_of_a_process_that_has_ended_come_from_the_journal_without_surprise(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        client.observe("s", range(8))
        client.observe("t", range(8))
    with served(tmp_path) as client:
        before = recent(client, "s")
        client.observe("s", range(8, 11))
        found = recent(client, "s")
        assert found["times"][-3:] == [8 * HOUR, 9 * HOUR, 10 * HOUR]
        assert found["times"][:-3] == before["times"]
        assert all(cells == [None, None] for cells in before["surprise"])
        assert found["surprise"][-1][0] is not None


def test_a_stream_that_begins_anew_shows_nothing_of_the_one_before_it(keyed: Served) -> None:
    keyed.observe("s", range(8))
    blob = keyed.get("/v1/streams/s/export").content
    assert keyed.delete("/v1/streams/s").status_code == 200
    assert keyed.get("/v1/streams/s/recent").status_code == 404
    keyed.observe("s", [100])
    assert recent(keyed, "s")["times"] == [100 * HOUR]
    assert keyed.put("/v1/streams/fresh/import", content=blob, headers=BLOB).status_code == 200
    assert recent(keyed, "fresh")["times"] == []


def test_a_tenant_sees_its_own_streams_rows_and_entries_and_nothing_of_the_service(keyed: Served) -> None:
    acme, other = keyed.keyed("write", "acme"), keyed.keyed("write", "other")
    acme.observe("s", range(12))
    other.observe("t", range(12))
    keyed.observe("u", range(12))
    for client, stream in ((acme, "s"), (other, "t"), (keyed, "u")):
        listed = client.get("/v1/overview/streams").json()["streams"]
        assert [one["stream"] for one in listed] == [stream]
        assert (listed[0]["hot"], listed[0]["observations"], listed[0]["time"]) == (True, 12, 11 * HOUR)
        until(lambda client=client, stream=stream: [
            entry["stream"] for entry in client.get("/v1/ledger/newest", params={"kind": "alert"}).json()["entries"]
        ][:1] == [stream])  # fmt: skip
        for theirs in {"s", "t", "u"} - {stream}:
            assert client.get(f"/v1/streams/{theirs}/recent").status_code == 404
            assert client.get("/v1/ledger/newest", params={"stream": theirs}).json()["entries"] == []
    assert acme.get("/v1/overview").json()["service"] is None
    assert acme.get("/v1/overview").json()["streams"] == 1
    whole = keyed.get("/v1/overview").json()["service"]
    assert (whole["hot"], sum(whole["rows"].values())) == (3, 36)


def test_streams_come_in_pages_and_by_what_their_names_hold_in_any_case(keyed: Served) -> None:
    keyed.observe("a/0", [1])
    body = {"rows": [{"stream": f"Boiler/{n}", "time": HOUR, "values": [1.0, None]} for n in range(25)]}
    keyed.post("/v1/observe/batch", json=body)
    seen, after = [], ""
    while after is not None:
        page = keyed.get("/v1/overview/streams", params={"after": after, "limit": 10, "contains": "boiler"}).json()
        seen += [one["stream"] for one in page["streams"]]
        after = page["next"]
    assert sorted(seen) == sorted(f"Boiler/{n}" for n in range(25))
    assert keyed.get("/v1/overview/streams", params={"limit": 201}).status_code == 422
    assert keyed.get("/v1/overview/streams", params={"after": "a\x1fb"}).status_code == 400


def test_the_ledger_is_read_backwards_in_pages(keyed: Served) -> None:
    for step in range(5):
        keyed.observe(f"gone/{step}", [1])
        keyed.delete(f"/v1/streams/gone%2F{step}")
    seen, before = [], None
    for _ in range(4):
        query = {"kind": ["deleted"], "limit": 2} | ({} if before is None else {"before": before})
        page = keyed.get("/v1/ledger/newest", params=query).json()
        seen += [entry["stream"] for entry in page["entries"]]
        before = page["next"]
        if before is None:
            break
    assert seen == [f"gone/{step}" for step in (4, 3, 2, 1, 0)]


def test_rows_are_events_of_those_who_name_their_stream_and_ask_for_them(keyed: Served) -> None:
    acme, other = keyed.keyed("write", "acme"), keyed.keyed("write", "other")
    with (
        listening(acme, kind="rows", stream="s") as theirs,
        listening(other, kind="rows", stream=["s", "t"]) as others,
        listening(acme, stream="s") as unasked,
    ):
        acme.observe("s", range(4))
        other.observe("t", [7])
        kind, facts = theirs.next()
        assert (kind, facts["stream"], facts["times"]) == ("rows", "s", [step * HOUR for step in range(4)])
        assert facts["values"][2] == [2.0, None]
        assert others.next()[1]["times"] == [7 * HOUR]
        assert unasked.next()[0] in ("alert", "forecast")


def test_files_are_kept_by_the_browser_and_scripts_come_from_here_alone(keyed: Served) -> None:
    client = keyed.bare()
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self';" in policy
    assert "require-trusted-types-for 'script'" in policy
    nonces = {client.get("/").text.split('nonce="')[1].split('"')[0] for _ in range(3)}
    assert len(nonces) == 3
    assert "%" not in page.text.replace("100%", "")
    assert not [part for part in page.text.split('src="')[1:] if not part.startswith("/dashboard/")]
    for name in names() - {"index.html"}:
        plain = client.get(f"/dashboard/{name}", headers={"Accept-Encoding": "identity"})
        packed = client.get(f"/dashboard/{name}", headers={"Accept-Encoding": "gzip"})
        assert plain.content == packed.content
        assert packed.headers["content-encoding"] == "gzip"
        assert ("immutable" in plain.headers["cache-control"]) == (name in BOKEH)
        tag = {"If-None-Match": plain.headers["etag"]}
        assert client.get(f"/dashboard/{name}", headers=tag).status_code == 304
    for name in ("index.html", "nothing.js", "..%2Fapp.py", "routes_dashboard.py", "%00"):
        assert client.get(f"/dashboard/{name}").status_code == 404
