"""What a caller hands to the online predictor, checked and brought into arrays before anything is touched.

Every message names the argument, what is allowed, what came and what to do. Nothing here changes a stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from tsgdn2.clock import Steps, Time, check_room, stamps_to_ns, to_ns
from tsgdn2.errors import ConfigError, SchemaError, StreamError, UnknownChannelError
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.scale import Floats

if TYPE_CHECKING:
    import polars as pl

LARGEST = 1e100
Values = ArrayLike | Mapping[str, float | None] | None


def check_stream(stream: str) -> None:
    """A stream's name is a string that is not empty."""
    if not isinstance(stream, str) or not stream:
        raise StreamError(f"stream: must be a string that is not empty, got {stream!r}")


def step_of(time: Time, config: ForecasterConfig, argument: str = "time") -> int:
    """Absolute step of a moment that has a patch before it and a horizon after it; StreamError names the argument."""
    ns = to_ns(time, argument)
    check_room(np.array([ns]), config.period_ns, _room(config), argument)
    return ns // config.period_ns


def horizon_of(horizon: int | None, longest: int) -> int:
    """Steps of a forecast, 1 to `longest`; None asks for all. ConfigError otherwise."""
    if horizon is None:
        return longest
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or not 1 <= horizon <= longest:
        raise ConfigError(
            f"horizon: must be an integer from 1 to prediction_length = {longest}, got {horizon!r}; "
            "train with a longer prediction_length to look further"
        )
    return int(horizon)


def row_values(values: Values, channels: tuple[str, ...]) -> Floats:
    """values as float64 [C], NaN where missing; array [C] or {channel: value}."""
    if values is None:
        return np.full(len(channels), np.nan)
    if isinstance(values, Mapping):
        unknown = [name for name in values if name not in channels]
        if unknown:
            raise UnknownChannelError(
                f"values: unknown channels {unknown}; this model knows {list(channels)}, drop or rename them"
            )
        values = [np.nan if (cell := values.get(name)) is None else cell for name in channels]
    if isinstance(values, Sequence) and not isinstance(values, str):
        values = [np.nan if v is None else v for v in values]
    try:
        raw = np.asarray(values)
    except ValueError:
        raise SchemaError(f"values: must be one number for each of {list(channels)}, got {values!r}") from None
    if raw.dtype.kind not in "iufb":
        raise SchemaError(f"values: must be numbers, NaN or None, got dtype {raw.dtype}; convert them")
    row = np.atleast_1d(raw.astype(np.float64))
    if row.shape != (len(channels),):
        raise SchemaError(f"values: must be one value for each of {list(channels)}, got shape {raw.shape}")
    check_finite(row[None], channels)
    return row


def numbers(given: ArrayLike, argument: str) -> Floats:
    """An argument as float64; SchemaError names it where it holds anything but numbers."""
    try:
        return np.asarray(given, np.float64)
    except (ValueError, TypeError):
        raise SchemaError(f"{argument}: must hold numbers in a regular shape, got {given!r}") from None


def check_finite(values: Floats, channels: tuple[str, ...]) -> None:
    """No infinite or absurd number among values [N, C]."""
    bad = np.isinf(values) | (np.abs(values) > LARGEST)
    if bad.any():
        n, c = np.argwhere(bad)[0]
        raise SchemaError(
            f"values: row {n}, channel {channels[c]!r} is {float(values[n, c])!r}; only finite numbers up to "
            f"{LARGEST:g} and NaN (missing) are allowed, clean the source"
        )


def check_polars(frame: object) -> None:
    """SchemaError that says how to make a polars DataFrame of what is none."""
    if hasattr(frame, "get_column") and hasattr(frame, "columns"):
        return
    kind = frame.__class__
    remedy = "make one with pl.DataFrame(..)"
    if hasattr(frame, "collect"):
        remedy = "call its .collect() first"
    elif kind.__module__.startswith("pandas"):
        remedy = "convert it with pl.from_pandas(frame)"
    raise SchemaError(f"frame: must be a polars DataFrame, got {kind.__module__}.{kind.__qualname__}; {remedy}")


def check_columns(frame: pl.DataFrame) -> None:
    """SchemaError for what is no polars DataFrame with the columns stream and time."""
    check_polars(frame)
    missing = [name for name in ("stream", "time") if name not in frame.columns]
    if missing:
        raise SchemaError(f"frame: needs the columns stream and time, {missing} not among {frame.columns}")


def frame_streams(frame: pl.DataFrame) -> list[str]:
    """Streams of a frame's rows [N]. SchemaError for no row, StreamError for a name or a time that is missing."""
    if frame.height == 0:
        raise SchemaError("frame: empty; there is nothing to observe, skip the call")
    for name in ("stream", "time"):
        if frame.get_column(name).null_count():
            raise StreamError(f"frame: column {name} has nulls (missing times or names); drop those rows")
    streams = frame.get_column("stream").to_list()
    for stream in set(streams):
        check_stream(stream)
    return streams


def frame_moments(frame: pl.DataFrame) -> Steps:
    """Moments of a frame's rows, int64 ns [N]. StreamError for a column that holds something else."""
    stamps = frame.get_column("time").to_numpy()
    if stamps.dtype.kind == "M":
        return stamps_to_ns(stamps)
    if stamps.dtype != np.int64:
        raise StreamError(f"frame: column time must be Datetime or int64 nanoseconds, got {stamps.dtype}; cast it")
    return np.asarray(stamps, np.int64)


def frame_rows(
    frame: pl.DataFrame, channels: tuple[str, ...], config: ForecasterConfig
) -> tuple[list[str], Steps, Floats]:
    """streams, steps [N] and values [N, C] of a frame with columns stream, time and channels."""
    check_columns(frame)
    given = [name for name in frame.columns if name not in ("stream", "time")]
    unknown = [name for name in given if name not in channels]
    if unknown:
        raise UnknownChannelError(
            f"frame: unknown channels {unknown}; this model knows {list(channels)}, drop or rename them"
        )
    if not given:
        raise SchemaError(f"frame: holds no channel; at least one of {list(channels)} must be a column")
    streams, nanoseconds = frame_streams(frame), frame_moments(frame)
    values = np.full((frame.height, len(channels)), np.nan)
    for name in given:
        column = frame.get_column(name).to_numpy()
        if column.dtype.kind not in "iufb":
            raise SchemaError(f"frame: column {name} must hold numbers, got dtype {column.dtype}; cast it")
        values[:, channels.index(name)] = column
    check_finite(values, channels)
    check_room(nanoseconds, config.period_ns, _room(config))
    return [str(s) for s in streams], nanoseconds // config.period_ns, values


def _room(config: ForecasterConfig) -> int:
    """Steps between a moment and the ends of time: patches are anchored before it, forecasts lie after it."""
    return config.patch_length + config.prediction_length + 2
