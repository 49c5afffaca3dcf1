"""What a caller hands to the online predictor of events, checked and brought into arrays before anything is touched.

Every message names the argument, what is allowed, what came and what to do. Nothing here changes a stream.
E events of one call, M marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike

from tsgdn2.clock import Time, to_ns
from tsgdn2.errors import ConfigError, SchemaError, StreamError
from tsgdn2.events.schema import EventArrays, EventSchema, Ints
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.intake import check_columns, frame_moments, frame_streams, numbers
from tsgdn2.scale import Floats

if TYPE_CHECKING:
    import polars as pl

Marks = ArrayLike | Mapping[str, float | None] | None
Gap = timedelta | np.timedelta64 | int | None
EventId = str | int
ID = "event_id"


class EventIntake:
    """Checks what comes in against one schema; holds no stream."""

    def __init__(self, schema: EventSchema, config: ForecasterConfig) -> None:
        self.schema = schema
        steps = config.patch_length + config.window + config.prediction_length + 2
        self._limit = 2**63 - 1 - steps * schema.period_ns

    def moment(self, time: Time, argument: str = "time") -> int:
        """Nanoseconds of a moment that has a patch before it and a horizon after it."""
        ns = to_ns(time, argument)
        self._check_limit(np.array([ns]), argument)
        return ns

    def event(self, time: Time, type: str | None, marks: Marks) -> EventArrays:
        """One event [1]; StreamError and SchemaError name the argument."""
        moments = np.array([self.moment(time)], np.int64)
        row = self._row(marks)[None]
        self.schema.check_marks(row)
        return EventArrays(moments, np.array([self.schema.code(type)], np.int64), row)

    def identity(self, event_id: EventId | None) -> EventId | None:
        """What tells an event from its copies: a text or an integer; None is none."""
        if isinstance(event_id, np.integer):
            return int(event_id)
        if event_id is None or (isinstance(event_id, str | int) and not isinstance(event_id, bool)):
            return event_id
        raise StreamError(f"event_id: must be a string, an integer or None (none), got {event_id!r}; convert it")

    def frame(self, frame: pl.DataFrame) -> tuple[list[str], EventArrays, list[EventId | None] | None]:
        """Streams and events [E] of a frame with columns stream, time, and type and marks where there are any.

        The last is the column event_id, None where there is none.
        """
        check_columns(frame)
        unknown = [name for name in frame.columns if name not in ("stream", "time", "type", ID, *self.schema.marks)]
        if unknown:
            raise SchemaError(f"frame: unknown columns {unknown}; marks are {list(self.schema.marks)}, drop the others")
        streams = frame_streams(frame)
        types = frame.get_column("type").to_list() if "type" in frame.columns else [None] * frame.height
        marks = np.full((frame.height, len(self.schema.marks)), np.nan)
        for m, name in enumerate(self.schema.marks):
            if name in frame.columns:
                column = frame.get_column(name).to_numpy()
                if column.dtype.kind not in "iufb" and frame.get_column(name).null_count() < frame.height:
                    raise SchemaError(f"frame: column {name} must hold numbers, got dtype {column.dtype}; cast it")
                marks[:, m] = column.astype(np.float64)
        self.schema.check_marks(marks)
        given = ID in frame.columns and ID not in self.schema.marks
        ids = [self.identity(one) for one in frame.get_column(ID).to_list()] if given else None
        return streams, EventArrays(self._moments(frame), self.schema.codes(types), marks), ids

    def _moments(self, frame: pl.DataFrame) -> Ints:
        moments = frame_moments(frame)
        self._check_limit(moments, "time")
        return moments

    def _row(self, marks: Marks) -> Floats:
        names = self.schema.marks
        if marks is None:
            return np.full(len(names), np.nan)
        cells: object = marks
        if isinstance(marks, Mapping):
            unknown = [name for name in marks if name not in names]
            if unknown:
                raise SchemaError(
                    f"marks: unknown marks {unknown}; this model knows {list(names)}, drop or rename them"
                )
            cells = [marks.get(name) for name in names]
        if isinstance(cells, Sequence) and not isinstance(cells, str):
            cells = [np.nan if mark is None else mark for mark in cells]
        row = np.atleast_1d(numbers(cast(ArrayLike, cells), "marks"))
        if row.shape != (len(names),):
            raise SchemaError(f"marks: must be one number for each of {list(names)}, got shape {row.shape}")
        return row

    def _check_limit(self, time: Ints, argument: str) -> None:
        far = np.flatnonzero((time > self._limit) | (time < -self._limit))
        if len(far):
            raise StreamError(
                f"{argument}: {time[far[0]]} ns leaves no room in int64 nanoseconds for a patch before and a horizon "
                "after it; mend the source"
            )


def gap_ns(gap: Gap) -> int | None:
    """Nanoseconds of a longest gap, > 0; None for none."""
    if gap is None:
        return None
    if isinstance(gap, timedelta):
        gap = ((gap.days * 86_400 + gap.seconds) * 1_000_000 + gap.microseconds) * 1_000
    elif isinstance(gap, np.timedelta64):
        gap = int(gap.astype("timedelta64[ns]").astype(np.int64))
    if isinstance(gap, bool) or not isinstance(gap, int | np.integer) or gap <= 0:
        raise ConfigError(f"longest_gap: must be a timedelta or int nanoseconds > 0, or None, got {gap!r}")
    return int(gap)
