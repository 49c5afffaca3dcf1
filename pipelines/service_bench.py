"""The service's benchmark: observations a second and latency of HTTP, MQTT and the memory itself, beside what they cost
at least: the predictor and the journal in a plain loop.

    for each load:  yardstick | contender | yardstick | contender | .. | yardstick
    a contender:    full speed for some seconds, then half of that rate, on a copy of one prepared store

Everything is on the same cores: service, sender and broker. The yardstick stays in a process of its own and is measured
before and after each contender, because the machine is shared; a ratio is over the mean of these two. Latency at half
rate counts from the moment at which a request was due (service_bench_pace.py). A piece of it can be run with `only` and
`loads`; rows of pieces are put together by their names.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tsgdn2.evaluation.rows import Row, Value, commit, row
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.jobs import QUICKSTART_MODEL, Bench
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.servable import AUDIT
from tsgdn2.pipelines.service_bench_broker import mosquitto, mosquitto_version
from tsgdn2.pipelines.service_bench_options import INSIDE, MQTT, YARDSTICK, ServiceLoad
from tsgdn2.pipelines.service_bench_process import Child
from tsgdn2.pipelines.service_bench_subjects import Figures, InsideSubject, Served, Subject, WireSubject, told
from tsgdn2.pipelines.service_bench_traffic import CHANNELS, Traffic
from tsgdn2.pipelines.training import estimator

PACKAGES: Final = ("fastapi", "uvicorn", "aiomqtt", "aiohttp", "pyarrow", "pydantic")
HORIZON: Final = 24
HALF: Final = (
    "rows", "journalled", "seconds", "rows_per_s", "p50_ms", "p99_ms", "max_ms", "rows_a_group", "cpu_us",
    "cpu_service", "cpu_all", "cpu_others", "load_1m", "rss_mb", "waits",
)  # fmt: skip
"""What a row tells of half rate."""
_SQLITE: Final = ("", "-wal", "-shm", ".lock")


def service_rows(job: Bench) -> Iterator[Row]:
    """One row for each contender under each load, as soon as it is known."""
    options = job.service.quick() if job.quick else job.service
    if MQTT in options.only and not options.minutes:
        mosquitto()
    stand = Stand(options, job.seeds[0], options.work or job.folder("bench") / "service", Screen(job.quiet))
    if options.minutes:
        from tsgdn2.pipelines.service_bench_soak import soak

        yield soak(stand, job.folder("bench") / "service.jsonl")
        return
    for load in options.loads:
        yield from stand.rows(load)


class Stand:
    """Where contenders are measured: a folder with the model, the prepared stores, their copies and the logs."""

    def __init__(self, options: ServiceLoad, seed: int, work: Path, screen: Screen) -> None:
        """Make what is not there."""
        self.options, self.seed, self.work, self.screen = options, seed, work, screen
        work.mkdir(parents=True, exist_ok=True)
        self._key = f"{options.streams}-{seed}-{'audit' if options.audit else 'plain'}-{commit()}"
        self.model = work / f"model-{self._key}.safetensors"
        if not self.model.exists():
            with screen.phase("model"):
                make_model(self.model, seed, audit=options.audit)

    def rows(self, load: str) -> Iterator[Row]:
        """All contenders under one load, the yardstick before and after each."""
        with ExitStack() as stack:
            yard = self.inside(YARDSTICK, load, stack).warm()
            before = yard.measure()
            if YARDSTICK in self.options.only:
                half = yard.measure(rate=before["rows_per_s"] / 2)
                yield self.row(YARDSTICK, load, yard, before, half, (before, before))
            shared: dict[str, Any] = {}
            for contender in self.options.only:
                if contender == YARDSTICK:
                    continue
                with ExitStack() as own:
                    subject = self.subject(contender, load, stack if self.options.together else own, shared).warm()
                    full = subject.measure()
                    half = subject.measure(rate=full["rows_per_s"] / 2)
                after = yard.measure()
                yield self.row(contender, load, subject, full, half, (before, after))
                before = after

    def traffic(self, load: str) -> Traffic:
        """The rows of a load."""
        patch = QUICKSTART_MODEL.patch_length
        return Traffic(streams=self.options.streams, patch=patch, spread=load == "spread", seed=self.seed)

    def subject(self, contender: str, load: str, stack: ExitStack, shared: dict[str, Any]) -> Subject:
        """A contender, ready; what `shared` holds of others is used again where they share processes."""
        known = shared if self.options.together else {}
        if contender in INSIDE:
            return self.inside(contender, load, stack, known)
        if "served" not in known:
            mqtt = MQTT in self.options.only if self.options.together else contender == MQTT
            with self.screen.phase(f"{contender}, {load}: start"):
                known["served"] = self.serve(load, mqtt=mqtt, stack=stack)
            known["sender"] = stack.enter_context(Child("senders", self.work / "senders.log"))
        return WireSubject(self.options, self.traffic(load)).begin(contender, known["served"], known["sender"])

    def serve(self, load: str, *, mqtt: bool, stack: ExitStack) -> Served:
        """A serving process on a copy of its own."""
        place, first = self.copy(load, "served"), self.traffic(load).first
        served = Served(self.options, self.model, place, self.work, first, mqtt=mqtt)
        stack.enter_context(served.stack)
        return served

    def inside(self, contender: str, load: str, stack: ExitStack, known: dict[str, Any] | None = None) -> InsideSubject:
        """One of those that need no wire, in a process of its own unless one is known."""
        known = {} if known is None else known
        if "inside" not in known:
            child = Child("inside", self.work / "inside.log", threads=self.options.threads)
            known["inside"] = stack.enter_context(child)
        name = "yardstick" if contender == YARDSTICK else contender
        with self.screen.phase(f"{contender}, {load}: start"):
            place = self.copy(load, name, known["inside"])
            return InsideSubject(self.options, self.traffic(load)).begin(contender, known["inside"], self.model, place)

    def copy(self, load: str, name: str, child: Child | None = None) -> Path:
        """A fresh copy of the prepared store, which is made, by this child if any, when it is not there."""
        prepared = self.work / f"{load}-{self._key}.db"
        if not prepared.exists():
            made = prepared.with_suffix(".making")
            _remove(made)
            with self.screen.phase(f"{load}: {self.options.streams:,} streams"), ExitStack() as stack:
                maker = child or stack.enter_context(Child("inside", self.work / "inside.log"))
                maker.ask(
                    do="prepare", model=str(self.model), place=str(made), traffic=told(self.traffic(load)),
                    threads=self.options.threads,
                )  # fmt: skip
            made.rename(prepared)
            _remove(made)
        place = self.work / f"copy-{name}.db"
        _remove(place)
        shutil.copyfile(prepared, place)
        return place

    def row(
        self, contender: str, load: str, subject: Subject, full: Figures, half: Figures,
        yardstick: tuple[Figures, Figures],
    ) -> Row:  # fmt: skip
        """One line of the record; yardstick: its figures before and after this contender."""
        figures = {**full, **{f"half_{name}": half[name] for name in HALF if name in half}}
        rate, cpu = (sum(one[name] for one in yardstick) / 2 for name in ("rows_per_s", "cpu_us"))
        figures |= {
            "yardstick_rows_per_s": rate, "yardstick_over": rate / full["rows_per_s"],
            "yardstick_cpu_over": full["cpu_us"] / cpu,
        }  # fmt: skip
        spent = figures.pop("cpu_seconds") + half["cpu_seconds"]
        return self.line(f"{contender}, {load}", load, subject, figures, spent)

    def line(self, what: str, load: str, subject: Subject, figures: Figures, cpu_seconds: float) -> Row:
        """A row with the shape and the versions that all of them have."""
        options = self.options
        shape: dict[str, Value] = {
            "load": load, "streams": options.streams, "channels": len(CHANNELS), "batch": options.rows,
            "connections": min(options.connections, options.abreast), "window": options.window,
            "group_rows": options.group_rows, "seconds": options.seconds, "threads": options.threads,
            "audit": options.audit, "wait": options.wait, "together": options.together,
            "cores": len(os.sched_getaffinity(0)),
        }  # fmt: skip
        made = row(what, shape, seed=self.seed, cpu_seconds=cpu_seconds, **subject.facts, **figures)
        return replace(made, versions={**made.versions, **versions(mqtt=what.startswith(MQTT))})


def make_model(path: Path, seed: int, *, audit: bool) -> None:
    """The quickstart's model with its nine channels, trained for a moment: its time counts here, and no weight changes
    that. It is kept as an online predictor without streams, as the service begins with."""
    from tsgdn2.evaluation.serving import entries_of, values_of

    options = replace(QUICKSTART_MODEL, epochs=1, batches=2, seconds=None, seed=seed)
    with Screen(quiet=True).phase("training", total=2) as phase:
        data = entries_of(values_of(len(CHANNELS), 0, 600, seed)[None])
        trained = estimator(options, "h", HORIZON, phase, names=CHANNELS).train(data)
    tracked = AUDIT if audit else None
    OnlinePredictor.from_predictor(trained, channels=CHANNELS, late="tag", audit=tracked).save(path)


def versions(*, mqtt: bool) -> dict[str, str]:
    """Versions that these figures depend on, beside those of every row."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | ({"mosquitto": mosquitto_version()} if mqtt else {})


def _remove(place: Path) -> None:
    for ending in _SQLITE:
        Path(f"{place}{ending}").unlink(missing_ok=True)
