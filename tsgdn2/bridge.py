"""What a missing cell of a window is taken for: the mean of a first-order process between its seen neighbours.

    z = (x - mean) / scale,  a, b the nearest z seen before and after, d1, d2 steps away, rho = exp(-1 / span)
    z = [rho^d1 (1 - rho^2d2) a + rho^d2 (1 - rho^2d1) b] / (1 - rho^2(d1+d2))        no neighbour there: d = inf

Nothing beyond the window is looked at, so a stream and a batch that hold the same window fill it alike, and no cell
after the clock is ever read. Far from its neighbours a cell is taken for the mean. Masks and weights stay as they are:
the model is told that the cell was not seen. With span 0 every missing cell is taken for the mean, as it is for
scattered counts, whose neighbours say nothing.

W steps, C channels.
"""

from __future__ import annotations

import numpy as np

from tsgdn2.scale import Bools, Floats


def bridged(values: Floats, seen: Bools, mean: Floats, scale: Floats, span: float) -> Floats:
    """values [.., W, C] with every cell that was not seen replaced; mean and scale [.., C], span in steps."""
    mean, scale = mean[..., None, :], scale[..., None, :]
    if span == 0:
        return np.where(seen, values, mean)
    if seen.all():
        return values
    steps = values.shape[-2]
    power = np.append(np.exp(-np.arange(steps) / span), 0.0)  # the last one for a neighbour that is not there
    at = np.arange(steps)[:, None]
    before = np.maximum.accumulate(np.where(seen, at, -1), axis=-2)
    after = np.flip(np.minimum.accumulate(np.flip(np.where(seen, at, steps), -2), axis=-2), -2)
    p1 = power[np.where(before < 0, steps, at - before)]
    p2 = power[np.where(after == steps, steps, after - at)]
    z = np.where(seen, (values - mean) / scale, 0.0)
    a = np.take_along_axis(z, np.maximum(before, 0), -2)
    b = np.take_along_axis(z, np.minimum(after, steps - 1), -2)
    whole = 1 - (p1 * p2) ** 2
    filled = (p1 * (1 - p2**2) * a + p2 * (1 - p1**2) * b) / np.where(seen, 1.0, whole)
    return np.where(seen, values, mean + scale * filled)
