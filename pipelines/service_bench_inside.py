"""The contenders that need no wire: the bare predictor, the bare journal, both in a loop, and the service's memory.

    core                   OnlinePredictor.observe_many alone
    journal                Store.append alone
    observe_many+journal   append, then observe_many, in one thread: the yardstick of the others
    in-process             Memory.observe and its futures

All four begin with the states of the prepared store, and are given the same rows in the same groups; what makes a frame
or a batch of them is in their time. A child process of the benchmark answers with this.
"""

from __future__ import annotations

import gc
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import polars as pl
import torch

from tsgdn2.errors import ConfigError
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.service_bench_pace import Figures, Pace, loop, submit
from tsgdn2.pipelines.service_bench_traffic import SOURCE, Columns, Traffic
from tsgdn2.service.batch import Batch
from tsgdn2.service.errors import BusyError
from tsgdn2.service.limits import Limits
from tsgdn2.service.memory import Memory
from tsgdn2.service.pool import model_of
from tsgdn2.service.receipts import Receipt
from tsgdn2.service.sqlite_store import SqliteStore

_BESIDE = 8_192
"""Bytes of a stream beside its state, at most."""
_PATIENCE = 120.0


def limits_of(online: OnlinePredictor, streams: int, group_rows: int) -> Limits:
    """Limits under which all streams are hot."""
    each = online.state_nbytes + online.audit_nbytes + _BESIDE
    return Limits(memory_bytes=max(1 << 30, (streams + 2) * each), group_rows=group_rows)


def prepare(model: Path, place: Path, traffic: Traffic) -> Figures:
    """Make a store in which every stream has closed patches, by the service itself."""
    online = OnlinePredictor.load(model)
    memory = Memory(online, SqliteStore(place), limits_of(online, traffic.streams, 2_048))
    memory.start()
    try:
        for first in range(0, traffic.first, 2_048):
            rows = traffic.columns(first, min(2_048, traffic.first - first))
            if len(rows):
                memory.observe(batch_of(rows)).result()
        return {"rows": memory.status().last}
    finally:
        memory.stop()


def batch_of(rows: Columns) -> Batch:
    """A batch of the service."""
    return Batch.of(rows.streams, rows.times, rows.values, sources=[SOURCE] * len(rows), sequences=rows.sequences)


class Inside:
    """One process with a model and a copy of the prepared store."""

    def __init__(self) -> None:
        self._memory: Memory | None = None
        self._store: SqliteStore | None = None

    def handle(self, question: Figures) -> Figures:
        """prepare, open or run."""
        what = question.pop("do")
        found: Figures = getattr(self, f"_{what}")(**question)
        return found

    def _prepare(self, model: str, place: str, traffic: Figures, threads: int) -> Figures:
        torch.set_num_threads(threads)
        return prepare(Path(model), Path(place), Traffic(**traffic))

    def _open(
        self, contender: str, model: str, place: str, traffic: Figures, group_rows: int, threads: int, wait: str
    ) -> Figures:
        self._close()
        torch.set_num_threads(threads)
        began = time.monotonic()
        self._soon = wait == "disk"
        self._contender, self._group, self._traffic = contender, group_rows, Traffic(**traffic)
        self._traffic.ready()
        online, store = OnlinePredictor.load(model), SqliteStore(Path(place))
        memory = Memory(online, store, limits_of(online, self._traffic.streams, group_rows))
        memory.start()
        self._online, self._store = online, store
        if contender == "in-process":
            self._memory = memory
        else:  # the memory brings the states back; what follows is without it
            memory.stop()
            if contender != "core":
                store.open(model_of(online))
        streams = len(online.streams)
        if streams != self._traffic.streams:
            raise ConfigError(f"service: {place} holds {streams} streams, not {self._traffic.streams}; delete it")
        gc.collect()
        return {"start_s": time.monotonic() - began, "state_bytes": online.state_nbytes, "last": store.last}

    def _run(self, pace: Figures) -> Figures:
        """Measure; rows_journalled is what the journal says itself."""
        assert self._store is not None
        before, own = self._store.last, Pace(**pace)
        self._statuses: dict[str, int] = {}
        spent = self._spent()
        applied = sum(count for name, count in spent.items() if name.startswith("status_"))
        if self._memory is not None:
            found = submit(self._observe, own)
            found["settle_s"] = self._settled(applied + found["rows"])
        else:
            found = loop(self._step, own, max(self._group, own.batch))
        after = self._spent()
        for name in after:
            found[name] = after[name] - spent.get(name, 0)
        found |= {f"status_{name}": count for name, count in self._statuses.items()}
        return found | {"journalled": self._store.last - before}

    def _spent(self) -> Figures:
        if self._memory is None:
            return {}
        spent = self._memory.spent
        parts = {f"s_{name}": float(value) for name, value in vars(spent).items() if isinstance(value, float)}
        statuses = {f"status_{name}": count for name, count in dict(spent.statuses).items()}
        return {"groups": spent.groups, "slices": spent.slices, **parts, **statuses}

    def _observe(self, first: int, count: int) -> Future[Receipt]:
        assert self._memory is not None
        rows = batch_of(self._traffic.columns(first, count))
        while True:
            try:
                return self._memory.observe(rows, soon=self._soon)
            except BusyError as busy:
                time.sleep(min(busy.retry_after, 0.05))

    def _settled(self, rows: int) -> float:
        """Wait until so many rows have been applied; seconds that it took."""
        assert self._memory is not None
        began = time.monotonic()
        while sum(dict(self._memory.spent.statuses).values()) < rows:
            if time.monotonic() - began > _PATIENCE:
                raise ConfigError(f"service: the rows on the disk were not applied within {_PATIENCE:g} seconds")
            time.sleep(0.005)
        return time.monotonic() - began

    def _step(self, first: int, count: int) -> None:
        """One group of a contender without a memory."""
        assert self._store is not None
        rows = self._traffic.columns(first, count)
        if self._contender != "core":
            self._store.append(batch_of(rows))
        if self._contender != "journal":
            columns: dict[str, Any] = {name: rows.values[:, c] for c, name in enumerate(self._online.channels)}
            found = self._online.observe_many(pl.DataFrame({"stream": rows.streams, "time": rows.times, **columns}))
            for status, times in found["status"].value_counts().iter_rows():
                self._statuses[status] = self._statuses.get(status, 0) + times

    def _close(self) -> None:
        if self._memory is not None:
            self._memory.stop()
        elif self._store is not None:
            self._store.close()
        self._memory = self._store = None
