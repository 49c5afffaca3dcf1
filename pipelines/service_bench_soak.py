"""Half-rate HTTP load for minutes on end, and what it does to the memory of the serving process.

    slope   bytes of resident memory a minute, by least squares over the last two thirds

Sampled each second; a line a minute is printed and kept in <work>/soak.jsonl, so that what was seen before an accident
is not lost. Journal and snapshots go on as always, so the file grows until the first pruning and hardly behind it.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.rows import Row, mend, read
from tsgdn2.pipelines.service_bench_options import HTTP, MQTT
from tsgdn2.pipelines.service_bench_subjects import Figures, Subject, WireSubject

if TYPE_CHECKING:
    from tsgdn2.pipelines.service_bench import Stand

_MB: Final = 1e6


class Watch:
    """Samples of one serving process and its files."""

    def __init__(self, subject: Subject, place: Path, kept: Path, say: Any) -> None:
        """place: the store's file; kept: where the lines go."""
        self._process = subject.processes()["service"]
        self._place, self._kept, self._say = place, kept, say
        self._began, self._told = time.monotonic(), 0
        self.minutes, self.rss = list[float](), list[float]()
        kept.write_text("", encoding="utf-8")

    def sample(self) -> None:
        """Look; tell once a minute."""
        now = (time.monotonic() - self._began) / 60
        self.minutes.append(now)
        self.rss.append(float(self._process.memory_info().rss))
        if now >= self._told:
            self._told += 1
            found = {"minute": round(now, 2), "rss_mb": self.rss[-1] / _MB, "file_mb": self.file_mb()}
            with self._kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            self._say(", ".join(f"{name} {value:.1f}" for name, value in found.items()))

    def file_mb(self) -> float:
        """The store's file and its log."""
        parts = (Path(f"{self._place}{ending}") for ending in ("", "-wal"))
        return sum(part.stat().st_size for part in parts if part.exists()) / _MB

    def slope(self) -> float:
        """Bytes a minute over the last two thirds; 0 for too few samples."""
        start = len(self.minutes) // 3
        if len(self.minutes) - start < 3:
            return 0.0
        return float(np.polyfit(self.minutes[start:], self.rss[start:], 1)[0])


def soak(stand: Stand, known: Path) -> Row:
    """The row of one long load. known: a file of rows that may hold a sustained rate. ConfigError: nothing is HTTP."""
    options = stand.options
    contender = next((one for one in options.only if one in HTTP), None)
    if contender is None:
        raise ConfigError(f"service.only: minutes needs one of {', '.join(HTTP)}, got {', '.join(options.only)}")
    load = options.loads[0]
    with ExitStack() as stack:
        subject = stand.subject(contender, load, stack, {}).warm()
        assert isinstance(subject, WireSubject)
        rate = options.rate or newest_rate(known, contender, load, options.streams)
        rate = rate or subject.measure()["rows_per_s"] / 2
        watch = Watch(subject, stand.work / "copy-served.db", stand.work / "soak.jsonl", stand.screen.say)
        began_mb = watch.file_mb()
        watch.sample()
        half = subject.measure(rate=rate, seconds=60 * options.minutes, tick=watch.sample)
        watch.sample()
        start, end = watch.rss[len(watch.rss) // 3], watch.rss[-1]
        found: Figures = {
            **{f"soak_{name}": value for name, value in half.items()}, "soak_minutes": watch.minutes[-1],
            "soak_rate": rate, "rss_first_mb": watch.rss[0] / _MB, "rss_third_mb": start / _MB, "rss_end_mb": end / _MB,
            "rss_largest_mb": max(watch.rss) / _MB, "rss_slope_bytes_per_minute": watch.slope(),
            "file_start_mb": began_mb, "file_end_mb": watch.file_mb(),
        }  # fmt: skip
        return stand.line(f"memory under load, {contender}, {load}", load, subject, found, half["cpu_seconds"])


def newest_rate(file: Path, contender: str, load: str, streams: int) -> float:
    """Half of the newest sustained rate of the file, of as many streams; 0 where it has none."""
    if contender == MQTT or not file.exists():
        return 0.0
    mend(file)
    rates = [
        float(row.values["rows_per_s"] or 0.0)
        for row in read(file)
        if row.what == f"{contender}, {load}" and row.shape.get("streams") == streams
    ]
    return rates[-1] / 2 if rates else 0.0
