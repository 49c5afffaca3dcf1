"""Coverage of 80 % intervals on streams that drift: adaptive against split-conformal ones, on the same forecasts.

Every value is judged by the interval that was given out, through the public face, at the end of the patch before.

    adaptive   Calibrated: begins with factors of 1 at the stream's first row and learns from every value it is shown
    split      one factor f for ever: m - f (m - q.1), m + f (q.9 - m), the ceil(.8 (n + 1))-th smallest of the n scores
               max((y - m) / (q.9 - m), (m - y) / (m - q.1)) in the last third of the training part, on whose values no
               weight was trained
    model      the quantiles as they are, f = 1

Judged from the row after the training part on. Width ratio: mean width over split's mean width on the same values.
Interval score: width + 10 times the distance by which a value lies outside, which honest intervals keep small.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from tsgdn2.conformal import Calibrated
from tsgdn2.datasets.frame import STREAM
from tsgdn2.datasets.nab import VALUE, LabelledStream
from tsgdn2.evaluation.rows import Row, row
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.streaming import one_thread
from tsgdn2.pipelines.telemetry import HELD_OUT, SMALL, Budget, Group, by_patch, frame_of, groups, labels_of
from tsgdn2.scale import Floats
from tsgdn2.slab import Ints

WANTED: Final = 0.8
LOW, MIDDLE, HIGH = "0.1", "0.5", "0.9"
ROLLING: Final = 288
"""Values of a rolling coverage: a day at five minutes."""


class Given(NamedTuple):
    """What was given out for N judged values of one stream, in their order."""

    row: Ints
    """Row of the file, [N]."""
    y: Floats
    """The value, [N]."""
    model: Floats
    """Low, middle, high of the model's own quantiles, [N, 3]."""
    adaptive: Floats
    """The same, calibrated, [N, 3]."""


def calibration_rows(seeds: Sequence[int], *, quick: bool) -> Iterator[Row]:
    """One row per stream and seed, then one over all streams of a seed."""
    with one_thread():
        budget = SMALL if quick else Budget()
        for seed in seeds:
            began, found = time.process_time(), []
            for group in groups(budget, seed):
                for name, values in _group(group).items():
                    found.append(values)
                    yield row(name, {"patch": budget.patch_length}, seed=seed, **values)
            yield row(
                f"all {len(found)} streams", {"patch": budget.patch_length}, seed=seed,
                cpu_seconds=time.process_time() - began, **_over_all(found),
            )  # fmt: skip


