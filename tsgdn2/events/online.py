"""One persistent state per stream of events, updated with every event; a forecast is a read that leaves nothing behind.

    observe: an event of a later patch closes the open one (forecast, then commit); it is added to the open sums
    forecast: one query at any moment after the newest event;   next_event: the same query's time to the next one

Policy: events of the open patch come in any order (its sums then differ in their last bits); one for a closed patch is
late: an error, or with late="drop" counted and left out. With number windows every event before the newest is late.
Equal moments are distinct events. A moment in the far future is taken at its word: it closes what is open, and all
before it is late; longest_gap refuses it. Every argument is checked before anything changes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsgdn2 import checkpoint, intake
from tsgdn2.audit import AuditConfig
from tsgdn2.clock import Time
from tsgdn2.covariates import Covariates
from tsgdn2.engine import audit_of
from tsgdn2.errors import CheckpointError, ConfigError, StreamError, UnknownStreamError
from tsgdn2.events.engine import Answer, EventEngine
from tsgdn2.events.ingest import STATUS, EventIngest
from tsgdn2.events.intake import EventIntake, Gap, Marks, gap_ns
from tsgdn2.events.patch import step_of, waits
from tsgdn2.events.slab import COUNTERS, EventSlab
from tsgdn2.forecast import Forecast, to_polars
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.online import Late, Trained, _audit_config
from tsgdn2.scale import Floats
from tsgdn2.slab import Ints
from tsgdn2.standards import Standards

if TYPE_CHECKING:
    import polars as pl

SCHEMA = 1
KIND = "tsgdn2-online-events"


class EventObservation(NamedTuple):
    """What one event did: surprise [C] in bits where it closed a patch or group, else NaN, and status.

    The surprise is that of the closed steps under the forecast made at the commit before, their mean for each target.
    status: new, earlier (in the open patch, before its newest event), late (left out).
    """

    surprise: Floats
    status: str


class NextEvent(NamedTuple):
    """Time to the next event after a moment: waits [Q] at the levels, increasing, timedelta64[ns]."""

    after: np.datetime64
    levels: tuple[float, ...]
    waits: NDArray[np.timedelta64]


class OnlineEvents:
    """Many streams of events behind two verbs, `observe` and `forecast`, in constant time and memory per event."""

    def __init__(
        self,
        forecaster: Forecaster,
        standards: Standards,
        *,
        freq: str,
        late: Late = "raise",
        longest_gap: Gap = None,
        audit: AuditConfig | None = None,
    ) -> None:
        config = forecaster.config
        if not config.event_types:
            raise ConfigError("forecaster: this model reads sensors, it has no event_types; use OnlinePredictor")
        if config.outputs:
            raise ConfigError("distr_output: a model with a distribution head can not score a stream; train quantiles")
        if late not in ("raise", "drop"):
            raise ConfigError(f'late: must be "raise" or "drop", got {late!r}')
        self.forecaster, self.standards, self.config = forecaster, standards, config
        self.freq, self.late, self.longest_gap = freq, late, gap_ns(longest_gap)
        self.schema = config.event_schema(standards.mark_mean, standards.mark_scale)
        self.targets = config.event_targets
        self._slots: dict[str, int] = {}
        self._slab = EventSlab(forecaster, self.schema)
        self.audit = audit_of(audit, forecaster)
        self._engine = EventEngine(forecaster, self._slab, self.audit)
        self._ingest = EventIngest(self._slab, self._engine, self.longest_gap)
        self._intake = EventIntake(self.schema, config)
        self._covariates = Covariates(config, standards)

    @classmethod
    def from_predictor(
        cls, predictor: Trained, *, late: Late = "raise", longest_gap: Gap = None, audit: AuditConfig | None = None
    ) -> Self:
        """Stream a trained predictor of events."""
        model, standards = predictor.forecaster, predictor.standards
        return cls(model, standards, freq=predictor.freq, late=late, longest_gap=longest_gap, audit=audit)

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams seen, in the order of their first event."""
        return tuple(self._slots)

    @property
    def state_nbytes(self) -> int:
        """Bytes of one stream's whole state; the same after one event and after a million."""
        return self._slab.row_nbytes()

    def counters(self, stream: str) -> dict[str, int]:
        """Events taken, late events, and events of a type that training never saw (event_unknown="other")."""
        return dict(zip(COUNTERS, self._slab.counters[self._slot(stream)].tolist(), strict=True))

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
    ) -> EventObservation:
        """Update one stream with one event.

        type: one of event_types, None is missing. marks: array [M] or {mark: value}, NaN or None is missing. known [F]
        and past [U]: covariates of its step, the newest ones count; static [R + K] at the first event. Raises
        StreamError, SchemaError, LateDataError; the state is then as it was.
        """
        intake.check_stream(stream)
        event = self._intake.event(time, type, marks)
        covariates = self._covariates.known(known, 1, past)
        statics = self._covariates.static(stream, static, opened=stream in self._slots)
        codes, slots = np.zeros(1, np.int64), np.array([self._slots.get(stream, -1)])
        plan = self._ingest.plan([stream], codes, slots, event.time, late=self.late)
        if slots[0] < 0:
            slots[0] = self._open(stream, statics)
        surprise = self._ingest.advance(plan, slots, codes, event, covariates)
        return EventObservation(surprise[0], STATUS[int(plan.status[0])])

    def observe_many(
        self, frame: pl.DataFrame, *, known: ArrayLike | None = None, past: ArrayLike | None = None
    ) -> pl.DataFrame:
        """Update many streams: polars columns stream, time, type and marks; rows of a stream in their order.

        A column of type or of a mark may be left out: it is missing then. known [E, F] and past [E, U] lie beside the
        frame. Returns stream, time, surprise of every target (`surprise.<target>`), status; equal to `observe` row by
        row, bit for bit. A frame with an error in any row changes nothing.
        """
        names, events = self._intake.frame(frame)
        covariates = self._covariates.known(known, len(names), past)
        place = {name: code for code, name in enumerate(dict.fromkeys(names))}
        codes = np.array([place[name] for name in names], np.int64)
        slots = np.array([self._slots.get(name, -1) for name in place], np.int64)
        fresh = [name for name in place if name not in self._slots]
        for name in fresh:
            self._covariates.static(name, None, opened=False)
        plan = self._ingest.plan(names, codes, slots, events.time, late=self.late)
        for name in fresh:
            slots[place[name]] = self._open(name, None)
        surprise = self._ingest.advance(plan, slots, codes, events, covariates)
        columns = {f"surprise.{name}": surprise[:, c] for c, name in enumerate(self.targets)}
        added = frame.__class__({**columns, "status": np.array(STATUS)[plan.status]})
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
        clock, covariates = self._clock(slot, at), self._covariates.future(future, steps)
        answer = self._engine.answer(np.array([slot]), np.array([clock]), covariates)
        return self._forecast(stream, clock, answer.quantiles[0, :steps])

    def next_event(self, stream: str, *, at: Time | None = None) -> NextEvent:
        """Quantiles of the time from `at` (exclusive, by default right after the newest event) to the next event."""
        slot = self._slot(stream)
        clock = self._clock(slot, at)
        answer = self._answer(np.array([slot]), np.array([clock]))
        found = waits(answer.waits[0], self.config.period_ns).astype("timedelta64[ns]")
        return NextEvent(np.datetime64(clock, "ns"), self.config.quantiles, found)

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
        clock = np.array([self._clock(slot, at) for slot in slots.tolist()], np.int64)
        each = [None] * len(slots) if future is None else list(intake.numbers(future, "future"))
        if len(each) != len(slots):
            raise StreamError(f"future: needs one [H, F] for each of {len(slots)} streams, got {len(each)}")
        if not len(slots):
            return to_polars([])
        covariates = np.concatenate([self._covariates.future(one, steps) for one in each])
        quantiles = self._engine.answer(slots, clock, covariates).quantiles[:, :steps]
        found = zip(streams, clock.tolist(), quantiles, strict=True)
        return to_polars([self._forecast(stream, at_, q) for stream, at_, q in found])

    def save(self, path: str | Path) -> None:
        """Model, states and audit in one safetensors file: atomic, versioned, checksummed."""
        tensors = {f"model.{name}": t for name, t in self.forecaster.state_dict().items()}
        tensors |= self._slab.tensors(len(self._slots))
        facts = {
            "config": self.config.to_json(),
            "standards": self.standards.to_json(),
            "freq": self.freq,
            "late": self.late,
            "longest_gap": "" if self.longest_gap is None else str(self.longest_gap),
            "streams": json.dumps(list(self._slots)),
            "fingerprint": self.config.fingerprint,
            "audit": "",
        }
        if self.audit is not None:
            tensors |= {f"audit.{name}": t for name, t in self.audit.state_tensors().items()}
            facts["audit"] = json.dumps(asdict(self.audit.config))
        checkpoint.write(Path(path), tensors, facts, kind=KIND, schema=SCHEMA)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote and go on as if nothing had happened. CheckpointError says what is wrong with it."""
        tensors, facts = checkpoint.read(Path(path), kind=KIND, schema=SCHEMA)
        try:
            config = ForecasterConfig.from_json(facts["config"])
            forecaster = Forecaster(config).to(tensors["model.norm.weight"].dtype)
            forecaster.load_state_dict(checkpoint.part(tensors, "model."))
            online = cls(
                forecaster,
                Standards.from_json(facts["standards"]),
                freq=facts["freq"],
                late="drop" if facts["late"] == "drop" else "raise",
                longest_gap=int(facts["longest_gap"]) if facts["longest_gap"] else None,
                audit=_audit_config(facts["audit"]),
            )
            names = json.loads(facts["streams"])
            online._slab.restore(tensors, len(names))
            if online.audit is not None:
                online.audit.load_state_tensors(checkpoint.part(tensors, "audit."))
        except (KeyError, RuntimeError, TypeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"path: {path} does not fit this version ({error}); save it again") from error
        online._slots = {name: slot for slot, name in enumerate(names)}
        return online

    def _answer(self, slots: Ints, clock: Ints) -> Answer:
        nothing = np.zeros((len(slots), self.config.prediction_length, self.config.horizon_covariates))
        return self._engine.answer(slots, clock, nothing)

    def _clock(self, slot: int, at: Time | None) -> int:
        newest = int(self._slab.newest[slot])
        if at is None:
            return newest + 1
        clock = self._intake.moment(at, "at")
        if clock <= newest:
            raise StreamError(
                f"at: {at!r} is exclusive and must lie after the newest event of the stream, at {newest} ns; a state "
                "can not be read in its past"
            )
        return clock

    def _slot(self, stream: str) -> int:
        slot = self._slots.get(stream)
        if slot is None:
            known = ", ".join(list(self._slots)[:5]) or "none yet"
            raise UnknownStreamError(f"stream: {stream!r} has not been observed (known: {known}); observe it first")
        return slot

    def _open(self, stream: str, statics: tuple[Floats, Ints] | None) -> int:
        """A row for a new stream; everything about it has been checked."""
        slot = len(self._slots)
        self._slab.reserve(slot + 1)
        if self.audit is not None:
            self.audit.allocate(self._slab.capacity * self.config.lanes)
        self._slab.prior[slot] = self.standards.prior_scale(stream, self.targets)
        if statics is not None:
            self._slab.static_real[slot], self._slab.static_categories[slot] = statics
        self._slots[stream] = slot
        return slot

    def _forecast(self, stream: str, clock: int, quantiles: Floats) -> Forecast:
        steps = step_of(np.array(clock), self.config.period_ns) + 1 + np.arange(len(quantiles))
        times = (steps * self.config.period_ns).astype("datetime64[ns]")
        return Forecast(stream, quantiles, self.config.quantiles, self.targets, times, self.freq)
