"""The GIFT-Eval protocol on ETT and Jena: 23 configurations, their windows, their two naive forecasts, their score.

    h = base(freq) times 1, 10, 15 for short, medium, long          windows n = min(20, max(1, ceil(T / (10 h))))
    training: rows [0, T - h (n + 1));  window j = 0 .. n - 1 is forecast from rows [0, T - h (n - j)), all of them

    MASE = mean over all observed (series, window, step) of |y - q_0.5| / mean |y_t - y_{t-m}| of that window's past
    CRPS = mean over q of  sum 2 |(y - y_q)(1{y < y_q} - q)| / sum |y|                  q = 0.1 .. 0.9, sums over all
    relative = figure / figure of seasonal_naive;    over configurations: geometric mean

| symbol | meaning | 15T, 10T | H | D | W |
|---|---|---:|---:|---:|---:|
| base | horizon of the short term, steps | 48 | 48 | 30 | 8 |
| m | season, steps | 96, 144 | 24 | 1 | 1 |

D and W have the short term alone. T is the length of a series in rows; all series of a set are equally long. The rows
that lie between the training part and the first window belong to nobody, so that a model can not have seen a label.
Source: Aksu et al. 2024, arXiv 2410.10393; the figures of `naive` and `seasonal_naive` equal the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from tsgdn2.datasets.gift_eval import FREQUENCIES, PANDAS, Freq, gift_eval_entries
from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.backtest import Backtest, Entries, Protocol, backtest
from tsgdn2.evaluation.baselines import SeasonalNaive
from tsgdn2.evaluation.metrics import Predicts

Term = Literal["short", "medium", "long"]

TERMS: Final[dict[Term, int]] = {"short": 1, "medium": 10, "long": 15}
BASE: Final[dict[Freq, int]] = {"15T": 48, "10T": 48, "H": 48, "D": 30, "W": 8}
SEASON: Final[dict[Freq, int]] = {"15T": 96, "10T": 144, "H": 24, "D": 1, "W": 1}
MOST_WINDOWS: Final = 20
TEST_SHARE: Final = 0.1
SEASONAL_NAIVE: Final = "seasonal_naive"
NAIVE: Final = "naive"


@dataclass(frozen=True, order=True)
class Configuration:
    """One row of the benchmark: a set, its frequency, and how far ahead."""

    dataset: str
    """ett1, ett2 or jena_weather; also the family that one budget of training is for."""
    freq: Freq
    """Step of the series, as the benchmark writes it."""
    term: Term
    """short, medium or long."""

    @property
    def name(self) -> str:
        """dataset/freq/term."""
        return f"{self.dataset}/{self.freq}/{self.term}"

    @property
    def horizon(self) -> int:
        """Steps of a forecast."""
        return BASE[self.freq] * TERMS[self.term]

    @property
    def season(self) -> int:
        """Steps of the season of MASE and of seasonal_naive."""
        return SEASON[self.freq]

    @property
    def pandas_freq(self) -> str:
        """The step as pandas and GluonTS write it."""
        return PANDAS[self.freq]

    def windows(self, length: int) -> int:
        """Forecasts of each series, for series of `length` rows."""
        return min(MOST_WINDOWS, max(1, math.ceil(TEST_SHARE * length / self.horizon)))

    def protocol(self, length: int) -> Protocol:
        """Training part and windows of series of `length` rows; ConfigError where nothing would be left to train on."""
        windows = self.windows(length)
        end = length - self.horizon * (windows + 1)
        if end < 1:
            raise ConfigError(
                f"length of {self.name} must be above {self.horizon * (windows + 1)} rows, got {length}; "
                "take the whole set"
            )
        return Protocol(
            name=self.name,
            prediction_length=self.horizon,
            season=self.season,
            windows=windows,
            distance=self.horizon,
            train_end=end,
        )


CONFIGURATIONS: Final = tuple(
    Configuration(dataset, freq, term)
    for dataset, freqs in FREQUENCIES.items()
    for freq in freqs
    for term in TERMS
    if SEASON[freq] > 1 or term == "short"
)
"""All 23, set by set."""


def configuration(name: str) -> Configuration:
    """Find a configuration by dataset/freq/term; ConfigError lists all of them."""
    found = {one.name: one for one in CONFIGURATIONS}
    if name not in found:
        raise ConfigError(f"configuration must be one of {', '.join(found)}, got {name!r}")
    return found[name]


def matching(patterns: Sequence[str]) -> tuple[Configuration, ...]:
    """Give the configurations whose name begins with one of the patterns, all for none; ConfigError for no hit."""
    for pattern in patterns:
        if not any(one.name.startswith(pattern) for one in CONFIGURATIONS):
            known = ", ".join(one.name for one in CONFIGURATIONS)
            raise ConfigError(f"configurations: no name begins with {pattern!r}; they are {known}")
    return tuple(one for one in CONFIGURATIONS if not patterns or one.name.startswith(tuple(patterns)))


def series(one: Configuration) -> list[dict[str, object]]:
    """Give the univariate GluonTS entries of a configuration, set/channel. Errors: those of the data."""
    return gift_eval_entries(one.dataset, one.freq)


def length_of(dataset: Sequence[Mapping[str, object]]) -> int:
    """Rows of the shortest series, which the number of windows depends on."""
    return min(len(np.asarray(entry["target"])) for entry in dataset)


def seasonal_naive(one: Configuration) -> SeasonalNaive:
    """Give the forecast that all figures are divided by: the last season again, with normal quantiles."""
    made: SeasonalNaive = SeasonalNaive(one.horizon, one.season, spread="normal")
    return made


def naive(one: Configuration) -> SeasonalNaive:
    """Give the last value again, with the quantiles of a random walk."""
    made: SeasonalNaive = SeasonalNaive(one.horizon, 1, spread="normal")
    return made


def judge(one: Configuration, predictor: Predicts, dataset: Entries | None = None) -> Backtest:
    """Forecast and score all windows of a configuration with any GluonTS predictor of univariate series.

    dataset: the entries of `series`, which are loaded unless given; a shorter cut of them has fewer windows.
    """
    entries = series(one) if dataset is None else dataset
    protocol = one.protocol(length_of(list(entries)))
    return backtest(predictor, protocol.test(entries), season=one.season)


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean; NaN for no value, and where one is not above 0 or unknown."""
    if not len(values) or not all(value > 0 for value in values):
        return math.nan
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))
