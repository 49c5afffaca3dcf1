"""What one tenant may use up: requests and rows a second, and the bytes of bodies that all of them hold at a time.

Token buckets that hold two seconds' worth; whoever finds one empty is told when it will do. Nothing waits here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tsgdn2.service.errors import BusyError

BURST_S: Final = 2.0
_MOST: Final = 10_000


class Rates:
    """Token buckets of one kind, one for each tenant; for one thread."""

    def __init__(self, what: str, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """per_second 0 is no limit."""
        self._what, self._rate, self._clock = what, per_second, clock
        self._level: dict[str, tuple[float, float]] = {}

    def take(self, tenant: str, amount: int = 1) -> None:
        """BusyError where the tenant has used up its share.

        More than a bucket holds is let through when it is full, and paid for afterwards: it would never fit otherwise.
        """
        if not self._rate:
            return
        now, most = self._clock(), max(1.0, BURST_S * self._rate)
        level, since = self._level.get(tenant, (most, now))
        level = min(most, level + (now - since) * self._rate)
        if level < min(amount, most):
            wait = (min(amount, most) - level) / self._rate
            raise BusyError(
                f"tenant: more than {self._rate:g} {self._what} a second; nothing was taken, send it again in "
                f"{wait:.2g} seconds", retry_after=wait,
            )  # fmt: skip
        if len(self._level) >= _MOST:  # a tenant's bucket that is not kept is full
            self._level.clear()
        self._level[tenant] = (level - amount, now)


class Room:
    """Bytes of bodies that are held now; for one thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Have so many bytes while the block runs. BusyError where they do not fit now."""
        if self.held + size > self._most:
            raise BusyError(
                f"service: bodies of {self.held} bytes are being read, {self._most} are the most; nothing was taken, "
                "send it again in 1 second", retry_after=1.0,
            )  # fmt: skip
        self.held += size
        try:
            yield
        finally:
            self.held -= size
