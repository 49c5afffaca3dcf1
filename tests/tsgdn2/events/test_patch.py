"""Event tokens: what they see, what they must not see, and the bits of a row in a tile."""

import numpy as np
import pytest
import torch

from tsgdn2.events.history import EventSeries
from tsgdn2.events.patch import NEVER, EventPatcher, EventWindows, WaitHead, phase, step_of, waits
from tsgdn2.events.schema import EventSchema
from tsgdn2.events.sums import EventSums
from tsgdn2.events.timeline import EventTimelines
from tsgdn2.forecaster_config import ForecasterConfig

HOUR = 3_600_000_000_000
SCHEMA = EventSchema(
    types=("a", "b", "c"), targets=("count", "mean(x)", "max(y)[b]"), period_ns=HOUR, marks=("x", "y"),
    low=(-1e3, -1e3), high=(1e3, 1e3), mean=(0.0, 1.0), scale=(1.0, 2.0),
)  # fmt: skip


def patcher(dtype=torch.float32, by_number=False, **changes):
    torch.manual_seed(0)
    sizes = {"patch_length": 4, "channels": 3, "width": 16, "known": 2, "static": 3, "period_ns": HOUR}
    cycles = {"cycles": ("day",), "slots": SCHEMA.slots, "marks": 2, "by_number": by_number}
    return EventPatcher(**{**sizes, **cycles, **changes}).to(dtype)


def windows(rng, rows, by_number=False):
    """Windows cut from a random history at random moments; number windows if asked."""
    time = np.sort(rng.integers(0, 60 * HOUR, 400)) + 10**6 * HOUR
    marks = np.where(rng.random((400, 2)) < 0.3, np.nan, rng.normal(size=(400, 2)))
    events = SCHEMA.arrays(time, [["a", "b", "c", None][i] for i in rng.integers(0, 4, 400)], marks)
    config = ForecasterConfig(prediction_length=2, period_ns=HOUR, channels=3, mode="joint", patch_length=4, known=2)
    series = EventSeries(events=events, prior_scale=np.ones(3), known=rng.normal(size=(70, 2)))
    lines = EventTimelines([series], config, SCHEMA, number=10 if by_number else 0)
    clock = rng.integers(int(time[0]) + 1, int(time[-1]), rows)
    return lines.windows(np.zeros(rows, np.int64), clock, 4)


@pytest.mark.parametrize("by_number", [False, True])
@pytest.mark.parametrize("kind", ["commit", "query"])
def test_a_row_of_a_tile_has_the_same_bits_whoever_stands_beside_it(kind, by_number):
    rng = np.random.default_rng(0)
    many, model = windows(rng, 64, by_number), patcher(by_number=by_number)
    static = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one = model(EventWindows._make(a[:16] for a in many), kind, static[:16])
        order = np.array([3, *range(20, 35)])
        two = model(EventWindows._make(a[order] for a in many), kind, static[order])
    assert torch.equal(one.embedding[3], two.embedding[0])
    assert torch.equal(one.observed[3], two.observed[0])
    assert one.embedding.dtype == torch.float32


def test_commits_and_queries_have_maps_of_their_own_and_any_leading_shape():
    seen, model = windows(np.random.default_rng(1), 6), patcher(torch.float64)
    static = torch.zeros(6, 3, dtype=torch.float64)
    commit, query = model(seen, "commit", static), model(seen, "query", static)
    assert (commit.embedding - query.embedding).abs().max() > 0.1
    folded = EventWindows._make(a.reshape(2, 3, *a.shape[1:]) for a in seen)
    again = model(folded, "commit", static.reshape(2, 3, 3))
    torch.testing.assert_close(again.embedding.reshape(6, -1), commit.embedding, rtol=1e-12, atol=1e-12)
    assert again.observed.shape == (2, 3)


