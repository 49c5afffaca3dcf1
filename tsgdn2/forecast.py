"""A probabilistic forecast of one stream, and how surprising a value is under it.

    F(y) is linear between the quantiles; outside them its tail is exponential with the density of the next gap:
    F(y) = a_1 exp((y - q_1) / s), s = a_1 (q_2 - q_1) / (a_2 - a_1)                      (and mirrored above)
    surprise = -log2(2 min(F, 1 - F)) bits: 0 at the median, 1 at the quartiles, 10 once in a thousand

H horizon, C channels, Q quantiles, N values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tsgdn2.scale import Floats

if TYPE_CHECKING:
    import polars as pl
    from gluonts.model.forecast import QuantileForecast

_TAIL_FLOOR = 1e-12


@dataclass(frozen=True)
class Forecast:
    """Quantiles of one stream's next H steps, in the units of its channels."""

    stream: str
    quantiles: Floats
    """[H, C, Q], increasing along Q."""
    levels: tuple[float, ...]
    channels: tuple[str, ...]
    times: NDArray[np.datetime64]
    """[H], UTC, datetime64[ns]: the start of each step on the absolute grid (weeks begin on Thursday, as the epoch)."""
    freq: str

    @property
    def median(self) -> Floats:
        """[H, C]: the quantile whose level is nearest to 0.5."""
        return np.asarray(self.quantiles[..., int(np.abs(np.array(self.levels) - 0.5).argmin())])

    def to_gluonts(self) -> QuantileForecast:
        """The same as a GluonTS QuantileForecast: arrays [Q, H], or [Q, H, C] for several channels."""
        import pandas as pd
        from gluonts.model.forecast import QuantileForecast

        arrays = np.moveaxis(self.quantiles, -1, 0)
        start = pd.Timestamp(self.times[0])
        if isinstance(pd.tseries.frequencies.to_offset(self.freq), pd.offsets.Week):
            start += pd.Timedelta(days=6)  # weeks of the grid begin on Thursday; the period is the one that ends later
        return QuantileForecast(
            forecast_arrays=arrays[..., 0] if len(self.channels) == 1 else arrays,
            start_date=pd.Period(start, freq=self.freq),
            forecast_keys=[str(level) for level in self.levels],
            item_id=self.stream,
        )


def to_polars(forecasts: Sequence[Forecast]) -> pl.DataFrame:
    """Forecasts as a frame: stream, time, channel, one column per level; one row per step and channel."""
    import polars as pl

    if not forecasts:
        return pl.DataFrame()
    first = forecasts[0]
    rows = [one.quantiles.shape[0] * len(one.channels) for one in forecasts]
    levels = np.concatenate([one.quantiles.reshape(-1, len(first.levels)) for one in forecasts])
    columns = {
        "stream": np.repeat(np.array([one.stream for one in forecasts], dtype=object), rows),
        "time": np.concatenate([np.repeat(one.times, len(one.channels)) for one in forecasts]),
        "channel": [name for one in forecasts for name in list(one.channels) * len(one.times)],
        **{str(level): levels[:, q] for q, level in enumerate(first.levels)},
    }
    frame = pl.DataFrame(columns, schema_overrides={"stream": pl.String})
    return frame.with_columns(pl.col("time").dt.replace_time_zone("UTC"))


def probability(y: Floats, quantiles: Floats, levels: Floats) -> Floats:
    """Probability integral transform F(y), [N], of y [N] under quantiles [N, Q]; NaN where either is not finite."""
    if len(levels) < 2:
        return np.full(y.shape, np.nan)
    below = (quantiles <= y[:, None]).sum(1)
    left = np.clip(below - 1, 0, len(levels) - 2)
    rows = np.arange(len(y))
    q0, q1 = quantiles[rows, left], quantiles[rows, left + 1]
    a0, a1 = levels[left], levels[left + 1]
    width = np.maximum(q1 - q0, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        inside = a0 + (a1 - a0) * np.clip((y - q0) / width, 0.0, 1.0)
        lower = levels[0] * np.exp(np.minimum((y - q0) * (a1 - a0) / (levels[0] * width), 0.0))
        upper = 1 - (1 - levels[-1]) * np.exp(np.minimum((q1 - y) * (a1 - a0) / ((1 - levels[-1]) * width), 0.0))
        u = np.where(below == 0, lower, np.where(below == len(levels), upper, inside))
    return np.where(np.isfinite(y) & np.isfinite(quantiles).all(1), u, np.nan)


def surprise_bits(u: Floats) -> Floats:
    """-log2(2 min(u, 1 - u)), at most about 39 bits."""
    return np.asarray(-np.log2(2 * np.clip(np.minimum(u, 1 - u), _TAIL_FLOOR, 0.5)))
