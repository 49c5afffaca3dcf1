"""How long a model needs after an outage: its CRPS at the same origins, with and without the silence before them.

    ratio(k)  = CRPS k steps after the outage / CRPS at the same origins without it,     k = 0, .. observed steps
    recovery  = the first k from which on the ratio stays within 1 + TOLERANCE; None where it does not

Every position is an outage of its own in an otherwise complete history; the figures pool all positions and series, so
labels, origins and noise are the same on both sides of the ratio. Histories are cut to `history` steps on both sides:
thousands of forecasts from whole histories would cost minutes and change nothing that the ratio shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import pandas as pd

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.baselines import Entry
from tsgdn2.evaluation.metrics import judge, pooled
from tsgdn2.evaluation.robustness import Contender
from tsgdn2.evaluation.rows import Row, Value, row

TOLERANCE: Final = 0.1
LENGTHS: Final = (6, 24, 72, 168)
AFTER: Final = (0, 1, 2, 3, 6, 12, 18, 24, 36, 48, 72, 120, 168)
HISTORY: Final = 1_008


def positions(first: int, last: int, count: int, *, horizon: int, after: int) -> tuple[int, ...]:
    """`count` evenly spread ends of outages; the last forecast after the last one ends by row `last`."""
    stop = last - horizon - after
    if count < 1 or stop < first:
        raise ConfigError(f"count: {count} outages do not fit between rows {first} and {stop}; ask for fewer")
    return tuple(int(end) for end in np.linspace(first, stop, count).round())


def recovery(
    contenders: Sequence[Contender],
    dataset: Sequence[Entry],
    *,
    name: str,
    horizon: int,
    ends: Sequence[int],
    lengths: Sequence[int] = LENGTHS,
    after: Sequence[int] = AFTER,
    history: int = HISTORY,
    seed: int | None = None,
) -> list[Row]:
    """One row per length of the outage and contender: recovery, and the ratio after k observed steps.

    dataset: univariate entries without damage. ends: first observed row after each outage. lengths: steps that an
    outage lasts. after: observed steps k, ascending from 0. history: steps that a forecast reads.
    Errors: ConfigError.
    """
    if list(after) != sorted(set(after)) or not after or after[0] != 0:
        raise ConfigError(f"after: must ascend from 0 without repeats, got {tuple(after)}")
    if not ends or min(ends) < history or max(lengths) + max(after) >= history:
        raise ConfigError(
            f"history: {history} steps must lie before every end (the first is {min(ends, default=0)}) and hold the "
            f"longest outage and all {max(after)} steps after it"
        )
    made = []
    for contender in contenders:
        whole = _crps(contender, dataset, horizon, ends, 0, after, history)
        for length in lengths:
            hurt = _crps(contender, dataset, horizon, ends, length, after, history)
            ratio = [h / w for h, w in zip(hurt, whole, strict=True)]
            values: dict[str, Any] = {f"ratio {k}": float(r) for k, r in zip(after, ratio, strict=True)}
            shape: dict[str, Value] = {"data": name, "outage": length, "positions": len(ends), "history": history}
            made.append(
                row(
                    f"{name}, outage of {length}: {contender.name}",
                    shape,
                    seed=seed,
                    cpu_seconds=contender.cpu_seconds,
                    recovery=recovered(after, ratio),
                    **values,
                )
            )
    return made


def recovered(after: Sequence[int], ratio: Sequence[float]) -> int | None:
    """First of the steps `after` from which on every ratio is at most 1 + TOLERANCE."""
    out = [index for index, one in enumerate(ratio) if not one <= 1 + TOLERANCE]
    if not out:
        return after[0]
    return after[out[-1] + 1] if out[-1] + 1 < len(after) else None


def _crps(
    contender: Contender,
    dataset: Sequence[Entry],
    horizon: int,
    ends: Sequence[int],
    length: int,
    after: Sequence[int],
    history: int,
) -> list[float]:
    """CRPS [len(after)] over all series and ends; one call of the predictor, which may sort and pack as it likes."""
    inputs: list[Entry] = []
    labels: list[Entry] = []
    for k in after:
        for entry in dataset:
            target, start = np.asarray(entry["target"], np.float64), cast(pd.Period, entry["start"])
            for end in ends:
                origin, begin = end + k, end + k - history
                past = target[begin:origin].copy()
                past[history - k - length : history - k] = np.nan
                inputs.append({**entry, "start": start + begin, "target": past})
                labels.append({**entry, "start": start + origin, "target": target[origin : origin + horizon]})
    forecasts = list(contender.forecasts(inputs))
    size = len(inputs) // len(after)
    parts = [slice(at * size, (at + 1) * size) for at in range(len(after))]
    return [pooled(judge(forecasts[part], labels[part], inputs[part], season=1)).crps for part in parts]
