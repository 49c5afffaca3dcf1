"""The scan on Triton kernels: what is allocated, which kernels run in which order, and how autograd meets them.

    forward:  blocks -> chunks -> states -> outputs
    backward: blocks, chunks, states again from A and P -> states in reverse -> outputs -> chunks -> blocks

Saved for the backward are the inputs, A and P (128 numbers per token and head); all else is made again. Scans of at
most SHORT tokens run token by token (recurrent.py) and save the inputs alone. Both directions are operators of torch,
so torch.compile sees one node and a CUDA graph captures the launches: nothing here waits for the device. The limit:
differentiable once; float64 is refused by the door (ops.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tsgdn2.kernels.gpu import recurrent
from tsgdn2.kernels.gpu.device import family
from tsgdn2.kernels.gpu.launches import run
from tsgdn2.kernels.gpu.plan import CHUNK, KERNELS, SUBBLOCKS, Plan, chunk_count, sequence_count

SHORT = 16  # tokens; at most one sub-block, most of a chunk's products would be with padding


class Chunks(NamedTuple):
    """What the forward leaves per chunk, [chunks,H,...] each."""

    ep: Tensor
    qp: Tensor
    km: Tensor
    total: Tensor
    A: Tensor
    P: Tensor
    Y: Tensor
    U: Tensor
    Qg: Tensor
    Kt: Tensor
    decay: Tensor
    S: Tensor
    R: Tensor
    final: Tensor


def _launch(plan: Plan, name: str, programs: int, **arguments: Any) -> None:
    run(KERNELS[name], programs, plan.launches[name], {**arguments, **plan.arithmetic})


def _chunkwise(
    plan: Plan,
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    write: Tensor | None,
    g: Tensor,
    mask: Tensor | None,
    initial: Tensor,
    scale: float,
    saved: tuple[Tensor, Tensor] | None,
) -> Chunks:
    """Everything up to the states; with `saved` A and P are taken from there."""
    H, K, V = q.shape[2], plan.keys, plan.values
    tiles = plan.chunks * H

    def fresh(*shape: int, dtype: torch.dtype = q.dtype) -> Tensor:
        return torch.empty(plan.chunks, H, *shape, dtype=dtype, device=q.device)

    fp32 = torch.float32
    A, P = saved if saved is not None else (fresh(CHUNK, CHUNK), fresh(CHUNK, CHUNK))
    solved = A if saved is not None else fresh(CHUNK, CHUNK, dtype=fp32)
    ep, qp, km, Y, Qg, Kt = (fresh(CHUNK, K) for _ in range(6))
    total, decay = fresh(SUBBLOCKS, K, dtype=fp32), fresh(K, dtype=fp32)
    # U in fp32: rounded, it would lose what R keeps where it nearly equals Y S (a tenth of the error of bf16 outputs).
    U, R, S = fresh(CHUNK, V, dtype=fp32), fresh(CHUNK, V), fresh(K, V)
    final = torch.empty_like(initial)
    gates = {"GATED": write is not None, "MASKED": mask is not None}
    launch = plan.launches["blocks_forward"]
    _launch(
        plan, "blocks_forward", tiles * SUBBLOCKS, q=q, k=k, g=g, b=erase, mask=mask, spans=plan.spans, ep=ep, qp=qp,
        km=km, total=total, solved=solved, P=P, scale=scale, keys=K, K=K, BK=launch.tile, PARTS=plan.parts,
        RATIOS=saved is None, **plan.layout, **gates,
    )  # fmt: skip
    launch = plan.launches["chunks_forward"]
    _launch(
        plan, "chunks_forward", tiles, ep=ep, qp=qp, km=km, total=total, solved=solved, P=P, A=A, v=v, w=write,
        mask=mask, spans=plan.spans, Y=Y, U=U, Qg=Qg, Kt=Kt, decay=decay, keys=K, values=V, K=K, V=V, TILE=launch.tile,
        RATIOS=saved is None, SOLVED=plan.solved, **plan.layout, **gates,
    )  # fmt: skip
    launch = plan.launches["states_forward"]
    _launch(
        plan, "states_forward", plan.sequences * H * triton.cdiv(V, launch.tile), Y=Y, U=U, Kt=Kt, decay=decay,
        initial=initial, first_chunk=plan.first_chunk, S=S, R=R, final=final,
        per_sequence=plan.layout["per_sequence"], H=H, PACKED=plan.layout["PACKED"], K=K, V=V,
        keys=K, KEYS=plan.slice(launch), TILE=launch.tile, WIDE=plan.wide,
    )  # fmt: skip
    return Chunks(ep, qp, km, total, A, P, Y, U, Qg, Kt, decay, S, R, final)


_INPUTS = (
    "Tensor q, Tensor k, Tensor erase, Tensor v, Tensor? write, Tensor g, Tensor? mask, Tensor initial_state, "
    "Tensor? cu_seqlens, float scale"
)


@torch.library.custom_op(
    "tsgdn2::scan_forward", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def scan_forward(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    write: Tensor | None,
    g: Tensor,
    mask: Tensor | None,
    initial_state: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """O [B,T,H,V], final state [N,H,K,V], and A and P for the backward (empty after a short scan).

    With `write` None, `erase` is e and `v` is z; otherwise they are b and v and the gates are applied in the kernels.
    Arguments are taken as checked (ops.py) and contiguous, mask float32. Source: math.md 2.
    """
    if is_short(q, cu_seqlens):
        o, final = recurrent.scan(
            q, k, erase, v, write, g, mask, scale=scale, initial_state=initial_state, bounds_tensor=cu_seqlens
        )
        return o, final, q.new_empty(0), q.new_empty(0)
    plan = Plan.of(q, v, cu_seqlens, family(q.device))
    x = _chunkwise(plan, q, k, erase, v, write, g, mask, initial_state, scale, None)
    o = torch.empty_like(v)
    launch = plan.launches["outputs_forward"]
    _launch(
        plan, "outputs_forward", plan.chunks * q.shape[2] * triton.cdiv(plan.values, launch.tile), Qg=x.Qg, P=x.P,
        S=x.S, R=x.R, spans=plan.spans, o=o, K=plan.keys, V=plan.values, BK=min(launch.tile, 64), TILE=launch.tile,
        **plan.layout,
    )  # fmt: skip
    return o, x.final, x.A, x.P


@torch.library.custom_op(
    "tsgdn2::scan_backward",
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor A, Tensor P, Tensor do, Tensor dfinal) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def scan_backward(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    write: Tensor | None,
    g: Tensor,
    mask: Tensor | None,
    initial_state: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    A: Tensor,
    P: Tensor,
    do: Tensor,
    dfinal: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, erase, v, write (empty when None), g and the initial state. Source: math.md 2, backward."""
    plan = Plan.of(q, v, cu_seqlens, family(q.device))
    H, K, V = q.shape[2], plan.keys, plan.values
    tiles = plan.chunks * H
    x = _chunkwise(plan, q, k, erase, v, write, g, mask, initial_state, scale, (A, P) if A.numel() else None)
    gates = {"GATED": write is not None, "MASKED": mask is not None}
    dS, dR, dinitial = torch.empty_like(x.S), torch.empty_like(x.R), torch.empty_like(initial_state)
    launch = plan.launches["states_backward"]
    _launch(
        plan, "states_backward", plan.sequences * H * triton.cdiv(V, launch.tile), Y=x.Y, Qg=x.Qg, Kt=x.Kt,
        decay=x.decay, P=x.P, do=do, dfinal=dfinal, first_chunk=plan.first_chunk, spans=plan.spans, dS=dS, dR=dR,
        dinitial=dinitial, K=K, V=V, keys=K, KEYS=plan.slice(launch), TILE=launch.tile, WIDE=plan.wide, **plan.layout,
    )  # fmt: skip
    dT, dP = torch.empty_like(x.P), torch.empty_like(x.P)
    dE, dQ, dK = torch.empty_like(x.Y), torch.empty_like(x.Y), torch.empty_like(x.Y)
    ddecay, dtotal = torch.empty_like(x.decay), torch.empty_like(x.total)
    dv = torch.empty_like(v)
    dw = torch.empty_like(v) if write is not None else v.new_empty(0)
    launch = plan.launches["outputs_backward"]
    _launch(
        plan, "outputs_backward", tiles, do=do, R=x.R, dR=dR, S=x.S, dS=dS, Y=x.Y, U=x.U, A=x.A, decay=x.decay, v=v,
        w=write, mask=mask, spans=plan.spans, dT=dT, dP=dP, dE=dE, dQ=dQ, dK=dK, ddecay=ddecay, dv=dv, dw=dw, keys=K,
        values=V, K=K, V=V, BK=launch.tile, TILE=launch.tile, **plan.layout, **gates,
    )  # fmt: skip
    # Nothing reads Y, Qg and Kt any more: the gradients of e+, q+ and k- take their place.
    dep, dqp, dkm = x.Y, x.Qg, x.Kt
    launch = plan.launches["chunks_backward"]
    _launch(
        plan, "chunks_backward", tiles * triton.cdiv(K, launch.tile), ep=x.ep, qp=x.qp, km=x.km, total=x.total, dT=dT,
        dP=dP, dE=dE, dQ=dQ, dK=dK, ddecay=ddecay, dep=dep, dqp=dqp, dkm=dkm, dtotal=dtotal, spans=plan.spans,
        depth=CHUNK, K=K, TILE=launch.tile, DEPTH=launch.rows, **plan.layout,
    )  # fmt: skip
    dq, dk, de, dg = (torch.empty_like(y) for y in (q, k, erase, g))
    launch = plan.launches["blocks_backward"]
    _launch(
        plan, "blocks_backward", tiles * SUBBLOCKS * triton.cdiv(K, launch.tile), q=q, k=k, g=g, b=erase, mask=mask,
        spans=plan.spans, dep=dep, dqp=dqp, dkm=dkm, dtotal=dtotal, dT=dT, dP=dP, dq=dq, dk=dk, dg=dg, db=de,
        scale=scale, K=K, BK=launch.tile, PARTS=plan.parts, **plan.layout, **gates,
    )  # fmt: skip
    return dq, dk, de, dv, dw, dg, dinitial


