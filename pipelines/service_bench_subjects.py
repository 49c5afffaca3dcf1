"""One contender of the service's benchmark at a time, whatever it is made of: processes, a store, rows to send.

    measure   one pace -> how many rows a second, how long they took, groups, processor and memory of each process

Rows count towards the rate when they are applied, wherever they were acknowledged before: the seconds in which what is
on the disk gets into the states are in it (`settle_s`). A measurement ends with what the journal says: a contender that
was sent other rows than its journal holds has no figures.
"""

from __future__ import annotations

import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import psutil

from tsgdn2.errors import TsgdnError
from tsgdn2.pipelines.service_bench_broker import Broker, free_port
from tsgdn2.pipelines.service_bench_options import MQTT, ServiceLoad
from tsgdn2.pipelines.service_bench_pace import Pace
from tsgdn2.pipelines.service_bench_process import Child
from tsgdn2.pipelines.service_bench_traffic import Traffic

Figures = dict[str, Any]
_PATIENCE: Final = 600.0
_SETTLED: Final = 120.0
_SAMPLE: Final = re.compile(r"^(tsgdn2_\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)
_MB: Final = 1e6


class LostRowsError(TsgdnError):
    """What was sent is not what the journal holds."""


@dataclass(eq=False)
class Position:
    """Which row comes next; contenders that share a store share it."""

    row: int


@dataclass(eq=False)
class Subject:
    """Processes behind one way in."""

    options: ServiceLoad
    traffic: Traffic
    facts: Figures = field(default_factory=dict)
    """What is known once: seconds of the start, bytes of a state."""

    def __post_init__(self) -> None:
        self.at = Position(self.traffic.first)

    def processes(self) -> dict[str, psutil.Process]:
        """Each process, by what it is: service, sender, broker."""
        raise NotImplementedError

    def send(self, pace: Pace, tick: Callable[[], object] | None) -> Figures:
        """Have rows sent; with `journalled` where there is a journal."""
        raise NotImplementedError

    def warm(self) -> Self:
        """Send for a moment what is not measured: first calls load and allocate."""
        seconds = min(2.0, self.options.seconds / 5)
        pace = Pace(first=self.at.row, seconds=seconds, batch=self.options.rows, abreast=min(2, self.options.abreast))
        self.at.row += self.send(pace, None)["rows"]
        return self

    def measure(
        self, rate: float = 0.0, seconds: float | None = None, tick: Callable[[], object] | None = None
    ) -> Figures:
        """One measurement, at full speed unless there is a rate. LostRowsError."""
        options = self.options
        many = options.connections * 4 if rate else options.connections
        pace = Pace(
            first=self.at.row, seconds=options.seconds if seconds is None else seconds, batch=options.rows,
            whole=self.traffic.whole, rate=rate, abreast=min(many, options.abreast),
        )  # fmt: skip
        processes = self.processes()
        used, machine = _used(processes), _busy()
        load, began = os.getloadavg()[0], time.monotonic()
        found = self.send(pace, tick)
        wall = time.monotonic() - began
        self.at.row += found["rows"]
        shares = {f"cpu_{name}": (after - used[name]) / wall for name, after in _used(processes).items()}
        found |= shares | {
            "load_1m": load, "cpu_all": sum(shares.values()), "cpu_seconds": sum(shares.values()) * wall,
            "cpu_others": max((_busy() - machine) / wall - sum(shares.values()), 0.0),
            "cpu_us": shares["cpu_service"] * wall / found["rows"] * 1e6,
            "rss_mb": processes["service"].memory_info().rss / _MB,
        }  # fmt: skip
        found["rows_per_s"] = found["rows"] / (found["seconds"] + found.get("settle_s", 0.0))
        if found.get("groups"):
            found["rows_a_group"] = found["rows"] / found["groups"]
        if found.get("journalled") not in (None, found["rows"]):
            raise LostRowsError(
                f"service: {found['rows']} rows were sent and {found['journalled']} are in the journal; see the logs"
            )
        return found


class InsideSubject(Subject):
    """core, journal, both in a loop, or the memory."""

    def begin(self, contender: str, child: Child, model: Path, place: Path) -> Self:
        """Have a process open its copy of the store."""
        self.child, self.contender = child, contender
        self.facts = child.ask(
            do="open", contender=contender, model=str(model), place=str(place), traffic=told(self.traffic),
            group_rows=self.options.group_rows, threads=self.options.threads, wait=self.options.wait,
        )  # fmt: skip
        return self

    def processes(self) -> dict[str, psutil.Process]:
        """See Subject."""
        return {"service": self.child.measured}

    def send(self, pace: Pace, tick: Callable[[], object] | None) -> Figures:
        """See Subject."""
        found = self.child.ask(tick, do="run", pace=asdict(pace))
        if self.contender == "core":
            del found["journalled"]
        return found


class Served:
    """A serving process, and the broker that it reads from."""

    def __init__(self, options: ServiceLoad, model: Path, place: Path, work: Path, first: int, *, mqtt: bool) -> None:
        """Start both, and wait until rows are taken and MQTT is subscribed. first: the row that comes next."""
        self.at = Position(first)
        self.stack = ExitStack()
        self.broker = self.stack.enter_context(Broker(work)) if mqtt else None
        self.commits, mapping, port = work / "commits", work / "mapping.yaml", free_port()
        self.commits.write_bytes(b"")
        mapping.write_text(f"limits: {{streams: {options.streams}}}\n", encoding="utf-8")
        self.url, began = f"http://127.0.0.1:{port}", time.monotonic()
        given: Figures = {
            "model": str(model), "place": str(place), "port": port, "streams": options.streams,
            "group_rows": options.group_rows, "threads": options.threads, "mapping": str(mapping),
        }  # fmt: skip
        if self.broker is not None:
            given |= {"mqtt": self.broker.port, "commits": str(self.commits)}
        self.child = self.stack.enter_context(Child("serve", work / "serve.log", given, threads=options.threads))
        try:
            self._wait(lambda: self._get("/readyz") is not None)
            if mqtt:
                self._wait(lambda: self.metrics().get(f'tsgdn2_connector{{connector="{MQTT}",count="connected"}}') == 1)
        except BaseException:
            self.stack.close()
            raise
        self.start_s = time.monotonic() - began

    def metrics(self) -> dict[str, float]:
        """/metrics: sample with its labels: value."""
        text = (self._get("/metrics") or b"").decode()
        return {name: float(value) for name, value in _SAMPLE.findall(text)}

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
                content: bytes = answer.read()
                return content
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not ready():
            if not self.child.alive or time.monotonic() > deadline:
                raise self.child.failed("it did not come to take rows")
            time.sleep(0.1)


class WireSubject(Subject):
    """HTTP or MQTT: a serving process, a sending process, a broker."""

    def begin(self, contender: str, served: Served, sender: Child) -> Self:
        """Use processes that run."""
        self.contender, self.served, self.sender, self.at = contender, served, sender, served.at
        self.facts = {"start_s": served.start_s}
        return self

    def processes(self) -> dict[str, psutil.Process]:
        """See Subject."""
        found = {"service": self.served.child.measured, "sender": self.sender.measured}
        if self.contender == MQTT and self.served.broker is not None:
            found["broker"] = self.served.broker.measured
        return found

    def send(self, pace: Pace, tick: Callable[[], object] | None) -> Figures:
        """See Subject."""
        served, before = self.served, self.served.metrics()
        question: Figures = {"pace": asdict(pace), "traffic": told(self.traffic)}
        if self.contender == MQTT:
            assert served.broker is not None
            question |= {
                "do": "mqtt", "port": served.broker.port, "commits": str(served.commits),
                "window": self.options.window,
            }  # fmt: skip
        else:
            question |= {"do": "http", "url": served.url, "form": self.contender, "wait": self.options.wait}
        try:
            found = self.sender.ask(tick, **question)
        except TsgdnError as error:
            raise served.child.failed(str(error)[-2_000:]) from error
        ended = time.monotonic()
        while _applied(gone := _inside(before, served.metrics())) < found["rows"]:
            if time.monotonic() - ended > _SETTLED:
                raise served.child.failed("the rows on the disk were not applied")
            time.sleep(0.02)
        return found | gone | {"settle_s": time.monotonic() - ended}


def told(traffic: Traffic) -> Figures:
    """What a process must be told to make the same rows."""
    return {"streams": traffic.streams, "patch": traffic.patch, "spread": traffic.spread, "seed": traffic.seed}


def _inside(before: Mapping[str, float], after: Mapping[str, float]) -> Figures:
    """Groups, rows of the journal, statuses and the worker's seconds by part, between two readings of /metrics."""
    gone = {name: value - before.get(name, 0.0) for name, value in after.items()}
    found: Figures = {
        "groups": int(gone.get("tsgdn2_groups_total", 0)), "journalled": int(gone.get("tsgdn2_journal_last", 0)),
    }  # fmt: skip
    for name, value in gone.items():
        part = re.fullmatch(r'tsgdn2_(rows|group_seconds)_total\{\w+="(\w+)"\}', name)
        if part is not None and value:
            found |= {f"status_{part[2]}": int(value)} if part[1] == "rows" else {f"s_{part[2]}": value}
    return found


def _applied(found: Figures) -> int:
    """Rows that have a status."""
    return sum(count for name, count in found.items() if name.startswith("status_"))


def _used(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """Processor seconds of each."""
    return {name: (times := process.cpu_times()).user + times.system for name, process in processes.items()}


def _busy() -> float:
    """Processor seconds of everything on this machine."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))
