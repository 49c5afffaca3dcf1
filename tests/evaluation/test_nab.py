"""The anomaly benchmark's rules against a count by hand, row by row and threshold by threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.nab import PROFILES, Labels, Profile, nab_score, sigma

STANDARD, LOW_FP, LOW_FN = PROFILES


def by_hand(labels: dict[str, Labels], scores: dict[str, np.ndarray], profile: Profile, threshold: float) -> float:
    """The raw score of one threshold, as the definitions say it, loop by loop."""
    total = 0.0
    for name, own in labels.items():
        hits = [i for i in range(own.rows) if scores[name][i] >= threshold and i >= own.probation]
        for first, last in own.windows:
            if last < own.probation:
                continue
            inside = [i for i in hits if first <= i <= last]
            y = (inside[0] - last) / max(1, last - first) if inside else 0.0
            total += profile.true_positive * (2 / (1 + math.exp(5 * y)) - 1) if inside else profile.false_negative
        for i in hits:
            if any(first <= i <= last for first, last in own.windows):
                continue
            before = [(first, last) for first, last in own.windows if last < i]
            if before:
                first, last = before[-1]
                y = (i - last) / max(1, last - first)
                total += -profile.false_positive * (2 / (1 + math.exp(min(5 * y, 700))) - 1)
            else:
                total += profile.false_positive
    return total


def best_by_hand(labels: dict[str, Labels], scores: dict[str, np.ndarray], profile: Profile) -> float:
    """The normalised score of the best of all thresholds."""
    thresholds = [*sorted({float(s) for own in scores.values() for s in own}), math.inf]
    windows = sum(1 for own in labels.values() for _, last in own.windows if last >= own.probation)
    null = profile.false_negative * windows
    perfect = profile.true_positive * (2 / (1 + math.exp(-5)) - 1) * windows
    return 100 * max(by_hand(labels, scores, profile, t) - null for t in thresholds) / (perfect - null)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([2, 4, 1000]), profile=st.sampled_from(PROFILES))
def test_the_score_is_that_of_the_best_threshold_counted_by_hand(seed: int, levels: int, profile: Profile) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = {}, {}
    for name in "ab":
        rows = int(rng.integers(20, 60))
        ends = np.sort(rng.choice(np.arange(5, rows), size=2 * int(rng.integers(1, 4)), replace=False))
        windows = tuple((int(a), int(b)) for a, b in ends.reshape(-1, 2))
        labels[name] = Labels(rows=rows, windows=windows)
        odd = sum((np.arange(rows) >= a) & (np.arange(rows) <= b) for a, b in windows)
        scores[name] = rng.integers(0, levels, rows) / levels + 0.4 * odd * rng.random(rows)
    found = nab_score(labels, scores, profile)
    assert found.score == pytest.approx(best_by_hand(labels, scores, profile), abs=1e-9)
    raw = by_hand(labels, scores, profile, found.threshold)
    null = profile.false_negative * found.windows
    perfect = profile.true_positive * float(sigma(np.array(-1.0))) * found.windows
    assert 100 * (raw - null) / (perfect - null) == pytest.approx(found.score, abs=1e-9)
    hits = {
        name: (own >= found.threshold) & (np.arange(len(own)) >= labels[name].probation) for name, own in scores.items()
    }
    inside = {name: [hits[name][a : b + 1].any() for a, b in labels[name].windows] for name in labels}
    assert found.found == sum(map(sum, inside.values()))
    assert found.false_alarms == sum(
        int(own.sum()) - sum(int(own[a : b + 1].sum()) for a, b in labels[name].windows) for name, own in hits.items()
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_perfect_is_100_null_is_0_and_the_sooner_the_better(profile: Profile) -> None:
    labels = {"s": Labels(rows=100, windows=((40, 60), (80, 84)))}
    perfect, late = np.zeros(100), np.zeros(100)
    perfect[[40, 80]] = late[[55, 84]] = 1.0
    assert nab_score(labels, {"s": perfect}, profile).score == pytest.approx(100)
    alarms = np.where((np.arange(100) < 40) | (np.arange(100) > 84), 1.0, 0.0)
    assert nab_score({"s": Labels(rows=900, windows=((800, 800),))}, {"s": np.zeros(900)}, profile)[:3] == (
        0,
        math.inf,
        0,
    )
    assert nab_score(labels, {"s": alarms}, profile).score < 5
    between = nab_score(labels, {"s": late}, profile)
    assert 0 < between.score < 100
    assert between.found == 2
    every = nab_score(labels, {"s": np.where(np.arange(100) >= 40, perfect + 1, 0.0)}, profile)
    assert every.score == pytest.approx(100), "of two thresholds the better one is taken"


def test_the_weights_are_the_published_ones_and_the_sigmoid_is_0_at_the_end_of_a_window() -> None:
    weights = [(p.true_positive, p.false_positive, p.false_negative) for p in PROFILES]
    assert weights == [(1, -0.11, -1), (1, -0.22, -1), (1, -0.11, -2)]
    np.testing.assert_allclose(sigma(np.array([-1.0, 0.0, 1.0, 1e9, np.inf])), [0.98661430, 0, -0.98661430, -1, -1])
    assert (sigma(np.array([0.5])) == -sigma(np.array([-0.5]))).all()


def test_nothing_counts_in_the_probationary_part() -> None:
    labels = {"s": Labels(rows=100, windows=((50, 60),))}
    early, clean = np.zeros(100), np.zeros(100)
    early[:15] = early[50] = clean[50] = 1.0
    assert labels["s"].probation == 15
    assert nab_score(labels, {"s": early}, STANDARD) == nab_score(labels, {"s": clean}, STANDARD)
    assert Labels(rows=22_695, windows=()).probation == 750
    early[15] = 1.0
    assert nab_score(labels, {"s": early}, STANDARD).score < 100
    assert nab_score(labels, {"s": early}, LOW_FP).score < nab_score(labels, {"s": early}, STANDARD).score
    assert nab_score(labels, {"s": early}, LOW_FN).score > nab_score(labels, {"s": early}, STANDARD).score


def test_rows_of_windows_come_from_stamps_even_where_these_go_back() -> None:
    stamps = np.array([0, 5, 10, 8, 15, 20, 20, 25], np.int64)
    assert Labels.of(stamps, [(5, 9), (20, 22)]).windows == ((1, 3), (5, 6))
    with pytest.raises(SchemaError, match=r"windows: no row lies in 11 \.\. 14"):
        Labels.of(stamps, [(11, 14)])


def test_what_does_not_fit_is_refused_by_name() -> None:
    labels = {"s": Labels(rows=4, windows=((2, 3),))}
    for scores in ({}, {"s": np.zeros(3)}, {"s": np.array([0, 1, np.nan, 0])}):
        with pytest.raises(SchemaError, match="scores: stream 's' needs one finite score for each of 4 rows"):
            nab_score(labels, scores, STANDARD)
    with pytest.raises(ConfigError, match="no stream has a window"):
        nab_score({"s": Labels(rows=4, windows=())}, {"s": np.zeros(4)}, STANDARD)
    with pytest.raises(ConfigError, match="profile: needs"):
        Profile(name="odd", false_positive=0.1, false_negative=-1)
