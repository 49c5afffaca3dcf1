"""The units of a data set, measured on the training part of every series: what Standards then carries everywhere.

    prior deviation = that of the observed values;  known, static: mean and deviation over all series, 1 for a constant

Only the first MAX_NAMED_ITEMS items keep a prior of their own; all others start from the geometric mean.
"""

from __future__ import annotations

import numpy as np

from tsgdn2.events.schema import EventArrays, mark_units
from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.pipelines.entries import RawSeries
from tsgdn2.scale import Floats
from tsgdn2.standards import Standards

MAX_NAMED_ITEMS = 10_000


def standards_of(raw: list[RawSeries], cut: list[int], config: ForecasterConfig) -> Standards:
    """Prior deviations and covariate units from the training part of every series."""
    scales = {}
    for one, stop in zip(raw, cut, strict=True):
        past = one.values[: stop - one.step]
        deviation = np.array([_deviation(past[:, c]) for c in range(past.shape[1])])
        scales[one.item_id] = deviation
    tables = list(scales.values())
    if len({len(one) for one in tables}) == 1:
        whole = np.exp(np.log(np.stack(tables)).mean(0))
    else:  # streams of different numbers of channels share one
        whole = np.exp(np.log(np.concatenate(tables)).mean(keepdims=True))
    named = tuple((name, tuple(scale.tolist())) for name, scale in list(scales.items())[:MAX_NAMED_ITEMS])
    known = np.concatenate([one.known[: stop - one.step, : config.known] for one, stop in zip(raw, cut, strict=True)])
    past = np.concatenate([one.past[: stop - one.step] for one, stop in zip(raw, cut, strict=True)])
    static = np.stack([one.static_real for one in raw])
    mean, scale = _moments(known) if config.known else (np.zeros(0), np.zeros(0))
    past_mean, past_scale = _moments(past) if config.past else (np.zeros(0), np.zeros(0))
    static_mean, static_scale = _moments(static) if config.static_real else (np.zeros(0), np.zeros(0))
    mark_mean, mark_scale = mark_units(_past_events(raw, cut, config)) if config.event_marks else ((), ())
    return Standards(
        default=tuple(whole.tolist()),
        prior=named,
        known_mean=tuple(mean.tolist()),
        known_scale=tuple(scale.tolist()),
        past_mean=tuple(past_mean.tolist()),
        past_scale=tuple(past_scale.tolist()),
        static_mean=tuple(static_mean.tolist()),
        static_scale=tuple(static_scale.tolist()),
        mark_mean=mark_mean,
        mark_scale=mark_scale,
    )


def _past_events(raw: list[RawSeries], cut: list[int], config: ForecasterConfig) -> list[EventArrays]:
    return [
        one.events.take(slice(0, int(np.searchsorted(one.events.time, stop * config.period_ns))))
        for one, stop in zip(raw, cut, strict=True)
        if one.events is not None
    ]


def _deviation(values: Floats) -> float:
    seen = values[np.isfinite(values)]
    spread = float(seen.std()) if len(seen) else 0.0
    return spread if spread > 0 else max(1e-6, abs(float(seen[0])) * 1e-3 if len(seen) else 1.0)


def _moments(rows: Floats) -> tuple[Floats, Floats]:
    seen = np.isfinite(rows)
    count = np.maximum(seen.sum(0), 1)
    mean = np.where(seen, rows, 0.0).sum(0) / count
    scale = np.sqrt((np.where(seen, rows - mean, 0.0) ** 2).sum(0) / count)
    return mean, np.where(scale > 0, scale, 1.0)
