"""Feeds a frame to an online predictor one observation or event at a time, and asks for forecasts on the way.

    for each row in the order of time:   forecast all streams at each origin that lies before it;  observe the row

An origin is the last step before a window: everything up to its end has been observed, nothing after it. A stream that
has been silent for longer than longest_gap is not asked, so that one stamp in another century costs nothing. Time is
measured around `observe` alone, so it holds the closing of patches and the audit, and none of this file's bookkeeping.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd
import polars as pl
import torch
from gluonts.model.forecast import QuantileForecast
from numpy.typing import NDArray

from tsgdn2.datasets.events import TYPE
from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.errors import StreamError
from tsgdn2.events.online import EventObservation, OnlineEvents
from tsgdn2.forecast import Forecast, to_polars
from tsgdn2.online import Observation, OnlinePredictor
from tsgdn2.passage import Evicted

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Streamed:
    """What a stream left behind."""

    forecasts: list[Forecast]
    """In the order of their origins, streams of one origin in the predictor's order."""
    surprises: pl.DataFrame
    """stream, time, status, and the surprise of every channel in bits."""
    nanoseconds: NDArray[np.int64]
    """Wall clock of each `observe` [N]."""
    evictions: list[Evicted]
    """What the online audit saw fall, oldest first, each with its stream."""

    @property
    def microseconds(self) -> float:
        """Mean time per observation (one row, all channels)."""
        return float(self.nanoseconds.mean()) / 1e3 if len(self.nanoseconds) else 0.0

    @property
    def median_microseconds(self) -> float:
        """Median time per observation: one that closes no patch."""
        return float(np.median(self.nanoseconds)) / 1e3 if len(self.nanoseconds) else 0.0

    @property
    def statuses(self) -> dict[str, int]:
        """How many rows had each status, the most frequent first."""
        counted = self.surprises["status"].value_counts(sort=True)
        return dict(counted.iter_rows())

    def by_series(self) -> dict[tuple[str, pd.Period], QuantileForecast]:
        """Forecasts of single channels under (stream/channel, first step), as GluonTS has them."""
        found = {}
        for one in self.forecasts:
            first = pd.Period(pd.Timestamp(one.times[0]), freq=one.freq)
            for column, channel in enumerate(one.channels):
                item = f"{one.stream}/{channel}"
                found[item, first] = QuantileForecast(
                    one.quantiles[:, column].T, start_date=first, item_id=item,
                    forecast_keys=[str(level) for level in one.levels],
                )  # fmt: skip
        return found

    def forecast_frame(self) -> pl.DataFrame:
        """One row per stream, origin, step and channel, one column per level."""
        naive = pl.col(TIME).dt.replace_time_zone(None)
        parts = [to_polars([one]).with_columns(naive, naive.first().alias("origin")) for one in self.forecasts]
        return pl.concat(parts).select(STREAM, "origin", pl.exclude(STREAM, "origin")) if parts else pl.DataFrame()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: a stream's passes are too small to share, and waiting for a busy core costs tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Asked:
    """The origins that are still to come, and which streams have been heard of lately enough to be asked there.

    past: nanoseconds from the beginning of an origin's step to where forecasts are asked.
    """

    def __init__(
        self, online: OnlinePredictor | OnlineEvents, origins: Sequence[int], past: int, longest_gap: int | None
    ) -> None:
        self.online, self.origins, self.past, self.longest_gap = online, origins, past, longest_gap
        self._place = 0
        self._newest = {} if longest_gap is None else {stream: clock_of(online, stream) for stream in online.streams}

    def heard(self, stream: str, stamp: int) -> None:
        """A row of a stream has been observed."""
        self._newest[stream] = max(self._newest.get(stream, stamp), stamp)

    def before(self, step: int | None) -> list[Forecast]:
        """Forecasts at the origins before a step, or at all that are left."""
        found: list[Forecast] = []
        if self._place == len(self.origins) or (step is not None and self.origins[self._place] >= step):
            return found
        end = len(self.origins) if step is None else bisect_left(self.origins, step)
        while self._place < end:
            clock = self.origins[self._place] * self.online.config.period_ns + self.past
            streams = [stream for stream in self.online.streams if self._lately(stream, clock)]
            if not streams:  # nor will there be any before the next row
                self._place = end
                break
            for stream in streams:
                with suppress(StreamError):  # it is past the clock, as they are where old rows meet a saved state
                    found.append(self.online.forecast(stream, at=clock))
            self._place += 1
        return found

    def _lately(self, stream: str, clock: int) -> bool:
        return self.longest_gap is None or clock - self._newest[stream] <= self.longest_gap