def _group(group: Group) -> dict[str, dict[str, Any]]:
    """Figures of every stream of one model."""
    plain, online = (
        kind.from_predictor(group.predictor, channels=(VALUE,), late="drop") for kind in (OnlinePredictor, Calibrated)
    )
    assert isinstance(online, Calibrated)
    given = stream(plain, online, group.streams)
    found = {}
    for one in group.streams:
        first = labels_of(one).probation
        found[one.name] = figures(given[one.name], first, int(first * (1 - HELD_OUT)))
        blocks = range(1, -(-online.config.prediction_length // online.config.patch_length))
        found[one.name] |= {f"coverage block {k + 1}": online.coverage(one.name, block=k)[0].found for k in blocks}
    return found


def stream(plain: OnlinePredictor, online: Calibrated, streams: Sequence[LabelledStream]) -> dict[str, Given]:
    """Feed both the same rows, a patch of each stream at a time, and ask both for forecasts before each patch."""
    period, patch, horizon = online.config.period_ns, online.config.patch_length, online.config.prediction_length
    kept: dict[str, list[Given]] = {one.name: [] for one in streams}
    for turn in by_patch(streams, period, patch):
        asked = [one.name for one, _ in turn if one.name in online.streams]
        ends = [_ends(predictor, asked) for predictor in (plain, online)]
        rows = pl.concat([frame_of(one, own.start, own.stop) for one, own in turn])
        plain.observe_many(rows)
        status = online.observe_many(rows)["status"].to_numpy()
        done = 0
        for one, own in turn:
            new = np.isin(status[done : done + own.stop - own.start], ("new", "filled"))
            done += own.stop - own.start
            if one.name not in ends[0]:
                continue
            first, model = ends[0][one.name]
            ahead = one.stamps[own] // period - first
            at = np.flatnonzero(new & (ahead >= 0) & (ahead < horizon))
            y = one.values[own][at]
            kept[one.name].append(Given(own.start + at, y, model[ahead[at]], ends[1][one.name][1][ahead[at]]))
    return {name: Given(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in kept.items()}


def _ends(predictor: OnlinePredictor, names: Sequence[str]) -> dict[str, tuple[int, Floats]]:
    """First step and low, middle, high [H, 3] of the forecast of each stream."""
    if not names:
        return {}
    frame = predictor.forecast_many(names)
    horizon = predictor.config.prediction_length
    steps = frame["time"].to_physical().to_numpy() // predictor.config.period_ns
    levels = frame.select(LOW, MIDDLE, HIGH).to_numpy().reshape(len(names), horizon, 3)
    assert frame[STREAM].to_list()[::horizon] == list(names)
    return {name: (int(steps[i * horizon]), levels[i]) for i, name in enumerate(names)}


def figures(given: Given, first: int, since: int) -> dict[str, Any]:
    """Coverage, widths and scores of the rows from `first` on; split is calibrated on the rows `since` to `first`."""
    judged = given.row >= first
    y, model, adaptive = given.y[judged], given.model[judged], given.adaptive[judged]
    split = scaled(model, split_factor(given, (given.row >= since) & (given.row < first)))
    found: dict[str, Any] = {}
    for name, ends in (("", adaptive), ("split ", split), ("model ", model)):
        inside = (y >= ends[:, 0]) & (y <= ends[:, 2])
        low, high = rolling(inside)
        found |= {f"{name}coverage": float(inside.mean()), f"{name}rolling low": low, f"{name}rolling high": high}
    width, width_split = (float((ends[:, 2] - ends[:, 0]).mean()) for ends in (adaptive, split))
    score, score_split = (interval_score(y, ends) for ends in (adaptive, split))
    return found | {
        "values": len(y),
        "off": abs(found["coverage"] - WANTED),
        "width ratio": width / width_split,
        "score ratio": score / score_split,
        "repeats": float((np.diff(y) == 0).mean()),
    }


def split_factor(given: Given, held: np.ndarray) -> float:
    """The split-conformal factor: the ceil(.8 (n + 1))-th smallest score of n values held out."""
    low, middle, high = given.model[held].T
    y = given.y[held]
    tiny = np.finfo(np.float64).tiny
    score = np.maximum((y - middle) / np.maximum(high - middle, tiny), (middle - y) / np.maximum(middle - low, tiny))
    rank = min(int(np.ceil(WANTED * (len(score) + 1))), len(score))
    return float(np.sort(score)[rank - 1])


def scaled(ends: Floats, factor: float) -> Floats:
    """Low, middle, high [N, 3] with both arms `factor` times as long."""
    return np.asarray(ends[:, 1:2] + factor * (ends - ends[:, 1:2]))


def rolling(inside: np.ndarray) -> tuple[float, float]:
    """The 5 % and 95 % quantile of the coverage of ROLLING values in a row, or of all where there are fewer."""
    count = min(ROLLING, len(inside))
    shares = np.convolve(inside, np.full(count, 1 / count), "valid")
    low, high = np.quantile(shares, (0.05, 0.95))
    return float(low), float(high)


def interval_score(y: Floats, ends: Floats) -> float:
    """Mean of width + 2 / alpha times the distance outside, alpha = 0.2."""
    low, high = ends[:, 0], ends[:, 2]
    outside = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return float((high - low + 2 / (1 - WANTED) * outside).mean())


def _over_all(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over the streams, the worst of them, and how many keep each bar."""
    off = np.array([one["off"] for one in found])
    ratio = np.array([one["width ratio"] for one in found])
    means: dict[str, Any] = {
        name: float(np.mean([one[name] for one in found])) for name in found[0] if name not in ("values", "repeats")
    }
    return means | {
        "values": int(sum(one["values"] for one in found)),
        "worst off": float(off.max()),
        "streams within 2 points": int((off <= 0.02).sum()),
        "width ratio, geometric": float(np.exp(np.log(ratio).mean())),
        "worst width ratio": float(ratio.max()),
        "streams within 1.2": int((ratio <= 1.2).sum()),
        "worst split off": float(max(abs(one["split coverage"] - WANTED) for one in found)),
    }
