"""The scan token by token, state in registers: decoding on a pool of states, and sequences too short for chunks.

    S <- (I - k e^T) Diag(exp g) S + k z^T      o = scale * S^T q      e = m b k,  z = m w v  (math.md 1)

One program holds a [K, tile of V] block of one head's state in fp32 from its only load to its only store; columns of a
state never meet, rows do in two sums over K per token. The limit: tokens run in order, so a program's time grows with
its sequence, and K is at most 256. Nothing here waits for the device.

| symbol | shape | meaning |
|---|---|---|
| pool, S | [S,H,K,V], [N,H,K,V] | states, fp32 |
| slots | [N] | rows of the pool, distinct, int32 or int64 |
| q, k, b, g | [B,T,H,K] or [N,H,K] | as in ops.py; b is e when not gated |
| v, w, o | [B,T,H,V] or [N,H,V] | v is z when not gated |
| mask m | [B,T] or [N] | any dtype; where it is 0, k, v, b, w may hold anything |
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tsgdn2.kernels.gpu.launches import Launch, padded, run

# Keyed by K padded to a power of two. A step waits for memory, so what counts is bytes in flight per multiprocessor.
# Triton gives a thread 16 bytes along V and lays the threads of a warp along V first, then along K: a tile of 32 is 8
# threads and a full line of 128 bytes, one access of a warp is 4 such lines, and a sum over K is the thread's own rows,
# two shuffles, and from K = 64 on one exchange between warps. With these warps a thread holds 16 accesses of state (64
# registers), all requested before the first is used, and as much of its rows of q, k, e and exp g: about 128 registers,
# so 96 to 128 KiB of state are in flight on a multiprocessor, where H200 needs about 15 (2.4 TB/s of reads, 0.8 us, 132
# of them). Half the warps need 220 to 250 registers, or spill; twice as many leave 80 to 96 KiB and exchange more; a
# narrower tile splits lines. Each tile of V reads q, k, b, g again: 16 bytes per row (fp32) beside the 256 that its
# state moves, from the cache after the first tile. Chosen by the compilers' reports; not timed on a device.
STEP = {
    16: Launch(tile=64, warps=1, stages=1),
    32: Launch(tile=64, warps=1, stages=1),
    64: Launch(tile=64, warps=2, stages=1),
    128: Launch(tile=32, warps=2, stages=1),
    256: Launch(tile=32, warps=4, stages=1),
}
# A scan waits for its own last token, and holds two tokens at a time: half as much state per thread is sooner done with
# one, and spills nothing with triton 3.6 and 3.7, where 64 registers of state do on sm_100 (3.9: 3 of 120 kernels keep
# 8 or 16 bytes aside).
SCAN = {
    16: Launch(tile=64, warps=1, stages=1),
    32: Launch(tile=64, warps=2, stages=1),
    64: Launch(tile=32, warps=2, stages=1),
    128: Launch(tile=32, warps=4, stages=1),
    256: Launch(tile=32, warps=8, stages=1),
}


@triton.jit
def gated(
    q, k, erase, v, write, g, mask, token, head, H, c, d, in_K, in_V, K: tl.constexpr, V: tl.constexpr
):  # fmt: skip
    """Q, k, e, exp g, z of one token in fp32, and whether it was seen; what the mask hides is 0 before any product."""
    at_K = (token * H + head) * K
    at_V = (token * H + head) * V
    q_K = tl.load(q + at_K + c, mask=in_K, other=0.0).to(tl.float32)
    k_K = tl.load(k + at_K + c, mask=in_K, other=0.0).to(tl.float32)
    e_K = tl.load(erase + at_K + c, mask=in_K, other=0.0).to(tl.float32)
    g_K = tl.load(g + at_K + c, mask=in_K, other=0.0).to(tl.float32)
    z_V = tl.load(v + at_V + d, mask=in_V, other=0.0).to(tl.float32)
    seen = True
    if write is not None:
        m = 1.0
        w_V = tl.load(write + at_V + d, mask=in_V, other=0.0).to(tl.float32)
        if mask is not None:
            m = tl.load(mask + token).to(tl.float32)
            seen = m != 0
            q_K = tl.where(tl.abs(q_K) < float("inf"), q_K, tl.where(seen, q_K, 0.0))
            k_K = tl.where(seen, k_K, 0.0)
            e_K = tl.where(seen, e_K, 0.0)
            z_V = tl.where(seen, z_V, 0.0)
            w_V = tl.where(seen, w_V, 0.0)
        e_K = e_K * (m * k_K)
        z_V = w_V * (m * z_V)
    return q_K, k_K, e_K, tl.exp(g_K), z_V, seen


@triton.jit
def advance(S_KV, q_K, k_K, e_K, alpha_K, z_V, seen):
    """The state after one token and its unscaled read."""
    S_KV = alpha_K[:, None] * S_KV
    change_V = z_V - tl.sum(e_K[:, None] * S_KV, 0)
    # k is 0 where nothing was seen, and 0 * -1 = -0.0 added to S is S to the bit, be it -0.0 or +0.0; a constant -0.0
    # would be made +0.0 by Triton, and y of a huge state is not finite.
    change_V = tl.where(seen, change_V, -1.0)
    S_KV += k_K[:, None] * change_V[None, :]
    return S_KV, tl.sum(q_K[:, None] * S_KV, 0)


@triton.jit(do_not_specialize=["T", "H"])
def recurrent(
    initial, final, slots, bounds, q, k, erase, v, write, g, mask, o, scale, T, H, initial_stride, final_stride,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """One tile of V of one head of one sequence; neighbouring programs hold neighbouring tiles."""
    tiles: tl.constexpr = (V + TILE - 1) // TILE
    c = tl.arange(0, BK)
    d = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    in_K, in_V = c < K, d < V
    head = tl.program_id(0) // tiles % H
    n = (tl.program_id(0) // tiles // H).to(tl.int64)
    slot = n
    if slots is not None:
        slot = tl.load(slots + n).to(tl.int64)
    at_KV = c[:, None] * V + d[None, :]
    inside = in_K[:, None] & in_V[None, :]
    if ONE:
        q_K, k_K, e_K, alpha_K, z_V, seen = gated(q, k, erase, v, write, g, mask, n, head, H, c, d, in_K, in_V, K, V)
    S_KV = tl.load(initial + slot * initial_stride + head.to(tl.int64) * (K * V) + at_KV, mask=inside, other=0.0)
    if ONE:
        S_KV, o_V = advance(S_KV, q_K, k_K, e_K, alpha_K, z_V, seen)
        tl.store(o + (n * H + head) * V + d, scale * o_V, mask=in_V)
    else:
        token = n * T
        last = token + T - 1
        if bounds is not None:
            token = tl.load(bounds + n).to(tl.int64)
            last = tl.load(bounds + n + 1).to(tl.int64) - 1
        count = (last - token).to(tl.int32) + 1
        # The next token is on its way while this one is computed; an empty sequence asks for one that exists.
        ahead = tl.maximum(tl.minimum(token, last), 0)
        q_K, k_K, e_K, alpha_K, z_V, seen = gated(
            q, k, erase, v, write, g, mask, ahead, head, H, c, d, in_K, in_V, K, V
        )
        for _ in range(count):
            ahead = tl.minimum(token + 1, last)
            q_next, k_next, e_next, alpha_next, z_next, seen_next = gated(
                q, k, erase, v, write, g, mask, ahead, head, H, c, d, in_K, in_V, K, V
            )
            S_KV, o_V = advance(S_KV, q_K, k_K, e_K, alpha_K, z_V, seen)
            tl.store(o + (token * H + head) * V + d, scale * o_V, mask=in_V)
            q_K, k_K, e_K, alpha_K, z_V, seen = q_next, k_next, e_next, alpha_next, z_next, seen_next
            token += 1
    tl.store(final + slot * final_stride + head.to(tl.int64) * (K * V) + at_KV, S_KV, mask=inside)


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
    """Advance pool[slots] by one token in place and return the read o [N,H,V] in v's dtype; one launch.

    A row's bits depend neither on the other rows nor on its place; mask = 0 with g = 0 leaves its state bit for bit as
    it was. Arguments are taken as checked (ops.py); rows of the pool may lie apart, as in one layer of a slab.
    Source: math.md 1.
    """
    if not pool[:1].is_contiguous():
        rows, index = pool.index_select(0, slots), slots.long()
        o = step(rows, torch.arange(len(q), device=q.device), q, k, v, g, b, w, mask=mask, scale=scale)
        pool.index_copy_(0, index, rows)
        return o
    return _launch(STEP, pool, pool, slots, None, len(q), 1, q, k, b, v, w, g, mask, scale)


def scan(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    write: Tensor | None,
    g: Tensor,
    mask: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
    bounds_tensor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """O [B,T,H,V] in v's dtype and the final state [B,H,K,V], or [N,H,K,V] for packed sequences; one launch.

    With `write` None, `erase` is e, `v` is z and there is no mask; otherwise they are b, v and w. `bounds_tensor` holds
    the N + 1 offsets of sequences packed in one row, on the device. Arguments are taken as checked (ops.py). Source:
    math.md 1.
    """
    B, T, H, K = q.shape
    sequences = B if bounds_tensor is None else len(bounds_tensor) - 1
    final = q.new_empty((sequences, H, K, v.shape[-1]), dtype=torch.float32)
    initial = torch.zeros_like(final) if initial_state is None else initial_state.contiguous()
    if T == 0:
        return v.new_empty(v.shape), final.copy_(initial)
    o = _launch(SCAN, initial, final, None, bounds_tensor, sequences, T, q, k, erase, v, write, g, mask, scale)
    return o, final


def _launch(
    table: dict[int, Launch],
    initial: Tensor,
    final: Tensor,
    slots: Tensor | None,
    bounds: Tensor | None,
    sequences: int,
    T: int,
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    write: Tensor | None,
    g: Tensor,
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    H, K, V = q.shape[-2], q.shape[-1], v.shape[-1]
    launch = table[padded(K)]
    launch = launch._replace(tile=min(launch.tile, padded(V)))
    o = v.new_empty(v.shape)
    inputs = {
        "slots": slots, "bounds": bounds, "q": q, "k": k, "erase": erase, "v": v, "write": write, "g": g, "mask": mask,
    }  # fmt: skip
    arguments = {
        **{name: None if x is None else x.contiguous() for name, x in inputs.items()},
        "initial": initial, "final": final, "o": o, "scale": scale, "T": T, "H": H,
        "initial_stride": initial.stride(0), "final_stride": final.stride(0),
        "K": K, "V": V, "BK": padded(K), "TILE": launch.tile, "ONE": slots is not None,
    }  # fmt: skip
    run(recurrent, sequences * H * triton.cdiv(V, launch.tile), launch, arguments)
    return o


def _step_shapes(pool: Tensor, slots: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    del pool, slots, q, k
    return v.new_empty(v.shape)


def _scan_shapes(q: Tensor, k: Tensor, erase: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    del k, erase
    bounds = rest[-1]
    sequences = q.shape[0] if bounds is None else bounds.shape[0] - 1
    return v.new_empty(v.shape), q.new_empty((sequences, *q.shape[2:], v.shape[-1]), dtype=torch.float32)


recurrent_step = torch.library.custom_op("tsgdn2::recurrent_step", mutates_args=("pool",))(step)
"""`step` as one node of a compiled graph; a direct call of `step` is cheaper on the host."""
recurrent_scan = torch.library.custom_op("tsgdn2::recurrent_scan", mutates_args=())(scan)
recurrent_step.register_fake(_step_shapes)
recurrent_scan.register_fake(_scan_shapes)
