"""Histories of many lanes in contiguous arrays, from which any window is a slice: training and batch prediction.

A lane is one sequence of C channels on the absolute grid. The scaler runs over every lane once; a token then needs
only gathers. The stream holds the same facts in rings (tsgdn2/slab.py); this file is their history at full length.

    token at clock c:  steps c-P+1 .. c, statistics at c          patch j with shift s:  steps jP+s .. jP+s+P-1
    elapsed between tokens = (difference of their clocks) / P, subtracted in int64

N.. any leading shape, P patch, C channels, L lags, H horizon, F known covariates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tsgdn2.bridge import bridged
from tsgdn2.errors import SchemaError
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.patch import NEVER_SEEN, Windows
from tsgdn2.scale import Bools, Floats, Moments, forgetting, scale_of, scan

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One history: values [T, C] (NaN is missing) from absolute step `start`, covariates, statics, prior scale [C]."""

    values: Floats
    start: int
    prior_scale: Floats
    known: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """[T or T + H, F], standardised; the horizon's rows let the last step be forecast."""
    static_real: Floats = field(default_factory=lambda: np.zeros(0))
    static_categories: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    hidden: Bools | None = None
    """Cells [T, C] that the model does not get to see and is still asked for: how it learns to do without."""

    def __post_init__(self) -> None:
        """Check shapes and that nothing is infinite; SchemaError names the field."""
        if self.values.ndim != 2 or self.values.shape[0] == 0:
            raise SchemaError(f"values: must be [T, C] with T >= 1, got shape {self.values.shape}")
        if np.isinf(self.values).any():
            raise SchemaError("values: infinite; only finite numbers and NaN (missing) can be scaled, clean the source")
        if self.prior_scale.shape != (self.values.shape[1],) or not (self.prior_scale > 0).all():
            raise SchemaError(f"prior_scale: must be [C] and > 0, got {self.prior_scale}")
        if self.known.size and not np.isfinite(self.known).all():
            raise SchemaError("known: must be finite over history and horizon; fill or drop the covariate")

    def lanes(self, config: ForecasterConfig) -> list[Series]:
        """This history as lanes: one per channel, or itself; with channel_identity its number is the last category."""
        if config.mode == "joint":
            return [self]
        identity = config.channel_identity
        return [
            Series(
                values=self.values[:, c : c + 1],
                start=self.start,
                prior_scale=self.prior_scale[c : c + 1],
                known=self.known,
                static_real=self.static_real,
                static_categories=np.append(self.static_categories, c) if identity else self.static_categories,
                hidden=None if self.hidden is None else self.hidden[:, c : c + 1],
            )
            for c in range(self.values.shape[1])
        ]


