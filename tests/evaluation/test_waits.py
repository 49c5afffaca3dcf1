"""Waits for the next event: what is censored, what the baselines say, and that the score is that of its equation."""

import numpy as np
import pytest

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.metrics import LEVELS
from tsgdn2.evaluation.waits import HOUR_NS, Moments, empirical, exponential, one_per_hour, score, waits

TIMES = {"a": np.array([10, 20, 20, 50]), "b": np.array([5])}


def test_a_wait_is_counted_to_the_first_event_at_or_after_the_moment_and_is_censored_without_one():
    asked = Moments(streams=("a", "a", "b", "a", "a", "b"), clock=np.array([0, 20, 5, 21, 51, 6]))
    np.testing.assert_array_equal(waits(TIMES, asked), [10, 0, 0, 29, np.nan, np.nan])
    np.testing.assert_array_equal(waits(TIMES, asked, until=50), [10, 0, 0, np.nan, np.nan, np.nan])
    judged = score(np.tile(np.linspace(1, 30, 9), (6, 1)), waits(TIMES, asked), LEVELS)
    assert (judged.asked, judged.censored) == (4, 2)
    assert judged.coverage == 0.5
    nothing = score(np.zeros((1, 9)), np.array([np.nan]), LEVELS)
    assert (nothing.asked, nothing.censored) == (0, 1)
    assert np.isnan([nothing.crps, nothing.coverage]).all()


def test_the_score_is_the_mean_of_the_weighted_quantile_losses():
    rng = np.random.default_rng(0)
    known, quantiles = rng.exponential(3.0, 40), np.sort(rng.exponential(3.0, (40, 9)), 1)
    expected = 0.0
    for q, level in enumerate(LEVELS):
        losses = [2 * max(level * (w - x), (level - 1) * (w - x)) for w, x in zip(known, quantiles[:, q], strict=True)]
        expected += sum(losses) / known.sum() / 9
    assert score(quantiles, known, LEVELS).crps == pytest.approx(expected, rel=1e-12)
    assert score(np.repeat(known[:, None], 9, 1), known, LEVELS).crps == 0.0


def test_the_exponential_is_calibrated_on_a_poisson_process_and_has_a_rate_in_a_silent_hour():
    rng = np.random.default_rng(1)
    times = {"a": np.cumsum(rng.exponential(HOUR_NS / 40, 40_000)).astype(np.int64)}
    asked = one_per_hour(["a"], 2 * HOUR_NS, int(times["a"][-1]) - HOUR_NS, 0)
    judged = score(exponential(times, asked, LEVELS), waits(times, asked), LEVELS)
    assert judged.censored == 0
    assert abs(judged.coverage - 0.8) < 0.04
    silent = exponential({"a": np.array([0])}, Moments(streams=("a",), clock=np.array([9 * HOUR_NS])), (0.5,))
    assert silent[0, 0] == pytest.approx(2 * np.log(2) * HOUR_NS)


def test_the_empirical_waits_are_those_of_the_stream_and_of_the_hour_and_of_the_training_part_alone():
    day = 24 * HOUR_NS
    times = {"a": np.concatenate([d * day + np.array([6, 7, 8]) * HOUR_NS for d in range(20)]),
             "b": np.arange(20) * day}  # fmt: skip
    training, asked = one_per_hour(["a", "b"], 0, 10 * day, 3), one_per_hour(["a", "b"], 10 * day, 18 * day, 4)
    past = {name: own[own < 10 * day] for name, own in times.items()}
    truth, hour = waits(times, asked), (asked.clock // HOUR_NS % 24) == 20
    plain, hourly = empirical(past, training, asked, LEVELS), empirical(past, training, asked, LEVELS, by_hour=True)
    assert score(hourly, truth, LEVELS).crps < score(plain, truth, LEVELS).crps / 2
    assert (np.abs(hourly[hour, 4] - truth[hour]) < HOUR_NS).all()
    changed = {name: np.append(past[name], 10**18) for name in past}
    with pytest.raises(ConfigError, match="no wait"):
        empirical({"a": np.array([0]), "b": np.array([0])}, training, asked, LEVELS)
    assert (empirical(changed, training, asked, LEVELS) >= plain).all()


def test_what_does_not_fit_is_named():
    asked = Moments(streams=("c",), clock=np.array([0]))
    with pytest.raises(SchemaError, match="'c'"):
        waits(TIMES, asked)
    with pytest.raises(SchemaError, match="clock"):
        Moments(streams=("a",), clock=np.array([0, 1]))
    with pytest.raises(SchemaError, match="quantiles"):
        score(np.zeros((2, 3)), np.zeros(2), LEVELS)
    with pytest.raises(ConfigError, match="end"):
        one_per_hour(["a"], 0, 5, 0)
