"""The machine that this runs on, through psutil: eight channels every few seconds, no set-up.

    cpu          busy share of all cores since the last reading, percent
    memory       used share, percent                    swap         used share, percent
    load         processes running or waiting, mean of one minute
    disk_read, disk_write, net_in, net_out              bytes per second since the last reading

Readings fall on multiples of the interval, so that a model whose step is the interval gets one for each. Rates are
missing from the first reading, and where a counter fell back. When the service is slow, readings are left out and
counted; nothing piles up. There is nobody to ask again: what was not durable when the process died is gone.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from tsgdn2.errors import ConfigError
from tsgdn2.service.connectors.connector import Connector, Lane
from tsgdn2.service.connectors.decoded import Decoded, Refusal, Rejections, Rows
from tsgdn2.service.connectors.delivery import Backoff, Sink
from tsgdn2.service.connectors.patterns import MissingError, Template
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.mapping import MappingError

CHANNELS: Final = ("cpu", "memory", "swap", "load", "disk_read", "disk_write", "net_in", "net_out")
Reading = tuple[int, dict[str, float]]


@dataclass(frozen=True)
class Totals:
    """Bytes since the machine started, and the monotonic second when they were read."""

    at: float
    disk_read: int
    disk_write: int
    net_in: int
    net_out: int

    @classmethod
    def read(cls) -> Totals:
        """Totals of now; 0 where the machine has no disk or network that tells."""
        disk, net = psutil.disk_io_counters(), psutil.net_io_counters()
        return cls(
            time.monotonic(), disk.read_bytes if disk else 0, disk.write_bytes if disk else 0,
            net.bytes_recv if net else 0, net.bytes_sent if net else 0,
        )  # fmt: skip

    def rates(self, before: Totals) -> dict[str, float]:
        """Bytes per second since `before`; nothing for a counter that fell back."""
        seconds = self.at - before.at
        if seconds <= 0:
            return {}
        moved = {name: getattr(self, name) - getattr(before, name) for name in CHANNELS[4:]}
        return {name: count / seconds for name, count in moved.items() if count >= 0}


class HostConnector(Connector):
    """Reads the machine every `interval` seconds."""

    def __init__(
        self,
        router: Router,
        *,
        interval: float = 5.0,
        host: str | None = None,
        name: str = "host",
        backoff: Backoff | None = None,
        patience: float = 30.0,
    ) -> None:
        """host: name of the machine; by default its own. MappingError where the model has none of the channels."""
        super().__init__(name, in_flight=1, group=1, backoff=backoff, patience=patience)
        if not interval > 0:
            raise ConfigError(f"interval: must be above 0 seconds, got {interval}")
        self.router, self.interval = router, interval
        rule = router.mapping.host
        try:
            self.stream = Template(rule.stream).fill({"host": host or socket.gethostname() or "host"}.get)
        except MissingError as error:
            raise MappingError(f"mapping: host.stream: {{{error.args[0]}}} is not known, only {{host}} is") from None
        wanted = rule.channels or {name: name for name in CHANNELS}
        if unknown := sorted(set(wanted.values()) - set(CHANNELS)):
            raise MappingError(f"mapping: host.channels: no reading is called {unknown}; there are {list(CHANNELS)}")
        self._places = {reading: at for channel, reading in wanted.items() if (at := router.index(channel)) is not None}
        if not self._places:
            raise MappingError(
                f"mapping: host.channels: the model has none of {sorted(wanted)}; map readings to its channels "
                f"{list(router.channels)[:20]}"
            )

    async def session(self, sink: Sink) -> None:
        """See Connector."""

        async def acknowledge(_: Sequence[Reading]) -> None:
            """Nobody waits for it."""

        psutil.cpu_percent()  # the first call begins the measurement
        before = Totals.read()
        self.connected()
        async with Lane(self, sink, self._rows, acknowledge) as lane:
            tick = self._next(time.time())
            while not await self.pause(tick * self.interval - time.time()):
                totals = Totals.read()
                await lane.put([(time.time_ns(), {**levels(), **totals.rates(before)})])
                before, due = totals, self._next(time.time())
                self.counts.skipped += max(due - tick - 1, 0)
                tick = due

    def _next(self, now: float) -> int:
        return int(now // self.interval) + 1

    def _rows(self, readings: Sequence[Reading]) -> Decoded:
        rows, rejected = Rows(len(self.router.channels)), Rejections()
        for moment, values in readings:
            try:
                row = rows.open(self.router.admit(self.stream), moment)
            except Refusal as refusal:
                rejected.add(refusal.reason, self.stream, refusal.detail)
                continue
            for reading, channel in self._places.items():
                if reading in values:
                    rows.cell(row, channel, values[reading])
        return Decoded(rows.batch(), rejected)


def levels() -> dict[str, float]:
    """The channels that are no rates."""
    return {
        "cpu": psutil.cpu_percent(),
        "memory": psutil.virtual_memory().percent,
        "swap": psutil.swap_memory().percent,
        "load": psutil.getloadavg()[0],
    }
