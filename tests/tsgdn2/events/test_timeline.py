"""Timelines of events: what a window at any moment holds, against a loop over the raw events."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.bridge import bridged
from tsgdn2.errors import SchemaError
from tsgdn2.events.history import MOST_STEPS, EventSeries
from tsgdn2.events.patch import NEVER
from tsgdn2.events.schema import EventSchema
from tsgdn2.events.sums import EventSums
from tsgdn2.events.timeline import EventTimelines
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.patch import NEVER_SEEN
from tsgdn2.scale import Moments, forgetting, scale_of, update

PERIOD = 1000
TARGETS = ("count", "mean(x)", "sum(x)[b]", "count[a]")
SCHEMA = EventSchema(
    types=("a", "b"), targets=TARGETS, period_ns=PERIOD, marks=("x",), low=(-50.0,), high=(50.0,), mean=(1.0,),
    scale=(3.0,),
)  # fmt: skip
PRIOR = np.array([2.0, 1.0, 3.0, 0.5])


def config(mode="joint", **changes):
    given = {"prediction_length": 4, "channels": 4, "mode": mode, "patch_length": 3, "lag_skip": 5, "half_life": 10.0}
    return ForecasterConfig(period_ns=PERIOD, **{**given, **changes})


def random_series(rng, count, steps, *, start=None, end=True, known=0):
    """Bursts, silence, equal moments, missing types and marks, an end anywhere after the last event."""
    start = int(rng.integers(-40, 400)) if start is None else start
    time = np.sort(rng.integers(0, steps * PERIOD, count)) + start * PERIOD
    burst = rng.random(count) < 0.4
    time[burst] = time[burst] // 250 * 250
    time = np.sort(time)
    marks = np.where(rng.random((count, 1)) < 0.3, np.nan, rng.normal(size=(count, 1)) * 4)
    events = SCHEMA.arrays(time, [["a", "b", None][i] for i in rng.integers(0, 3, count)], marks)
    after = int(rng.choice([1, 999, 1000, 1500, 7000])) if end else 1
    covariates = rng.normal(size=(steps + 12, known))
    return EventSeries(events=events, prior_scale=PRIOR, end=int(time[-1]) + after, known=covariates)


class Loop:
    """The same facts from the raw events, one step at a time."""

    def __init__(self, series, half_life=10.0):
        self.series, self.lam = series, forgetting(half_life)
        self.time = series.events.time
        self.first = int(self.time[0]) // PERIOD
        self.sums_of = EventSums(SCHEMA)

    def step(self, step, tau):
        """Sums, values, seen and what happened in a step, of the events before tau."""
        low, high = np.searchsorted(self.time, [step * PERIOD, min((step + 1) * PERIOD, tau)])
        events = self.series.events.take(slice(int(low), max(int(low), int(high))))
        sums, cells = self.sums_of.rows(1)
        row = np.zeros(len(events.time), np.int64)
        self.sums_of.accumulate(events, row, sums, row, cells)
        values, seen = self.sums_of.values(cells[0])
        return sums[0], values, seen & (step >= self.first), self.sums_of.happened(cells[0])

    def moments(self, tau):
        found = Moments.zeros((4,))
        for step in range(self.first, tau // PERIOD):
            _, values, seen, _ = self.step(step, tau)
            found = update(found, values, seen, self.lam)
        return found

    def since(self, tau):
        c, out = (tau - 1) // PERIOD, np.full(4, NEVER_SEEN)
        for step in range(self.first, c + 1):
            out = np.where(self.step(step, tau)[3], c - step, out)
        return out

    def next_group(self, begin, size):
        """End of a group of `size` events or more that begins with this one, and the moment after it."""
        if begin + size > len(self.time):
            return None
        stop = begin + size
        while stop < len(self.time) and self.time[stop] == self.time[stop - 1]:
            stop += 1
        return stop


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 80), steps=st.integers(1, 60), span=st.sampled_from([0.0, 2.0]))
def test_a_window_at_any_moment_equals_a_loop_over_the_events(seed, count, steps, span):
    rng = np.random.default_rng(seed)
    series, other = random_series(rng, count, steps, known=2), random_series(rng, 7, 5, known=2)
    lines = EventTimelines([other, series], config(known=2, bridge=span), SCHEMA, number=0)
    loop = Loop(series)
    taus = rng.integers(int(loop.time[0]) + 1, series.tau + 1, 6)
    taus[:3] = np.clip(taus[:3] // PERIOD * PERIOD, int(loop.time[0]) + 1, series.tau)
    taus[3] = int(loop.time[rng.integers(count)]) + 1
    lane = np.ones(6, np.int64)
    got, lags = lines.windows(lane, taus, 3), lines.lags(lane, taus, 5)
    target, weight = lines.targets(lane, taus)
    wait, future = lines.wait(lane, taus), lines.future(lane, taus)
    for i, tau in enumerate(taus.tolist()):
        c, moments = (tau - 1) // PERIOD, loop.moments(tau)
        np.testing.assert_allclose(got.mean[i], moments.mean, rtol=1e-9, atol=1e-12)
        scale = scale_of(moments, PRIOR)
        np.testing.assert_allclose(got.scale[i], scale, rtol=1e-9)
        np.testing.assert_array_equal(got.since[i], loop.since(tau))
        before = loop.time[loop.time < tau]
        assert got.idle[i] == (tau - before[-1]) / PERIOD if len(before) else got.idle[i] == NEVER
        for p, step in enumerate(range(c - 2, c + 1)):
            sums, values, seen, _ = loop.step(step, tau)
            np.testing.assert_array_equal(got.sums[i, p], sums)
            np.testing.assert_array_equal(got.seen[i, p], seen)
            some = sums[:4].any()
            np.testing.assert_array_equal(got.known[i, p], series.known[step - loop.first] if some else [0, 0])
        found = [loop.step(step, tau) for step in range(c - 4, c + 1)]
        values, seen = np.stack([one[1] for one in found]), np.stack([one[2] for one in found])
        filled = bridged(values, seen, moments.mean, scale, span)
        np.testing.assert_allclose(got.values[i], filled[2:], rtol=1e-9, atol=1e-9)
        seen[-1] &= (c + 1) * PERIOD <= tau
        filled = bridged(values, seen, moments.mean, scale, span)
        np.testing.assert_allclose(lags[i], (filled - moments.mean) / scale, rtol=1e-9, atol=1e-9)
        for h, step in enumerate(range(c + 1, c + 5)):
            _, values, seen, _ = loop.step(step, series.tau)
            seen = seen & ((step + 1) * PERIOD <= series.tau)
            np.testing.assert_array_equal(weight[i, h], seen)
            np.testing.assert_allclose(
                target[i, h], np.where(seen, (values - moments.mean) / scale, 0), rtol=1e-9, atol=1e-9
            )
            np.testing.assert_array_equal(future[i, h], series.known[step - loop.first])
        later = loop.time[loop.time >= tau]
        np.testing.assert_array_equal(wait[i], (later[0] - tau) / PERIOD if len(later) else np.nan)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), steps=st.integers(1, 60), shift=st.integers(0, 2))
def test_commits_stand_at_the_ends_of_patches_that_hold_an_event(seed, count, steps, shift):
    series = random_series(np.random.default_rng(seed), count, steps)
    lines = EventTimelines([series], config(), SCHEMA, number=0)
    patches = {(int(t) // PERIOD - shift) // 3 for t in series.events.time}
    ends = sorted(((j + 1) * 3 + shift) * PERIOD for j in patches)
    assert lines.commit_clocks(0, 3, shift).tolist() == [e for e in ends if e <= series.tau]
    before = int(lines.start[0]) + 9
    assert lines.commit_clocks(0, 3, shift, before=before).tolist() == [
        e for e in ends if e <= min(series.tau, before * PERIOD)
    ]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 90), steps=st.integers(1, 30), number=st.integers(1, 12),
       shift=st.integers(0, 2))  # fmt: skip
def test_number_windows_hold_n_events_and_never_part_those_of_one_moment(seed, count, steps, number, shift):
    rng = np.random.default_rng(seed)
    series = random_series(rng, count, steps)
    lines, loop = EventTimelines([series], config(), SCHEMA, number=number), Loop(series)
    clocks = lines.commit_clocks(0, 3, shift)
    stops, size = [0], number - number * shift // 3
    while (stop := loop.next_group(stops[-1], size)) is not None:
        stops.append(stop)
        size = number
    assert clocks.tolist() == [int(loop.time[stop - 1]) + 1 for stop in stops[1:]]
    if not len(clocks):
        return
    lane = np.zeros(len(clocks), np.int64)
    waited = np.diff(clocks, prepend=clocks[0])
    own = lines.windows(lane, clocks, 3, waited).sums[:, -1]
    nexts = np.append(clocks[1:], max(series.tau, int(clocks[-1]) + 1))
    query = lines.draw(lane, clocks, nexts, rng)
    open_ = lines.windows(lane, query, 3, query - clocks).sums[:, -1]
    for i, (begin, stop) in enumerate(pairwise(stops)):
        assert stop - begin >= number - number * shift // 3
        for found, part in ((own, slice(begin, stop)), (open_, slice(stop, np.searchsorted(loop.time, query[i])))):
            events = series.events.take(part)
            sums, cells = loop.sums_of.rows(1)
            row = np.zeros(len(events.time), np.int64)
            loop.sums_of.accumulate(events, row, sums, row, cells)
            np.testing.assert_array_equal(found[i], sums[0])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(3, 90))
def test_queries_stand_after_their_commit_and_not_behind_the_next(seed, count):
    rng = np.random.default_rng(seed)
    series = random_series(rng, count, 60)
    lines = EventTimelines([series], config(), SCHEMA, number=0)
    clocks = lines.commit_clocks(0, 3)
    if len(clocks) < 2:
        return
    many = np.repeat(np.arange(len(clocks) - 1), 60)
    lane, low, high = np.zeros(len(many), np.int64), clocks[:-1][many], clocks[1:][many]
    query = lines.draw(lane, low, high, rng)
    assert ((low < query) & (query <= high)).all()
    assert 0.35 < (query % PERIOD == 0).mean() < 0.8
    assert np.isin(query, series.events.time + 1).any()


@pytest.mark.parametrize("mode", ["independent", "attention"])
def test_the_lanes_of_a_stream_share_its_events_and_part_its_targets(mode):
    rng = np.random.default_rng(4)
    series = [random_series(rng, 60, 40) for _ in range(2)]
    whole = EventTimelines(series, config(), SCHEMA, number=0)
    parts = EventTimelines(series, config(mode, channel_identity=True), SCHEMA, number=0)
    assert parts.stream.tolist() == [0] * 4 + [1] * 4
    assert len(np.unique(parts.group)) == (2 if mode == "attention" else 8)
    assert parts.static_categories[:, -1].tolist() == [0, 1, 2, 3] * 2
    clock = np.array([series[1].tau - 1234] * 4)
    lane, stream = np.arange(4, 8), np.ones(4, np.int64)
    mine, all_ = parts.windows(lane, clock, 3), whole.windows(stream, clock, 3)
    for name in ("values", "seen", "mean", "scale", "since"):
        mixed = getattr(all_, name)
        np.testing.assert_array_equal(getattr(mine, name)[..., 0], np.stack([mixed[c, ..., c] for c in range(4)]))
    np.testing.assert_array_equal(mine.sums, all_.sums)
    assert parts.targets(lane, clock)[0].shape == (4, 4, 1)
    assert parts.lags(lane, clock, 5).shape == (4, 5, 1)
    assert parts.anything(lane, clock, 3).all()


def test_targets_and_waits_beyond_a_border_weigh_nothing():
    time = np.array([0, 2500, 9500])
    events = SCHEMA.arrays(time, ["a", "b", "a"], np.ones((3, 1)))
    lines = EventTimelines([EventSeries(events=events, prior_scale=PRIOR, end=20_000)], config(), SCHEMA, number=0)
    lane, clock = np.zeros(3, np.int64), np.array([1, 3000, 9501])
    np.testing.assert_array_equal(lines.wait(lane, clock), [2.499, 6.5, np.nan])
    np.testing.assert_array_equal(lines.wait(lane, clock, np.array([9])), [2.499, np.nan, np.nan])
    assert lines.horizon_steps(clock).tolist() == [[1, 2, 3, 4], [3, 4, 5, 6], [10, 11, 12, 13]]
    assert lines.span(3) == 3000


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"end": 5}, "end"),
        ({"prior_scale": np.zeros(4)}, "prior_scale"),
        ({"known": np.array([[np.nan]])}, "known"),
        ({"events": SCHEMA.arrays(np.zeros(0, np.int64), [], np.zeros((0, 1)))}, "at least one"),
    ],
)
def test_a_history_that_can_not_be_read_is_refused(changes, word):
    events = SCHEMA.arrays(np.array([3, 5]), ["a", None], np.zeros((2, 1)))
    with pytest.raises(SchemaError, match=word):
        EventSeries(**{"events": events, "prior_scale": PRIOR, **changes})


def test_a_history_that_is_dense_in_too_many_steps_is_refused_before_anything_is_allocated():
    events = SCHEMA.arrays(np.array([0, 2 * MOST_STEPS * PERIOD]), ["a", None], np.zeros((2, 1)))
    with pytest.raises(SchemaError, match="longer period"):
        EventTimelines([EventSeries(events=events, prior_scale=PRIOR)], config(), SCHEMA, number=0)
    short = SCHEMA.arrays(np.array([0]), ["a"], np.zeros((1, 1)))
    with pytest.raises(SchemaError, match="prior_scale"):
        EventTimelines([EventSeries(events=short, prior_scale=np.ones(2))], config(), SCHEMA, number=0)
