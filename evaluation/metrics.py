"""What counts as a good forecast: CRPS, MASE and coverage of judged windows, in any grouping.

The losses are GluonTS's own, cell by cell; the pooling is ours, because `evaluate_forecasts` silently changes the
meaning of its axes when the targets have channels. Every pooled figure needs all windows in memory at once.

    loss_q = 2 |(y - y_q) (1{y <= y_q} - q)|
    CRPS   = mean_q ( sum loss_q / sum |y| )                     mean weighted sum quantile loss, q = 0.1 .. 0.9
    MASE   = mean |y - y_0.5| / s,  s = mean |past_t - past_{t-season}|      cells with s = 0 or unknown are left out
    cover  = mean 1{y_0.1 <= y <= y_0.9}                         nominal: 0.8; both ends belong to the interval

| symbol | shape | unit, range |
|---|---|---|
| y      | [N, C, H]    | the data's; NaN where nothing was observed: left out of every sum |
| y_q    | [N, Q, C, H] | the data's |
| s      | [N, C]       | the data's, >= 0 or NaN |
N windows, C channels, H steps of the horizon, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from gluonts.dataset.split import TestData
from gluonts.ev import stats
from gluonts.model.forecast import Forecast

from tsgdn2.errors import ConfigError, SchemaError

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

UNIVARIATE = "target"

Entry = Mapping[str, object]
Key = tuple[str, ...]


class Predicts(Protocol):
    """Whatever forecasts entries of a GluonTS dataset in their order."""

    def predict(self, dataset: Iterable[Entry]) -> Iterable[Forecast]:
        """Give one forecast per entry."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The figures of one group of cells; NaN where the group holds nothing to judge by."""

    crps: float
    """Mean weighted sum quantile loss; a share of the mean absolute label, >= 0."""
    mase: float
    """Mean absolute error of the median, in seasonal differences of the past, >= 0."""
    coverage: float
    """Share of labels between the outermost quantiles, in [0, 1]; nominal 0.8 for levels 0.1 .. 0.9."""
    observed: int
    """Labels that were there to be judged by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Forecasts beside what came true, one row per window; built by `judge`."""

    items: tuple[str, ...]
    """Series of each window [N]."""
    starts: tuple[pd.Period, ...]
    """First step of each window [N]."""
    windows: tuple[int, ...]
    """How many windows of the same series came before it [N]."""
    labels: np.ndarray
    """What came true [N, C, H], NaN where nothing was observed."""
    quantiles: np.ndarray
    """What was forecast [N, Q, C, H]."""
    seasonal: np.ndarray
    """Mean absolute seasonal difference of the past [N, C]; NaN where the past has no such pair."""
    levels: tuple[float, ...]
    """Quantile levels [Q], ascending."""
    channels: tuple[str, ...]
    """Names [C]; a univariate target has the one name UNIVARIATE."""

    def __len__(self) -> int:
        """N, the number of windows."""
        return len(self.items)