def is_short(q: Tensor, cu_seqlens: Tensor | None) -> bool:
    """Whether sequences hold at most SHORT tokens, on average when they are packed: shapes alone decide."""
    return q.shape[0] * q.shape[1] <= SHORT * sequence_count(q, cu_seqlens)


def _scan_shapes(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    write: Tensor | None,
    g: Tensor,
    mask: Tensor | None,
    initial_state: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del k, erase, write, g, mask, scale
    sizes = [0] if is_short(q, cu_seqlens) else [chunk_count(q, cu_seqlens), q.shape[2], CHUNK, CHUNK]
    return torch.empty_like(v), torch.empty_like(initial_state), q.new_empty(sizes), q.new_empty(sizes)


def _gradient_shapes(
    q: Tensor, k: Tensor, erase: Tensor, v: Tensor, write: Tensor | None, g: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    last = v.new_empty(0) if write is None else torch.empty_like(v)
    return (*(torch.empty_like(x) for x in (q, k, erase, v)), last, torch.empty_like(g), torch.empty_like(rest[1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.set_materialize_grads(False)  # A and P have none, and are as large as any


def _differentiate(ctx: Any, do: Tensor | None, dfinal: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    *tensors, A, P = ctx.saved_tensors
    do = torch.zeros_like(tensors[3]) if do is None else do.contiguous()
    dfinal = torch.zeros_like(tensors[7]) if dfinal is None else dfinal.contiguous()
    dq, dk, de, dv, dw, dg, dinitial = scan_backward(*tensors, ctx.scale, A, P, do, dfinal)
    return dq, dk, de, dv, None if tensors[4] is None else dw, dg, None, dinitial, None, None


scan_forward.register_fake(_scan_shapes)
scan_backward.register_fake(_gradient_shapes)
scan_forward.register_autograd(_differentiate, setup_context=_save)
