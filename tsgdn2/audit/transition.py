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

The widest passes go through torch, which is faster there; products and differences are rounded one by one, never
fused, so that the bits of an element do not depend on where it lies.
"""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray

from tsgdn2.audit.slab import FLOATS, SUMS, Slab

Array = NDArray[np.float64]
_DECAY = FLOATS.index("decay")
_ENERGY, _SCALE, _BOUND, _RESIDUAL, _SWELL = (
    SUMS.index(name) for name in ("energy", "scale", "bound", "residual", "swell")
)
_TERMS = tuple(SUMS.index(name) for name in ("decay", "erase", "write", "interaction"))
_TINY = 1e-300


class Workspace:
    """Buffers for updates of B rows, made once: at these sizes making an array costs as much as using it.

    They are numpy's, because a torch buffer made under inference mode could not be used outside it.
    """

    def __init__(self, rows: int, slab: Slab) -> None:
        K, M = slab.shadow.shape[-2:]
        dtype = slab.shadow.dtype
        self.row = np.arange(rows)
        self.scratch: Array = np.empty((rows, K, M), dtype)
        self.block: Array = np.empty((rows, K, 3, K), dtype)
        self.pair: Array = np.empty((rows, 2, K), dtype)
        self.weight: Array = np.ones((rows, 2, K), dtype)
        self.born_ints = np.tile(np.array(slab.empty_ints), (rows, 1))
        self.born_floats: Array = np.zeros((rows, len(FLOATS)))

    def first(self, rows: int) -> Workspace:
        """The same buffers for fewer rows: one workspace serves every size, so that none is kept for each."""
        part = copy(self)
        for name, array in vars(self).items():
            setattr(part, name, array[:rows])
        return part


def add_age(X: Array, slab: Slab, elapsed: Array, work: Workspace) -> None:
    """aged <- aged + elapsed C, elapsed [B]: time passes for what is there before the token moves it."""
    T = torch.from_numpy(X)
    grown = torch.mul(
        T[:, :, slab.C],
        torch.from_numpy(elapsed)[:, None, None],
        out=torch.from_numpy(work.scratch)[:, :, : slab.key_dim],
    )
    T[:, :, slab.aged].add_(grown)


def left_side(X: Array, k: Array, u: Array, work: Workspace) -> None:
    """X <- X - k u, u [B,M]."""
    outer = torch.mul(
        torch.from_numpy(k)[:, :, None], torch.from_numpy(u)[:, None, :], out=torch.from_numpy(work.scratch)
    )
    torch.from_numpy(X).sub_(outer)


def right_side(X: Array, slab: Slab, alpha: Array, e: Array, k: Array, value: Array, work: Workspace) -> None:
    """Finish C <- P C P^T + w k k^T for the three aggregates, w = 1, 0 (a new write has no age) and |z|^2."""
    rows, K = k.shape
    aggregates = torch.from_numpy(X)[:, :, slab.C.start :].view(rows, K, 3, K)
    block = torch.mul(aggregates, torch.from_numpy(alpha)[:, None, None, :], out=torch.from_numpy(work.block))
    rest: Array = np.matmul(work.block.reshape(rows, 3 * K, K), e[:, :, None]).reshape(rows, K, 3)
    rest[:, :, 0] -= k
    rest[:, :, 2] -= k * value[:, None]
    # The aggregates' place is free until the sum is written: it holds the outer product meanwhile.
    torch.mul(torch.from_numpy(rest)[..., None], torch.from_numpy(k)[:, None, None, :], out=aggregates)
    torch.sub(block, aggregates, out=aggregates)


def book(
    sums: Array, energy: Array, decay: Array, erase: Array, u: Array, p: Array, z: Array, size: Array, value: Array
) -> None:
    """Add one token to the ledger of the state; energy, decay, erase [B,V] by column."""
    before, lost, erased = energy.sum(-1), decay.sum(-1), erase.sum(-1)
    before, lost, erased = before.astype(np.float64), lost.astype(np.float64), erased.astype(np.float64)
    write = size[:, 0] * value
    mixed = 2 * (z * (p - size * u)).sum(-1)
    # The last token's prediction against the state that this token met: the only independent check there is.
    residual, swell = sums[:, _RESIDUAL], sums[:, _SWELL]
    np.fmax(residual, np.abs(before - sums[:, _ENERGY]) / np.maximum(sums[:, _SCALE], before), out=residual)
    moved = before - lost - erased
    swell += 0.5 * np.log(np.maximum(moved, _TINY) / np.maximum(before, _TINY))
    np.maximum(swell, 0.0, out=swell)
    sums[:, _ENERGY] = moved + write + mixed
    sums[:, _SCALE] = before + write
    for column, amount in zip(_TERMS, (lost, erased, write, mixed), strict=True):
        sums[:, column] += amount


def bound(X: Array, slab: Slab, sums: Array, floats: Array, kept: Array, factor: Array) -> Array:
    """Multiply the state by factor [B] after the write, booked as decay; returns what is kept of each tracked write."""
    f = factor[:, None]
    X[:, :, : slab.C.start] *= f[:, :, None]
    X[:, :, slab.C.start :] *= (f * f)[:, :, None]
    lost = 1.0 - f.astype(np.float64) ** 2
    floats[:, _DECAY] += lost * kept
    taken = lost[:, 0] * sums[:, _ENERGY]
    sums[:, _TERMS[0]] += taken
    sums[:, _BOUND] += taken
    sums[:, _ENERGY] -= taken
    sums[:, _SWELL] = np.maximum(sums[:, _SWELL] + np.log(np.maximum(factor, _TINY)), 0.0)
    scaled: Array = kept * (f * f)
    return scaled
