"""Ridge regression on lags: cheap, strong, and to be beaten before a network is worth its cost.

One linear map from the last L steps to all H, fitted in closed form and shared by the series of a group; its quantiles
are those of its training residuals, so they are too narrow when the future differs from the training range.

    x_o = [ 1, z[o-1] .. z[o-L], 1 - m[o-1] .. 1 - m[o-L], sin, cos (2 pi j slot_o / slots) for j = 1, 2 ]
    W_h = argmin  sum_o m[o+h] (z[o+h] - x_o W_h)^2 + lambda n |W_h|^2        (the constant is not penalized)
    y_q[o+h] = mu + sd (x_o W_h + quantile_q of the residuals of step h)

| symbol | shape | unit, range |
|---|---|---|
| z | [T] | (y - mu) / sd; gaps hold the last value; drawn in to the training range's 0.1 % and 99.9 % quantiles |
| m | [T] | 1 where observed, else 0 |
| x | [n, D], D = 2 L + 5 | per origin o |
| W | [D, H] | one per group |
| lambda | | per row of x; the best of PENALTIES on the last fifth of the training range |
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset.util import forecast_start
from gluonts.model.forecast import QuantileForecast
from gluonts.model.predictor import RepresentablePredictor

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.baselines import filled, known_item, name_of, quantile_forecast, slot_of
from tsgdn2.evaluation.metrics import LEVELS

Entry = Mapping[str, object]

PENALTIES = (1e-4, 3e-3, 3e-2, 0.3, 3.0)
HELD_OUT = 0.2
TRIM = (0.001, 0.999)


def by_channel(_item: str, channel: int) -> str:
    """Share one map between all series for each channel: for multivariate sites that measure the same things."""
    return str(channel)


def by_series(item: str, channel: int) -> str:
    """Give every channel of every series its own map."""
    return f"{item}/{channel}"


def by_suffix(item: str, channel: int) -> str:
    """Share one map between series whose names end alike after the last slash, as in JFK/temp and LGA/temp."""
    return f"{item.rpartition('/')[2]}/{channel}"


class RidgeLags(RepresentablePredictor):
    """Forecast each channel from its own last `lags` steps by ridge regression; build it with `train`."""

    @validated()
    def __init__(
        self,
        prediction_length: int,
        lags: int,
        slots: int,
        weights: dict[str, np.ndarray],
        residuals: dict[str, np.ndarray],
        scales: dict[str, np.ndarray],
        groups: dict[str, list[str]],
        penalties: dict[str, float],
        quantiles: Sequence[float] = LEVELS,
    ) -> None:
        """weights [D, H] and residuals [Q, H] by group; scales item_id to [C, 4] (mu, sd, lowest z, highest z);
        groups item_id to the C groups; penalties by group, for the record."""
        super().__init__(prediction_length=prediction_length)
        self.lags, self.slots, self.quantiles = lags, slots, list(quantiles)
        self.weights = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        self.residuals = {name: np.asarray(value, dtype=np.float64) for name, value in residuals.items()}
        self.scales = {name: np.asarray(value, dtype=np.float64) for name, value in scales.items()}
        self.groups = {name: list(value) for name, value in groups.items()}
        self.penalties = dict(penalties)

    @classmethod
    def train(
        cls,
        dataset: Iterable[Entry],
        prediction_length: int,
        *,
        lags: int = 48,
        slots: int = 24,
        group: Callable[[str, int], str] = by_series,
        quantiles: Sequence[float] = LEVELS,
    ) -> Self:
        """Fit every group in closed form: once per penalty on the head of the training range, then once on all of it.

        lags: steps looked back on. slots: steps of the cycle. group: see by_series, by_channel, by_suffix.
        Errors: ConfigError for bounds; SchemaError when a group has no origin with `lags` steps before
        and `prediction_length` after it.
        """
        if min(lags, slots, prediction_length) < 1:
            raise ConfigError(
                f"lags, slots and prediction_length must be at least 1, got {lags}, {slots}, {prediction_length}"
            )
        scales: dict[str, np.ndarray] = {}
        groups: dict[str, list[str]] = {}
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for entry in dataset:
            name = name_of(entry)
            values_CT, seen_CT = filled(entry["target"])
            scales[name] = np.stack([_scale(y_T, m_T) for y_T, m_T in zip(values_CT, seen_CT, strict=True)])
            groups[name] = [group(name, channel) for channel in range(len(values_CT))]
            length = values_CT.shape[1]
            origins_O = np.arange(lags, length - prediction_length + 1)
            slot_O = slot_of(entry["start"], origins_O, slots)
            for channel, member in enumerate(groups[name]):
                z_T, m_T = _standard(values_CT[channel], scales[name][channel]), seen_CT[channel]
                ahead_OH = origins_O[:, None] + np.arange(prediction_length)
                target_OH = np.where(m_T[ahead_OH], z_T[ahead_OH], np.nan)
                parts.setdefault(member, []).append((_features(z_T, m_T, origins_O, slot_O, lags, slots), target_OH))
        weights, residuals, penalties = {}, {}, {}
        for member, blocks in parts.items():
            if not sum(np.isfinite(target_OH).sum() for _, target_OH in blocks):
                raise SchemaError(
                    f"dataset must hold more than lags + prediction_length = {lags + prediction_length} steps with "
                    f"observations for {member}; give a longer training range or fewer lags"
                )
            penalties[member] = _best_penalty(blocks, prediction_length)
            x_ND, target_NH = _joined(blocks)
            weights[member] = _solve(x_ND, target_NH, [penalties[member]])[0]
            with np.errstate(invalid="ignore"):
                error_NH = target_NH - x_ND @ weights[member]
            residuals[member] = _residual_quantiles(error_NH, quantiles)
        made: Self = cls(
            prediction_length=prediction_length,
            lags=lags,
            slots=slots,
            weights=weights,
            residuals=residuals,
            scales=scales,
            groups=groups,
            penalties=penalties,
            quantiles=list(quantiles),
        )
        return made

    def predict_item(self, item: Entry) -> QuantileForecast:
        """Forecast one entry; a history shorter than the lags counts as missing before its first step."""
        scale_C4 = known_item(self.scales, item)
        recent = np.atleast_2d(np.asarray(item["target"], dtype=np.float64))
        if len(recent) != len(scale_C4):
            raise SchemaError(
                f"target of {name_of(item)} must have {len(scale_C4)} channels as in training, got {len(recent)}"
            )
        if recent.shape[1] < self.lags:
            recent = np.pad(recent, ((0, 0), (self.lags - recent.shape[1], 0)), constant_values=np.nan)
        values_CT, seen_CT = filled(recent)
        origin = np.array([values_CT.shape[1]])
        slot = slot_of(forecast_start(item), np.array([0]), self.slots)
        columns = []
        for channel, member in enumerate(self.groups[name_of(item)]):
            z_T = _standard(values_CT[channel], scale_C4[channel])
            x_1D = _features(z_T, seen_CT[channel], origin, slot, self.lags, self.slots)
            mu, sd = scale_C4[channel, :2]
            columns.append(mu + sd * (x_1D @ self.weights[member] + self.residuals[member]))
        return quantile_forecast(item, np.stack(columns, axis=-1), self.quantiles)


def _scale(y_T: np.ndarray, m_T: np.ndarray) -> np.ndarray:
    """Mean and deviation of a channel after trimming, and the trim itself in those units."""
    cells = y_T[m_T]
    if not cells.size:
        return np.array([0.0, 1.0, 0.0, 0.0])
    low, high = np.quantile(cells, TRIM)
    trimmed = np.clip(cells, low, high)
    mu, sd = trimmed.mean(), trimmed.std()
    sd = sd if sd > 1e-9 * max(1.0, abs(mu)) else 1.0
    return np.array([mu, sd, (low - mu) / sd, (high - mu) / sd])


def _standard(y_T: np.ndarray, scale_4: np.ndarray) -> np.ndarray:
    mu, sd, low, high = scale_4
    standard: np.ndarray = np.clip((y_T - mu) / sd, low, high)
    return standard


def _features(
    z_T: np.ndarray, m_T: np.ndarray, origins_O: np.ndarray, slot_O: np.ndarray, lags: int, slots: int
) -> np.ndarray:
    back_OL = origins_O[:, None] - 1 - np.arange(lags)
    angle_O2 = 2 * np.pi / slots * slot_O[:, None] * np.array([1, 2])
    one_O1 = np.ones((len(origins_O), 1))
    return np.concatenate([one_O1, z_T[back_OL], ~m_T[back_OL], np.sin(angle_O2), np.cos(angle_O2)], axis=1)


def _joined(blocks: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([x for x, _ in blocks]), np.concatenate([target for _, target in blocks])


def _solve(x_ND: np.ndarray, target_NH: np.ndarray, penalties: Sequence[float]) -> np.ndarray:
    """Solve every step for every penalty [P, D, H]; the moments of unobserved targets are taken out step by step."""
    ridge_DD = np.eye(x_ND.shape[1])
    ridge_DD[0, 0] = 1e-9
    whole_DD = x_ND.T @ x_ND
    weights_PDH = np.zeros((len(penalties), x_ND.shape[1], target_NH.shape[1]))
    for step in range(target_NH.shape[1]):
        seen_N = np.isfinite(target_NH[:, step])
        few = seen_N.mean() < 0.5
        part_ND = x_ND[seen_N if few else ~seen_N]
        gram_DD = part_ND.T @ part_ND if few else whole_DD - part_ND.T @ part_ND
        moment_D = x_ND.T @ np.where(seen_N, target_NH[:, step], 0.0)
        for row, penalty in enumerate(penalties):
            weights_PDH[row, :, step] = np.linalg.solve(gram_DD + penalty * max(seen_N.sum(), 1) * ridge_DD, moment_D)
    return weights_PDH


def _best_penalty(blocks: list[tuple[np.ndarray, np.ndarray]], horizon: int) -> float:
    """Pick the penalty of least absolute error on the last fifth of each series, fitted on what ends before it."""
    head, tail = [], []
    for x_ND, target_NH in blocks:
        cut = int(len(x_ND) * (1 - HELD_OUT))
        head.append((x_ND[: max(cut - horizon + 1, 0)], target_NH[: max(cut - horizon + 1, 0)]))
        tail.append((x_ND[cut:], target_NH[cut:]))
    x_ND, target_NH = _joined(tail)
    if not np.isfinite(target_NH).any() or not np.isfinite(_joined(head)[1]).any():
        return PENALTIES[len(PENALTIES) // 2]
    losses = [np.nanmean(np.abs(target_NH - x_ND @ weights_DH)) for weights_DH in _solve(*_joined(head), PENALTIES)]
    return PENALTIES[int(np.argmin(losses))]


def _residual_quantiles(error_NH: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """Quantiles of the residuals of each step [Q, H]; a step never observed borrows all the others."""
    everything = error_NH[np.isfinite(error_NH)]
    columns = [column[np.isfinite(column)] for column in error_NH.T]
    return np.stack([np.quantile(cells if cells.size else everything, quantiles) for cells in columns], axis=1)
