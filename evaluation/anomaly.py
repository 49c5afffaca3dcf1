"""From one number per observation to an anomaly score, in O(1): a moving tail probability, and baselines beside it.

Nothing here reads labels. The likelihood takes neighbouring numbers for independent; where they are not, it calls a
slow wave odd, and only a threshold over many streams puts that right.

    tail likelihood of x (a surprise in bits, or any score whose larger values are odder):
        e_t  = e_{t-1} + a (x_t - e_{t-1})                          recent mean, a = 1 / RECENT
        m_t, v_t: mean and variance of x with forgetting b_t = max(1 / t, 1 / LONG)
        z_t  = (e_t - m_{t-1}) / sqrt(v_{t-1} a / (2 - a) + tiny)   e of independent x has a / (2 - a) of x's variance
        L_t  = -log2 Q(z_t) bits,  Q the upper tail of the normal    0.5 where all is as always, 10 once in a thousand

    moving z-score:            |x_t - m_{t-1}| / sqrt(v_{t-1}), at most MOST: what leaves a plateau
    seasonal-naive z-score:    the same of r_t = x_t - x_{t-season}, against mean 0

| symbol | shape | what |
|---|---|---|
| x | [N] | one stream in its order, NaN is missing: it leaves all as it was and repeats the last score |
| e, m, v, t | scalars | the whole state; seasonal-naive also holds one season of values |
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch

from tsgdn2.errors import ConfigError
from tsgdn2.scale import Floats

RECENT: Final = 1
LONG: Final = 1000
TINY: Final = 1e-12
MOST: Final = 1e6


class Likelihood:
    """The tail likelihood of one stream of numbers; see the module's equation."""

    def __init__(self, recent: int = RECENT, long: int = LONG) -> None:
        """recent, long: observations of the two means, 1 <= recent < long. ConfigError otherwise."""
        if not 1 <= recent < long:
            raise ConfigError(f"recent, long: must be 1 <= recent < long, got {recent} and {long}")
        self.rate, self.long = 1.0 / recent, long
        self.recent = self.mean = self.variance = 0.0
        self.count = 0

    def z(self, x: float) -> float:
        """Take one number, give z of its recent mean; 0 for the first one."""
        self.recent = x if self.count == 0 else self.recent + self.rate * (x - self.recent)
        spread = math.sqrt(self.variance * self.rate / (2 - self.rate) + TINY)
        found = (self.recent - self.mean) / spread if self.count > 1 else 0.0
        self.count += 1
        share = max(1 / self.count, 1 / self.long)
        off = x - self.mean
        self.mean += share * off
        self.variance = (1 - share) * (self.variance + share * off * off)
        return found


def likelihood(x: Floats, *, recent: int = RECENT, long: int = LONG) -> Floats:
    """Tail likelihood in bits of every row of one stream, x [N]; NaN repeats what came before it."""
    state, z, out = Likelihood(recent, long), 0.0, np.zeros(len(x))
    for row, value in enumerate(x.tolist()):
        if math.isfinite(value):
            z = state.z(value)
        out[row] = z
    return np.asarray(-torch.special.log_ndtr(torch.from_numpy(-out)).numpy() / math.log(2.0))


def moving_z(x: Floats, *, long: int = LONG) -> Floats:
    """Distance of every value from the moving mean before it, in moving deviations, [N]."""
    return _z(x, long, centred=True)


def seasonal_z(x: Floats, season: int, *, long: int = LONG) -> Floats:
    """Size of every residual of the seasonal-naive forecast in moving deviations, [N]; 0 in the first season."""
    if season < 1:
        raise ConfigError(f"season: must be at least 1, got {season}")
    residual = np.full(len(x), np.nan)
    residual[season:] = x[season:] - x[:-season]
    return _z(residual, long, centred=False)


def _z(x: Floats, long: int, *, centred: bool) -> Floats:
    """|x - m| / sqrt(v) against the statistics before each row; v about m, or about 0."""
    mean, variance, count, found = 0.0, 0.0, 0, 0.0
    out = np.zeros(len(x))
    for row, value in enumerate(x.tolist()):
        if math.isfinite(value):
            off = value - mean
            found = _distance(abs(off), math.sqrt(variance)) if count > 1 else 0.0
            count += 1
            share = max(1 / count, 1 / long)
            mean += share * off if centred else 0.0
            variance = (
                (1 - share) * (variance + share * off * off) if centred else variance + share * (off * off - variance)
            )
        out[row] = found
    return out


def _distance(off: float, deviation: float) -> float:
    """off in deviations, at most MOST; 0 where nothing is off, whatever the deviation."""
    return 0.0 if off == 0 else MOST if off >= MOST * deviation else off / deviation