def clock_of(online: OnlinePredictor | OnlineEvents, stream: str) -> int:
    """Nanoseconds at which the newest step of a stream begins: its forecast follows it."""
    return int(online.forecast(stream).times[0].astype("datetime64[ns]").astype(np.int64)) - online.config.period_ns


@one_thread()
def stream_frame(
    online: OnlinePredictor, frame: pl.DataFrame, origins: Sequence[int], *, longest_gap: int | None = None,
    speed: float | None = None, tick: Callable[[], None] = lambda: None,
) -> Streamed:  # fmt: skip
    """Observe every row of a frame of the schema, forecasting at each origin (absolute step, increasing).

    longest_gap: nanoseconds of silence after which a stream has no more forecasts; None has no limit. speed: seconds of
    data per second of wall clock; None does not wait. tick: called after every observation. A stream that has not begun
    at an origin has no forecast there.
    """
    rows = frame.sort(TIME, STREAM)
    names, stamps = rows[STREAM].to_list(), rows[TIME].to_physical().to_list()
    values = rows.select(online.channels).to_numpy().astype(np.float64)

    def observe(row: int) -> Observation:
        return online.observe(names[row], stamps[row], values[row])

    asked = _Asked(online, origins, 0, longest_gap)
    return _streamed(online, rows, observe, online.channels, asked, speed, tick)


@one_thread()
def stream_events(
    online: OnlineEvents, frame: pl.DataFrame, origins: Sequence[int], *, longest_gap: int | None = None,
    speed: float | None = None, tick: Callable[[], None] = lambda: None,
) -> Streamed:  # fmt: skip
    """Observe every event of an event frame; arguments and result as `stream_frame`, the channels are the targets.

    Events of one instant go stream by stream, those of one stream in the order of the frame. Errors: StreamError for
    a type or a mark that the model does not take, before anything is observed.
    """
    rows = frame.sort(TIME, STREAM, maintain_order=True)
    names, stamps, types = rows[STREAM].to_list(), rows[TIME].to_physical().to_list(), rows[TYPE].to_list()
    marks = np.column_stack([rows[name].fill_null(np.nan).to_numpy() for name in online.schema.marks] or
                            [np.zeros((len(names), 0))])  # fmt: skip
    online.schema.codes(types)
    online.schema.check_marks(marks)

    def observe(row: int) -> EventObservation:
        return online.observe(names[row], stamps[row], types[row], marks[row])

    asked = _Asked(online, origins, online.config.period_ns, longest_gap)
    return _streamed(online, rows, observe, online.targets, asked, speed, tick)


def _streamed(
    online: OnlinePredictor | OnlineEvents, rows: pl.DataFrame,
    observe: Callable[[int], Observation | EventObservation], channels: Sequence[str], asked: _Asked,
    speed: float | None, tick: Callable[[], None],
) -> Streamed:  # fmt: skip
    """The loop of the module."""
    names, stamps, period = rows[STREAM].to_list(), rows[TIME].to_physical().to_list(), online.config.period_ns
    forecasts: list[Forecast] = []
    statuses, bits, evictions = [], np.full((len(stamps), len(channels)), np.nan), list[Evicted]()
    nanoseconds = np.zeros(len(stamps), np.int64)
    began, first = time.perf_counter(), stamps[0] if stamps else 0
    for row, stamp in enumerate(stamps):
        forecasts += asked.before(stamp // period)
        if speed is not None:
            time.sleep(max(0.0, (stamp - first) / SECOND_NS / speed - (time.perf_counter() - began)))
        start = time.perf_counter_ns()
        seen = observe(row)
        nanoseconds[row] = time.perf_counter_ns() - start
        asked.heard(names[row], stamp)
        statuses.append(seen.status)
        bits[row] = seen.surprise
        if row % 256 == 0:
            evictions += online.evictions(drain=True)
        tick()
    forecasts += asked.before(None)
    evictions += online.evictions(drain=True)
    surprises = rows.select(STREAM, TIME).with_columns(
        pl.Series("status", statuses, dtype=pl.String),
        *(pl.Series(f"surprise.{name}", bits[:, c], nan_to_null=True) for c, name in enumerate(channels)),
    )
    return Streamed(forecasts=forecasts, surprises=surprises, nanoseconds=nanoseconds, evictions=evictions)
