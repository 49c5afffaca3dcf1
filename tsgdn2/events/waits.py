"""The time to the next event, as a stream and a batch hand it out.

A model's wait head gives log1p(periods) at the levels (events/patch.py); here they are times, with what they are
counted from. N answers, Q levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsgdn2.events.patch import waits
from tsgdn2.events.schema import Ints
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.scale import Floats

if TYPE_CHECKING:
    import polars as pl


class NextEvent(NamedTuple):
    """Time to the next event after a moment: waits [Q] at the levels, increasing, timedelta64[ns]."""

    after: np.datetime64
    levels: tuple[float, ...]
    waits: NDArray[np.timedelta64]
    stream: str = ""


def next_events(streams: Sequence[str], clock: Ints, outputs: Floats, config: ForecasterConfig) -> list[NextEvent]:
    """Answers of N streams after clock [N] (ns, exclusive), from what the wait head gave, outputs [N, Q]."""
    found = waits(outputs, config.period_ns).astype("timedelta64[ns]")
    each = zip(streams, clock.tolist(), found, strict=True)
    return [NextEvent(np.datetime64(at, "ns"), config.quantiles, own, name) for name, at, own in each]


def to_polars(answers: Sequence[NextEvent]) -> pl.DataFrame:
    """Answers as a frame: stream, time (what the waits are counted from, UTC), one column of durations per level."""
    import polars as pl

    if not answers:
        return pl.DataFrame()
    levels = {str(q): np.array([one.waits[i] for one in answers]) for i, q in enumerate(answers[0].levels)}
    keys = {"stream": [one.stream for one in answers], "time": np.array([one.after for one in answers])}
    return pl.DataFrame({**keys, **levels}).with_columns(pl.col("time").dt.replace_time_zone("UTC"))