def judge(
    forecasts: Iterable[Forecast],
    labels: Iterable[Entry],
    inputs: Iterable[Entry],
    *,
    season: int,
    levels: Sequence[float] = LEVELS,
    channels: Sequence[str] | None = None,
) -> Judged:
    """Set forecasts beside the labels of their windows; the three must have one order, which is checked by start.

    labels, inputs: GluonTS entries whose `target` is [H] and [T], or [C, H] and [C, T]; NaN is missing.
    season: steps of MASE's season; a past that is not longer uses a season of 1, as GluonTS does.
    Errors: ConfigError for `season`, `levels`, `channels`; SchemaError when counts, starts or
    shapes differ or a forecast is NaN.
    """
    if season < 1:
        raise ConfigError(f"season must be at least 1 step, got {season}; hourly data with a daily cycle has 24")
    if list(levels) != sorted(set(levels)) or 0.5 not in levels:
        raise ConfigError(
            f"levels must ascend without repeats and hold 0.5 (MASE needs the median), got {tuple(levels)}"
        )
    items, starts, ordinals, label_rows, quantile_rows, seasonal_rows = [], [], [], [], [], []
    seen: dict[str, int] = {}
    given, truths, pasts = list(forecasts), list(labels), list(inputs)
    if not len(given) == len(truths) == len(pasts):
        counts = f"{len(given)} forecasts, {len(truths)} labels, {len(pasts)} inputs"
        raise SchemaError(f"forecasts, labels and inputs must be equally many, got {counts}")
    if not truths:
        raise SchemaError("labels hold no window; ask for at least one")
    for forecast, label, past in zip(given, truths, pasts, strict=True):
        item = str(label.get("item_id", "0"))
        label_CH = np.atleast_2d(np.asarray(label["target"], dtype=np.float64))
        if forecast.start_date != label["start"]:
            raise SchemaError(
                f"forecasts must come in the order of labels: {item} starts at {label['start']}, "
                f"its forecast at {forecast.start_date}; predict on the same test data that is judged"
            )
        quantiles_QCH = np.stack([_channels_first(forecast.quantile(level)) for level in levels])
        if quantiles_QCH.shape[1:] != label_CH.shape:
            raise SchemaError(
                f"forecasts must have the labels' shape [C, H]: {item} has labels {label_CH.shape}, "
                f"its forecast {quantiles_QCH.shape[1:]}; compare prediction_length and the target's channels"
            )
        if not np.isfinite(quantiles_QCH).all():
            raise SchemaError(f"forecasts must be finite, that of {item} at {forecast.start_date} is not")
        items.append(item)
        starts.append(forecast.start_date)
        ordinals.append(seen.get(item, 0))
        seen[item] = seen.get(item, 0) + 1
        label_rows.append(label_CH)
        quantile_rows.append(quantiles_QCH)
        seasonal_rows.append(seasonal_scale(np.atleast_2d(np.asarray(past["target"], dtype=np.float64)), season))
    labels_NCH = np.stack(label_rows)
    names = tuple(channels) if channels is not None else _default_channels(labels_NCH.shape[1])
    if len(names) != labels_NCH.shape[1]:
        raise ConfigError(f"channels must name the {labels_NCH.shape[1]} channels of the target, got {names}")
    return Judged(
        items=tuple(items),
        starts=tuple(starts),
        windows=tuple(ordinals),
        labels=labels_NCH,
        quantiles=np.stack(quantile_rows),
        seasonal=np.stack(seasonal_rows),
        levels=tuple(levels),
        channels=names,
    )


def evaluate(
    predictor: Predicts | Iterable[Forecast],
    test_data: TestData,
    *,
    season: int,
    levels: Sequence[float] = LEVELS,
    channels: Sequence[str] | None = None,
) -> Judged:
    """Judge a predictor, or the forecasts that it gave, on GluonTS test data; see `judge` for arguments and errors."""
    forecasts = predictor.predict(test_data.input) if hasattr(predictor, "predict") else predictor
    return judge(forecasts, test_data.label, test_data.input, season=season, levels=levels, channels=channels)


def pooled(judged: Judged) -> Score:
    """Score all windows and channels together: every cell has one vote, loud channels weigh most in CRPS."""
    return scores(judged, lambda _item, _channel, _window: ())[()]


