"""A real service for the tests: uvicorn on a free port of the loopback, a real SQLite store, a small real model."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.service.predictors import limits, predictor

from tsgdn2.online import OnlinePredictor
from tsgdn2.service.app import create_app
from tsgdn2.service.desk import Desk
from tsgdn2.service.limits import Limits
from tsgdn2.service.memory import Memory
from tsgdn2.service.server import Server
from tsgdn2.service.settings import read_settings
from tsgdn2.service.sqlite_store import SqliteStore

HOUR = 3_600_000_000_000
DEADLINE = 20.0
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""One for all clients: to make one takes longer than a test."""
BLOB = {"Content-Type": "application/octet-stream"}


class Served(httpx.Client):
    """A client of a service; `desk` is the service's inside."""

    def __init__(self, base_url: str, desk: Desk, token: str = "") -> None:
        super().__init__(
            base_url=base_url, timeout=DEADLINE, headers={"Authorization": f"Bearer {token}"} if token else {}
        )
        self.desk = desk
        self._others: list[Served] = []

    def keyed(self, role: str, tenant: str = "", **more: Any) -> Served:
        """Another client, with a new key of this role."""
        return self.bare(self.desk.keys.issue(role, tenant, **more).text)

    def bare(self, token: str = "") -> Served:
        """Another client, with this key or none; it is closed with this one."""
        self._others.append(Served(str(self.base_url), self.desk, token))
        return self._others[-1]

    def close(self) -> None:
        """Close this one and all that it made."""
        for other in self._others:
            other.close()
        super().close()

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)
        self.close()

    def observe(self, stream: str, steps: Sequence[int], **more: Any) -> httpx.Response:
        """Rows of one stream at these hours."""
        rows = [{"stream": stream, "time": step * HOUR, "values": [float(step), None], **more} for step in steps]
        return self.post("/v1/observe/batch", json={"rows": rows})


@contextmanager
def served(
    folder: Path, *, bounds: Limits | None = None, store: SqliteStore | None = None, app: dict[str, Any] | None = None,
    online: OnlinePredictor | None = None, **settings: Any,
) -> Iterator[Served]:  # fmt: skip
    """A service over a store in a folder, keys off unless asked for; with keys the client is an administrator."""
    settings = {"keys": "off", "port": 0, "host": "127.0.0.1"} | settings
    kept = store or SqliteStore(folder / "store.db")
    memory = Memory(online or predictor(), kept, bounds or limits())
    chosen = read_settings(environ={}, **settings)
    server = Server(create_app(memory, kept, chosen, **(app or {})), chosen)
    thread = threading.Thread(target=server.run, name="served")
    thread.start()
    try:
        until(lambda: server.started and server.desk.ready, "the service is ready")
        port = server.servers[0].sockets[0].getsockname()[1]
        first = server.desk.first_key
        scheme = "https" if settings.get("certificate") else "http"
        with Served(f"{scheme}://127.0.0.1:{port}", server.desk, first.text if first else "") as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
    assert not thread.is_alive(), "the service did not come to its end"


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Look often for something that has to become true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE} s"
        time.sleep(0.005)
