"""Events and their sums: the grammar, what is refused, and sums that do not depend on how the events came in."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.errors import ConfigError, SchemaError, StreamError
from tsgdn2.events.schema import ANY, EventSchema, mark_units, parse_target
from tsgdn2.events.sums import EventSums, absorb, feature_count, observed_share, token_features
from tsgdn2.scale import Moments, forgetting, update

HOUR = 3_600_000_000_000
TARGETS = ("count", "count[b]", "sum(delay)", "mean(delay)[a]", "min(delay)", "max(load)[b]", "sum(load)[a]")


def schema(**changes):
    given = {
        "types": ("a", "b"),
        "targets": TARGETS,
        "period_ns": HOUR,
        "marks": ("delay", "load"),
        "low": (-100.0, 0.0),
        "high": (1e4, np.inf),
        "mean": (10.0, 3.0),
        "scale": (30.0, 2.0),
        "unknown": "other",
    }
    return EventSchema(**{**given, **changes})


def random_events(rng, count, steps=20, start=HOUR * 100):
    """Bursts, equal moments, unknown and missing types, missing marks."""
    time = start + np.sort(rng.integers(0, steps * HOUR, count))
    burst = rng.random(count) < 0.3
    time[burst] = time[burst] // (HOUR // 4) * (HOUR // 4)
    types = [["a", "b", "c", None][i] for i in rng.integers(0, 4, count)]
    marks = np.where(rng.random((count, 2)) < 0.3, np.nan, np.abs(rng.normal(size=(count, 2))) * [30.0, 2.0])
    return schema().arrays(np.sort(time), types, marks)


@pytest.mark.parametrize(
    ("text", "kind", "mark", "slot"),
    [
        ("count", "count", ANY, ANY),
        ("count[b]", "count", ANY, 1),
        ("mean(load)", "mean", 1, ANY),
        ("max(delay)[a]", "max", 0, 0),
        ("count[x[1]]", "count", ANY, 2),
    ],
)
def test_a_target_is_read_as_the_grammar_says(text, kind, mark, slot):
    assert parse_target(text, ("a", "b", "x[1]"), ("delay", "load")) == (text, kind, mark, slot)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no target"),
        ("median(delay)", "no target"),
        ("count[]", "no target"),
        ("count(delay)", "takes no mark"),
        ("mean", "takes no mark"),
        ("mean(fuel)", "fuel"),
        ("count[z]", "'z'"),
        ("mean(delay) [a]", "no target"),
    ],
)
def test_a_target_outside_the_grammar_is_refused_by_name(text, word):
    with pytest.raises(ConfigError, match="event_targets") as error:
        parse_target(text, ("a", "b"), ("delay", "load"))
    assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"types": ()}, "event_types"),
        ({"types": ("a", "a")}, "event_types"),
        ({"types": ("a", "")}, "event_types"),
        ({"marks": ("delay", "delay")}, "event_marks"),
        ({"targets": ()}, "event_targets"),
        ({"targets": ("count", "count")}, "event_targets"),
        ({"low": (1.0,)}, "event_mark_low"),
        ({"low": (1.0, np.nan)}, "event_mark_low"),
        ({"low": (1e4, 0.0)}, "event_mark_low"),
        ({"scale": (1.0, 0.0)}, "event_mark_scale"),
        ({"mean": (1.0, np.inf)}, "event_mark_scale"),
        ({"unknown": "drop"}, "event_unknown"),
        ({"period_ns": 0}, "period_ns"),
    ],
)
def test_a_schema_that_can_not_work_is_refused_by_name(changes, word):
    with pytest.raises(ConfigError, match=word):
        schema(**changes)


def test_a_type_that_training_never_saw_is_an_error_or_has_a_slot_of_its_own():
    assert schema().codes(["a", "b", "zeppelin", None]).tolist() == [0, 1, 2, 3]
    strict = schema(unknown="raise")
    assert strict.codes(["b", None]).tolist() == [1, 3]
    with pytest.raises(StreamError, match="zeppelin"):
        strict.codes(["a", "zeppelin"])
    for wrong in (7, 1.5, ["a"]):
        with pytest.raises(StreamError, match="type"):
            schema().code(wrong)


@pytest.mark.parametrize("bad", [-100.5, 10_001.0, np.inf, -np.inf])
def test_a_mark_outside_its_bounds_is_an_error_that_names_it(bad):
    schema().check_marks(np.array([[-100.0, 5.0], [np.nan, np.nan], [1e4, 0.0]]))
    with pytest.raises(StreamError, match=r"event 1, mark 'delay'"):
        schema().check_marks(np.array([[0.0, 0.0], [bad, 0.0]]))


def test_even_without_bounds_a_mark_is_finite_and_not_absurd():
    for bad in (np.inf, 1e101):
        with pytest.raises(StreamError, match="load"):
            schema().check_marks(np.array([[0.0, bad]]))


@pytest.mark.parametrize(
    ("time", "types", "marks", "word"),
    [
        ([2, 1], ["a", "a"], np.zeros((2, 2)), "order"),
        ([1, 2], ["a"], np.zeros((2, 2)), "as many"),
        ([1, 2], ["a", "a"], np.zeros((2, 1)), "as many"),
        ([1, 2], np.array([0, 9]), np.zeros((2, 2)), "slots"),
        ([1.5], ["a"], np.zeros((1, 2)), "int64"),
    ],
)
def test_a_history_that_is_no_history_is_refused(time, types, marks, word):
    with pytest.raises(SchemaError, match=word):
        schema().arrays(np.array(time), types, marks)


def test_mark_units_are_the_mean_and_deviation_of_what_was_seen():
    events = schema().arrays(np.arange(4), [None] * 4, np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, 5.0], [5.0, 5.0]]))
    mean, scale = mark_units([events.take(slice(0, 2)), events.take(slice(2, 4))])
    assert mean == pytest.approx((3.0, 5.0))
    assert scale == pytest.approx((math.sqrt(8 / 3), 1.0))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 200), pieces=st.integers(1, 30))
def test_events_one_by_one_or_all_at_once_give_the_same_bits(seed, count, pieces):
    rng = np.random.default_rng(seed)
    events, sums_of = random_events(rng, count), EventSums(schema())
    row = events.time // HOUR - 100
    whole, one, some = (sums_of.rows(20) for _ in range(3))
    sums_of.accumulate(events, row, whole[0], row, whole[1])
    for e in range(count):
        part = slice(e, e + 1)
        sums_of.accumulate(events.take(part), row[part], one[0], row[part], one[1])
    for index in np.array_split(np.arange(count), pieces):
        sums_of.accumulate(events.take(index), row[index], some[0], row[index], some[1])
    for other in (one, some):
        np.testing.assert_array_equal(whole[0], other[0])
        np.testing.assert_array_equal(whole[1], other[1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 60))
def test_sums_and_targets_equal_a_loop_over_the_events(seed, count):
    rng = np.random.default_rng(seed)
    events, sums_of = random_events(rng, count, steps=4), EventSums(schema())
    row = events.time // HOUR - 100
    sums, cells = sums_of.rows(4)
    sums_of.accumulate(events, row, sums, row, cells)
    values, seen = sums_of.values(cells)
    happened = sums_of.happened(cells)
    for r in range(4):
        mine = [(t, k, m) for t, k, m, at in zip(*events, row, strict=True) if at == r]
        n, x, there = np.zeros(4), np.zeros((4, 2)), np.zeros((4, 2))
        basis = np.zeros(3)
        for time, kind, marks in mine:
            n[kind] += 1
            u = (time % HOUR) / HOUR
            basis += [u, math.sin(2 * math.pi * u), math.cos(2 * math.pi * u)]
            for m in range(2):
                if math.isfinite(marks[m]):
                    x[kind, m] += math.asinh((marks[m] - (10.0, 3.0)[m]) / (30.0, 2.0)[m])
                    there[kind, m] += 1
        np.testing.assert_allclose(
            sums[r], np.concatenate([n, x.ravel(), there.ravel(), basis]), rtol=1e-12, atol=1e-12
        )
        for c, target in enumerate(schema().parsed):
            concerned = [marks for _, kind, marks in mine if target.type in (ANY, kind)]
            own = [marks[target.mark] for marks in concerned if math.isfinite(marks[target.mark])]
            if target.kind == "count":
                expected = float(len(concerned))
            elif target.kind == "sum":
                expected = sum(own) if own or not concerned else None
            else:
                take = {"mean": np.mean, "min": min, "max": max}[target.kind]
                expected = take(own) if own else None
            assert seen[r, c] == (expected is not None)
            assert values[r, c] == pytest.approx(expected or 0.0, rel=1e-12, abs=1e-12)
            assert happened[r, c] == bool(concerned if target.kind == "count" else own)


def test_an_embedding_that_is_linear_in_the_events_is_the_same_of_their_sums():
    rng = np.random.default_rng(0)
    events, sums_of = random_events(rng, 50, steps=1), EventSums(schema())
    row = np.zeros(50, np.int64)
    sums, cells = sums_of.rows(1)
    sums_of.accumulate(events, row, sums, row, cells)
    weights = rng.normal(size=(sums_of.size, 8))
    alone = np.zeros(8)
    for e in range(50):
        own, its = sums_of.rows(1)
        sums_of.accumulate(events.take(slice(e, e + 1)), row[:1], own, row[:1], its)
        alone += own[0] @ weights
    np.testing.assert_allclose(sums[0] @ weights, alone, rtol=1e-12)


def test_token_features_are_means_over_what_was_there_and_zero_where_nothing_was():
    sums_of = EventSums(schema())
    events = schema().arrays(np.array([0, HOUR // 4]), ["a", "a"], np.array([[40.0, np.nan], [np.nan, np.nan]]))
    sums, cells = sums_of.rows(2)
    sums_of.accumulate(events, np.zeros(2, np.int64), sums, np.zeros(2, np.int64), cells)
    features = token_features(sums, 4, 2)
    assert features.shape == (2, feature_count(4, 2))
    assert not features[1].any()
    counts, x, share, basis = np.split(features[0], [4, 12, 14])
    np.testing.assert_allclose(counts, [math.log(3), 0.0, 0.0, 0.0], rtol=1e-12)
    np.testing.assert_allclose(x, [math.asinh(1.0), *[0.0] * 7], rtol=1e-12)
    assert share.tolist() == [0.5, 0.0]
    np.testing.assert_allclose(basis, [0.125, 0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize(
    ("types", "marks", "share"),
    [
        (["a", "b"], [[1.0, 1.0], [1.0, 1.0]], 1.0),
        ([None], [[np.nan, np.nan]], 0.25),
        (["c", None], [[1.0, np.nan], [1.0, 1.0]], 0.75),
        ([], np.zeros((0, 2)), 0.0),
    ],
)
def test_the_weight_of_a_commit_is_the_share_of_moments_types_and_marks_that_were_there(types, marks, share):
    sums_of = EventSums(schema())
    events = schema().arrays(np.arange(len(types)), types, np.array(marks))
    row = np.zeros(len(types), np.int64)
    sums, cells = sums_of.rows(1)
    sums_of.accumulate(events, row, sums, row, cells)
    assert observed_share(sums[0], 4, 2) == share


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    before=st.integers(0, 40),
    groups=st.integers(1, 9),
    half_life=st.sampled_from([0.5, 3.0, 40.0, 336.0, np.inf]),
    level=st.sampled_from([0.0, 1e6]),
)
def test_many_equal_values_in_closed_form_equal_the_loop(seed, before, groups, half_life, level):
    rng, lam, units = np.random.default_rng(seed), forgetting(half_life), np.array([1.0, 1e6, 1e-3])
    moments = Moments.zeros((1, 3))
    for _ in range(before):
        moments = update(moments, rng.poisson(5.0, (1, 3)) * units + level, rng.random((1, 3)) < 0.8, lam)
    x = rng.poisson(5.0, (1, groups, 3)) * units + level
    times = np.where(rng.random((1, groups, 3)) < 0.4, 0, rng.choice([1, 1, 2, 300], (1, groups, 3)))
    looped = moments
    for g in range(groups):
        for n in range(int(times[0, g].max())):
            looped = update(looped, x[:, g], times[:, g] > n, lam)
    closed = absorb(moments, x, times.astype(float), lam)
    rounding = 10 * np.finfo(np.float64).eps * level**2
    np.testing.assert_allclose(closed.count, looped.count, rtol=1e-11)
    np.testing.assert_allclose(closed.mean, looped.mean, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(closed.m2, looped.m2, rtol=1e-6, atol=1e-9 + rounding)


@pytest.mark.parametrize("half_life", [3.0, np.inf])
def test_a_silence_of_centuries_costs_no_loop_and_stays_finite(half_life):
    lam, silent = forgetting(half_life), np.full((1, 1, 1), 2.0**62)
    moments = update(Moments.zeros((1, 1)), np.array([[7.0]]), np.array([[True]]), lam)
    after = absorb(moments, np.zeros((1, 1, 1)), silent, lam)
    assert all(np.isfinite(part).all() for part in after)
    assert after.mean[0, 0] == pytest.approx(0.0, abs=1e-12)
    nothing = absorb(Moments.zeros((1, 1)), np.zeros((1, 1, 1)), silent, lam)
    assert nothing.mean[0, 0] == nothing.m2[0, 0] == 0.0


def test_no_value_at_all_leaves_the_scaler_as_it_was():
    moments = update(Moments.zeros((1, 2)), np.array([[7.0, 1.0]]), np.array([[True, False]]), 0.9)
    after = absorb(moments, np.ones((1, 3, 2)), np.zeros((1, 3, 2)), 0.9)
    assert all((a == b).all() for a, b in zip(after, moments, strict=True))
