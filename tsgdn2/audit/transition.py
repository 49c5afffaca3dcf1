"""How the audit's vectors move under one token: the state's own transition, applied to everything at once.

Changes X and the sums in place; one token per row, B = rows x heads; every energy is taken before the token, from the
vectors as they are, so that rounding does not accumulate (math.md 3):

    y = Diag(alpha) x     u = e.y     p = k.y     x <- y - k u       for every column x of X [K,M]
    decay = sum (1 - alpha^2) x^2          erase = (2 p - |k|^2 u) u          kept = |x|^2 - decay - erase
    C <- P C P^T + k k^T  : the left side is as above, `right_side` does the other

| symbol | shape | | symbol | shape |
|---|---|---|---|---|
| X | [B,K,M] | | k, e, g, alpha | [B,K] |
| weight | [B,2,K]: ones, 1 - alpha^2 | | z, and u, p of the state | [B,V] |
| size, energy of k | [B,1] | | value, energy of z | [B] |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tsgdn2.audit.slab import FLOATS, SUMS, Slab

Array = NDArray[np.float64]
_DECAY = FLOATS.index("decay")
_SUM = {name: i for i, name in enumerate(SUMS)}


def book(
    sums: Array, weight: Array, state: Array, u: Array, p: Array, z: Array, size: Array, value: Array,
    first: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Add one token to the ledger of the state [B,K,V]; `first` [B] marks rows that have no token before."""
    before, decay = np.matmul(weight, state * state).sum(-1).T.astype(np.float64)
    c_u = size * u
    erase = ((2 * p - c_u) * u).sum(-1)
    write = size[:, 0] * value
    interaction = 2 * (z * (p - c_u)).sum(-1)
    # The last token's prediction against the state that this token met: the only independent check there is.
    error = np.abs(before - sums[:, _SUM["energy"]]) / np.maximum(sums[:, _SUM["scale"]], before)
    error[~(error > sums[:, _SUM["residual"]]) | first] = 0.0
    np.maximum(sums[:, _SUM["residual"]], error, out=sums[:, _SUM["residual"]])
    moved = before - decay - erase
    after = moved + write + interaction
    gain = np.log(np.maximum(moved, 1e-300) / np.maximum(before, 1e-300)) * 0.5
    gain[before <= 0] = 0.0
    swell = sums[:, _SUM["swell"]]
    np.maximum(swell + gain, 0.0, out=swell)
    np.maximum(sums[:, _SUM["gain"]], gain, out=sums[:, _SUM["gain"]])
    sums[:, _SUM["energy"]], sums[:, _SUM["scale"]] = after, before + write
    for name, amount in (("decay", decay), ("erase", erase), ("write", write), ("interaction", interaction)):
        sums[:, _SUM[name]] += amount


def right_side(X: Array, slab: Slab, alpha: Array, e: Array, k: Array, value: Array) -> None:
    """Finish C <- P C P^T + w k k^T for the three aggregates, w = 1, 0 (a new write has no age) and |z|^2."""
    K = slab.key_dim
    block = X[:, :, slab.C.start : slab.weighted.stop].reshape(len(X), K, 3, K)
    block *= alpha[:, None, None, :]
    rest = -np.matmul(block.reshape(len(X), 3 * K, K), e[:, :, None]).reshape(len(X), K, 3)
    rest[:, :, 0] += k
    rest[:, :, 2] += k * value[:, None]
    block += rest[..., None] * k[:, None, None, :]
    X[:, :, slab.C.start : slab.weighted.stop] = block.reshape(len(X), K, 3 * K)


def bound(X: Array, slab: Slab, sums: Array, floats: Array, kept: Array, factor: Array) -> Array:
    """Multiply the state by factor [B] after the write, booked as decay; returns what is kept of each tracked write."""
    f = factor[:, None]
    X[:, :, : slab.C.start] *= f[:, :, None]
    X[:, :, slab.C.start :] *= (f * f)[:, :, None]
    lost = 1.0 - f.astype(np.float64) ** 2
    floats[:, _DECAY] += lost * kept
    taken = lost[:, 0] * sums[:, _SUM["energy"]]
    for name in ("decay", "bound"):
        sums[:, _SUM[name]] += taken
    sums[:, _SUM["energy"]] -= taken
    swell = sums[:, _SUM["swell"]]
    np.maximum(swell + np.log(np.maximum(factor, 1e-300)), 0.0, out=swell)
    scaled: Array = kept * (f * f)
    return scaled
