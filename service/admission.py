"""Which rows may enter the journal: only those that the predictor can take, whatever the state of their streams.

Checked in the caller's thread, before anything waits for them, row by row: a bad row is refused with its reason and its
neighbours go on. What a row does depends on its stream; whether it can be applied at all must not, so a predictor that
raises for late rows, or asks for more than values, is refused here, once, when the service is built.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tsgdn2.errors import ConfigError, SchemaError, StreamError
from tsgdn2.intake import LARGEST, step_of
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.batch import UNNUMBERED, Batch, Floats, Ints, check_name

_NO_TIME = np.iinfo(np.int64).min
_FAR = 2**62
"""Moments up to here on either side (1823 to 2116) need no closer look, for all but the longest periods."""


class Admitted(NamedTuple):
    """Rows that may be journalled, their places [N] among the `total` that came, and why the others may not."""

    batch: Batch
    rows: Ints
    total: int
    refused: Mapping[int, str]


class Admission:
    """Checks rows for one predictor; holds nothing of any stream, so any thread may use it."""

    def __init__(
        self, online: OnlinePredictor, *, most_ahead_s: float | None = None, now: Callable[[], int] = time.time_ns
    ) -> None:
        """ConfigError for a predictor that can not promise to take every row that passes here."""
        config = online.config
        if online.policy.late == "raise":
            raise ConfigError(
                'online: late is "raise", so a row that is on the disk could not be applied; build the predictor with '
                'late="tag" or "replay"'
            )
        if config.known or config.known_cardinalities:
            raise ConfigError(
                "online: the model needs known covariates with every row, and a row of the service has values only; "
                "serve a model that was trained without them"
            )
        if config.static_real or config.static_cardinalities:
            raise ConfigError(
                "online: the model needs static features of every stream, and a row of the service has values only; "
                "serve a model that was trained without them"
            )
        self.channels, self._config = online.channels, config
        self._now, self._safe = now, 0
        self._ahead: int | None = None
        if not self._time(_FAR) and not self._time(-_FAR):
            self._safe = _FAR
        if most_ahead_s is not None:
            self._ahead = int(most_ahead_s * 1e9)

    def admit(self, batch: Batch) -> Admitted:
        """Sort out the rows of a batch. SchemaError where it has other channels than the model."""
        if batch.channels != len(self.channels):
            raise SchemaError(f"batch: must have the model's channels {list(self.channels)}, got {batch.channels}")
        return self._sorted(batch, np.arange(len(batch)), len(batch), {})

    def columns(
        self,
        streams: Sequence[str],
        times: ArrayLike,
        values: ArrayLike,
        *,
        sources: Sequence[str] | None = None,
        sequences: ArrayLike | None = None,
    ) -> Admitted:
        """Sort out rows that are no batch yet: an infinite value, a missing time or a bad name refuses its row alone.

        times int64 ns [N], values [N, C] floats. SchemaError where the columns do not fit together.
        """
        rows = len(streams)
        moments, cells = np.asarray(times), np.asarray(values, np.float64)
        if moments.dtype.kind == "M":
            moments = moments.astype("datetime64[ns]").astype(np.int64)
        numbers = np.full(rows, UNNUMBERED, np.int64) if sequences is None else np.asarray(sequences)
        whose = ("",) * rows if sources is None else tuple(sources)
        if cells.shape != (rows, len(self.channels)) or not len(moments) == len(numbers) == len(whose) == rows:
            raise SchemaError(
                f"columns: must be of {rows} rows, values of {len(self.channels)} channels {list(self.channels)}; got "
                f"{len(moments)} times, values {cells.shape}, {len(numbers)} sequences, {len(whose)} sources"
            )
        refused: dict[int, str] = {}
        named = {name: _name("stream", name) for name in set(streams)}
        sourced = {name: _name("source", name, empty=True) for name in set(whose)}
        if any(named.values()) or any(sourced.values()):
            for row in range(rows):
                if reason := named[streams[row]] or sourced[whose[row]]:
                    refused[row] = reason
        for row in np.flatnonzero(np.isinf(cells).any(1)).tolist():
            refused.setdefault(row, self._value(cells[row]))
        for row in np.flatnonzero(moments == _NO_TIME).tolist():
            refused.setdefault(row, "times: the row has no time (NaT); drop it")
        for row in np.flatnonzero(numbers < UNNUMBERED).tolist():
            refused.setdefault(row, f"sequences: must be at least 0, or -1 for none, got {numbers[row]}")
        good = np.array([row for row in range(rows) if row not in refused], np.int64)
        batch = Batch(
            streams=tuple(streams[row] for row in good), times=moments[good], values=cells[good],
            sources=tuple(whose[row] for row in good), sequences=numbers[good],
        )  # fmt: skip
        return self._sorted(batch, good, rows, refused)

    def _sorted(self, batch: Batch, rows: Ints, total: int, refused: dict[int, str]) -> Admitted:
        """Take out what no predictor takes: absurd values, and times without room beside them."""
        bad: dict[int, str] = {}
        large = np.abs(batch.values) > LARGEST
        if large.any():
            for row in np.flatnonzero(large.any(1)).tolist():
                bad[row] = self._value(batch.values[row])
        latest = self._safe if self._ahead is None else min(self._safe, self._now() + self._ahead)
        if len(batch) and (int(batch.times.min()) < -self._safe or int(batch.times.max()) > latest):
            for row, moment in enumerate(batch.times.tolist()):
                if reason := self._time(moment):
                    bad.setdefault(row, reason)
        if not bad:
            return Admitted(batch, rows, total, refused)
        good = np.array([row for row in range(len(batch)) if row not in bad], np.int64)
        refused |= {int(rows[row]): reason for row, reason in bad.items()}
        return Admitted(batch.take(good), rows[good], total, refused)

    def _value(self, cells: Floats) -> str:
        channel = int(np.flatnonzero(np.abs(cells) > LARGEST)[0])
        return (
            f"values: channel {self.channels[channel]!r} is {float(cells[channel])!r}; only finite numbers up to "
            f"{LARGEST:g} and NaN (missing) are allowed, clean the source"
        )

    def _time(self, moment: int) -> str:
        """Why a moment can not be taken; "" where it can."""
        try:
            step_of(moment, self._config)
        except StreamError as error:
            return str(error)
        if self._ahead is not None and moment > self._now() + self._ahead:
            return (
                f"time: {moment} ns is more than {self._ahead / 1e9:g} seconds ahead of this machine's clock; set the "
                "clock of the source"
            )
        return ""


def _name(argument: str, name: str, *, empty: bool = False) -> str:
    """Why a name can not be taken; "" where it can."""
    try:
        check_name(argument, name, empty=empty)
    except StreamError as error:
        return str(error)
    return ""
