"""Events for whoever listens: alerts, forecasts and rows, each to the tenant it belongs to, bounded for every client.

    observed -> alert where a surprise is large           published at once
             -> the stream is due, if a client watches it -> every forecast_every_s: one forecast, published
    arrived  -> the rows themselves, of streams that a client names and wants the rows of

A client that reads too slowly loses the oldest events and is told how many; nobody waits for it. Nothing is kept: who
connects anew has missed what was in between, and reads /v1/ledger for what must not be missed.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import numpy as np
from pydantic_core import to_json

from tsgdn2.service.batch import Batch, Floats
from tsgdn2.service.errors import BusyError
from tsgdn2.service.tenants import is_of, own

PING_S: Final = 15.0
MOST_WATCHED: Final = 32
_MOST_ALERTS: Final = 100
_MOST_DUE: Final = 256
_MOST_ROWS: Final = 512
KINDS: Final = ("alert", "forecast", "rows")


class Client:
    """Somebody who listens."""

    def __init__(self, tenant: str, kinds: frozenset[str], streams: frozenset[str], most: int) -> None:
        """streams: whole names, none for all of the tenant's alerts."""
        self.tenant, self.kinds, self.streams = tenant, kinds, streams
        self.bell = asyncio.Event()
        self.dropped = 0
        self._waiting: deque[bytes] = deque()
        self._most = most

    def wants(self, kind: str, stream: str) -> bool:
        """Whether an event is for this client."""
        return kind in self.kinds and is_of(self.tenant, stream) and (not self.streams or stream in self.streams)

    def put(self, event: bytes) -> None:
        """Have one more wait; the oldest goes where there is no room."""
        if len(self._waiting) >= self._most:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(event)
        self.bell.set()

    def take(self) -> list[bytes]:
        """What waits, and first how many were lost."""
        self.bell.clear()
        found = list(self._waiting)
        self._waiting.clear()
        if self.dropped:
            found.insert(0, framed("dropped", {"count": self.dropped}))
            self.dropped = 0
        return found


class Hub:
    """All who listen; for the event loop's thread."""

    def __init__(self, *, clients: int, queue: int, alert_bits: float) -> None:
        self._most, self._queue, self._bits = clients, queue, alert_bits
        self._clients: set[Client] = set()
        self._watched: Counter[str] = Counter()
        self._followed: Counter[str] = Counter()
        self._due: dict[str, None] = {}
        self._closed = False
        self.dropped = 0
        """Events that slow clients lost since the start."""

    @property
    def clients(self) -> int:
        """How many listen."""
        return len(self._clients)

    def join(self, tenant: str, kinds: Iterable[str], streams: Iterable[str]) -> Client:
        """Listen; BusyError where too many do."""
        theirs = sum(client.tenant == tenant for client in self._clients)
        if len(self._clients) >= self._most or theirs >= max(1, self._most // 2) or self._closed:
            raise BusyError(
                f"events: {theirs} clients of this tenant listen, {len(self._clients)} in all, the limit is "
                f"{self._most}; close one, or come again in 10 seconds", retry_after=10.0,
            )  # fmt: skip
        client = Client(tenant, frozenset(kinds), frozenset(streams), self._queue)
        self._clients.add(client)
        if "forecast" in client.kinds:
            self._watched.update(client.streams)
            self._due |= dict.fromkeys(client.streams)
        if "rows" in client.kinds:
            self._followed.update(client.streams)
        return client

    def leave(self, client: Client) -> None:
        """Listen no more; harmless a second time."""
        if client in self._clients:
            self._clients.discard(client)
            if "forecast" in client.kinds:
                self._watched -= Counter(client.streams)
            if "rows" in client.kinds:
                self._followed -= Counter(client.streams)

    def observed(self, streams: tuple[str, ...], times: Any, surprise: Floats, channels: tuple[str, ...]) -> None:
        """Rows [N] of whole names were taken: surprise [N, C] in bits, times int64 ns [N]."""
        if not self._clients:
            return
        if self._watched:
            self._due |= dict.fromkeys(stream for stream in streams if stream in self._watched)
        with np.errstate(invalid="ignore"):
            found = np.argwhere(surprise >= self._bits)
        for row, channel in found[:_MOST_ALERTS].tolist():
            self.publish("alert", streams[row], {
                "time": int(times[row]), "channel": channels[channel], "surprise": float(surprise[row, channel]),
            })  # fmt: skip
        for row in {int(row) for row in found[_MOST_ALERTS:, 0]}:
            for client in self._clients:
                if client.wants("alert", streams[row]):
                    client.dropped += 1

    def arrived(self, batch: Batch, surprise: Floats) -> None:
        """Rows [N] of whole names were taken, with their surprise [N, C]: tell those who follow one of their streams.

        One event for a stream, of the last 512 of its rows here.
        """
        if not self._followed:
            return
        places: dict[str, list[int]] = {}
        for row, stream in enumerate(batch.streams):
            if stream in self._followed:
                places.setdefault(stream, []).append(row)
        for stream, rows in places.items():
            chosen = rows[-_MOST_ROWS:]
            self.publish("rows", stream, {
                "times": batch.times[chosen].tolist(), "values": batch.values[chosen].tolist(),
                "surprise": surprise[chosen].tolist(),
            })  # fmt: skip

    def publish(self, kind: str, stream: str, facts: dict[str, Any]) -> None:
        """Send an event of a stream to those who want it."""
        for client in self._clients:
            if client.wants(kind, stream):
                before = client.dropped
                client.put(framed(kind, {"stream": own(client.tenant, stream), **facts}))
                self.dropped += client.dropped - before

    def due(self) -> list[str]:
        """Watched streams that have got rows since they were asked for last, some of them."""
        chosen = [stream for stream in self._due if stream in self._watched][:_MOST_DUE]
        for stream in chosen:
            del self._due[stream]
        if not chosen:
            self._due.clear()
        return chosen

    def close(self) -> None:
        """End every client: the service stops."""
        self._closed = True
        for client in self._clients:
            client.bell.set()

    async def listen(self, client: Client, still: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Events as they come, until the client leaves, the service stops, or its key is not good any more."""
        try:
            yield b"retry: 3000\n\n"
            while not self._closed:
                try:
                    async with asyncio.timeout(PING_S):
                        await client.bell.wait()
                except TimeoutError:
                    yield b": still here\n\n"
                if not still():
                    yield framed("ended", {"reason": "the key is expired or withdrawn"})
                    return
                for event in client.take():
                    yield event
            yield framed("ended", {"reason": "the service stops"})
        finally:
            self.leave(client)


def framed(kind: str, facts: dict[str, Any]) -> bytes:
    """An event as it is sent."""
    return b"event: " + kind.encode() + b"\ndata: " + to_json(facts, inf_nan_mode="null") + b"\n\n"
