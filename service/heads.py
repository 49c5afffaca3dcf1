"""uvicorn's protocol with a bound on the time in which a request's head must be whole: against clients that drip bytes.

    connection, or the first byte behind an answer -> whole head within `head_timeout_s`, or the connection is closed

uvicorn bounds the idle time between requests only. The body has a bound of its own (guard.py).
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class PromptProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One connection; a subclass says how long it waits."""

    head_timeout_s: ClassVar[float] = 10.0
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Some bytes: the head is whole, or the wait for it goes on."""
        super().data_received(data)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._stop_waiting()
        elif self._clock is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._clock = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _give_up(self) -> None:
        self._clock = None
        cycle = self.cycle
        if not self.transport.is_closing() and (cycle is None or cycle.response_complete):
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def prompt(seconds: float) -> type[asyncio.Protocol]:
    """The protocol that waits so many seconds for a head."""
    kind: type[asyncio.Protocol] = type("Prompt", (PromptProtocol,), {"head_timeout_s": seconds})
    return kind
