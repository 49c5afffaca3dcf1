"""One persistent state per stream of events, updated with every event; a forecast is a read that leaves nothing behind.

    observe: an event of a later patch closes the open one (forecast, then commit); it is added to the open sums
    forecast: one query at any moment after the newest event;   next_event: the same query's time to the next one

Policy: with a watermark events wait for those that come after them (reorder.py). Without one, those of the open patch
come in any order (its sums then differ in their last bits). One for a closed patch is late (late.py): an error, or
counted, or listed; with number windows every event before the newest is. Equal moments are distinct events, unless an
event_id says that they are one. A moment in the far future is taken at its word: without a watermark it closes what is
open, and all before it is late; longest_gap refuses it. Every argument is checked before anything changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from tsgdn2 import intake
from tsgdn2.audit import AuditConfig
from tsgdn2.clock import Time
from tsgdn2.covariates import Covariates
from tsgdn2.engine import audit_of
from tsgdn2.errors import ConfigError, StreamError
from tsgdn2.events import archive, waits
from tsgdn2.events.archive import KIND
from tsgdn2.events.engine import EventEngine
from tsgdn2.events.ingest import LATE, STATUS, EventIngest
from tsgdn2.events.intake import EventId, EventIntake, Gap, Marks, gap_ns
from tsgdn2.events.late import RECENT, EventPolicy, Late, LateEvent, LateEvents
from tsgdn2.events.patch import step_of
from tsgdn2.events.reorder import EventReorder
from tsgdn2.events.slab import COUNTERS, EventSlab
from tsgdn2.events.waits import NextEvent
from tsgdn2.forecast import Forecast, to_polars
from tsgdn2.forecaster import Forecaster
from tsgdn2.late import MOST_HELD, Span
from tsgdn2.online import Trained
from tsgdn2.scale import Floats
from tsgdn2.slab import Ints
from tsgdn2.standards import Standards
from tsgdn2.streams import Streams

if TYPE_CHECKING:
    import polars as pl

__all__ = ["KIND", "EventObservation", "NextEvent", "OnlineEvents"]


class EventObservation(NamedTuple):
    """What one event did: surprise [C] in bits where it closed a patch or group, else NaN, and status.

    The surprise is that of the closed steps under the forecast made at the commit before, their mean for each target;
    with a watermark, of all that this event's coming released.
    status: new, earlier (in the open patch, before its newest event), late (left out), held (until the watermark has
    passed it), duplicate (its event_id is known; left out).
    """

    surprise: Floats
    status: str


class OnlineEvents(Streams[LateEvent]):
    """Many streams of events behind two verbs, `observe` and `forecast`, in constant time and memory per event."""

    PASSAGE = "tsgdn2-event-stream"
    policy: EventPolicy
    _slab: EventSlab
    _late: LateEvents

    def __init__(
        self,
        forecaster: Forecaster,
        standards: Standards,
        *,
        freq: str,
        late: Late = "raise",
        watermark: Span = 0,
        longest_gap: Gap = None,
        most_held: int = MOST_HELD,
        recent_ids: int = RECENT,
        audit: AuditConfig | None = None,
    ) -> None:
        """Begin with no stream. ConfigError names the argument.

        late: what becomes of an event of a closed patch: "raise", "drop" or "tag" (drop, and list in `late_arrivals`).
        watermark: how long events wait for others, a timedelta or nanoseconds; at most `most_held` of a stream do.
        recent_ids: how many applied event ids a stream remembers. longest_gap: the largest leap ahead that is taken.
        """
        config = forecaster.config
        if not config.event_types:
            raise ConfigError("forecaster: this model reads sensors, it has no event_types; use OnlinePredictor")
        if config.outputs:
            raise ConfigError("distr_output: a model with a distribution head can not score a stream; train quantiles")
        self.policy = EventPolicy.of(late, watermark, most_held, recent_ids)
        self.forecaster, self.standards, self.config = forecaster, standards, config
        self.freq, self.late, self.longest_gap = freq, self.policy.late, gap_ns(longest_gap)
        self.schema = config.event_schema(standards.mark_mean, standards.mark_scale)
        self.targets = config.event_targets
        super().__init__()
        self._series, self._slab = self.targets, EventSlab(forecaster, self.schema)
        self.audit = audit_of(audit, forecaster)
        self._engine = EventEngine(forecaster, self._slab, self.audit)
        self._reorder = EventReorder(EventIngest(self._slab, self._engine, self.longest_gap), forecaster, self.policy)
        self._route, self._late = self._reorder, LateEvents(self.schema)
        self._intake = EventIntake(self.schema, config)
        self._covariates = Covariates(config, standards)
        self.reserve(0)

    @classmethod
    def from_predictor(
        cls,
        predictor: Trained,
        *,
        late: Late = "raise",
        watermark: Span = 0,
        longest_gap: Gap = None,
        most_held: int = MOST_HELD,
        recent_ids: int = RECENT,
        audit: AuditConfig | None = None,
    ) -> Self:
        """Stream a trained predictor of events."""
        return cls(
            predictor.forecaster, predictor.standards, freq=predictor.freq, late=late, watermark=watermark,
            longest_gap=longest_gap, most_held=most_held, recent_ids=recent_ids, audit=audit,
        )  # fmt: skip

    @property
    def state_nbytes(self) -> int:
        """Bytes of one stream's whole state at most; the same after one event and after a million.

        The held events, the copy for forecasts and the identities are in it once there is a watermark or an event_id.
        """
        return self._slab.row_nbytes() + self._reorder.row_nbytes()

    def counters(self, stream: str) -> dict[str, int]:
        """Events applied, late ones, and those of a type that training never saw (event_unknown="other").

        And duplicates (by event_id), and overflowed: applied before the watermark, because `most_held` were waiting.
        """
        slot = self._slot(stream)
        return dict(zip(COUNTERS, self._slab.counters[slot].tolist(), strict=True)) | self._reorder.counters(slot)

    def observe(
        self,
        stream: str,
        time: Time,
        type: str | None = None,
        marks: Marks = None,
        *,
        known: ArrayLike | None = None,
        past: ArrayLike | None = None,
        static: ArrayLike | None = None,
        event_id: EventId | None = None,
    ) -> EventObservation:
        """Update one stream with one event.

        type: one of event_types, None is missing. marks: array [M] or {mark: value}, NaN or None is missing. known [F]
        and past [U]: covariates of its step, the newest ones count; static [R + K] at the first event. event_id: an
        event with the id of one that is held, or among the last `recent_ids` applied ones, is a duplicate. Raises
        StreamError, SchemaError, LateDataError; the state is then as it was.
        """
        intake.check_stream(stream)
        event, ids = self._intake.event(time, type, marks), [self._intake.identity(event_id)]
        covariates = self._covariates.known(known, 1, past)
        statics = self._covariates.static(stream, static, opened=stream in self._slots)
        codes, slots = np.zeros(1, np.int64), np.array([self._slots.get(stream, -1)])
        plan = self._reorder.plan([stream], codes, slots, event, covariates, ids)
        if slots[0] < 0:
            slots[0] = self._open(stream, statics)
        moved = self._reorder.advance(plan, slots, codes, event, covariates)
        if self.policy.tags:
            self._late.add(slots, event, moved.status == LATE, moved.lag)
        return EventObservation(moved.surprise[0], STATUS[int(moved.status[0])])

    def observe_many(
        self, frame: pl.DataFrame, *, known: ArrayLike | None = None, past: ArrayLike | None = None
    ) -> pl.DataFrame:
        """Update many streams: polars columns stream, time, type, marks, event_id; rows of a stream in their order.

        A column of type, mark or event_id may be left out: it is missing then. known [E, F] and past [E, U] lie beside
        the frame. Returns stream, time, surprise of every target (`surprise.<target>`), status; equal to `observe` row
        by row, bit for bit. A frame with an error in any row changes nothing. Where a model has static
        features, `observe(static=...)` opens a stream.
        """
        names, events, ids = self._intake.frame(frame)
        covariates = self._covariates.known(known, len(names), past)
        place = {name: code for code, name in enumerate(dict.fromkeys(names))}
        codes = np.array([place[name] for name in names], np.int64)
        slots = np.array([self._slots.get(name, -1) for name in place], np.int64)
        fresh = [name for name in place if name not in self._slots]
        for name in fresh:
            self._covariates.static(name, None, opened=False)
        plan = self._reorder.plan(names, codes, slots, events, covariates, ids)
        for name in fresh:
            slots[place[name]] = self._open(name, None)
        moved = self._reorder.advance(plan, slots, codes, events, covariates)
        if self.policy.tags:
            self._late.add(slots[codes], events, moved.status == LATE, moved.lag)
        columns = {f"surprise.{name}": moved.surprise[:, c] for c, name in enumerate(self.targets)}
        added = frame.__class__({**columns, "status": np.array(STATUS)[moved.status]})
        return frame.select("stream", "time").hstack(added)

    def forecast(
        self, stream: str, horizon: int | None = None, *, at: Time | None = None, future: ArrayLike | None = None
    ) -> Forecast:
        """Quantiles of the next `horizon` steps after the step of `at`, by default that of the newest event.

        at is exclusive: every event before it has been observed, so it lies after the newest event. A step that has
        begun before `at` is not forecast; `at` = its beginning forecasts it whole. future [H, F]: known covariates of
        the horizon. Changes nothing. Raises UnknownStreamError, StreamError, ConfigError.
        """
        slot, steps = self._slot(stream), intake.horizon_of(horizon, self.config.prediction_length)
        clock, covariates = int(self._clocks(np.array([slot]), at)[0]), self._covariates.future(future, steps)
        answer = self._reorder.answer(np.array([slot]), np.array([clock]), covariates)
        return self._forecast(stream, clock, answer.quantiles[0, :steps])

    def next_event(self, stream: str, *, at: Time | None = None) -> NextEvent:
        """Quantiles of the time from `at` (exclusive, by default right after the newest event) to the next event."""
        return self._next([stream], at)[0]

    def next_event_many(self, streams: Sequence[str], *, at: Time | None = None) -> pl.DataFrame:
        """`next_event` of many streams in tiles, equal to one by one, bit for bit.

        Returns a polars frame: stream, time (what the waits are counted from), one column of durations per level.
        """
        return waits.to_polars(self._next(streams, at))

    def forecast_many(
        self,
        streams: Sequence[str],
        horizon: int | None = None,
        *,
        at: Time | None = None,
        future: ArrayLike | None = None,
    ) -> pl.DataFrame:
        """`forecast` of many streams in tiles, equal to one by one, bit for bit. future [N, H, F].

        Returns a polars frame: stream, time, channel, one column per level; streams in the order of the argument.
        """
        slots = np.array([self._slot(stream) for stream in streams], np.int64)
        steps = intake.horizon_of(horizon, self.config.prediction_length)
        clock = self._clocks(slots, at)
        each = [None] * len(slots) if future is None else list(intake.numbers(future, "future"))
        if len(each) != len(slots):
            raise StreamError(f"future: needs one [H, F] for each of {len(slots)} streams, got {len(each)}")
        if not len(slots):
            return to_polars([])
        covariates = np.concatenate([self._covariates.future(one, steps) for one in each])
        quantiles = self._reorder.answer(slots, clock, covariates).quantiles[:, :steps]
        found = zip(streams, clock.tolist(), quantiles, strict=True)
        return to_polars([self._forecast(stream, at_, q) for stream, at_, q in found])

    def late_arrivals(self, *, drain: bool = False) -> list[LateEvent]:
        """Events that came too late to be used (late="tag"), oldest first; `drain` forgets them."""
        found = self._arrivals(self._names)
        if drain:
            self._late.clear()
        return found

    def flush(self, stream: str | None = None) -> None:
        """Apply the events that a stream, or every stream, still holds. UnknownStreamError for a stream unseen."""
        self._reorder.flush(self._order() if stream is None else np.array([self._slot(stream)]))

    def save(self, path: str | Path) -> None:
        """Model, states, events held, identities and audit in one safetensors file: atomic, versioned, checksummed."""
        archive.write(Path(path), self)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote and go on as if nothing had happened. CheckpointError says what is wrong with it."""
        return archive.read(Path(path), cls)

    def _arrivals(self, names: Mapping[int, str]) -> list[LateEvent]:
        return self._late.arrivals(names)

    def _next(self, streams: Sequence[str], at: Time | None) -> list[NextEvent]:
        slots = np.array([self._slot(stream) for stream in streams], np.int64)
        clock = self._clocks(slots, at)
        if not len(slots):
            return []
        nothing = np.zeros((len(slots), self.config.prediction_length, self.config.horizon_covariates))
        found = self._reorder.answer(slots, clock, nothing).waits
        return waits.next_events(streams, clock, found, self.config)

    def _clocks(self, slots: Ints, at: Time | None) -> Ints:
        """Moments [N] of queries, exclusive."""
        newest = self._reorder.newest(slots)
        if at is None:
            return newest + 1
        clock = self._intake.moment(at, "at")
        if (clock <= newest).any():
            raise StreamError(
                f"at: {at!r} is exclusive and must lie after the newest event of the stream, at {newest.max()} ns; a "
                "state can not be read in its past"
            )
        return np.full(len(slots), clock)

    def _forecast(self, stream: str, clock: int, quantiles: Floats) -> Forecast:
        steps = step_of(np.array(clock), self.config.period_ns) + 1 + np.arange(len(quantiles))
        times = (steps * self.config.period_ns).astype("datetime64[ns]")
        return Forecast(stream, quantiles, self.config.quantiles, self.targets, times, self.freq)
