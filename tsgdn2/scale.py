"""Causal, exponentially forgetting standardisation of each channel (math.md 4, Scaler).

    n <- lam n + 1          mean <- mean + d / n,  d = x - mean_old
    m2 <- lam m2 + d (x - mean_new)                 scale = sqrt((m2 + n0 s0^2) / (n + n0))

One update per OBSERVED value; a missing value changes nothing. Everything is float64, because a level of 1e9 with a
deviation of 1 must survive. `update` is the recurrence, `scan` the same recurrence over a whole history at once: the
stream uses the first, training and batch prediction the second, and a test holds them equal.

| symbol | meaning | shape | range |
|---|---|---|---|
| x | value, units of the channel | [.., C] | finite |
| lam | forgetting per observed value, 2^(-1 / half_life) | scalar | (0, 1] |
| n | effective number of values | [.., C] | [0, 1/(1-lam)) |
| n0, s0 | weight and deviation of the prior | scalar, [C] | > 0 |
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PRIOR_COUNT = 4.0
_BLOCK = 128


class Moments(NamedTuple):
    """What the scaler remembers of each channel, float64 [.., C]: weight, mean and sum of squared deviations."""

    count: Floats  # type: ignore[assignment]  # hides tuple.count, which nobody calls on moments
    mean: Floats
    m2: Floats

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> Moments:
        """Moments of a stream that has seen nothing."""
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape))


def forgetting(half_life: float) -> float:
    """Weight that one observed value leaves to its predecessors; half_life in observed values, inf forgets nothing."""
    return 1.0 if np.isinf(half_life) else float(2.0 ** (-1.0 / half_life))


def update(moments: Moments, x: Floats, observed: Bools, lam: float) -> Moments:
    """Absorb one value per channel where it is observed; x and observed [.., C]. Returns new moments."""
    count = lam * moments.count + 1.0
    delta = np.where(observed, x, 0.0) - moments.mean
    mean = moments.mean + delta / count
    m2 = lam * moments.m2 + delta * (np.where(observed, x, 0.0) - mean)
    return Moments(
        np.where(observed, count, moments.count),
        np.where(observed, mean, moments.mean),
        np.where(observed, m2, moments.m2),
    )


def scale_of(moments: Moments, prior_scale: Floats) -> Floats:
    """Standard deviation under the prior, [.., C]; never 0, so a constant channel divides safely."""
    return np.sqrt((moments.m2 + PRIOR_COUNT * prior_scale**2) / (moments.count + PRIOR_COUNT))


def scan(x: Floats, observed: Bools, lam: float) -> Moments:
    """Moments after every step of a history that starts with nothing; x and observed [T, C] -> [T, C] each.

    The two linear recurrences run as blocked matrix products, O(T) work without a loop over time.
    """
    out = Moments.zeros(x.shape)
    for channel in range(x.shape[1]):
        seen = np.flatnonzero(observed[:, channel])
        if len(seen) == 0:
            continue
        values = x[seen, channel]
        count = _decayed_sum(np.ones(len(values)), lam)
        mean, m2 = _moments(values, count, lam)
        # carry each value forward over the steps that saw nothing
        index = np.cumsum(observed[:, channel]) - 1
        held = index >= 0
        for target, source in zip(out, (count, mean, m2), strict=True):
            target[held, channel] = source[index[held]]
    return out


def _moments(x: Floats, count: Floats, lam: float) -> tuple[Floats, Floats]:
    """Mean and m2 after every value, block by block around the mean at the block's start.

    Around one origin for the whole history, one absurd value would cost the digits of all that follow it.
    """
    mean, m2 = np.empty(len(x)), np.empty(len(x))
    weights, powers = _block_weights(lam, _BLOCK), lam ** np.arange(1, _BLOCK + 1)
    held_mean, held_m2 = x[0], 0.0
    for begin in range(0, len(x), _BLOCK):
        u = x[begin : begin + _BLOCK]
        end, own = begin + len(u), weights[: len(u), : len(u)]
        mean[begin:end] = held_mean + own @ (u - held_mean) / count[begin:end]
        before = np.concatenate(([held_mean if begin else 0.0], mean[begin : end - 1]))
        m2[begin:end] = own @ ((u - before) * (u - mean[begin:end])) + held_m2 * powers[: len(u)]
        held_mean, held_m2 = mean[end - 1], m2[end - 1]
    return mean, m2


def _decayed_sum(u: Floats, lam: float) -> Floats:
    """y_t = lam y_{t-1} + u_t over one axis, in blocks whose ends are themselves a recurrence of the same form."""
    if len(u) <= _BLOCK:
        return np.asarray(_block_weights(lam, len(u)) @ u)
    padded = np.zeros(-len(u) % _BLOCK + len(u))
    padded[: len(u)] = u
    local = padded.reshape(-1, _BLOCK) @ _block_weights(lam, _BLOCK).T
    carry = _decayed_sum(local[:, -1], lam**_BLOCK)
    local[1:] += carry[:-1, None] * lam ** np.arange(1, _BLOCK + 1)
    return local.reshape(-1)[: len(u)]


def _block_weights(lam: float, size: int) -> Floats:
    lag = np.arange(size)[:, None] - np.arange(size)
    return np.where(lag >= 0, lam ** np.maximum(lag, 0), 0.0)
