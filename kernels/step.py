"""One token for chosen rows of a pool of states, in place (math.md 1).

    S[slot] <- (I - k e^T) Diag(exp g) S[slot] + k z^T
    o        = scale * S[slot]^T q                         e = m b k,  z = m w v

Inference only: no gradient flows through the pool. The arithmetic is that of reference.advance in two buffers: products
and sums of a row's own elements, so its bits depend neither on the other rows of the call nor on its place among them.

| symbol | shape | range |
|---|---|---|
| pool | [S,H,K,V] | float32, or float64 |
| slots | [N] | int64, unique, in [0, S) |
| q, k, e, g | [N,H,K] | as in reference.py |
| z, o | [N,H,V] | |
"""

from __future__ import annotations

import torch
from torch import Tensor


def delta_step(
    pool: Tensor, slots: Tensor, q: Tensor, k: Tensor, e: Tensor, z: Tensor, g: Tensor, *, scale: float
) -> Tensor:
    """Advance pool[slots] by one token and return the read o [N,H,V] in the pool's dtype; the pool changes in place.

    q, k, e and z come in the pool's dtype. The arguments are taken as checked: `ops.gdn2_step` is the public door. A
    row with e = z = g = 0 keeps its state bit for bit. Source: math.md 1.
    """
    if g.dtype != pool.dtype:
        g = g.to(pool.dtype)
    slots = slots.to(torch.int64)
    state_NHKV = pool.index_select(0, slots).mul_(torch.exp(g)[..., None])
    terms_NHKV = e[..., None] * state_NHKV
    change_NHV = z - terms_NHKV.sum(-2)
    state_NHKV.add_(torch.mul(k[..., None], change_NHV[..., None, :], out=terms_NHKV))
    pool.index_copy_(0, slots, state_NHKV)
    return torch.mul(q[..., None], state_NHKV, out=terms_NHKV).sum(-2).mul_(scale)