def test_every_part_of_a_window_reaches_the_token():
    seen, model = windows(np.random.default_rng(2), 5, by_number=True), patcher(torch.float64, by_number=True)
    static = torch.zeros(5, 3, dtype=torch.float64)
    before = model(seen, "query", static).embedding
    for name in EventWindows._fields:
        part = getattr(seen, name)
        changed = ~part if part.dtype == bool else part + (HOUR // 6 if name == "clock" else 1)
        after = model(seen._replace(**{name: changed}), "query", static).embedding
        assert (after - before).abs().amax(-1).min() > 1e-6, name


def test_the_weight_of_a_commit_is_that_of_its_own_events():
    sums_of = EventSums(SCHEMA)
    full = SCHEMA.arrays(np.array([0]), ["a"], np.array([[1.0, 1.0]]))
    bare = SCHEMA.arrays(np.array([0]), [None], np.array([[np.nan, np.nan]]))
    rows = []
    for events in (full, bare):
        sums, cells = sums_of.rows(1)
        sums_of.accumulate(events, np.zeros(1, np.int64), sums, np.zeros(1, np.int64), cells)
        rows.append(sums[0])
    nothing = np.zeros_like(rows[0])
    seen = windows(np.random.default_rng(3), 1)
    static = torch.zeros(1, 3, dtype=torch.float64)
    by_time = seen._replace(sums=np.stack([rows[0], rows[1], nothing, nothing])[None])
    assert patcher(torch.float64)(by_time, "commit", static).observed.tolist() == [(1.0 + 0.25) / 2]
    by_number = seen._replace(sums=np.stack([rows[0], rows[0], nothing, nothing, rows[1]])[None])
    assert patcher(torch.float64, by_number=True)(by_number, "commit", static).observed.tolist() == [0.25]


def test_a_vocabulary_without_marks_needs_no_marks():
    plain = EventSchema(types=("request",), targets=("count",), period_ns=HOUR)
    sums_of = EventSums(plain)
    events = plain.arrays(np.array([5, 5, 7]), ["request"] * 3)
    sums, cells = sums_of.rows(1)
    row = np.zeros(3, np.int64)
    sums_of.accumulate(events, row, sums, row, cells)
    seen = windows(np.random.default_rng(3), 1)
    one = seen._replace(
        values=np.ones((1, 4, 1)), seen=np.ones((1, 4, 1), bool), mean=np.zeros((1, 1)), scale=np.ones((1, 1)),
        since=np.zeros((1, 1), np.int64), sums=np.repeat(sums[None], 4, 1),
    )  # fmt: skip
    tokens = patcher(channels=1, slots=plain.slots, marks=0)(one, "commit", torch.zeros(1, 3))
    assert tokens.observed.tolist() == [1.0]
    assert torch.isfinite(tokens.embedding).all()


def test_the_clock_is_exclusive_so_the_end_of_a_step_belongs_to_it():
    clock = np.array([1, HOUR // 2, HOUR, HOUR + 1, 0, -HOUR])
    assert step_of(clock, HOUR).tolist() == [0, 0, 0, 1, -1, -2]
    np.testing.assert_allclose(phase(clock, HOUR), [1 / HOUR, 0.5, 1.0, 1 / HOUR, 1.0, 1.0])


def test_a_stream_that_never_had_an_event_is_not_heard():
    seen = windows(np.random.default_rng(3), 2)
    assert seen.heard().all()
    assert seen._replace(idle=np.array([0.0, NEVER])).heard().tolist() == [True, False]


def test_waits_are_handed_out_sorted_in_nanoseconds_and_never_negative():
    outputs = np.array([[np.log1p(2.0), np.log1p(0.5), -3.0], [1e4, 0.0, 1.0]])
    found = waits(outputs, HOUR)
    assert (np.diff(found) >= 0).all()
    assert (found >= 0).all()
    np.testing.assert_allclose(found[0], [0, HOUR / 2, 2 * HOUR], rtol=1e-12)
    assert found[1, 2] == 2**62


def test_an_untrained_wait_head_expects_one_event_per_period():
    head = WaitHead(8, (0.1, 0.5, 0.9)).double()
    quantiles = waits(head(torch.zeros(1, 8, dtype=torch.float64)).detach().numpy(), HOUR)[0] / HOUR
    np.testing.assert_allclose(quantiles, -np.log1p(-np.array([0.1, 0.5, 0.9])), rtol=1e-6)
