"""ETT and Jena as the GIFT-Eval benchmark cuts them: seven sets of series, resampled from the published files.

    ett1 = ETTm1, ett2 = ETTm2      15T as it is;  H, D, W  sums;  the partial last day and week are left out
    jena_weather                    10T, H, D  means;           the partial last hour and day are left out

A week ends on Thursday. Jena's cells of -9999 are kept, because the published figures have them; they stand before
August, so a model may take them for missing in its history (`without_markers`), and no label of the benchmark changes.
Every channel is a univariate series of its own. Source: Aksu et al. 2024, arXiv 2410.10393.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

import numpy as np
import pandas as pd
import polars as pl

from tsgdn2.datasets.catalog import EttName, ett, jena
from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.frame import STREAM, TIME, channels, validate
from tsgdn2.datasets.gluon import Entry, entries
from tsgdn2.datasets.grid import regular

Freq = Literal["15T", "10T", "H", "D", "W"]

FREQUENCIES: Final[dict[str, tuple[Freq, ...]]] = {
    "ett1": ("15T", "H", "D", "W"),
    "ett2": ("15T", "H", "D", "W"),
    "jena_weather": ("10T", "H", "D"),
}
PANDAS: Final[dict[Freq, str]] = {"15T": "15min", "10T": "10min", "H": "h", "D": "D", "W": "W-THU"}
"""The frequency of each set as pandas and GluonTS write it."""
_PERIOD: Final[dict[Freq, str]] = {"15T": "15min", "10T": "10min", "H": "1h", "D": "1d", "W": "7d"}
_ETT: Final[dict[str, EttName]] = {"ett1": "ETTm1", "ett2": "ETTm2"}
LEAST: Final = {"wv": 0.0, "max_PAR": 0.0, "CO2": 300.0}
"""What Jena's sensors that ever gave a marker can not fall below: a marker, or a mean with one in it, lies there."""


def gift_eval_frame(name: str, freq: Freq) -> pl.DataFrame:
    """Give one set as a wide frame of the schema, one row per step; a week's instant is the beginning of its Friday.

    Raises DataError for a set that the benchmark has not; FetchError, ChecksumError as `ett` and `jena`.
    """
    if freq not in FREQUENCIES.get(name, ()):
        sets = ", ".join(f"{known}/{f}" for known, own in FREQUENCIES.items() for f in own)
        raise DataError(f"name and freq must be one of {sets}, got {name}/{freq}")
    if name == "jena_weather":
        return jena_frame(jena(missing=()), freq)
    return ett_frame(ett(_ETT[name]).with_columns(pl.lit(name).alias(STREAM)), freq)


def ett_frame(raw: pl.DataFrame, freq: Freq) -> pl.DataFrame:
    """Resample quarter hours by sums; of days and weeks the last, which is not whole, is left out."""
    if freq == "15T":
        return raw
    # Weeks of the grid begin on the first day of 1970, a Thursday; these begin on the day after.
    every, offset = {"H": ("1h", "0d"), "D": ("1d", "0d"), "W": ("7d", "1d")}[freq]
    found = _resampled(raw, every, offset, pl.col(channels(raw)).sum())
    return found if freq == "H" else found[:-1]


def jena_frame(raw: pl.DataFrame, freq: Freq) -> pl.DataFrame:
    """Bring ten minutes onto a regular grid, or resample them by means of what is there, without the last bin."""
    raw = raw.with_columns(pl.lit("jena_weather").alias(STREAM))
    if freq == "10T":
        return regular(raw, "10min", fill_gaps=True).frame
    return _resampled(raw, {"H": "1h", "D": "1d"}[freq], "0d", pl.col(channels(raw)).mean())[:-1]


def gift_eval_entries(
    name: str, freq: Freq, *, targets: Literal["univariate", "multivariate"] = "univariate"
) -> list[Entry]:
    """Give one set as GluonTS entries called set/channel, or as one entry with all channels; errors as the frame's."""
    frame = gift_eval_frame(name, freq)
    start = pd.Period(pd.Timestamp(int(frame[TIME].to_physical()[0])), freq=PANDAS[freq])
    return [{**entry, "start": start} for entry in entries(frame, _PERIOD[freq], targets=targets)]


def without_markers(dataset: Iterable[Mapping[str, object]]) -> list[Entry]:
    """Give univariate entries with Jena's markers missing, and what an hour's or a day's mean has left of them.

    What a model is fed, never what it is judged by. Of a day's mean of `max_PAR` one marker takes 69 units only, so a
    day with few of them stays as it is. Entries of other sets are handed on.
    """
    return [_unmarked(entry) for entry in dataset]


def _unmarked(entry: Mapping[str, object]) -> Entry:
    name, _, channel = str(entry.get("item_id", "")).partition("/")
    if name != "jena_weather" or channel not in LEAST:
        return dict(entry)
    target = np.asarray(entry["target"], np.float64)
    return {**entry, "target": np.where(target < LEAST[channel], np.nan, target)}


def frame_without_markers(frame: pl.DataFrame) -> pl.DataFrame:
    """Do to a frame what `without_markers` does to entries."""
    marked = [name for name in LEAST if name in frame.columns]
    return frame.with_columns(pl.when(pl.col(name) >= LEAST[name]).then(pl.col(name)) for name in marked)


def _resampled(raw: pl.DataFrame, every: str, offset: str, by: pl.Expr) -> pl.DataFrame:
    """Bins [start, start + every) of one stream, empty ones left out."""
    binned = raw.sort(TIME).group_by_dynamic(TIME, every=every, offset=offset, group_by=STREAM).agg(by)
    return validate(binned.select(raw.columns))
