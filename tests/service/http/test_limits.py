"""Sizes, rates, queues and times: everything has a bound, and whoever meets it is told what to do."""

from __future__ import annotations

import gzip
import io
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.service.http.served import HOUR, Served, served, until
from tests.service.predictors import limits

from tsgdn2.service.errors import BusyError, StoreError
from tsgdn2.service.quotas import Rates, Room
from tsgdn2.service.sqlite_store import SqliteStore

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    with served(
        tmp_path_factory.mktemp("small"), keys="required", body_bytes=4_096, unpacked_bytes=8_192, waiting_bytes=16_384,
        rows=5, body_timeout_s=0.3,
    ) as client:  # fmt: skip
        yield client


def raw(client: Served, head: str, body: bytes = b"", *, half: bool = False) -> bytes:
    """Bytes to the service as they are; what it says until it closes."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        if half:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        while part := connection.recv(65_536):
            found += part
            if b"}" in found:
                break
        return found


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(small: Served) -> None:
    key = small.headers["Authorization"]
    head = f"POST /v1/observe/batch HTTP/1.1\nHost: x\nAuthorization: {key}\nContent-Type: application/json\n"
    assert b" 413 " in raw(small, f"{head}Content-Length: 4097")
    assert b" 413 " in raw(small, f"{head}Content-Length: 99999999999999")
    assert b" 40" in raw(small, f"{head}Content-Length: -1", half=True)


def test_a_body_without_a_length_is_cut_off_at_the_limit(small: Served) -> None:
    answer = small.post("/v1/observe/batch", content=(b"x" * 1_000 for _ in range(100)), headers=JSON)
    assert answer.status_code == 413


def test_nothing_of_a_body_is_read_without_a_key(small: Served) -> None:
    head = "POST /v1/observe/batch HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: 4000"
    assert b" 401 " in raw(small, head)


def test_a_body_that_does_not_come_is_given_up(small: Served) -> None:
    key = small.headers["Authorization"]
    head = f"POST /v1/observe HTTP/1.1\nHost: x\nAuthorization: {key}\nContent-Type: application/json\n"
    assert b" 408 " in raw(small, f"{head}Content-Length: 100", b'{"str')
    assert small.desk.room.held == 0


def test_a_body_that_unpacks_beyond_the_limit_is_refused(small: Served) -> None:
    for path, kind in (("/v1/observe/batch", "application/json"), ("/v1/observe", "application/json"),
                       ("/v1/observe/batch", "application/vnd.apache.arrow.stream")):  # fmt: skip
        packed = {"Content-Type": kind, "Content-Encoding": "gzip"}
        assert small.post(path, content=gzip.compress(b" " * 9_000), headers=packed).status_code == 413
        assert small.post(path, content=b"no gzip", headers=packed).status_code == 400
        assert small.post(path, content=b"{}", headers=packed | {"Content-Encoding": "br"}).status_code == 415
    row = {"stream": "packed", "time": HOUR, "values": [1, 2]}
    packed = JSON | {"Content-Encoding": "gzip"}
    assert small.post("/v1/observe", content=gzip.compress(json.dumps(row).encode()), headers=packed).status_code == 200


def test_a_head_that_drips_or_does_not_come_is_cut_off_and_a_slow_answer_is_not(folder: Path) -> None:
    store = Held(folder / "store.db")
    with served(folder, store=store, head_timeout_s=0.3) as client, ThreadPoolExecutor(1) as pool:
        for first in (b"", b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
            with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
                connection.sendall(first)
                if first.endswith(b"\r\n\r\n"):
                    assert connection.recv(65_536)
                    connection.sendall(b"GET /")
                while connection.recv(65_536):
                    continue
        store.gate.clear()
        slow = pool.submit(client.observe, "s", [1])
        until(store.waits.is_set, "the row is being written")
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
            assert connection.recv(1) == b""  # longer than a head may take
        store.gate.set()
        assert slow.result().status_code == 200


def test_more_rows_than_one_request_may_have_are_refused(small: Served) -> None:
    assert small.observe("rows", range(5)).status_code == 200
    assert small.observe("rows", range(6)).status_code == 413


def test_bodies_of_all_requests_together_have_a_bound(small: Served) -> None:
    room = Room(10)
    with room.hold(6), pytest.raises(BusyError), room.hold(5):
        pass
    assert room.held == 0


def test_a_bucket_gives_what_it_holds_and_says_when_there_is_more() -> None:
    now = [0.0]
    rates = Rates("rows", 10.0, lambda: now[0])
    rates.take("a", 15)
    with pytest.raises(BusyError) as busy:
        rates.take("a", 10)
    assert busy.value.retry_after == pytest.approx(0.5)
    rates.take("b", 20)
    now[0] = 0.5
    rates.take("a", 10)
    now[0] = 100.0
    rates.take("a", 1_000)
    with pytest.raises(BusyError):
        rates.take("a", 1)
    Rates("rows", 0.0).take("a", 10**9)


def test_a_tenant_that_asks_too_often_gets_429_and_another_one_does_not(folder: Path) -> None:
    with served(folder, keys="required", tenant_requests_per_s=0.5, tenant_rows_per_s=2) as client:
        acme, other = client.keyed("write", "acme"), client.keyed("write", "other")
        assert acme.observe("s", range(4)).status_code == 200
        busy = acme.observe("s", range(4))
        assert busy.status_code == 429
        assert int(busy.headers["retry-after"]) >= 1
        assert busy.json()["retry_after"] > 0
        assert other.observe("s", range(4)).status_code == 200
        assert other.get("/v1/streams").status_code == 429


class Held(SqliteStore):
    """A store whose appends wait until they are let go, or fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False
        self.waits = threading.Event()

    def append(self, *given, **more):
        self.waits.set()
        self.gate.wait(20)
        if self.fails:
            raise StoreError("store: the disk is full; make room")
        return super().append(*given, **more)