class Timelines:
    """Lanes laid end to end, each between margins of missing steps."""

    def __init__(
        self,
        lanes: Sequence[Series],
        *,
        window: int,
        horizon: int,
        half_life: float,
        bridge: float = 0.0,
        group: Ints | None = None,
    ) -> None:
        """group [lanes]: the stream of each lane, where lanes look at each other; by default each is alone."""
        self.window, self.horizon, self.bridge = window, horizon, bridge
        self.group = np.arange(len(lanes)) if group is None else group
        channels = lanes[0].values.shape[1]
        self.start = np.array([lane.start for lane in lanes], np.int64)
        self.steps = np.array([len(lane.values) for lane in lanes], np.int64)
        lengths = self.steps + 2 * window + horizon  # a query may stand one patch past the end, its targets unseen
        ends = np.cumsum(lengths)
        self._offset: Ints = ends - lengths + window - self.start
        total = int(ends[-1])
        self._values = np.zeros((total, channels))
        self._seen = np.zeros((total, channels), np.bool_)
        self._mean, self._scale = np.zeros((total, channels)), np.ones((total, channels))
        self._since = np.full((total, channels), NEVER_SEEN, np.int64)
        self._known = np.zeros((total, lanes[0].known.shape[1]))
        hiding = any(lane.hidden is not None for lane in lanes)
        self._asked = (self._values.copy(), self._seen.copy()) if hiding else (self._values, self._seen)
        """Values and mask of the targets: those of the inputs unless some cells are hidden."""
        self.static_real = np.stack([lane.static_real for lane in lanes])
        self.static_categories = np.stack([lane.static_categories for lane in lanes])
        lam = forgetting(half_life)
        for i, lane in enumerate(lanes):
            rows = slice(int(ends[i] - lengths[i]) + window, int(ends[i]) - horizon - window)
            seen = np.isfinite(lane.values)
            if hiding:
                self._asked[0][rows], self._asked[1][rows] = np.where(seen, lane.values, 0.0), seen
                seen = seen & ~lane.hidden if lane.hidden is not None else seen
            values = np.where(seen, lane.values, 0.0)
            moments: Moments = scan(values, seen, lam)
            self._values[rows], self._seen[rows] = values, seen
            self._mean[rows], self._scale[rows] = moments.mean, scale_of(moments, lane.prior_scale)
            step = np.arange(len(values))[:, None]
            last = np.maximum.accumulate(np.where(seen, step, -1), axis=0)
            self._since[rows] = np.where(last >= 0, step - last, NEVER_SEEN)
            covered = min(len(lane.known), len(values) + horizon)
            self._known[rows.start : rows.start + covered] = lane.known[:covered]

    def __len__(self) -> int:
        return len(self.start)

    @property
    def end(self) -> Ints:
        """Clock of each lane's last step, [lanes]: where a forecast of the whole history stands."""
        return np.asarray(self.start + self.steps - 1)

    def span(self, patch: int) -> int:
        """Clock units of a patch: steps."""
        return patch

    def horizon_steps(self, clock: Ints) -> Ints:
        """Absolute steps of the targets of a query, [.., H]."""
        return np.asarray(clock[..., None] + np.arange(1, self.horizon + 1))

    def draw(self, lane: Ints, clock: Ints, upper: Ints, rng: np.random.Generator) -> Ints:  # noqa: ARG002
        """A query clock in each (clock, upper], any step alike."""
        return np.asarray(clock + rng.integers(1, upper - clock + 1))

    def commit_clocks(self, lane: int, patch: int, shift: int = 0, *, before: int | None = None) -> Ints:
        """Clocks (last steps) of the patches that hold an observation and end before step `before`, oldest first.

        Without `before`: all that end inside the history. `shift` moves the patch borders, 0 is the absolute grid.
        """
        start, stop = int(self.start[lane]), int(self.start[lane] + self.steps[lane])
        stop = stop if before is None else min(stop, before)
        first = (start - shift) // patch
        count = (stop - shift) // patch - first
        if count <= 0:
            return np.zeros(0, np.int64)
        base = int(self._offset[lane]) + start
        seen = np.zeros(count * patch, np.bool_)
        lead = start - (first * patch + shift)
        rows = self._seen[base : base + count * patch - lead].any(axis=1)
        seen[lead:] = rows
        full = np.flatnonzero(seen.reshape(count, patch).any(axis=1))
        return np.asarray((first + full + 1) * patch + shift - 1, np.int64)

    def anything(self, lane: Ints, clock: Ints, patch: int) -> Bools:
        """Whether the P steps that end at each clock hold an observation, [..]."""
        index = (self._offset[lane] + clock)[..., None] + np.arange(1 - patch, 1)
        return np.asarray(self._seen[index].any((-2, -1)))

    def windows(self, lane: Ints, clock: Ints, patch: int, waited: Ints | None = None) -> Windows:  # noqa: ARG002
        """The P steps that end at each clock; lane and clock [..]. What came `waited` before matters to events only."""
        at = self._offset[lane] + clock
        index = at[..., None] + np.arange(1 - patch, 1)
        return Windows(
            values=self._filled(at, patch),
            seen=self._seen[index],
            mean=self._mean[at],
            scale=self._scale[at],
            since=self._since[at],
            clock=clock,
            known=self._known[index],
        )

    def lags(self, lane: Ints, clock: Ints, count: int) -> Floats:
        """The last `count` steps at each clock, standardised by its statistics, what is missing filled: [.., L, C]."""
        at = self._offset[lane] + clock
        return scaled(self._filled(at, count), self._mean[at], self._scale[at])

    def _filled(self, at: Ints, count: int) -> Floats:
        """The last `count` steps, missing ones as the whole window that a stream holds has them filled."""
        steps = self.window if self.bridge else count
        index = at[..., None] + np.arange(1 - steps, 1)
        values = bridged(self._values[index], self._seen[index], self._mean[at], self._scale[at], self.bridge)
        return values[..., steps - count :, :]

    def future(self, lane: Ints, clock: Ints) -> Floats:
        """Known covariates of the horizon after each clock, [.., H, F]."""
        return np.asarray(self._known[(self._offset[lane] + clock)[..., None] + np.arange(1, self.horizon + 1)])

    def targets(self, lane: Ints, clock: Ints) -> tuple[Floats, Bools]:
        """The horizon after each clock in the clock's standard units, and where it was observed: [.., H, C]."""
        at = self._offset[lane] + clock
        index = at[..., None] + np.arange(1, self.horizon + 1)
        values, seen = self._asked
        return standardise(values[index], seen[index], self._mean[at], self._scale[at]), seen[index]

    def statistics(self, lane: Ints, clock: Ints) -> tuple[Floats, Floats]:
        """Mean and scale at each clock, [.., C]."""
        at = self._offset[lane] + clock
        return self._mean[at], self._scale[at]


def scaled(values: Floats, mean: Floats, scale: Floats) -> Floats:
    """(values - mean) / scale; values [.., N, C], mean and scale [.., C]."""
    return np.asarray((values - mean[..., None, :]) / scale[..., None, :])


def standardise(values: Floats, seen: Bools, mean: Floats, scale: Floats) -> Floats:
    """The same where seen, else 0."""
    return np.where(seen, scaled(values, mean, scale), 0.0)
