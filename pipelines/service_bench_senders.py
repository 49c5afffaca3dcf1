"""The senders of the service's benchmark, in a process of their own: HTTP requests, and MQTT messages.

They run on the same cores as the service, so they are as light as they can be. HTTP goes through aiohttp on connections
that are kept. MQTT is written to the socket by hand, since a library for it costs as much as the service does: version
3.1.1, QoS 1, and of what comes back only the last PUBACK matters. The publisher keeps at most a window ahead of the
commits, which it reads from the serving process's file.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np

from tsgdn2.errors import TsgdnError
from tsgdn2.pipelines.service_bench_pace import Figures, Pace, Schedule, Taken, pause
from tsgdn2.pipelines.service_bench_traffic import Traffic

_PATIENCE: Final = 120.0
_BURST: Final = 64
_PATH: Final = "/v1/observe/batch"
_COMMIT: Final = np.dtype([("at", "<f8"), ("rows", "<i8")])


class SendError(TsgdnError):
    """The service did not answer as it should."""


def send(question: Figures) -> Figures:
    """One measurement: {"do": "http" or "mqtt", "pace": .., "traffic": .., ..}."""
    pace, traffic = Pace(**question["pace"]), Traffic(**question["traffic"])
    traffic.ready()
    if question["do"] == "http":
        return asyncio.run(_http(question, pace, traffic))
    return Publisher(question["port"]).run(Path(question["commits"]), question["window"], pace, traffic)


async def _http(question: Figures, pace: Pace, traffic: Traffic) -> Figures:
    """Send requests on `pace.abreast` connections."""
    form = question["form"]
    url = f"{question['url']}{_PATH}{'' if form == 'http-json-rows' else '?results=counts&wait=' + question['wait']}"
    refused: set[int] = set()
    gate = asyncio.Event()
    gate.set()
    waits = 0
    taken = Taken()

    async def post(client: aiohttp.ClientSession, first: int, rows: int) -> None:
        nonlocal waits
        body, kind = traffic.columns(first, rows).body(form)
        await gate.wait()
        while True:
            async with client.post(url, data=body, headers={"Content-Type": kind}) as answer:
                if answer.status == 429:
                    # Later rows of its streams must not come before it: nobody sends until it is taken.
                    waits += 1
                    refused.add(first)
                    gate.clear()
                    await answer.read()
                    await asyncio.sleep(min(float(answer.headers.get("Retry-After", "1")), 1.0))
                    continue
                if answer.status != 200:
                    raise SendError(f"service: answered {answer.status}: {(await answer.text())[:500]}")
                await answer.read()
                refused.discard(first)
                if not refused:
                    gate.set()
                return

    async def work(client: aiohttp.ClientSession) -> None:
        while True:
            await gate.wait()
            if pace.rate:
                # The request is taken before it is due: the next worker waits for the one behind it.
                if (one := schedule.take()) is None:
                    return
                await asyncio.sleep(max(one[2] - time.monotonic(), 0))
            elif (one := schedule.take()) is None:
                return
            first, rows, begins = one
            await post(client, first, rows)
            taken.add(begins, time.monotonic(), rows)

    connector = aiohttp.TCPConnector(limit=pace.abreast, force_close=False)
    timeout = aiohttp.ClientTimeout(total=_PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        async with client.get(f"{question['url']}/readyz") as ready:
            await ready.read()
        schedule = Schedule(pace)
        async with asyncio.TaskGroup() as group:
            for _ in range(pace.abreast):
                group.create_task(work(client))
    found = taken.figures(schedule.begin)
    return found | {"waits": waits}


class Publisher:
    """One MQTT connection to a broker on this machine."""

    def __init__(self, port: int) -> None:
        """Connect; SendError when the broker does not take it."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = f"bench-{os.getpid()}".encode()
        body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name
        self._socket.sendall(b"\x10" + _length(len(body)) + body)
        answer = self._socket.recv(4)
        if len(answer) != 4 or answer[0] != 0x20 or answer[3] != 0:
            raise SendError(f"mqtt: the broker did not take the connection ({answer.hex()})")
        self._number, self._acknowledged = 0, 0

    def run(self, commits: Path, window: int, pace: Pace, traffic: Traffic) -> Figures:
        """Publish, wait for the last commit, and tell how long each row took."""
        before = _committed(commits)
        schedule, begins = Schedule(pace), list[float]()
        while True:
            if pace.rate:
                while (now := time.monotonic()) < schedule.due():
                    self._drain()
                    pause(min(schedule.due(), now + 0.001))
            else:
                while schedule.sent - (_committed(commits) - before) > window - _BURST:
                    self._drain()
                    pause(0.0)
            first, count = pace.first + schedule.sent, 0
            while count < _BURST and schedule.due() <= time.monotonic() and (one := schedule.take(1)) is not None:
                begins.append(one[2])
                count += 1
            if not count:
                break
            self._write(b"".join(map(self._packet, traffic.columns(first, count).messages())))
        sent = schedule.sent
        deadline = time.monotonic() + _PATIENCE
        while _committed(commits) - before < sent:
            self._drain()
            if time.monotonic() > deadline:
                raise SendError(f"mqtt: {_committed(commits) - before} of {sent} rows were committed in {_PATIENCE} s")
            pause(0.0)
        self._socket.close()
        noted = np.fromfile(commits, _COMMIT)
        noted = noted[noted["rows"] > before]
        at = np.searchsorted(noted["rows"], before + 1 + np.arange(sent))
        taken = Taken()
        for begin, end in zip(begins, noted["at"][at].tolist(), strict=True):
            taken.add(begin, end)
        return {**taken.figures(schedule.begin), "published": self._number, "deliveries": len(noted)}

    def _packet(self, message: tuple[bytes, bytes]) -> bytes:
        topic, payload = message
        self._number += 1
        number = (self._number - 1) % 65_535 + 1
        body = len(topic).to_bytes(2, "big") + topic + number.to_bytes(2, "big") + payload
        return b"\x32" + _length(len(body)) + body

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            readable, writable, _ = select.select([self._socket], [self._socket], [], 10)
            if readable:
                self._drain()
            if writable:
                view = view[self._socket.send(view) :]

    def _drain(self) -> None:
        """Read acknowledgements, so that the broker never waits for us."""
        while select.select([self._socket], [], [], 0)[0]:
            found = self._socket.recv(1 << 16)
            if not found:
                raise SendError("mqtt: the broker closed the connection; see its log")
            self._acknowledged += len(found) // 4


def _length(size: int) -> bytes:
    out = bytearray()
    while True:
        size, low = divmod(size, 128)
        out.append(low | (0x80 if size else 0))
        if not size:
            return bytes(out)


def _committed(commits: Path) -> int:
    """Rows committed so far."""
    with commits.open("rb") as file:
        size = file.seek(0, os.SEEK_END) // _COMMIT.itemsize * _COMMIT.itemsize
        if not size:
            return 0
        file.seek(size - _COMMIT.itemsize)
        last: Any = np.frombuffer(file.read(_COMMIT.itemsize), _COMMIT)[0]
    return int(last["rows"])
