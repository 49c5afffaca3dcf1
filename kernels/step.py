"""One token for chosen rows of a pool of states, in place (math.md 1).

    S[slot] <- (I - k e^T) Diag(exp g) S[slot] + k z^T
    o        = scale * S[slot]^T q                         e = m b k,  z = m w v

Inference only: no gradient flows through the pool. Each row is computed by products and sums of its own elements, so
its bits depend neither on the other rows of the call nor on its place among them.

| symbol | shape | range |
|---|---|---|
| pool | [S,H,K,V] | float32, or float64 |
| slots | [N] | int64, unique, in [0, S) |
| q, k, e, g | [N,H,K] | as in reference.py |
| z, o | [N,H,V] | |
"""

from __future__ import annotations

from torch import Tensor

from tsgdn2.kernels.reference import advance


def delta_step(
    pool: Tensor, slots: Tensor, q: Tensor, k: Tensor, e: Tensor, z: Tensor, g: Tensor, *, scale: float
) -> Tensor:
    """Advance pool[slots] by one token and return the read o [N,H,V] in the pool's dtype; the pool changes in place.

    q, k, e and z come in the pool's dtype. The arguments are taken as checked: `ops.gdn2_step` is the public door. A
    row with e = z = g = 0 keeps its state bit for bit. Source: math.md 1.
    """
    if g.dtype != pool.dtype:
        g = g.to(pool.dtype)
    state_NHKV, o_NHV = advance(pool.index_select(0, slots), q, k, e, z, g)
    pool.index_copy_(0, slots, state_NHKV)
    return o_NHV.mul_(scale)
