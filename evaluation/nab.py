"""Anomaly scores judged by the rules of the Numenta Anomaly Benchmark, written from its paper's definitions.

The benchmark picks one threshold for the whole corpus, per profile, with the labels in hand; its figures are therefore
the best that a detector could have done with one setting, and not what it would do on the next stream.

    sigma(y) = 2 / (1 + exp(5 y)) - 1              1 long before the end of a window, 0 at its end, -1 long after it
    y_w(i)   = (i - last_w) / max(1, last_w - first_w)             -1 in the first row of window w, 0 in its last
    S        = sum_w A_TP sigma(y_w(first detection in w))         A_FN where there is none
             + sum_i -A_FP sigma(y_p(i))                           i outside, p the window before it; A_FP without one
    NAB      = 100 (S - S_null) / (S_perfect - S_null)
    S_null: no detection at all.  S_perfect: the first row of every window and nothing else.

| symbol | standard | reward low FP | reward low FN | what |
|---|---|---|---|---|
| A_TP | 1 | 1 | 1 | a window's first detection; later ones in it count nothing |
| A_FP | -0.11 | -0.22 | -0.11 | each detection outside |
| A_FN | -1 | -1 | -2 | each window without a detection |

The paper writes (A_TP - A_FP) / (1 + exp(5 y)) - 1 and says of it that it is 0 at a window's end, A_TP at most and A_FP
at least. For other weights than 1 and -1 no such formula does that; what is said of it is what is built here. Nothing
counts in the probationary part, the first 15 % of a file and at most 750 rows.

Source: Lavin and Ahmad 2015, arXiv 1510.03336.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.scale import Floats

PROBATION: Final = 0.15
PROBATION_ROWS: Final = 750


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a detection, a false alarm and a miss are worth."""

    name: str
    """As the benchmark calls it."""
    true_positive: float = 1.0
    """A_TP, above 0."""
    false_positive: float
    """A_FP, below 0."""
    false_negative: float
    """A_FN, below 0."""

    def __post_init__(self) -> None:
        """Check the signs."""
        if not (self.true_positive > 0 > self.false_positive and self.false_negative < 0):
            raise ConfigError(f"profile: needs true_positive > 0 and the others < 0, got {self}")


PROFILES: Final = (
    Profile(name="standard", false_positive=-0.11, false_negative=-1.0),
    Profile(name="reward low FP", false_positive=-0.22, false_negative=-1.0),
    Profile(name="reward low FN", false_positive=-0.11, false_negative=-2.0),
)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Where a stream of N rows is anomalous, in rows."""

    rows: int
    """N."""
    windows: tuple[tuple[int, int], ...]
    """First and last row of each window, increasing and apart."""

    @classmethod
    def of(cls, stamps: NDArray[np.int64], windows: Sequence[tuple[int, int]]) -> Labels:
        """Rows from stamps [N] and windows of stamps, both ends inside; SchemaError for a window without a row."""
        found = []
        for begin, end in windows:
            inside = np.flatnonzero((stamps >= begin) & (stamps <= end))
            if not len(inside):
                raise SchemaError(f"windows: no row lies in {begin} .. {end}; these are not the stream's labels")
            found.append((int(inside[0]), int(inside[-1])))
        return cls(rows=len(stamps), windows=tuple(found))

    @property
    def probation(self) -> int:
        """Rows at the beginning that do not count."""
        return min(int(PROBATION * self.rows), PROBATION_ROWS)


class NabScore(NamedTuple):
    """The result of one detector under one profile."""

    score: float
    """0 for no detections at all, 100 for a perfect detector; without end below."""
    threshold: float
    """A row is a detection where its anomaly score reaches this; inf detects nothing."""
    found: int
    """Windows with a detection."""
    windows: int
    """Windows that count."""
    false_alarms: int
    """Detections outside of every window."""


class _Steps(NamedTuple):
    """What each threshold adds to the raw score when it is lowered past `at`."""

    at: Floats
    gain: Floats
    found: NDArray[np.int64]
    alarms: NDArray[np.int64]


def nab_score(labels: Mapping[str, Labels], scores: Mapping[str, Floats], profile: Profile) -> NabScore:
    """Score one detector over a corpus at its best threshold.

    Args:
        labels: stream to its labels.
        scores: stream to the anomaly score [N] of its rows, larger is odder, finite.
        profile: the weights.

    Raises SchemaError where a stream has no scores, of another length, or one that is not finite; ConfigError for a
    corpus without a window, over which nothing can be normalised.
    """
    parts = [_steps(name, labels[name], scores.get(name), profile) for name in labels]
    windows = sum(1 for one in labels.values() for _, last in one.windows if last >= one.probation)
    if not windows:
        raise ConfigError("labels: no stream has a window after its probationary part; there is nothing to detect")
    at, gain, found, alarms = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(-at, kind="stable")
    at, gain, found, alarms = at[order], gain[order].cumsum(), found[order].cumsum(), alarms[order].cumsum()
    last = np.flatnonzero(np.append(at[1:] != at[:-1], True)) if len(at) else np.zeros(0, np.int64)
    perfect = windows * (profile.true_positive * float(sigma(np.array(-1.0))) - profile.false_negative)
    best = last[gain[last].argmax()] if len(last) else -1
    if best < 0 or gain[best] <= 0:
        return NabScore(0.0, float("inf"), 0, windows, 0)
    return NabScore(100 * float(gain[best]) / perfect, float(at[best]), int(found[best]), windows, int(alarms[best]))


def sigma(y: Floats) -> Floats:
    """The scaled sigmoid of the paper, from 1 to -1, 0 at y = 0."""
    return np.asarray(-np.tanh(2.5 * np.asarray(y)))  # 2 / (1 + exp(5 y)) - 1, without overflow


def _steps(name: str, labels: Labels, scores: Floats | None, profile: Profile) -> _Steps:
    """Every threshold at which the raw score of one stream changes, against that of no detection."""
    if scores is None or scores.shape != (labels.rows,) or not np.isfinite(scores).all():
        came = "none" if scores is None else f"shape {scores.shape}, finite: {bool(np.isfinite(scores).all())}"
        raise SchemaError(f"scores: stream {name!r} needs one finite score for each of {labels.rows} rows, got {came}")
    row = np.arange(labels.rows)
    outside = row >= labels.probation
    behind = np.full(labels.rows, np.inf)  # y behind the window before, inf before the first one
    steps = []
    for first, last in labels.windows:
        y = (row - last) / max(1, last - first)
        outside[first : last + 1] = False
        behind[last + 1 :] = y[last + 1 :]
        steps.append(_window(row[max(first, labels.probation) : last + 1], scores, y, profile))
    alarm = np.flatnonzero(outside)
    lost = -profile.false_positive * sigma(behind[alarm])
    ones = np.ones(len(alarm), np.int64)
    steps.append(_Steps(scores[alarm], lost, 0 * ones, ones))
    return _Steps(*(np.concatenate(arrays) for arrays in zip(*steps, strict=True)))


def _window(rows: NDArray[np.int64], scores: Floats, y: Floats, profile: Profile) -> _Steps:
    """A lower threshold detects a window earlier: at each row that is above all rows of the window before it."""
    before = np.maximum.accumulate(np.append(-np.inf, scores[rows]))[:-1]
    records = rows[scores[rows] > before][::-1]  # from the highest, which is the latest
    worth = profile.true_positive * sigma(y[records])
    gain = np.diff(worth, prepend=profile.false_negative)
    found = (np.arange(len(records)) == 0).astype(np.int64)
    return _Steps(scores[records], gain, found, np.zeros(len(records), np.int64))
