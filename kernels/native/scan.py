"""The scan and the step in native code: what is allocated, what autograd saves, and the operators of torch.

    forward  keeps S every CHUNK tokens and u_t = z_t - S_t'^T e_t (S' decayed) of every token
    backward makes the other states again from them, chunk by chunk from the last

Memory for a backward is O(T (K + V) + T / CHUNK K V). One pass reads the inputs, applies the gates and writes the
reads; e and z are never tensors. The limit: CPUs, float32 and float64, differentiable once. abi.h has the interface,
forward.hpp and panels.hpp have the equations.
"""

from __future__ import annotations

import ctypes
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tsgdn2.kernels.contract import check_offsets, check_slots
from tsgdn2.kernels.native.library import CHUNK, COLUMNS, Scan, Step, check, library, target
from tsgdn2.kernels.native.library import refusal as missing

PARALLEL = 32  # items of work worth having; fewer sequences and heads than that are cut over V too

library()  # loaded here, once, so that a graph that is traced finds it


def refusal(device: torch.device) -> str | None:
    """Why the native path cannot run on tensors of this device; None where it can."""
    if device.type != "cpu":
        return f"it needs tensors on the CPU, these are on {device}; move them with .cpu()"
    return missing()


def columns_of(sequences: int, heads: int, values: int) -> int:
    """Columns of V in one item of work: COLUMNS or all. Neither this nor the number of threads changes a bit."""
    return values if values <= COLUMNS or sequences * heads >= PARALLEL else COLUMNS


# Not torch.library.custom_op: its first call imports the compiler and Triton, a second that a CPU need not wait.
_OPERATORS = torch.library.Library("tsgdn2", "FRAGMENT")
_INPUTS = (
    "Tensor q, Tensor k, Tensor erase, Tensor value, Tensor? write, Tensor g, Tensor? mask, Tensor initial_state, "
    "Tensor? cu_seqlens, float scale"
)


