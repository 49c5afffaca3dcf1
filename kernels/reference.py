"""The scan token by token: the one truth that every other path is tested against (math.md 1).

    S_t = (I - k_t e_t^T) Diag(exp g_t) S_{t-1} + k_t z_t^T
    o_t = scale * S_t^T q_t

The limit: one Python step per token, and autograd keeps every state, so memory grows with T K V.

| symbol | shape | range |
|---|---|---|
| q, k | [B,T,H,K] | key and query, any size |
| e | [B,T,H,K] | erase address, b * k for GDN-2 |
| z | [B,T,H,V] | committed value, w * v for GDN-2 |
| g | [B,T,H,K] | natural log of the decay, <= 0 |
| S | [B,H,K,V] | float32, float64 for float64 inputs |
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def delta_scan(
    q: Tensor,
    k: Tensor,
    e: Tensor,
    z: Tensor,
    g: Tensor,
    *,
    scale: float,
    initial_state: Tensor,
    bounds: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan token by token; slow, and differentiable any number of times.

    q, k, e, g [B,T,H,K], z [B,T,H,V]; initial_state [B,H,K,V] sets the dtype of the arithmetic and of the final state.
    With `bounds` (N + 1 offsets into T) B is 1 and states are [N,H,K,V]. Returns o [B,T,H,V] in z's dtype and the
    final state. The arguments are taken as checked: `ops.delta_scan` is the public door. Source: math.md 1.
    """
    if bounds is not None:
        parts = [
            delta_scan(*(x[:, a:b] for x in (q, k, e, z, g)), scale=scale, initial_state=initial_state[n : n + 1])
            for n, (a, b) in enumerate(pairwise(bounds))
        ]
        return torch.cat([o for o, _ in parts], 1), torch.cat([state for _, state in parts], 0)
    out_dtype = z.dtype
    q, k, e, z, g = (x.to(initial_state.dtype) for x in (q, k, e, z, g))
    state_BHKV, reads = initial_state, []
    for t in range(q.shape[1]):
        state_BHKV, o_BHV = advance(state_BHKV, q[:, t], k[:, t], e[:, t], z[:, t], g[:, t])
        reads.append(scale * o_BHV)
    o_BTHV = torch.stack(reads, 1) if reads else torch.zeros_like(z)  # a packed sequence may be empty
    return o_BTHV.to(out_dtype), state_BHKV


def advance(state: Tensor, q: Tensor, k: Tensor, e: Tensor, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """One token for a batch of states [B,H,K,V]; returns the new state and the unscaled read [B,H,V].

    Products and sums over K only, each element alone: a row's bits do not depend on the other rows of the batch, which
    a batched matrix product does not promise. A token with e = z = g = 0 returns the state bit for bit.
    """
    decayed_BHKV = torch.exp(g)[..., None] * state
    erased_BHV = (e[..., None] * decayed_BHKV).sum(-2)
    state = decayed_BHKV + k[..., None] * (z - erased_BHV)[..., None, :]
    return state, (q[..., None] * state).sum(-2)