def test_a_full_queue_is_429_for_the_one_tenant_and_takes_nothing(folder: Path) -> None:
    store = Held(folder / "store.db")
    bounds = limits(queue_rows=20, tenant_share=0.5)
    with served(folder, store=store, keys="required", bounds=bounds) as client, ThreadPoolExecutor(4) as pool:
        acme, other = client.keyed("write", "acme"), client.keyed("write", "other")
        store.gate.clear()
        try:
            first = pool.submit(acme.observe, "s", range(1))
            until(store.waits.is_set, "the first row is being written")
            waiting = [pool.submit(acme.observe, "s", range(4)) for _ in range(2)]
            until(lambda: client.desk.memory.status().queued_rows == 9, "one row is written, eight wait")
            busy = acme.observe("t", range(4))
            assert busy.status_code == 429
            assert float(busy.headers["retry-after"]) >= 1
            theirs = pool.submit(other.observe, "s", range(4))
            until(lambda: client.desk.memory.status().queued_rows >= 13, "the other tenant's rows wait")
        finally:
            store.gate.set()
        assert {one.result().status_code for one in (first, *waiting, theirs)} == {200}
        assert acme.bare(acme.headers["Authorization"][7:]).get("/v1/streams/t").status_code == 404


def test_an_answer_that_takes_too_long_is_503_and_the_row_can_be_sent_again(folder: Path) -> None:
    store = Held(folder / "store.db")
    with served(folder, store=store, timeout_s=0.2) as client:
        store.gate.clear()
        late = client.observe("s", [1], source="plc", sequence=1)
        assert late.status_code == 503
        assert "retry-after" in late.headers
        store.gate.set()
        until(lambda: client.observe("s", [1], source="plc", sequence=1).status_code == 200)
        assert client.get("/v1/streams/s/state").json()["counters"]["observations"] == 1


def test_a_store_that_fails_is_503_and_nothing_was_kept(folder: Path) -> None:
    store = Held(folder / "store.db")
    with served(folder, store=store) as client:
        store.fails = True
        answer = client.observe("s", [1])
        assert answer.status_code == 503
        assert answer.json()["error"] == "store"
        assert "the disk is full" in answer.json()["detail"]
        store.fails = False
        assert client.get("/v1/streams/s").status_code == 404
        assert client.observe("s", [1]).json()["status"] == ["new"]


def test_a_fault_is_500_without_a_word_of_the_inside(folder: Path, logged: io.StringIO) -> None:
    with served(folder) as client:
        client.desk.names = lambda *_: 1 / 0  # type: ignore[assignment]
        answer = client.get("/v1/streams", headers={"X-Request-ID": "mine-1"})
        assert answer.status_code == 500
        assert answer.json() == {
            "error": "fault", "detail": "the service made a mistake", "retry_after": None, "request_id": "mine-1",
            "what_to_do": "tell whoever runs the service the request_id",
        }  # fmt: skip
    (told,) = [line for line in map(json.loads, logged.getvalue().splitlines()) if line["event"] == "http.fault"]
    assert told["request_id"] == "mine-1"
    assert "ZeroDivisionError" in told["exception"]