def forward(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    value: Tensor,
    write: Tensor | None,
    g: Tensor,
    mask: Tensor | None,
    initial_state: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """O [B,T,H,V], final state [N,H,K,V], and with `keep` u [B,T,H,V] and the states kept for the backward.

    With `write` None, `erase` is e and `value` is z; otherwise they are b and v. All tensors are of one dtype (float32
    or float64), checked (ops.py) and contiguous; cu_seqlens is int64. Source: math.md 1.
    """
    check_offsets(cu_seqlens, q)  # a traced graph has not read them, and they say where memory is written
    o, final, u, checkpoints = _forward_shapes(
        q, k, erase, value, write, g, mask, initial_state, cu_seqlens, scale, keep
    )
    call = _call(q, value, cu_seqlens, scale)
    _point(call, q=q, k=k, erase=erase, value=value, write=write, g=g, mask=mask, initial=initial_state)
    _point(call, offsets=cu_seqlens, o=o, final=final)
    if keep:
        _point(call, u=u, checkpoints=checkpoints)
    check(_loaded().tsgdn2_forward(ctypes.byref(call), target()))
    return o, final, u, checkpoints


def backward(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    value: Tensor,
    write: Tensor | None,
    g: Tensor,
    mask: Tensor | None,
    initial_state: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    u: Tensor,
    checkpoints: Tensor,
    d_o: Tensor,
    d_final: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, erase, value, write (empty when None), g and the initial state. Source: panels.hpp."""
    call = _call(q, value, cu_seqlens, scale)
    parts = -(-call.values // call.columns)
    by_keys = [torch.empty((parts, *q.shape), dtype=q.dtype) for _ in range(4)]
    d_value, d_initial = torch.empty_like(value), torch.empty_like(initial_state)
    d_write = value.new_empty(0) if write is None else torch.empty_like(write)
    _point(call, q=q, k=k, erase=erase, value=value, write=write, g=g, mask=mask, initial=initial_state)
    _point(call, offsets=cu_seqlens, u=u, checkpoints=checkpoints, d_o=d_o, d_final=d_final)
    _point(call, **dict(zip(("dq", "dk", "d_erase", "dg"), by_keys, strict=True)))
    _point(call, d_value=d_value, d_write=None if write is None else d_write, d_initial=d_initial)
    check(_loaded().tsgdn2_backward(ctypes.byref(call), target()))
    # In order, as one item adds them; a copy, because the parts should not live as long as their sum.
    dq, dk, d_erase, dg = (x[0] if parts == 1 else reduce(Tensor.add_, x.unbind()).clone() for x in by_keys)
    return dq, dk, d_erase, d_value, d_write, dg, d_initial


def step(
    pool: Tensor,
    slots: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Advance pool[slots] by one token in place; returns o [N,H,V] in the pool's dtype.

    pool [S,H,K,V] contiguous; the other tensors [N,...] are brought to its dtype. Arguments are taken as checked
    (ops.py). Source: math.md 1.
    """
    chosen = slots if slots.dtype == torch.int64 and slots.is_contiguous() else slots.to(torch.int64).contiguous()
    if not pool.is_contiguous():
        states = pool.index_select(0, chosen)
        o = step(states, torch.arange(len(chosen)), q, k, v, g, b, w, mask, scale)
        pool.index_copy_(0, chosen, states)
        return o
    N, H, K = q.shape
    o = torch.empty(v.shape, dtype=pool.dtype)
    rows = [
        x if x is None or (x.dtype == pool.dtype and x.is_contiguous()) else x.to(pool.dtype).contiguous()
        for x in (q, k, b, v, w, g, mask)
    ]
    call = Step(
        N, H, K, v.shape[-1], pool.element_size(), torch.get_num_threads(), scale, chosen.data_ptr(),
        *(None if x is None else x.data_ptr() for x in rows), pool.data_ptr(), o.data_ptr(),
    )  # fmt: skip
    check(_loaded().tsgdn2_advance(ctypes.byref(call), target()))
    return o


def _traced_step(pool: Tensor, slots: Tensor, q: Tensor, *rest: Any) -> Tensor:
    check_slots(slots, len(q), pool)  # as above
    return step(pool, slots, q, *rest)


def _call(q: Tensor, value: Tensor, cu_seqlens: Tensor | None, scale: float) -> Scan:
    B, T, H, K = q.shape
    V = value.shape[-1]
    sequences = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    threads, columns = torch.get_num_threads(), columns_of(sequences, H, V)
    return Scan(sequences, T, H, K, V, q.element_size(), threads, columns, scale)


def _point(call: Scan | Step, **tensors: Tensor | None) -> None:
    for name, x in tensors.items():
        setattr(call, name, None if x is None else x.data_ptr())


def _loaded() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise RuntimeError(f"the native path was traced where it could run, and cannot here: {missing()}")
    return loaded


def _forward_shapes(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    value: Tensor,
    write: Tensor | None,
    g: Tensor,
    mask: Tensor | None,
    initial_state: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del k, erase, write, g, mask, scale
    B, T = q.shape[:2]
    # Packed: sequence n begins at checkpoint cu_seqlens[n] // CHUNK + n, whatever the lengths.
    points = B * -(-T // CHUNK) if cu_seqlens is None else T // CHUNK + cu_seqlens.shape[0] - 1
    u = torch.empty_like(value) if keep else value.new_empty(0)
    shape = (points, *initial_state.shape[1:]) if keep else (0,)
    # Packed sequences leave some unwritten: zeros, so that equal calls have equal results.
    checkpoints = initial_state.new_empty(shape) if cu_seqlens is None else initial_state.new_zeros(shape)
    return torch.empty_like(value), torch.empty_like(initial_state), u, checkpoints


def _gradient_shapes(
    q: Tensor, k: Tensor, erase: Tensor, value: Tensor, write: Tensor | None, g: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    d_write = value.new_empty(0) if write is None else torch.empty_like(write)
    first = (torch.empty_like(x) for x in (q, k, erase, value))
    return (*first, d_write, torch.empty_like(g), torch.empty_like(rest[1]))


def _step_shapes(pool: Tensor, slots: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    del slots, q, k
    return v.new_empty(v.shape, dtype=pool.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.keep = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_o: Tensor | None, d_final: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if not ctx.keep:
        raise RuntimeError("native_forward kept nothing for a backward; call it with keep=True")
    *tensors, u, checkpoints = ctx.saved_tensors
    d_o = torch.zeros_like(tensors[3]) if d_o is None else d_o.contiguous()
    d_final = torch.zeros_like(tensors[7]) if d_final is None else d_final.contiguous()
    dq, dk, de, dv, dw, dg, dinitial = torch.ops.tsgdn2.native_backward(
        *tensors, ctx.scale, u, checkpoints, d_o, d_final
    )
    return dq, dk, de, dv, None if tensors[4] is None else dw, dg, None, dinitial, None, None, None


def _refuse(ctx: Any, *_: Tensor | None) -> None:
    del ctx
    raise RuntimeError("the native scan is differentiable once; use backend='reference' for a second derivative")


_OPERATORS.define(f"native_forward({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)")
_OPERATORS.define(
    f"native_backward({_INPUTS}, Tensor u, Tensor checkpoints, Tensor d_o, Tensor d_final) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_OPERATORS.define(
    "native_step(Tensor(a!) pool, Tensor slots, Tensor q, Tensor k, Tensor v, Tensor g, Tensor b, Tensor w, "
    "Tensor? mask, float scale) -> Tensor"
)
for _name, _run, _shapes in (
    ("native_forward", forward, _forward_shapes),
    ("native_backward", backward, _gradient_shapes),
    ("native_step", _traced_step, _step_shapes),
):
    _OPERATORS.impl(_name, _run, "CPU")
    torch.library.register_fake(f"tsgdn2::{_name}", _shapes, lib=_OPERATORS)
torch.library.register_autograd("tsgdn2::native_forward", _differentiate, setup_context=_save, lib=_OPERATORS)
torch.library.register_autograd("tsgdn2::native_backward", _refuse, lib=_OPERATORS)
