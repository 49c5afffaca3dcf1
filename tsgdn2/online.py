"""One persistent state per stream, updated with every observation; a forecast is a read that leaves nothing behind.

    observe: clock <- max(clock, step);  a value of a later patch closes the open one (forecast, then commit);
             the value enters the open patch;  surprise = its bits under the last forecast made at a closing
    forecast: one query at the clock

Policy for what comes out of order: the same value again is a duplicate and ignored; another value, or one for an empty
cell, of the open patch is taken (replaced, filled); a value for a closed patch is late: an error, or with late="drop"
counted and left out. A row without any value moves the clock and nothing else. Every argument is checked before
anything changes, so an error leaves the state as it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsgdn2 import checkpoint, intake
from tsgdn2.audit import AuditConfig
from tsgdn2.clock import Time
from tsgdn2.covariates import Covariates
from tsgdn2.engine import Engine, audit_of
from tsgdn2.errors import CheckpointError, ConfigError, SchemaError, StreamError, UnknownStreamError
from tsgdn2.forecast import Forecast, to_polars
from tsgdn2.forecaster import Forecaster, ForecasterConfig, with_channels
from tsgdn2.ingest import STATUS, Ingest, waves_of
from tsgdn2.scale import Floats
from tsgdn2.slab import COUNTERS, NONE, Ints, Slab
from tsgdn2.standards import Standards

if TYPE_CHECKING:
    import polars as pl

SCHEMA = 1
KIND = "tsgdn2-online-predictor"
Late = Literal["raise", "drop"]


class Observation(NamedTuple):
    """What one observation did: surprise [C] in bits (NaN where there was no value or no forecast yet), and status.

    status: new, missing (no value in it), duplicate, replaced, filled (an empty cell of the open patch's past), late.
    """

    surprise: Floats
    status: str


class Trained(Protocol):
    """What `from_predictor` needs of a predictor; GDN2Predictor has it."""

    forecaster: Forecaster
    standards: Standards
    channels: tuple[str, ...]
    freq: str


class OnlinePredictor:
    """Many streams behind two verbs, `observe` and `forecast`, in constant time and memory per observation."""

    def __init__(
        self,
        forecaster: Forecaster,
        standards: Standards,
        *,
        channels: Sequence[str],
        freq: str,
        late: Late = "raise",
        audit: AuditConfig | None = None,
    ) -> None:
        config = forecaster.config
        if config.period_ns == 0:
            raise ConfigError(f"freq: {freq!r} has no fixed period, so it has no absolute grid; stream a fixed one")
        if config.outputs:
            raise ConfigError("distr_output: a model with a distribution head can not score a stream; train quantiles")
        if late not in ("raise", "drop"):
            raise ConfigError(f'late: must be "raise" or "drop", got {late!r}')
        if len(channels) != config.channels:
            raise ConfigError(f"channels: the model has {config.channels}, got the names {list(channels)}")
        if len(set(channels)) != len(channels) or {"stream", "time"} & set(channels):
            raise ConfigError(f"channels: names must differ, and none be stream or time, got {list(channels)}")
        self.forecaster, self.standards = forecaster, standards
        self.config, self.channels, self.freq, self.late = config, tuple(channels), freq, late
        self._slots: dict[str, int] = {}
        self._slab = Slab(forecaster)
        self.audit = audit_of(audit, forecaster)
        self._engine = Engine(forecaster, self._slab, self.audit)
        self._ingest = Ingest(self._slab, self._engine)
        self._covariates = Covariates(config, standards)

    @classmethod
    def from_predictor(
        cls,
        predictor: Trained,
        *,
        channels: Sequence[str] | None = None,
        late: Late = "raise",
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
        return cls(forecaster, predictor.standards, channels=names, freq=predictor.freq, late=late, audit=audit)

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams seen, in the order of their first observation."""
        return tuple(self._slots)

    @property
    def state_nbytes(self) -> int:
        """Bytes of one stream's whole state; the same after one observation and after a million."""
        return self._slab.row_nbytes()

    def counters(self, stream: str) -> dict[str, int]:
        """Observations, duplicates, replaced and late rows of a stream."""
        return dict(zip(COUNTERS, self._slab.counters[self._slot(stream)].tolist(), strict=True))

    def observe(
        self,
        stream: str,
        time: Time,
        values: intake.Values,
        *,
        known: ArrayLike | None = None,
        static: ArrayLike | None = None,
    ) -> Observation:
        """Update one stream with one moment.

        values: array [C] or {channel: value}, NaN or None is missing. known [F]: covariates of this moment; static
        [R + K]: real features, then categories, at the first observation. Raises StreamError, SchemaError,
        LateDataError, UnknownChannelError; the state is then as it was.
        """
        intake.check_stream(stream)
        step = intake.step_of(time, self.config.period_ns)
        row = intake.row_values(values, self.channels)[None]
        covariates = self._covariates.known(known, 1)
        statics = self._covariates.static(stream, static, opened=stream in self._slots)
        steps = np.array([step], np.int64)
        slot = self._slots.get(stream)
        if slot is not None and self.late == "raise":
            self._ingest.check_late([stream], steps, row, self._slab.last[[slot]])
        slot = self._open(stream, statics) if slot is None else slot
        surprise, status = self._ingest.advance(np.array([slot]), steps, row, covariates)
        return Observation(surprise[0], STATUS[int(status[0])])

    def observe_many(self, frame: pl.DataFrame, *, known: ArrayLike | None = None) -> pl.DataFrame:
        """Update many streams: polars columns stream, time and channels; rows of a stream in their order.

        known [N, F] beside the frame. Returns stream, time, surprise of every channel (`surprise.<channel>`), status;
        equal to `observe` row by row, bit for bit. A frame with a late row (late="raise") changes nothing.
        """
        names, steps, values = intake.frame_rows(frame, self.channels, self.config.period_ns)
        covariates = self._covariates.known(known, len(names))
        codes, order = np.unique(np.array(names, dtype=object), return_inverse=True)
        fresh = [name for name in dict.fromkeys(names) if name not in self._slots]
        for name in fresh:
            self._covariates.static(name, None, opened=False)
        waves = waves_of(order.reshape(-1))
        if self.late == "raise":
            self._check_frame(names, codes, order.reshape(-1), steps, values, waves)
        for name in fresh:
            self._open(name, None)
        slots = np.array([self._slots[name] for name in codes], np.int64)[order.reshape(-1)]
        surprise, status = np.empty((len(names), len(self.channels))), np.empty(len(names), np.int64)
        for rows in waves:
            surprise[rows], status[rows] = self._ingest.advance(
                slots[rows], steps[rows], values[rows], covariates[rows]
            )
        columns = {f"surprise.{name}": surprise[:, c] for c, name in enumerate(self.channels)}
        added = type(frame)({**columns, "status": [STATUS[s] for s in status.tolist()]})
        return frame.select("stream", "time").hstack(added)

    def forecast(
        self, stream: str, horizon: int | None = None, *, at: Time | None = None, future: ArrayLike | None = None
    ) -> Forecast:
        """Quantiles of the next `horizon` steps after the clock, or after the later moment `at`. Changes nothing.

        future [H, F]: known covariates of the horizon. Raises UnknownStreamError; StreamError for an `at` before the
        clock; ConfigError for a horizon beyond prediction_length.
        """
        slot = self._slot(stream)
        clock = int(self._slab.clock[slot])
        if at is not None:
            step = intake.step_of(at, self.config.period_ns)
            if step < clock:
                raise StreamError(f"at: {at!r} lies before the stream's clock; a state can not be read in its past")
            clock = step
        steps = intake.horizon_of(horizon, self.config.prediction_length)
        covariates = self._covariates.future(future, steps)
        quantiles = self._engine.answer(np.array([slot]), np.array([clock]), covariates)[0, :steps]
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
        clock = self._slab.clock[slots]
        quantiles = self._engine.answer(slots, clock, covariates)[:, :steps]
        found = zip(streams, clock, quantiles, strict=True)
        return to_polars([self._forecast(stream, int(at), q) for stream, at, q in found])

    def save(self, path: str | Path) -> None:
        """Model, states and audit in one safetensors file: atomic, versioned, checksummed."""
        rows = len(self._slots)
        tensors = {f"model.{name}": t for name, t in self.forecaster.state_dict().items()}
        tensors |= self._slab.tensors(rows)
        facts = {
            "config": self.config.to_json(),
            "standards": self.standards.to_json(),
            "freq": self.freq,
            "late": self.late,
            "channels": json.dumps(self.channels),
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
                channels=json.loads(facts["channels"]),
                freq=facts["freq"],
                late="drop" if facts["late"] == "drop" else "raise",
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

    def _check_frame(
        self, names: list[str], codes: NDArray[np.object_], order: Ints, steps: Ints, values: Floats, waves: list[Ints]
    ) -> None:
        known = np.array([self._slots.get(name, -1) for name in codes], np.int64)
        last = np.where(known >= 0, self._slab.last[np.maximum(known, 0)], NONE)
        for rows in waves:
            at = order[rows]
            self._ingest.check_late([names[r] for r in rows], steps[rows], values[rows], last[at])
            has = np.isfinite(values[rows]).any(1)
            last[at] = np.where(has, np.maximum(last[at], steps[rows]), last[at])

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
        self._slab.prior[slot] = self.standards.prior_scale(stream, self.channels)
        if statics is not None:
            self._slab.static_real[slot], self._slab.static_categories[slot] = statics
        self._slots[stream] = slot
        return slot

    def _forecast(self, stream: str, clock: int, quantiles: Floats) -> Forecast:
        steps = clock + 1 + np.arange(len(quantiles))
        times = (steps * self.config.period_ns).astype("datetime64[ns]")
        return Forecast(stream, quantiles, self.config.quantiles, self.channels, times, self.freq)


def _audit_config(text: str) -> AuditConfig | None:
    if not text:
        return None
    raw: dict[str, Any] = json.loads(text)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    return AuditConfig(**values)
