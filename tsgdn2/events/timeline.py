"""Lanes over histories of events, from which any window is a slice: what Timelines is to sensors.

A lane is one sequence; the lanes of a stream share its events and differ in the targets that they see. Clocks are
exclusive moments tau in ns.

    token at tau:   steps c-P+1 .. c, c = (tau - 1) // period, statistics of the complete steps before tau
    time windows:   commits at the ends of patches that hold an event; shift s moves the borders by s steps
    number windows: a group closes at the first moment by which it holds n events; events of one moment stay together
    elapsed = (difference of taus) / (P period), subtracted in int64

N.. any leading shape, P patch, C targets of a lane, L lags, H horizon, F known covariates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tsgdn2.events.history import NONE, EventHistories, EventSeries
from tsgdn2.events.patch import NEVER, EventWindows, lagged, shown, step_of
from tsgdn2.events.schema import EventSchema, Ints
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.patch import NEVER_SEEN
from tsgdn2.scale import Bools, Floats


class EventTimelines:
    """The lanes of many streams; lane numbers run over the targets of each stream, or are those of the streams."""

    def __init__(
        self, series: Sequence[EventSeries], config: ForecasterConfig, schema: EventSchema, *, number: int
    ) -> None:
        """number: events per commit, 0 for one commit per P steps."""
        self.number, self.horizon, self.period_ns = number, config.prediction_length, schema.period_ns
        self._window, self._bridge = config.window, config.bridge
        self.histories = EventHistories(
            series, schema, window=config.window, horizon=config.prediction_length, half_life=config.half_life
        )
        self.stream: Ints = np.repeat(np.arange(len(series)), config.lanes)
        """Stream of each lane."""
        self._channel: Ints = np.tile(np.arange(config.lanes), len(series))
        self._single = config.lane_channels < len(schema.targets)
        self.group: Ints = self.stream if config.across else np.arange(len(self.stream))
        self.start: Ints = self.histories.start[self.stream]
        self.steps: Ints = self.histories.steps[self.stream]
        self.end: Ints = self.histories.end[self.stream]
        """Moment before which each lane is known."""
        self.static_real = np.stack([one.static_real for one in series])[self.stream]
        self.static_categories: Ints = np.stack([one.static_categories for one in series])[self.stream]
        if config.channel_identity:
            self.static_categories = np.concatenate([self.static_categories, self._channel[:, None]], 1)
        self._clocks: dict[tuple[int, int, int], Ints] = {}

    def __len__(self) -> int:
        return len(self.stream)

    def span(self, patch: int) -> int:
        """Clock units of a patch: what the difference of two clocks is divided by."""
        return patch * self.period_ns

    def horizon_steps(self, clock: Ints) -> Ints:
        """Absolute steps of the horizon after each clock, [.., H]."""
        return step_of(clock, self.period_ns)[..., None] + np.arange(1, self.horizon + 1)

    def commit_clocks(self, lane: int, patch: int, shift: int = 0, *, before: int | None = None) -> Ints:
        """Clocks of the commits of a lane up to the beginning of step `before`, oldest first.

        All of the history without `before`, or where it is not among the complete steps. shift in [0, P) moves the
        borders, 0 is what a stream does.
        """
        key = (int(self.stream[lane]), patch, shift)
        if key not in self._clocks:
            self._clocks[key] = self._by_number(*key) if self.number else self._by_time(*key)
        clocks = self._clocks[key]
        whole = before is None or before >= int(self.start[lane] + self.steps[lane])
        stop = int(self.end[lane]) if before is None or whole else before * self.period_ns
        return clocks[: np.searchsorted(clocks, stop, side="right")]

    def _by_time(self, stream: int, patch: int, shift: int) -> Ints:
        full = np.unique((self.histories.busy[stream] - shift) // patch)
        return np.asarray(((full + 1) * patch + shift) * self.period_ns, np.int64)

    def _by_number(self, stream: int, patch: int, shift: int) -> Ints:
        """Groups of at least n events; the first one is shorter by shift / P of n."""
        time = self.histories.events.time[slice(*self.histories.bounds[stream : stream + 2])]
        together = np.searchsorted(time, time, side="right")
        clocks, at, size = [], 0, self.number - self.number * shift // patch
        while at + size <= len(time):
            at, size = int(together[at + size - 1]), self.number
            clocks.append(int(time[at - 1]) + 1)
        return np.array(clocks, np.int64)

    def anything(self, lane: Ints, clock: Ints, patch: int) -> Bools:  # noqa: ARG002
        """Whether a lane commits at each of the commit clocks of its stream: always, for it sees all the events."""
        return np.ones(clock.shape, np.bool_)

    def draw(self, lane: Ints, clock: Ints, upper: Ints, rng: np.random.Generator) -> Ints:
        """A query in (clock, upper] for each commit: half at ends of steps, the others anywhere or after an event.

        Where the interval holds no end of a step, or no event, it is anywhere.
        """
        stream, time = self.stream[lane], self.histories.events.time
        anywhere = clock + rng.integers(1, upper - clock + 1)
        ends = upper // self.period_ns - clock // self.period_ns
        at_end = (clock // self.period_ns + 1 + rng.integers(0, np.maximum(ends, 1))) * self.period_ns
        low, high = self.histories.before(stream, clock), self.histories.before(stream, upper)
        event = np.minimum(low + rng.integers(0, np.maximum(high - low, 1)), len(time) - 1)
        choice = rng.integers(0, 4, clock.shape)
        drawn = np.where((choice == 0) & (high > low), time[event] + 1, anywhere)
        return np.where((choice >= 2) & (ends > 0), at_end, drawn)

    def windows(self, lane: Ints, clock: Ints, patch: int, waited: Ints | None = None) -> EventWindows:
        """The P steps that end at each clock; lane and clock [..].

        waited [..]: time since the lane's last commit, 0 without one; number windows need it (the events since then).
        """
        past, stream = self.histories, self.stream[lane]
        at, part = past.locate(stream, clock)
        count = past.before(stream, clock)
        index = at[..., None] + np.arange(1 - patch, 1)
        sums, last = past.sums[past.row[index]], past.last[at - part]
        step, mean, scale = at - past.offset[stream], past.mean[at - part], past.scale[at - part]
        since = np.where(last == NONE, NEVER_SEEN, step[..., None] - np.where(last == NONE, 0, last))
        values, seen = self._cells(at, max(patch, self._window) if self._bridge else patch)
        if part.any():
            sums[part, -1], cells = past.gather(past.first[at[part]], count[part])
            values[part, -1], seen[part, -1] = past.sums_of.values(cells)
            since[part] = np.where(past.sums_of.happened(cells), 0, since[part])
        seen[step < self.start[lane], -1] = False
        values = shown(values, seen, mean, scale, patch, self._bridge)
        known = np.where(sums[..., : past.sums_of.slots].any(-1)[..., None], past.known[index], 0.0)
        if self.number:
            opened = self._opened(stream, clock, count, np.zeros_like(clock) if waited is None else waited)
            own, _ = past.gather(opened.reshape(-1), count.reshape(-1))
            sums = np.concatenate([sums, own.reshape(*clock.shape, 1, own.shape[-1])], -2)
        newest = past.events.time[np.maximum(count - 1, 0)]
        return EventWindows(
            values=self._pick(values, lane),
            seen=self._pick(seen[..., seen.shape[-2] - patch :, :], lane),
            mean=self._pick(mean, lane),
            scale=self._pick(scale, lane),
            since=self._pick(since, lane),
            clock=clock,
            known=known,
            sums=sums,
            idle=np.where(count > past.bounds[stream], (clock - newest) / self.period_ns, NEVER),
        )

    def _opened(self, stream: Ints, clock: Ints, count: Ints, waited: Ints) -> Ints:
        """Events before the group that each window belongs to; without a commit before it, its last n, or its first.

        A first group may hold more than n events: those at the moment of the n-th.
        """
        past, first = self.histories, self.histories.bounds[stream]
        nth = past.events.time[np.minimum(first + self.number, past.bounds[stream + 1]) - 1]
        newest = past.events.time[np.maximum(count - 1, 0)]
        alone = np.where(newest <= nth, first, np.maximum(count - self.number, first))
        return np.where(waited > 0, past.before(stream, clock - waited), alone)

    def lags(self, lane: Ints, clock: Ints, count: int) -> Floats:
        """The last `count` steps at each clock, in its standard units, [.., L, C].

        What is missing, and the step of a clock that does not end it, is filled as in a window (bridge.py).
        """
        past = self.histories
        at, part = past.locate(self.stream[lane], clock)
        values, seen = self._cells(at, max(count, self._window))
        found = lagged(values, seen, part, past.mean[at - part], past.scale[at - part], count, self._bridge)
        return self._pick(found, lane)

    def _cells(self, at: Ints, steps: int) -> tuple[Floats, Bools]:
        """Values and mask [.., steps, C of the stream] of the steps that end with each row, all of them complete."""
        index = at[..., None] + np.arange(1 - steps, 1)
        return self.histories.values[index], self.histories.seen[index]

    def future(self, lane: Ints, clock: Ints) -> Floats:
        """Known covariates of the horizon after each clock, [.., H, F]."""
        at, _ = self.histories.locate(self.stream[lane], clock)
        return np.asarray(self.histories.known[at[..., None] + np.arange(1, self.horizon + 1)])

    def targets(self, lane: Ints, clock: Ints) -> tuple[Floats, Bools]:
        """The horizon after each clock in the clock's standard units, and where it was observed: [.., H, C]."""
        at, _ = self.histories.locate(self.stream[lane], clock)
        index = at[..., None] + np.arange(1, self.horizon + 1)
        values, seen = self._pick(self.histories.values[index], lane), self._pick(self.histories.seen[index], lane)
        mean, scale = self.statistics(lane, clock)
        return np.where(seen, (values - mean[..., None, :]) / scale[..., None, :], 0.0), seen

    def statistics(self, lane: Ints, clock: Ints) -> tuple[Floats, Floats]:
        """Mean and scale at each clock, [.., C]."""
        at, part = self.histories.locate(self.stream[lane], clock)
        return self._pick(self.histories.mean[at - part], lane), self._pick(self.histories.scale[at - part], lane)

    def wait(self, lane: Ints, clock: Ints, until: Ints | None = None) -> Floats:
        """Time from each clock to the next event in periods, [..]; NaN where it lies past the end, or step `until`."""
        past, stream = self.histories, self.stream[lane]
        stop = self.end if until is None else np.minimum(self.end, until * self.period_ns)
        after = past.before(stream, clock)
        then = past.events.time[np.minimum(after, len(past.events.time) - 1)]
        here = (after < past.bounds[stream + 1]) & (then < stop[lane])
        return np.where(here, (then - clock) / self.period_ns, np.nan)

    def _pick(self, x: np.ndarray, lane: Ints) -> np.ndarray:
        """The targets that a lane sees: [.., C of the stream] -> [.., C of the lane]."""
        if not self._single:
            return x
        channel = self._channel[lane].reshape(*lane.shape, *([1] * (x.ndim - lane.ndim)))
        return np.take_along_axis(x, channel, -1)
