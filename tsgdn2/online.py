"""One persistent state per stream, updated with every observation; a forecast is a read that leaves nothing behind.

    observe: clock <- max(clock, step);  a value of a later patch closes the open one (forecast, then commit);
             the value enters the open patch;  surprise = its bits under the last forecast made at a closing
    forecast: one query at the clock

Policy for what comes out of order: the same value again is a duplicate and ignored; another value, or one for an empty
cell, of the open patch is taken (replaced, filled); a value for a closed patch is late (late.py): an error, or counted,
or listed, or the stream is replayed with it. With a watermark, rows are held back until it has passed them. A row
without any value moves the clock and nothing else. Every argument is checked before anything changes, so an error
leaves the state as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike

from tsgdn2 import archive, intake
from tsgdn2.archive import audit_config as _audit_config
from tsgdn2.audit import AuditConfig
from tsgdn2.clock import Time
from tsgdn2.covariates import Covariates
from tsgdn2.engine import Engine, audit_of
from tsgdn2.errors import ConfigError, SchemaError, StreamError
from tsgdn2.forecast import Forecast, to_polars
from tsgdn2.forecaster import Forecaster, with_channels
from tsgdn2.ingest import LATE, STATUS, Ingest, Route, waves_of
from tsgdn2.late import Late, LateArrival, LateList, LatePolicy, Span
from tsgdn2.reorder import Reorder
from tsgdn2.rewind import Rewind
from tsgdn2.scale import Floats
from tsgdn2.slab import COUNTERS, Slab
from tsgdn2.standards import Standards
from tsgdn2.streams import Streams

if TYPE_CHECKING:
    import polars as pl


__all__ = ["Late", "Observation", "OnlinePredictor", "Trained", "_audit_config"]


class Observation(NamedTuple):
    """What one observation did: surprise [C] in bits (NaN where there was no value or no forecast yet), and status.

    status: new, missing (no value in it), duplicate, replaced, filled (an empty cell of the open patch's past), late,
    held (until the watermark has passed it), replayed (it was late; the stream is as if it had come in order).
    """

    surprise: Floats
    status: str


class Trained(Protocol):
    """What `from_predictor` needs of a predictor; GDN2Predictor has it."""

    forecaster: Forecaster
    standards: Standards
    channels: tuple[str, ...]
    freq: str


class OnlinePredictor(Streams[LateArrival]):
    """Many streams behind two verbs, `observe` and `forecast`, in constant time and memory per observation."""

    PASSAGE = "tsgdn2-online-stream"
    policy: LatePolicy
    _route: Route
    _late: LateList

    def __init__(
        self,
        forecaster: Forecaster,
        standards: Standards,
        *,
        channels: Sequence[str],
        freq: str,
        late: Late = "raise",
        watermark: Span = 0,
        checkpoints: int | None = None,
        checkpoint_every: int | None = None,
        audit: AuditConfig | None = None,
    ) -> None:
        """Begin with no stream. ConfigError names the argument.

        late: what becomes of a value for a closed patch: "raise", "drop", "tag" (drop, and list in `late_arrivals`) or
        "replay" (exact, from the newest of `checkpoints` copies of the stream, one every `checkpoint_every` patches;
        "tag" beyond them; 8 and 8 unless given). watermark: how long rows wait for others, a timedelta or nanoseconds.
        """
        config = forecaster.config
        if config.event_types:
            raise ConfigError("forecaster: this model reads events; use OnlineEvents")
        if config.period_ns == 0:
            raise ConfigError(f"freq: {freq!r} has no fixed period, so it has no absolute grid; stream a fixed one")
        if config.outputs:
            raise ConfigError("distr_output: a model with a distribution head can not score a stream; train quantiles")
        policy = LatePolicy.of(late, watermark, checkpoints, checkpoint_every, period_ns=config.period_ns)
        if len(channels) != config.channels:
            raise ConfigError(f"channels: the model has {config.channels}, got the names {list(channels)}")
        if len(set(channels)) != len(channels) or {"stream", "time"} & set(channels):
            raise ConfigError(f"channels: names must differ, and none be stream or time, got {list(channels)}")
        self.forecaster, self.standards = forecaster, standards
        self.config, self.channels, self.freq = config, tuple(channels), freq
        self.late, self.policy = policy.late, policy
        super().__init__()
        self._series, self._slab = self.channels, Slab(forecaster)
        self.audit = audit_of(audit, forecaster)
        self._ingest = Ingest(self._slab, Engine(forecaster, self._slab, self.audit))
        self._route = self._ingest
        if policy.checkpoints:
            self._route = Rewind(self._ingest, forecaster, self.audit, policy)
        if policy.steps:
            self._route = Reorder(self._route, self._ingest, forecaster, policy.steps)
        self._route = self._fronted(self._route)
        self._late = LateList(config.channels)
        self._covariates = Covariates(config, standards)
        self.reserve(0)

    @classmethod
    def from_predictor(
        cls,
        predictor: Trained,
        *,
        channels: Sequence[str] | None = None,
        late: Late = "raise",
        watermark: Span = 0,
        checkpoints: int | None = None,
        checkpoint_every: int | None = None,
        audit: AuditConfig | None = None,
    ) -> Self:
        """Stream a trained predictor. An independent model serves any `channels`; others keep those of training."""
        forecaster = predictor.forecaster
        names = tuple(channels) if channels is not None else predictor.channels
        fixed = forecaster.config.bound
        if fixed and names != predictor.channels:
            raise ConfigError(
                f"channels: this model is bound to the channels of its training {list(predictor.channels)} "
                f"(mode {forecaster.config.mode}, channel_identity), got {list(names)}"
            )
        if not fixed and len(names) != forecaster.config.channels:
            forecaster = with_channels(forecaster, len(names))
        return cls(
            forecaster, predictor.standards, channels=names, freq=predictor.freq, late=late, watermark=watermark,
            checkpoints=checkpoints, checkpoint_every=checkpoint_every, audit=audit,
        )  # fmt: skip

    @property
    def state_nbytes(self) -> int:
        """Bytes of one stream's whole state at most, checkpoints and held rows included; no stream outgrows them."""
        return self._route.row_nbytes()

    def counters(self, stream: str) -> dict[str, int]:
        """Observations, duplicates, replaced and late rows of a stream, and how often it was replayed."""
        return dict(zip(COUNTERS, self._slab.counters[self._slot(stream)].tolist(), strict=True))

    def observe(
        self,
        stream: str,
        time: Time,
        values: intake.Values,
        *,
        known: ArrayLike | None = None,
        past: ArrayLike | None = None,
        static: ArrayLike | None = None,
    ) -> Observation:
        """Update one stream with one moment.

        values: array [C] or {channel: value}, NaN or None is missing. known [F + G]: known reals, then categories of
        this moment; past [U]: covariates known up to now only, NaN is missing; static [R + K]: reals, then categories,
        at the first observation. Raises StreamError, SchemaError, LateDataError, UnknownChannelError; the state is
        then as it was.
        """
        intake.check_stream(stream)
        step = intake.step_of(time, self.config)
        row = intake.row_values(values, self.channels)[None]
        covariates = self._covariates.known(known, 1, past)
        statics = self._covariates.static(stream, static, opened=stream in self._slots)
        steps = np.array([step], np.int64)
        slot = self._slots.get(stream)
        if slot is not None and self.policy.late == "raise":
            self._ingest.check_late([stream], steps, row, self._slab.last[[slot]])
        slots = np.array([self._open(stream, statics) if slot is None else slot])
        surprise, status = self._route.advance(slots, steps, row, covariates)
        self._ingest.tally(slots, status)
        if status[0] == LATE and self.policy.tags:
            self._late.add(int(slots[0]), step, row[0], int(self._route.clock(slots)[0]) - step)
        return Observation(surprise[0], STATUS[int(status[0])])

    def observe_many(
        self, frame: pl.DataFrame, *, known: ArrayLike | None = None, past: ArrayLike | None = None
    ) -> pl.DataFrame:
        """Update many streams: polars columns stream, time and channels; rows of a stream in their order.

        known [N, F + G] and past [N, U] beside the frame. Returns stream, time, surprise of every channel
        (`surprise.<channel>`), status; equal to `observe` row by row, bit for bit. A frame with a late row
        (late="raise") changes nothing. With static features, a stream's first row goes through observe(static=...).
        """
        names, steps, values = intake.frame_rows(frame, self.channels, self.config)
        covariates = self._covariates.known(known, len(names), past)
        codes, order = np.unique(np.array(names, dtype=object), return_inverse=True)
        fresh = [name for name in dict.fromkeys(names) if name not in self._slots]
        for name in fresh:
            self._covariates.static(name, None, opened=False)
        order = order.reshape(-1)
        waves = waves_of(order)
        if self.policy.late == "raise":
            known_slots = np.array([self._slots.get(name, -1) for name in codes], np.int64)
            self._route.check(names, known_slots, order, waves, steps, values)
        for name in fresh:
            self._open(name, None)
        slots = np.array([self._slots[name] for name in codes], np.int64)[order]
        surprise, status = np.empty((len(names), len(self.channels))), np.empty(len(names), np.int64)
        lag = np.zeros(len(names), np.int64)
        for rows in waves:
            at = slots[rows]
            surprise[rows], status[rows] = self._route.advance(at, steps[rows], values[rows], covariates[rows])
            self._ingest.tally(at, status[rows])
            if self.policy.tags:
                lag[rows] = self._route.clock(at) - steps[rows]
        if self.policy.tags:
            for row in np.flatnonzero(status == LATE).tolist():
                self._late.add(int(slots[row]), int(steps[row]), values[row], int(lag[row]))
        columns = {f"surprise.{name}": surprise[:, c] for c, name in enumerate(self.channels)}
        added = type(frame)({**columns, "status": [STATUS[s] for s in status.tolist()]})
        return frame.select("stream", "time").hstack(added)

    def forecast(
        self, stream: str, horizon: int | None = None, *, at: Time | None = None, future: ArrayLike | None = None
    ) -> Forecast:
        """Quantiles of the next `horizon` steps after the clock, or after the later moment `at`. Changes nothing.

        future [H, F + G]: what is known of the horizon. Raises UnknownStreamError; StreamError for an `at` before the
        clock; ConfigError for a horizon beyond prediction_length.
        """
        slot = self._slot(stream)
        clock = int(self._route.clock(np.array([slot]))[0])
        if at is not None:
            step = intake.step_of(at, self.config, "at")
            if step < clock:
                raise StreamError(f"at: {at!r} lies before the stream's clock; a state can not be read in its past")
            clock = step
        steps = intake.horizon_of(horizon, self.config.prediction_length)
        covariates = self._covariates.future(future, steps)
        quantiles = self._route.answer(np.array([slot]), np.array([clock]), covariates)[0, :steps]
        return self._forecast(stream, clock, quantiles)

    def forecast_many(
        self, streams: Sequence[str], horizon: int | None = None, *, future: ArrayLike | None = None
    ) -> pl.DataFrame:
        """`forecast` of many streams in tiles, equal to one by one, bit for bit. future [N, H, F].

        Returns a polars frame: stream, time, channel, one column per level; streams in the order of the argument.
        """
        slots = np.array([self._slot(stream) for stream in streams], np.int64)
        steps = intake.horizon_of(horizon, self.config.prediction_length)
        parts = [None] * len(streams) if future is None else intake.numbers(future, "future")
        if len(parts) != len(streams):
            raise SchemaError(f"future: needs one block for each of {len(streams)} streams, got {len(parts)}")
        if not streams:
            return to_polars([])
        covariates = np.concatenate([self._covariates.future(part, steps) for part in parts])
        clock = self._route.clock(slots)
        quantiles = self._route.answer(slots, clock, covariates)[:, :steps]
        found = zip(streams, clock, quantiles, strict=True)
        return to_polars([self._forecast(stream, int(at), q) for stream, at, q in found])

    def late_arrivals(self, *, drain: bool = False) -> list[LateArrival]:
        """Values that came too late to be used (late="tag" or "replay"), oldest first; `drain` forgets them."""
        found = self._arrivals(self._names)
        if drain:
            self._late.clear()
        return found

    def flush(self, stream: str | None = None) -> None:
        """Apply the rows that a stream, or every stream, still holds back. UnknownStreamError for a stream unseen."""
        self._route.flush(self._order() if stream is None else np.array([self._slot(stream)]))

    def save(self, path: str | Path) -> None:
        """Model, states, rows held, checkpoints and audit in one safetensors file: atomic, versioned, checksummed."""
        archive.write(Path(path), self)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote and go on as if nothing had happened. CheckpointError says what is wrong with it."""
        return archive.read(Path(path), cls)

    def _fronted(self, route: Route) -> Route:
        """What rows go through first; a subclass may put its own in front."""
        return route

    def _arrivals(self, names: Mapping[int, str]) -> list[LateArrival]:
        return self._late.arrivals(names, self.channels, self.config.period_ns)

    def _forecast(self, stream: str, clock: int, quantiles: Floats) -> Forecast:
        steps = clock + 1 + np.arange(len(quantiles))
        times = (steps * self.config.period_ns).astype("datetime64[ns]")
        return Forecast(stream, quantiles, self.config.quantiles, self.channels, times, self.freq)
