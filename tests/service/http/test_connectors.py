"""Connectors beside the routes: their rows reach the same memory, and none is given up because it is away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.service.http.served import served, until
from tests.service.predictors import CHANNELS, batch, limits

from tsgdn2.errors import ConfigError
from tsgdn2.service.connectors.delivery import Delivery
from tsgdn2.service.connectors.host import HostConnector
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.errors import BusyError, ForbiddenError, StoreError, UnavailableError
from tsgdn2.service.mapping import parse_mapping
from tsgdn2.service.sqlite_store import SqliteStore


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


class Shared(SqliteStore):
    """A store of which another process holds what it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.others: dict[str, str] = {}
        self.fails: list[Exception] = []
        self.asked = 0

    def claim(self, streams):
        self.asked += 1
        return {stream: self.others[stream] for stream in streams if stream in self.others}

    def append(self, *given, **more):
        if self.fails:
            raise self.fails.pop()
        return super().append(*given, **more)


def test_a_stream_that_another_process_holds_is_named_and_a_connectors_rows_wait_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tsgdn2.service.desk.ELSEWHERE_S", 0.01)
    store = Shared(folder / "store.db")
    with served(folder, store=store) as client:
        store.others = {"far": "other:2"}
        row = {"stream": "far", "time": 0, "values": [1.0, 2.0]}
        answer = client.post("/v1/observe", json=row)
        assert (answer.status_code, answer.json()["error"]) == (421, "elsewhere")
        assert "other:2" in answer.json()["detail"]
        for path in ("far", "far/state", "far/forecast"):
            assert client.get(f"/v1/streams/{path}").status_code == 421
        assert client.delete("/v1/streams/far").status_code == 421
        both = client.post("/v1/observe/batch", json={"rows": [row, {**row, "stream": "near"}]}).json()
        assert both["status"] == ["elsewhere", "new"]
        assert "held by other:2" in both["reasons"]["0"]

        async def delivered() -> None:
            waiting = asyncio.create_task(client.desk.deliver(Delivery(batch(["near", "far"], [1, 1], [1, 1]), "t")))
            before = store.asked
            while store.asked < before + 3:
                await asyncio.sleep(0.005)
            assert not waiting.done()
            store.others = {}
            await waiting

        asyncio.run(delivered())
        assert client.get("/v1/streams/far/state").json()["counters"]["observations"] == 1
        assert client.get("/v1/streams/near/state").json()["counters"]["observations"] == 2


def test_a_failure_inside_never_makes_a_connector_give_its_rows_up(folder: Path) -> None:
    store = Shared(folder / "store.db")
    with served(folder, store=store) as client:
        for error in (ConfigError("blob: none fits"), MemoryError("no memory"), ZeroDivisionError()):
            store.fails = [error]
            with pytest.raises(UnavailableError, match="come again"):
                asyncio.run(client.desk.deliver(Delivery(batch(["a"], [1], [1]), "test")))
        asyncio.run(client.desk.deliver(Delivery(batch(["a"], [1], [1]), "test")))
        assert client.get("/v1/streams/a/state").json()["counters"]["observations"] == 1


def test_a_stream_that_expires_makes_room_in_its_tenants_router(folder: Path) -> None:
    with served(folder, keys="required", bounds=limits(ttl_s=0.2)) as client:
        acme = client.keyed("write", "acme")
        written = acme.post("/api/v2/write", content="gone x=1", headers={"Content-Type": "text/plain"})
        assert written.status_code == 204
        until(lambda: not client.desk._routers["acme"]._streams, "the expired stream is forgotten")
