"""The public functions of the room: they check, apply the gates, choose a path, and say why on failure.

    gdn2_scan: e = m b k, z = m w v, then delta_scan:
    S_t = (I - k_t e_t^T) Diag(exp g_t) S_{t-1} + k_t z_t^T          o_t = scale * S_t^T q_t

Paths: `reference` (token by token, the truth), `chunked` (plain torch, any device), `triton` (GPUs), `native` (CPUs).
`auto` takes triton on a GPU that it runs on and native on a CPU; where they cannot run, the faster of the two in torch
by length alone: equal shapes give equal bits. The values of gates and mask are not checked.

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
from types import ModuleType

import torch
from torch import Tensor

from tsgdn2.kernels import chunked, reference
from tsgdn2.kernels.contract import (
    check_inputs,
    check_mask,
    check_offsets,
    check_slots,
    check_tensor,
    checked_scale,
    state_dtype,
)
from tsgdn2.kernels.gpu.device import refusal
from tsgdn2.kernels.native import scan as native
from tsgdn2.kernels.native.library import announce
from tsgdn2.kernels.step import delta_step

BACKENDS = ("auto", "reference", "chunked", "triton", "native")
WIDEST = 256  # K and V of the Triton path
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
    """Scan the Gated DeltaNet-2 recurrence over whole sequences; differentiable in every tensor, by most paths once.

    q, k, g, b [B,T,H,K]; v, w [B,T,H,V]; mask [B,T]; initial_state [B,H,K,V] or None for zero. With cu_seqlens [N+1]
    (offsets of N sequences packed in one row) B must be 1 and states are [N,H,K,V]. Returns o [B,T,H,V] in v's dtype
    and the final state. Where the mask is 0, nothing is erased or written whatever k, v, b and w hold, NaN included; q
    may still read there (a non-finite q counts as 0). Raises ValueError naming the argument. Source: math.md 1, 2.
    """
    check_inputs("BTH", {"q": q, "k": k, "v": v, "g": g, "b": b, "w": w})
    check_mask(mask, "B,T", q)
    return _scan(q, k, b, v, w, g, mask, scale, initial_state, cu_seqlens, backend)


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
    return _scan(q, k, e, z, None, g, None, scale, initial_state, cu_seqlens, backend)


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
    path = _path(backend, ("auto", "reference", "triton", "native"), q, v.shape[-1])
    if path == "native":
        advance = torch.ops.tsgdn2.native_step if torch.compiler.is_compiling() else native.step
        read: Tensor = advance(pool, slots, q, k, v, g, b, w, mask, number)
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(pool)  # what was saved of it for a backward is no longer there
        return read.to(v.dtype)
    if path == "triton":
        recurrent = _gpu().recurrent
        if torch.compiler.is_compiling():
            traced: Tensor = recurrent.recurrent_step(pool, slots, q, k, v, g, b, w, mask=mask, scale=number)
            return traced
        o: Tensor = recurrent.step(pool, slots, q, k, v, g, b, w, mask=mask, scale=number)
        torch.autograd.graph.increment_version(pool)  # what was saved of it for a backward is no longer there
        return o
    q, k, e, z = _gated(q, k, v, b, w, mask)
    return delta_step(pool, slots, q, k, e, z, g, scale=number).to(v.dtype)


def _scan(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    write: Tensor | None,
    g: Tensor,
    mask: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Check what both scans share and run the chosen path; with `write` None, erase is e and v is z."""
    B, T, H, K = q.shape
    V = v.shape[-1]
    number = checked_scale(scale, K)
    check_offsets(cu_seqlens, q)
    path = _path(backend, BACKENDS, q, V)
    sequences, letters = (B, "B,H,K,V") if cu_seqlens is None else (cu_seqlens.shape[0] - 1, "N,H,K,V")
    dtype = state_dtype(q.dtype)
    if initial_state is None:
        initial_state = q.new_zeros(sequences, H, K, V, dtype=dtype)
    check_tensor("initial_state", initial_state, letters, (sequences, H, K, V), (dtype,), q.device)
    if T == 0:
        return torch.zeros_like(v), initial_state.clone()
    if path == "triton" and cu_seqlens is not None and cu_seqlens.device != q.device:
        raise ValueError(f"cu_seqlens must be on {q.device}, where q is; got {cu_seqlens.device}; move it with .to()")
    if path == "triton" and (mask is None or not mask.requires_grad):
        scan = _gpu().scan_forward
        weights = None if mask is None else mask.to(torch.float32).contiguous()
        tokens = [None if x is None else x.contiguous() for x in (q, k, erase, v, write, g)]
        o, final_state, _, _ = scan(*tokens, weights, initial_state.contiguous(), cu_seqlens, number)
        return o, final_state
    out_dtype = v.dtype
    if path == "native" and (mask is None or not mask.requires_grad):
        tokens = [None if x is None else x.to(dtype).contiguous() for x in (q, k, erase, v, write, g, mask)]
        initial_state = initial_state.contiguous()
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*tokens, initial_state))
        offsets = None if cu_seqlens is None else cu_seqlens.to(device=q.device, dtype=torch.int64).contiguous()
        o, final_state, _, _ = torch.ops.tsgdn2.native_forward(*tokens, initial_state, offsets, number, keep)
        return o.to(out_dtype), final_state
    if write is not None:
        q, k, erase, v = _gated(q, k, v, erase, write, mask)
    if path in ("triton", "native"):  # a mask with a gradient: the gates are applied above, where autograd sees them
        o, final_state = _scan(q, k, erase, v, None, g, None, number, initial_state, cu_seqlens, path)
        return o.to(out_dtype), final_state
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    longest = T if bounds is None else max(b - a for a, b in pairwise(bounds))
    by_chunks = path == "chunked" or (path == "auto" and longest >= CHUNKED_FROM)
    run = chunked.delta_scan if by_chunks else reference.delta_scan
    o, final_state = run(q, k, erase, v, g, scale=number, initial_state=initial_state, bounds=bounds)
    return o.to(out_dtype), final_state


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


def _path(backend: str, allowed: tuple[str, ...], q: Tensor, V: int) -> str:
    """The backend asked for; for auto the one made for q's device, or `auto` itself where that cannot run.

    Raises ValueError where the one asked for cannot run.
    """
    if backend not in allowed:
        raise ValueError(f"backend must be one of {', '.join(allowed)}; got {backend!r}")
    if backend == "native" or (backend == "auto" and q.device.type == "cpu"):
        reason = native.refusal(q.device)
        if reason is None:
            return "native"
        if backend == "auto" and not torch.compiler.is_compiling():
            announce()
    elif backend == "triton" or (backend == "auto" and q.device.type == "cuda"):
        reason = refusal(q.device)
        if reason is None and q.dtype == torch.float64:
            reason = "q must be float32, bfloat16 or float16 for it, got float64; use backend='chunked' or convert"
        if reason is None and max(q.shape[-1], V) > WIDEST:
            reason = f"K and V must be at most {WIDEST} for it, got {q.shape[-1]} and {V}; use backend='chunked'"
        if reason is None:
            return "triton"
    else:
        return backend
    if backend != "auto":
        raise ValueError(f"backend {backend!r} cannot run here: {reason}")
    return "auto"


def _gpu() -> ModuleType:
    """The Triton path, imported where it first runs: a second that a machine without a GPU need not wait."""
    from tsgdn2.kernels.gpu import scan

    return scan
