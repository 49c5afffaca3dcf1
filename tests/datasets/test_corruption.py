"""Damage is repeatable, has the promised size, stays in its stream, and leaves the input alone."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tsgdn2.datasets.corruption import jittered_clock, missing_at_random, missing_blocks, outages
from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.frame import STREAM, TIME, normalise, validate

HOUR = 3600 * 10**9


def framed(rows: int, streams: str = "ab") -> pl.DataFrame:
    rng = np.random.default_rng(0)
    parts = [
        pl.DataFrame(
            {STREAM: [s] * rows, TIME: np.arange(rows) * HOUR, "x": rng.normal(size=rows), "y": rng.normal(size=rows)}
        )
        for s in streams
    ]
    raw = pl.concat(parts).with_columns(pl.when(pl.int_range(pl.len()) % 7 > 0).then("y").alias("y"))
    return normalise(raw, unit="ns")


DAMAGES = [
    lambda frame, seed: missing_at_random(frame, 0.3, seed=seed),
    lambda frame, seed: missing_blocks(frame, 0.3, 5, seed=seed),
    lambda frame, seed: outages(frame, 6, seed=seed, count=3),
    lambda frame, seed: outages(frame, 6, seed=seed, share=0.2, drop_rows=True),
    lambda frame, seed: jittered_clock(frame, HOUR, seed=seed),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_repeatable_and_does_not_touch_its_input(damage):
    frame, before = framed(100), framed(100)
    once = validate(damage(frame, 1))
    assert_frame_equal(frame, before)
    assert_frame_equal(damage(frame, 1), once)
    assert not damage(frame, 2).equals(once)
    assert not frame.equals(once)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_stream_is_hit_the_same_whatever_else_is_in_the_frame(damage):
    frame = framed(100, "abc")
    alone = damage(frame.filter(pl.col(STREAM) == "b"), 1)
    assert_frame_equal(damage(frame, 1).filter(pl.col(STREAM) == "b"), alone)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_empty_frame_has_nothing_to_lose(damage):
    assert damage(framed(3).clear(), 0).height == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 99))
def test_exactly_the_share_of_the_observed_cells_goes(rows, share, seed):
    frame = framed(rows)
    left = missing_at_random(frame, share, seed=seed)
    for stream in "ab":
        for channel in "xy":
            seen, kept = (f.filter(pl.col(STREAM) == stream)[channel] for f in (frame, left))
            observed = len(seen) - seen.null_count()
            assert len(kept) - kept.null_count() == observed - round(share * observed)
            assert kept.drop_nulls().is_in(seen.drop_nulls().implode()).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(0, 1), st.integers(1, 12), st.integers(0, 99))
def test_exactly_the_share_of_the_rows_goes_in_runs(rows, share, length, seed):
    frame = framed(rows)
    left = missing_blocks(frame, share, length, seed=seed)
    silent = outages(frame, length, seed=seed, share=share)
    dropped = outages(frame, length, seed=seed, share=share, drop_rows=True)
    count = round(share * rows)
    for stream in "ab":
        gone = left.filter(pl.col(STREAM) == stream)["x"].is_null().to_numpy()
        assert gone.sum() == count
        edges = np.flatnonzero(np.diff(np.r_[0, gone, 0]))
        assert sum((end - start) // length for start, end in edges.reshape(-1, 2)) >= count // length - (
            count % length > 0
        )
        part = silent.filter(pl.col(STREAM) == stream)
        assert part.select(pl.all_horizontal(pl.col("x", "y").is_null()).sum()).item() >= count
        assert part["x"].null_count() == count
        assert dropped.filter(pl.col(STREAM) == stream).height == rows - count


def test_as_many_outages_as_fit():
    assert outages(framed(10), 4, seed=0, count=9)["x"].null_count() == 16
    assert_frame_equal(outages(framed(10), 4, seed=0, count=0), framed(10))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 3 * HOUR), st.integers(0, 99))
def test_a_jittered_row_keeps_its_values_and_moves_by_the_scale_at_most(rows, scale, seed):
    frame = framed(rows)
    moved = validate(jittered_clock(frame, scale, seed=seed))
    both = frame.join(moved, on=[STREAM, "x"], suffix="_moved")
    assert both.height == frame.height
    assert both["y"].equals(both["y_moved"], null_equal=True)
    shift = (both["time_moved"].to_physical() - both[TIME].to_physical()).abs()
    assert shift.max() <= scale + rows


def test_a_coarse_jitter_still_gives_every_row_its_own_instant():
    raw = pl.DataFrame({STREAM: ["a"] * 50, TIME: range(50), "x": [float(i) for i in range(50)]})
    moved = jittered_clock(normalise(raw, unit="ns"), 20, seed=3)
    assert validate(moved)[TIME].n_unique() == 50


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: missing_at_random(f, 1.1, seed=0), "share must lie"),
        (lambda f: missing_at_random(f, float("nan"), seed=0), "share must lie"),
        (lambda f: missing_at_random(f, 0.1, seed=-1), "seed must be"),
        (lambda f: missing_blocks(f, 0.1, 0, seed=0), "length must be"),
        (lambda f: outages(f, 3, seed=0), "either count or share"),
        (lambda f: outages(f, 3, seed=0, count=1, share=0.1), "either count or share"),
        (lambda f: outages(f, 3, seed=0, count=-1), "count must be"),
        (lambda f: jittered_clock(f, -1, seed=0), "scale_ns must be"),
        (lambda f: jittered_clock(f, 2**63 - 1, seed=0), "out of int64"),
        (lambda f: missing_at_random(f.reverse(), 0.1, seed=0), "out of order"),
    ],
)
def test_bad_arguments_are_refused_by_name(damage, message):
    with pytest.raises(DataError, match=message):
        damage(framed(10))
