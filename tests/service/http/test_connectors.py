"""Connectors beside the routes: their rows reach the same memory, and none is given up because it is away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.service.http.served import served, until
from tests.service.predictors import CHANNELS, batch

from tsgdn2.service.connectors.delivery import Delivery
from tsgdn2.service.connectors.host import HostConnector
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.errors import BusyError, ForbiddenError, StoreError
from tsgdn2.service.mapping import parse_mapping


def test_a_connector_runs_beside_the_routes_and_is_in_the_metrics(folder: Path) -> None:
    router = Router(parse_mapping("host: {stream: me, channels: {x: cpu, y: memory}}"), CHANNELS)
    with served(folder, app={"connectors": (HostConnector(router, interval=0.02),), "router": router}) as client:
        until(lambda: client.get("/v1/streams/me").status_code == 200)
        assert client.get("/v1/streams").json()["streams"] == [{"stream": "me", "aside": None}]
        assert 'tsgdn2_connector{connector="host",count="rows"}' in client.get("/metrics").text
        assert client.desk._routers[""] is router
        assert client.delete("/v1/streams/me").status_code == 200


def test_rows_in_parts_are_all_kept(folder: Path) -> None:
    with served(folder) as client:
        most = client.desk.memory.limits.group_rows
        rows = batch(["a"] * (most + 3), range(most + 3))
        asyncio.run(client.desk.deliver(Delivery(rows, "test")))
        assert client.get("/v1/streams/a/state").json()["counters"]["observations"] == most + 3


def test_a_name_with_a_tenants_border_is_refused_and_one_that_meets_no_memory_comes_again(folder: Path) -> None:
    rows = batch(["a"], [1])
    with served(folder) as client:
        with pytest.raises(ForbiddenError):
            asyncio.run(client.desk.deliver(Delivery(batch(["acme\x1fa"], [1]), "test")))
        client.desk.memory._backlog.close(BusyError("service: it is stopping", retry_after=1.0))
        until(lambda: not client.desk.memory.status().ready)
        with pytest.raises(StoreError):
            asyncio.run(client.desk.deliver(Delivery(rows, "test")))
        with pytest.raises((StoreError, BusyError)):
            asyncio.run(client.desk.waited(lambda: client.desk.memory.observe(rows)))
