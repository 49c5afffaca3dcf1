"""What the arguments of the public functions must be; whatever is not raises ValueError naming the argument.

Shapes, dtypes and devices are checked on every call, offsets and slots whenever they have changed. Values of large
tensors (gates and mask in [0,1], g <= 0, unit keys) are not: that would read every tensor once more on the hot path.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

FEW = 256  # slots
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float64 for float64 inputs, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensor(
    name: str,
    x: object,
    letters: str,
    shape: Sequence[int],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> None:
    """Raise ValueError unless x is a tensor of this shape (`letters` names its axes), of a listed dtype, on device."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor [{letters}]; got {type(x).__name__}")
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape [{letters}] = {tuple(shape)}; got {tuple(x.shape)}")
    if x.dtype not in dtypes:
        allowed = ", ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name} must have dtype {allowed}; got {x.dtype}; convert it with .to()")
    if x.device != device:
        raise ValueError(f"{name} must be on {device}, where q is; got {x.device}; move it with .to()")


def check_inputs(rank: str, tensors: dict[str, object]) -> None:
    """Check the token tensors of a scan (rank "BTH") or of a step (rank "NH"); the first of them is q.

    q fixes the leading sizes, K, device and dtype; v or z fixes V. Every tensor has q's dtype, but g may be float32
    beside half-precision inputs.
    """
    q = tensors["q"]
    letters = ",".join(rank)
    if not isinstance(q, Tensor) or q.ndim != len(rank) + 1:
        came = tuple(q.shape) if isinstance(q, Tensor) else type(q).__name__
        raise ValueError(f"q must be a tensor of {len(rank) + 1} axes [{letters},K]; got {came}")
    if q.dtype not in FLOATS:
        raise ValueError(f"q must have dtype {', '.join(str(d) for d in FLOATS)}; got {q.dtype}; convert it with .to()")
    if any(size == 0 for axis, size in zip((*rank, "K"), q.shape, strict=True) if axis not in "TN"):
        raise ValueError(f"q must have at least one element on each axis of [{letters},K] but T; got {tuple(q.shape)}")
    committed_name = "z" if "z" in tensors else "v"
    committed = tensors[committed_name]
    if not isinstance(committed, Tensor) or committed.ndim != q.ndim or committed.shape[-1] == 0:
        check_tensor(committed_name, committed, f"{letters},V", (*q.shape[:-1], 1), (q.dtype,), q.device)
    assert isinstance(committed, Tensor)
    value_shape = (*q.shape[:-1], committed.shape[-1])
    for name, x in tensors.items():
        axis, shape = ("V", value_shape) if name in ("v", "w", "z") else ("K", q.shape)
        if isinstance(x, Tensor) and x.shape == shape and x.dtype == q.dtype and x.device == q.device:
            continue
        wider = (state_dtype(q.dtype),) if name == "g" and q.dtype != state_dtype(q.dtype) else ()
        check_tensor(name, x, f"{letters},{axis}", shape, (q.dtype, *wider), q.device)


def check_mask(mask: object, letters: str, q: Tensor) -> None:
    """Raise ValueError unless mask is None, or one weight per token of q: any float dtype, or bool."""
    if mask is not None:
        check_tensor("mask", mask, letters, q.shape[:-2], (*FLOATS, torch.bool), q.device)


def checked_scale(scale: object, keys: int) -> float:
    """The scale of the reads: K^-1/2 for None."""
    if scale is None:
        return float(keys**-0.5)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, or None for K^-1/2; got {scale!r}")
    return float(scale)


def check_offsets(cu_seqlens: object, q: Tensor) -> None:
    """Raise ValueError unless cu_seqlens is None, or offsets [N+1] that cut T tokens of one row into N sequences."""
    if cu_seqlens is None:
        return
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        came = tuple(cu_seqlens.shape) if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise ValueError(f"cu_seqlens must be a tensor [N+1] of offsets, N >= 1; got {came}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens must have dtype torch.int32 or torch.int64; got {cu_seqlens.dtype}")
    if q.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs sequences packed in one row, B = 1; got B = {q.shape[0]}")
    if _unread(cu_seqlens, "tokens", q.shape[1]):
        bounds: list[int] = cu_seqlens.tolist()
        if bounds[0] != 0 or bounds[-1] != q.shape[1] or any(b < a for a, b in pairwise(bounds)):
            raise ValueError(f"cu_seqlens must start at 0, never fall, and end at T = {q.shape[1]}; got {bounds}")
        _remember(cu_seqlens, "tokens", q.shape[1])


def check_slots(slots: object, rows: int, pool: Tensor) -> None:
    """Raise ValueError unless slots are distinct rows of the pool, one per token."""
    check_tensor("slots", slots, "N", (rows,), (torch.int64, torch.int32), pool.device)
    assert isinstance(slots, Tensor)
    if not _unread(slots, "pool", pool.shape[0]):
        return
    if rows <= FEW:  # a list is quicker to look at than operators are to call
        chosen: list[int] = slots.tolist()
        inside = not chosen or 0 <= min(chosen) <= max(chosen) < len(pool)
        unique = len(set(chosen)) == len(chosen)
    else:
        ordered = slots.sort().values
        inside = 0 <= int(ordered[0]) <= int(ordered[-1]) < len(pool)
        unique = bool((ordered[1:] != ordered[:-1]).all())
    if not inside:
        raise ValueError(f"slots must lie in [0, {len(pool)}), the rows of pool; got {slots.tolist()}")
    if not unique:
        raise ValueError(f"slots must be unique, one token per state and call; got {slots.tolist()}")
    _remember(slots, "pool", pool.shape[0])


_read: MutableMapping[Tensor, tuple[int, str, int]] = WeakIdKeyDictionary()
"""The version at which a tensor of a GPU was last read and found right, for what, and of which size."""


def _unread(x: Tensor, purpose: str, size: int) -> bool:
    """Whether the values of x should be read now.

    Reading them from a GPU waits for it, so a tensor that was found right and has not changed is not read again, and
    nothing can be read while a graph is traced or captured (and a size that is looked at would be compiled in).
    """
    if torch.compiler.is_compiling():
        return False
    if x.device.type == "cpu":
        return True
    if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False
    return x.is_inference() or _read.get(x) != (x._version, purpose, size)


def _remember(x: Tensor, purpose: str, size: int) -> None:
    if x.device.type != "cpu" and not x.is_inference():
        _read[x] = (x._version, purpose, size)
