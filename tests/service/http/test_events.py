"""Server-sent events: alerts and forecasts reach the tenant they belong to, and a slow client costs nobody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.service.http.served import Served, served, until

from tsgdn2.service.errors import BusyError
from tsgdn2.service.events import Hub


class Listening:
    """A client that reads events one by one."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()

    def next(self) -> tuple[str, dict[str, Any]]:
        """Kind and facts of the next event."""
        kind = ""
        for line in self._lines:
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                return kind, json.loads(line.removeprefix("data: "))
        return "", {}


@contextmanager
def listening(client: Served, **query: Any) -> Iterator[Listening]:
    before = client.desk.hub.clients
    with client.stream("GET", "/v1/events", params=query) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        until(lambda: client.desk.hub.clients > before)
        yield Listening(answer)


@pytest.fixture
def quick(folder: Path) -> Iterator[Served]:
    with served(folder, keys="required", alert_bits=1e-9, forecast_every_s=0.02, grace_s=5.0) as client:
        yield client


def test_alerts_are_told_to_the_tenant_they_belong_to(quick: Served) -> None:
    acme, other = quick.keyed("write", "acme"), quick.keyed("write", "other")
    with listening(acme, kind="alert") as theirs, listening(other, kind="alert") as others:
        for client in (other, acme):
            client.observe("s" if client is acme else "t", range(12))
        kind, facts = theirs.next()
        assert (kind, facts["stream"], facts["channel"]) == ("alert", "s", "x")
        assert facts["surprise"] > 0
        assert others.next()[1]["stream"] == "t"


def test_forecasts_of_the_streams_that_are_named_come_as_rows_come(quick: Served) -> None:
    client = quick.keyed("write", "acme")
    with listening(client, kind="forecast", stream=["s", "not yet"]) as heard:
        for step in (1, 5):
            client.observe("s", [step])
            client.observe("unnamed", [step])
            kind, facts = heard.next()
            assert (kind, facts["stream"]) == ("forecast", "s")
            assert facts["times"][0] == (step + 1) * 3_600_000_000_000


def test_a_client_whose_key_is_withdrawn_hears_no_more(quick: Served) -> None:
    client = quick.keyed("write", "acme")
    with listening(client) as heard:
        quick.desk.keys.withdraw(client.headers["Authorization"].split("_")[1])
        quick.keyed("write", "acme").observe("s", range(12))
        assert heard.next()[0] == "ended"
        assert heard.next() == ("", {})


def test_a_memory_that_ends_ends_the_service_and_every_client(folder: Path) -> None:
    with served(folder) as client, client.stream("GET", "/v1/events") as answer:
        until(lambda: client.desk.hub.clients == 1)
        client.desk.memory._backlog.close(BusyError("service: it ends", retry_after=1.0))
        assert Listening(answer).next()[0] == "ended"


def test_too_many_streams_kinds_and_clients_are_refused(folder: Path) -> None:
    with served(folder, event_clients=4) as client:
        assert client.get("/v1/events", params={"stream": ["s"] * 33}).status_code == 400
        assert client.get("/v1/events", params={"kind": "value"}).status_code == 422
        assert client.get("/v1/events", params={"stream": "a\x1fb"}).status_code == 400
        with listening(client), listening(client):
            assert client.get("/v1/events").status_code == 429
        until(lambda: client.desk.hub.clients == 0, "those who left are forgotten")


def test_a_client_that_is_too_slow_loses_the_oldest_events_and_is_told() -> None:
    hub = Hub(clients=4, queue=3, alert_bits=10)
    slow, quick = hub.join("a", ("alert",), ()), hub.join("a", ("alert",), ("a\x1fs",))
    for step in range(5):
        hub.observed(("a\x1fs",), [step], np.array([[np.nan, 20.0]]), ("x", "y"))
        assert len(quick.take()) == 1
    told = slow.take()
    assert told[0] == b'event: dropped\ndata: {"count":2}\n\n'
    assert [json.loads(event.split(b"data: ")[1])["time"] for event in told[1:]] == [2, 3, 4]
    assert hub.dropped == 2
    hub.observed(("a\x1fs",) * 500, list(range(500)), np.full((500, 1), 99.0), ("x",))
    assert slow.take()[0] == b'event: dropped\ndata: {"count":497}\n\n'
