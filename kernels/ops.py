"""The public functions of the room: they check, apply the gates, choose a path, and say why on failure.

    gdn2_scan: e = m b k, z = m w v, then delta_scan:
    S_t = (I - k_t e_t^T) Diag(exp g_t) S_{t-1} + k_t z_t^T          o_t = scale * S_t^T q_t

Paths built here: `reference` (token by token, the truth) and `chunked` (plain torch, any device). `auto` takes the
faster one by length alone, so that equal shapes always give equal bits. The values of gates and mask are not checked.

| symbol | shape | range |
|---|---|---|
| q, k | [B,T,H,K] | L2-normalised by the caller |
| v | [B,T,H,V] | value |
| g | [B,T,H,K] | natural log of the decay, <= 0 |
| b, w | [B,T,H,K], [B,T,H,V] | erase and write gate, [0,1] |
| mask m | [B,T] | observed fraction, [0,1]; multiplies both gates |
| S | [B,H,K,V] | float32; float64 for float64 inputs |
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from tsgdn2.kernels import chunked, reference
from tsgdn2.kernels.contract import (
    check_inputs,
    check_mask,
    check_slots,
    check_tensor,
    checked_bounds,
    checked_scale,
    state_dtype,
)
from tsgdn2.kernels.step import delta_step

BACKENDS = ("auto", "reference", "chunked")
CHUNKED_FROM = 16  # tokens; shorter scans are faster token by token (README, measured)
_LARGE = 1 << 14


def gdn2_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan the Gated DeltaNet-2 recurrence over whole sequences; differentiable in every tensor, once by `chunked`.

    q, k, g, b [B,T,H,K]; v, w [B,T,H,V]; mask [B,T]; initial_state [B,H,K,V] or None for zero. With cu_seqlens [N+1]
    (offsets of N sequences packed in one row) B must be 1 and states are [N,H,K,V]. Returns o [B,T,H,V] in v's dtype
    and the final state. Where the mask is 0, nothing is erased or written whatever k, v, b and w hold, NaN included; q
    may still read there (a non-finite q counts as 0). Raises ValueError naming the argument. Source: math.md 1, 2.
    """
    check_inputs("BTH", {"q": q, "k": k, "v": v, "g": g, "b": b, "w": w})
    check_mask(mask, "B,T", q)
    dtype = v.dtype
    q, k, e, z = _gated(q, k, v, b, w, mask)
    o, final_state = _scan(q, k, e, z, g, scale, initial_state, cu_seqlens, backend)
    return o.to(dtype), final_state


def delta_scan(
    q: Tensor,
    k: Tensor,
    e: Tensor,
    z: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan with erase address e [B,T,H,K] and committed value z [B,T,H,V] given; one scan for the whole delta family.

    The other arguments and the results are those of gdn2_scan, o in z's dtype. Raises ValueError naming the argument.
    Source: math.md 1 (table of mixers).
    """
    check_inputs("BTH", {"q": q, "k": k, "e": e, "z": z, "g": g})
    return _scan(q, k, e, z, g, scale, initial_state, cu_seqlens, backend)


@torch.no_grad()
def gdn2_step(
    pool: Tensor,
    slots: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Advance pool[slots] by one token in place and return its reads; for inference, no gradient is recorded.

    pool [S,H,K,V] in the state's dtype; slots [N] distinct rows of it; q, k, g, b [N,H,K]; v, w [N,H,V]; mask [N].
    Returns o [N,H,V] in v's dtype. mask = 0 with g = 0 leaves a state bit for bit as it was, whatever the other inputs
    hold, and a row's bits do not depend on the other rows. Raises ValueError naming the argument, before anything is
    changed. Source: math.md 1.
    """
    check_inputs("NH", {"q": q, "k": k, "v": v, "g": g, "b": b, "w": w})
    check_mask(mask, "N", q)
    if not isinstance(pool, Tensor) or pool.ndim != 4:
        came = tuple(pool.shape) if isinstance(pool, Tensor) else type(pool).__name__
        raise ValueError(f"pool must be a tensor of 4 axes [S,H,K,V]; got {came}")
    check_tensor("pool", pool, "S,H,K,V", (len(pool), *k.shape[1:], v.shape[2]), (state_dtype(q.dtype),), q.device)
    check_slots(slots, len(q), pool)
    number = checked_scale(scale, q.shape[-1])
    _check_backend(backend, ("auto", "reference"))
    q, k, e, z = _gated(q, k, v, b, w, mask)
    return delta_step(pool, slots, q, k, e, z, g, scale=number).to(v.dtype)


def _scan(
    q: Tensor,
    k: Tensor,
    e: Tensor,
    z: Tensor,
    g: Tensor,
    scale: float | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Check what both scans share and run the chosen path."""
    B, T, H, K = q.shape
    number = checked_scale(scale, K)
    bounds = checked_bounds(cu_seqlens, q)
    _check_backend(backend, BACKENDS)
    sequences, letters = (B, "B,H,K,V") if bounds is None else (len(bounds) - 1, "N,H,K,V")
    dtype = state_dtype(q.dtype)
    if initial_state is None:
        initial_state = q.new_zeros(sequences, H, K, z.shape[-1], dtype=dtype)
    check_tensor("initial_state", initial_state, letters, (sequences, H, K, z.shape[-1]), (dtype,), q.device)
    if T == 0:
        return torch.zeros_like(z), initial_state.clone()
    longest = T if bounds is None else max(b - a for a, b in pairwise(bounds))
    by_chunks = backend == "chunked" or (backend == "auto" and longest >= CHUNKED_FROM)
    path = chunked.delta_scan if by_chunks else reference.delta_scan
    return path(q, k, e, z, g, scale=number, initial_state=initial_state, bounds=bounds)


def _gated(
    q: Tensor, k: Tensor, v: Tensor, b: Tensor, w: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q, k, e = m b k and z = m w v, in the state's dtype; unobserved tokens are emptied before any product."""
    dtype = state_dtype(q.dtype)
    if q.dtype != dtype:
        q, k, v, b, w = (x.to(dtype) for x in (q, k, v, b, w))
    if mask is None:
        return q, k, b * k, w * v
    m = mask.to(dtype)[..., None, None]
    seen = m != 0
    if q.device.type != "cpu" or not bool(seen.all()):
        k, v, b, w = (x if _finite(x) else torch.where(seen, x, 0.0) for x in (k, v, b, w))
        q = q if _finite(q) else torch.where(seen, q, torch.nan_to_num(q, posinf=0.0, neginf=0.0))
    return q, k, b * (m * k), w * (m * v)


def _finite(x: Tensor) -> bool:
    """Whether x is known to hold no NaN and no infinity, so that a weight of 0 needs no help.

    Worth asking only of large tensors on the CPU, where a sum costs less than a second copy and its gradient.
    """
    return x.device.type == "cpu" and x.numel() >= _LARGE and bool(torch.isfinite(x.detach().sum()))


def _check_backend(backend: str, allowed: tuple[str, ...]) -> None:
    if backend not in allowed:
        raise ValueError(f"backend must be one of {', '.join(allowed)} (those available here); got {backend!r}")
