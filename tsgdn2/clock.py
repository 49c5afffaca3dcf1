"""Time on an absolute grid: a step is int64 nanoseconds since 1970-01-01 UTC, divided by the period and floored.

Patches are anchored at absolute step index // P, so their borders do not depend on where a stream began (math.md 4).
Only a fixed period has such a grid; calendar frequencies (months, business days) are numbered by their ordinal in the
pipelines room and can be trained and predicted in batch, not streamed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tsgdn2.errors import StreamError

if TYPE_CHECKING:
    import pandas as pd

    Time = datetime | np.datetime64 | pd.Timestamp | int
else:
    Time = object

Steps = NDArray[np.int64]

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
CYCLES_NS = {"day": DAY_NS, "week": 7 * DAY_NS}
_LIMIT_NS = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_A_MOMENT = "NaT is not a moment; drop the row or give it a time"


def to_ns(time: Time, argument: str = "time") -> int:
    """int64 nanoseconds since the epoch; a naive time is taken as UTC. Raises StreamError naming the argument."""
    if isinstance(time, np.datetime64):
        if np.isnat(time):
            raise StreamError(f"{argument}: {_NOT_A_MOMENT}")
        _within(int(time.astype("datetime64[s]").astype(np.int64)) * SECOND_NS, time, argument)
        return int(time.astype("datetime64[ns]").astype(np.int64))
    if isinstance(time, datetime):
        if time != time:  # pandas.NaT is a datetime that is not equal to itself
            raise StreamError(f"{argument}: {_NOT_A_MOMENT}")
        convert = getattr(time, "to_datetime64", None)
        if convert is not None:  # pandas.Timestamp keeps nanoseconds that datetime has not
            return to_ns(convert(), argument)
        aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        delta = aware - _EPOCH
        ns = ((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds) * 1_000
        return _within(ns, time, argument)
    if isinstance(time, int | np.integer) and not isinstance(time, bool):
        return _within(int(time), time, argument)
    raise StreamError(
        f"{argument}: expected datetime, numpy or pandas stamp or int64 nanoseconds, got {type(time).__name__} "
        f"{time!r}; convert it (NaN and None are no moments, float seconds lose digits)"
    )


def stamps_to_ns(stamps: NDArray[np.datetime64]) -> Steps:
    """Nanoseconds of many stamps of any unit; StreamError where one lies outside int64 nanoseconds."""
    seconds = stamps.astype("datetime64[s]").astype(np.int64)
    far = np.flatnonzero(np.abs(seconds) >= _LIMIT_NS // SECOND_NS)
    if len(far):
        _within(int(seconds[far[0]]) * SECOND_NS, stamps[far[0]], "time")
    return np.asarray(stamps.astype("datetime64[ns]").astype(np.int64))


def check_room(ns: Steps, period_ns: int, steps: int, argument: str = "time") -> None:
    """StreamError for the first moment that has less than `steps` steps between it and either end of int64."""
    limit = _LIMIT_NS - steps * period_ns
    far = np.flatnonzero((ns > limit) | (ns < -limit))
    if len(far):
        raise StreamError(
            f"{argument}: {ns[far[0]]} ns leaves no room in int64 nanoseconds for a patch before and a horizon after "
            "it; mend the source"
        )


def _within(ns: int, time: object, argument: str) -> int:
    if not -_LIMIT_NS <= ns <= _LIMIT_NS:
        raise StreamError(f"{argument}: {time!s} does not fit int64 nanoseconds (years 1678 to 2262); mend the source")
    return ns


def calendar_cycles(period_ns: int) -> tuple[str, ...]:
    """Names of the cycles that a grid of this period can resolve (at least four steps a cycle); none without one."""
    return tuple(name for name, cycle in CYCLES_NS.items() if 0 < 4 * period_ns <= cycle)


def calendar(steps: Steps, period_ns: int, cycles: tuple[str, ...]) -> NDArray[np.float64]:
    """Sine and cosine of the phase in each cycle, [.., 2 * cycles]; exact, because the modulus is taken in int64."""
    phases = [(steps * period_ns) % CYCLES_NS[name] * (2 * np.pi / CYCLES_NS[name]) for name in cycles]
    if not phases:
        return np.zeros((*steps.shape, 0))
    return np.stack([f(phase) for phase in phases for f in (np.sin, np.cos)], axis=-1)
