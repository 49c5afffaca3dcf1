"""Options of the service's benchmark: how many streams, for how long, which contenders, under which load.

This file imports nothing heavy, as jobs.py, whose dataclass Bench holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.options import at_least_one

YARDSTICK: Final = "observe_many+journal"
INSIDE: Final = ("core", "journal", YARDSTICK, "in-process")
HTTP: Final = ("http-json", "http-json-rows", "http-arrow")
MQTT: Final = "mqtt"
CONTENDERS: Final = (*INSIDE, *HTTP, MQTT)
LOADS: Final = ("spread", "aligned")


@dataclass(frozen=True, kw_only=True)
class ServiceLoad:
    """The load on the service; `--quick true` takes 200 streams, a second and processes that contenders share."""

    only: tuple[str, ...] = CONTENDERS
    """Contenders: core, journal, observe_many+journal (the yardstick, which is measured in any case), in-process,
    http-json (columns), http-json-rows (one object a row, with all results), http-arrow, mqtt."""
    loads: tuple[str, ...] = LOADS
    """spread: streams began at different moments, so patches close evenly. aligned: all close theirs in one sweep."""
    streams: int = 10_000
    """Streams; each has closed patches before anything is measured."""
    seconds: float = 30.0
    """At least so long at full speed, and again at half of that rate; aligned loads go on to the end of a patch."""
    batch: int = 256
    """Rows of one request."""
    connections: int = 8
    """Requests at a time at full speed; at half rate four times as many may wait."""
    window: int = 2_048
    """Rows that the MQTT publisher is ahead of the commits at full speed."""
    group_rows: int = 2_048
    """Rows of one group of the service and of the yardstick."""
    threads: int = 1
    """Threads of torch in each process that has a model."""
    wait: Literal["disk", "applied"] = "disk"
    """When rows are answered, and their time ends: on the disk, or applied as well (http-json-rows always is)."""
    audit: bool = True
    """Whether the predictor tracks what its states forget, as `tsgdn2 serve` has it by default."""
    together: bool = False
    """Contenders of one kind share a process: a quick look, in which memory is not the contender's own."""
    minutes: float = 0.0
    """Above 0: nothing but half-rate HTTP load (the first of `only` that is HTTP) for so long, memory watched."""
    rate: float = 0.0
    """Rows a second of `minutes`; 0 takes half of the newest sustained rate in the file of rows, or measures it."""
    work: Path | None = None
    """Folder of the prepared store, its copies and logs; by default `service` in the output folder. Some GB."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        at_least_one(
            streams=self.streams, batch=self.batch, connections=self.connections, window=self.window,
            group_rows=self.group_rows, threads=self.threads,
        )  # fmt: skip
        for name, given, known in (("only", self.only, CONTENDERS), ("loads", self.loads, LOADS)):
            wrong = [one for one in given if one not in known]
            if wrong or not given:
                raise ConfigError(
                    f"service.{name}: must be some of {', '.join(known)}, got {', '.join(wrong) or 'none'}"
                )
        if self.streams < 8:
            raise ConfigError(f"service.streams: must be at least 8, got {self.streams}")
        if not self.seconds > 0 or self.minutes < 0 or self.rate < 0:
            raise ConfigError(
                f"service.seconds: must be above 0, minutes and rate not below; got {self.seconds}, {self.minutes}, "
                f"{self.rate}"
            )

    def quick(self) -> ServiceLoad:
        """Seconds instead of minutes, to see that all works; what was given below that stays."""
        return replace(self, streams=min(self.streams, 200), seconds=min(self.seconds, 1.0), together=True)

    @property
    def rows(self) -> int:
        """Rows of a request that leaves no stream in two requests at a time twice."""
        return max(1, min(self.batch, self.streams // 4))

    @property
    def abreast(self) -> int:
        """Requests that may be under way without rows of one stream overtaking each other, sent again or not."""
        return max(1, self.streams // self.rows // 2 - 1)
