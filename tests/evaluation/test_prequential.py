"""Prequential scoring: the order of showing and asking, values that arrive late, and leaks that were planted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.backtest import backtest, windows
from tsgdn2.evaluation.baselines import SeasonalNaive
from tsgdn2.evaluation.metrics import LEVELS, seasonal_scale
from tsgdn2.evaluation.prequential import Floats, Learner, Recall, Schedule, leaks, prequential

HOUR = 3_600_000_000_000
START = pd.Timestamp("2024-03-01 05:00").value


class Said(NamedTuple):
    quantiles: Floats


class Last:
    """Repeats the newest row, and writes down what happened."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.newest = np.zeros(1)

    def observe(self, stream: str, time: int, values: Floats) -> None:
        self.events.append(("observe", (time - START) // HOUR))
        self.newest = values

    def forecast(self, stream: str, horizon: int) -> Said:
        self.events.append(("forecast", horizon))
        return Said(np.broadcast_to(self.newest[None, :, None], (horizon, len(self.newest), len(LEVELS))).copy())


def walk(length: int = 60, channels: int = 2, seed: int = 0) -> Floats:
    values = np.cumsum(np.random.default_rng(seed).normal(size=(length, channels)), axis=0) + 10
    values[length // 3, 0] = np.nan
    return values


def schedule(**changes: int) -> Schedule:
    return Schedule(**{"start": START, "period": HOUR, "freq": "h", "horizon": 3, "first": 9, **changes})  # type: ignore[arg-type]


def test_every_value_is_asked_for_before_it_is_shown() -> None:
    values, model = walk(20, 1), Last()
    found = prequential(model, values, schedule(first=15), channels=["x"], season=1)
    assert model.events[:16] == [("observe", t) for t in range(16)]
    assert model.events[16:] == [("forecast", 3), ("observe", 16), ("forecast", 3)]
    assert found.origins.tolist() == [15, 16]
    assert found.known.tolist() == [18, 19]
    np.testing.assert_array_equal(found.judged.labels[:, 0], [values[16:19, 0], values[17:20, 0]])
    assert found.judged.starts[0] == pd.Period("2024-03-01 21:00", freq="h")


def test_values_that_arrive_late_are_not_known_at_the_origin() -> None:
    values, model = np.arange(30.0)[:, None], Last()
    found = prequential(model, values, schedule(first=20, delay=4), channels=["x"], season=1)
    assert ("forecast", 7) in model.events
    # the newest value at origin t is that of t - 4, and the first label that of t + 1
    np.testing.assert_array_equal(found.judged.labels[:, 0, 0] - found.judged.quantiles[:, 0, 0, 0], 5.0)
    assert (found.known - found.origins == 3 + 4).all()


@settings(max_examples=12, deadline=None)
@given(
    delay=st.integers(0, 6), horizon=st.integers(1, 5), every=st.integers(1, 7), length=st.integers(24, 50),
    season=st.integers(1, 30),
)  # fmt: skip
def test_a_predictor_scores_as_in_a_backtest_of_its_windows(
    delay: int, horizon: int, every: int, length: int, season: int
) -> None:
    values = walk(length, 2, seed=length)
    plan = schedule(horizon=horizon, every=every, first=12, delay=delay)
    model = Recall(SeasonalNaive(horizon + delay, 5), freq="h", channels=["a", "b"])
    found = prequential(model, values, plan, channels=["a", "b"], season=season)
    assert len(found.judged) == len(range(12, length - horizon, every))
    for number, origin in enumerate(found.origins.tolist()):
        past = values[: origin - delay + 1]
        entries = [{"item_id": "s/a", "start": pd.Period(pd.Timestamp(START), freq="h"), "target": past[:, 0]}]
        (theirs,) = SeasonalNaive(horizon + delay, 5).predict(entries)
        np.testing.assert_array_equal(found.judged.quantiles[number, 4, 0], theirs.quantile(0.5)[delay:])
        np.testing.assert_allclose(found.judged.seasonal[number], seasonal_scale(past.T, season), rtol=1e-12)


def test_without_delay_it_is_the_backtest() -> None:
    values = walk(80, 1)
    plan = schedule(horizon=4, every=4, first=59)
    found = prequential(Recall(SeasonalNaive(4, 6), freq="h", channels=["x"]), values, plan, channels=["x"], season=6)
    entry = {"item_id": "s/x", "start": pd.Period(pd.Timestamp(START), freq="h"), "target": values[:, 0]}
    theirs = backtest(SeasonalNaive(4, 6), windows([entry], 4, 5), season=6).overall
    assert len(found.judged) == 5
    assert found.overall.mase == pytest.approx(theirs.mase, rel=1e-12)
    assert found.overall.crps == pytest.approx(theirs.crps, rel=1e-12)


class Thief(Last):
    """Was built from the whole series and looks one step past what has arrived."""

    def __init__(self, values: Floats, ahead: int) -> None:
        super().__init__()
        self.stolen, self.ahead, self.step = values, ahead, -1

    def observe(self, stream: str, time: int, values: Floats) -> None:
        super().observe(stream, time, values)
        self.step += 1
        self.newest = self.stolen[min(self.step + self.ahead, len(self.stolen) - 1)]


class Standardised(Last):
    """Was built with the mean of the whole series, the most usual leak of all."""

    def __init__(self, values: Floats) -> None:
        super().__init__()
        self.mean = np.nanmean(values, axis=0)

    def forecast(self, stream: str, horizon: int) -> Said:
        said = super().forecast(stream, horizon)
        return Said(0.9 * said.quantiles + 0.1 * self.mean[None, :, None])


@pytest.mark.parametrize("delay", [0, 3])
def test_a_planted_leak_is_found_and_an_honest_model_is_not_accused(delay: int) -> None:
    values, plan = walk(), schedule(delay=delay, every=4)
    origins = plan.origins(len(values))
    examined = origins[[0, len(origins) // 2, -1]].tolist()
    guilty: list[object] = [lambda data: Thief(data, 1), Standardised]
    for make in guilty:
        assert leaks(make, values, plan) == examined  # type: ignore[arg-type]
    honest: list[object] = [lambda _data: Last(), lambda data: Thief(data, 0), lambda data: Standardised(data[:4])]
    for make in honest:
        assert leaks(make, values, plan) == []  # type: ignore[arg-type]


def test_a_thief_of_late_values_is_found_only_where_values_are_late() -> None:
    values = walk()
    assert leaks(lambda data: Thief(data, 2), values, schedule(delay=3), at=[20]) == [20]
    assert leaks(lambda data: Thief(data, -2), values, schedule(delay=3), at=[20]) == []


def test_what_a_model_is_shown_is_its_own_copy() -> None:
    class Vandal(Last):
        def observe(self, stream: str, time: int, values: Floats) -> None:
            super().observe(stream, time, values.copy())
            values[:] = 0.0

    values = walk(30)
    before = values.copy()
    model: Learner = Vandal()
    prequential(model, values, schedule(), channels=["a", "b"], season=1)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize(
    ("changes", "said"), [({"horizon": 0}, "horizon"), ({"delay": -1}, "delay"), ({"first": 2, "delay": 3}, "delay=3")]
)
def test_a_schedule_names_what_is_out_of_bounds(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        schedule(**changes)


def test_mistakes_of_a_run_are_named() -> None:
    with pytest.raises(ConfigError, match="leave a horizon of 3"):
        prequential(Last(), walk(12), schedule(), channels=["a", "b"], season=1)
    with pytest.raises(ConfigError, match="channels must name the 2 columns"):
        prequential(Last(), walk(), schedule(), channels=["a"], season=1)
    with pytest.raises(SchemaError, match="levels must name the 9 quantiles"):
        prequential(Last(), walk(), schedule(), channels=["a", "b"], season=1, levels=(0.5,))
    model = Recall(SeasonalNaive(3, 1), freq="h", channels=["a", "b"])
    with pytest.raises(ConfigError, match="prediction_length"):
        prequential(model, walk(), schedule(delay=1), channels=["a", "b"], season=1)
    with pytest.raises(ConfigError, match="origins of the run"):
        leaks(lambda _data: Last(), walk(), schedule(), at=[1_000])