def scores(judged: Judged, key: Callable[[str, str, int], Key]) -> dict[Key, Score]:
    """Score the groups that `key(item, channel, window)` names; groups come in the order of their first cell."""
    label = np.ma.masked_invalid(judged.labels)
    data = {str(level): judged.quantiles[:, row] for row, level in enumerate(judged.levels)}
    data["label"] = label
    scale_NC1 = judged.seasonal[:, :, None]
    data["seasonal_error"] = np.ma.masked_where(~(scale_NC1 > 0), scale_NC1)
    observed = ~np.ma.getmaskarray(label)
    scaled = stats.absolute_scaled_error(data, "0.5")
    lowest, highest = judged.quantiles[:, 0], judged.quantiles[:, -1]
    inside = (judged.labels >= lowest) & (judged.labels <= highest)
    groups: dict[Key, int] = {}
    group_NC = np.empty(judged.seasonal.shape, dtype=np.int64)
    for row, (item, window) in enumerate(zip(judged.items, judged.windows, strict=True)):
        for column, channel in enumerate(judged.channels):
            group_NC[row, column] = groups.setdefault(key(item, channel, window), len(groups))

    def total(values: np.ndarray) -> np.ndarray:
        """Sum the unmasked cells of [N, C, H] within each group."""
        cells_NC = np.ma.filled(np.ma.masked_invalid(values), 0.0).sum(axis=-1)
        return np.bincount(group_NC.ravel(), weights=cells_NC.ravel(), minlength=len(groups))

    volume = total(stats.absolute_label(data))
    loss = np.mean([total(stats.quantile_loss(data, level)) for level in judged.levels], axis=0)
    count = total(observed.astype(np.float64))
    scaled_count = total((~np.ma.getmaskarray(scaled)).astype(np.float64))
    crps = _ratio(loss, volume)
    mase = _ratio(total(scaled), scaled_count)
    cover = _ratio(total((inside & observed).astype(np.float64)), count)
    return {
        name: Score(crps=crps[g], mase=mase[g], coverage=cover[g], observed=round(count[g]))
        for name, g in groups.items()
    }


def channel_key(item: str, channel: str, _window: int) -> Key:
    """Group by sensor, for `scores`: by the channel, or for a univariate series by what follows its last slash."""
    return (item.rpartition("/")[2] if channel == UNIVARIATE else channel,)


def geometric_mean_ratio(ours: Mapping[Key, Score], reference: Mapping[Key, Score]) -> float:
    """Geometric mean over the groups of CRPS / reference's CRPS; a group at zero makes it meaningless: SchemaError."""
    if set(ours) != set(reference) or not ours:
        raise SchemaError(f"ours and reference must score the same groups, got {sorted(ours)} and {sorted(reference)}")
    ratios = np.array([[score.crps, reference[name].crps] for name, score in ours.items()])
    if not (np.isfinite(ratios) & (ratios > 0)).all():
        raise SchemaError("every group needs a positive CRPS on both sides; leave groups without observations out")
    return float(np.exp(np.mean(np.log(ratios[:, 0] / ratios[:, 1]))))


def calibration(judged: Judged) -> dict[float, float]:
    """Give, for each level q, the share of labels at or below their q-quantile; q itself when calibrated."""
    observed = np.isfinite(judged.labels)
    if not observed.any():
        return dict.fromkeys(judged.levels, float("nan"))
    below = judged.labels[:, None] <= judged.quantiles
    return {level: float(below[:, row][observed].mean()) for row, level in enumerate(judged.levels)}


def seasonal_scale(past_CT: np.ndarray, season: int) -> np.ndarray:
    """Mean absolute seasonal difference of each channel [C] over pairs seen at both ends; NaN without a pair."""
    length = past_CT.shape[-1]
    if length < 2:
        return np.full(past_CT.shape[0], np.nan)
    lag = season if season < length else 1
    with np.errstate(invalid="ignore"):
        change_CT = np.abs(past_CT[:, lag:] - past_CT[:, :-lag])
    seen_CT = np.isfinite(change_CT)
    total_C, count_C = np.where(seen_CT, change_CT, 0.0).sum(axis=1), seen_CT.sum(axis=1)
    return np.where(count_C > 0, total_C / np.maximum(count_C, 1), np.nan)


def _channels_first(values: np.ndarray) -> np.ndarray:
    """Turn [H] or [H, C], the layout of GluonTS's forecasts, into [C, H], the layout of its targets."""
    return np.atleast_2d(np.asarray(values, dtype=np.float64).T)


def _default_channels(count: int) -> tuple[str, ...]:
    """Name channels that nobody named."""
    return (UNIVARIATE,) if count == 1 else tuple(str(channel) for channel in range(count))


def _ratio(part: np.ndarray, whole: np.ndarray) -> list[float]:
    """Divide where there is something to divide by, NaN elsewhere."""
    return [float(p / w) if w > 0 else float("nan") for p, w in zip(part, whole, strict=True)]
