"""Chunks of 64 tokens: ratios between sub-blocks, the inverse of the whole, Y and U; and the ratios' adjoint.

    T[r,s] = (e+_r * between) . k-_s,   P[r,s] = (q+_r * between) . k-_s       s in an earlier sub-block than r
    A = (I + T)^-1      Y = A Eg      U = A Z      Eg = start * e+      Qg = start * q+      Kt = tail * k-

`between`, `start` and `tail` are exp of sums of tot over the sub-blocks in between, before and behind: one vector per
sub-block. A chunk is two halves of 32 tokens: pairs inside a half meet at its middle (near), the others at the border
of the halves (far). z = m w v is made here and never stored. The limit: products with A round to TF32 beside 16-bit
inputs.

| symbol | shape | meaning |
|---|---|---|
| ep, qp, km, total, P | | as in blocks.py |
| solved | [chunks,H,64,64] | fp32: inverted diagonal blocks at first, then the blocks of T below them, then all of A |
| A | [chunks,H,64,64] | lower triangle, zeros above it |
| Y, Qg, Kt | [chunks,H,64,K] | |
| U | [chunks,H,64,V] | fp32 |
| decay | [chunks,H,K] | exp(G_C), fp32 |
"""

from __future__ import annotations

import triton
import triton.language as tl

from tsgdn2.kernels.gpu.arithmetic import BLOCK, CHUNK, product, span

HALF = tl.constexpr(32)


@triton.jit
def load_committed(v, w, mask, at, inside, token, valid, GATED: tl.constexpr, MASKED: tl.constexpr):
    """Z = m w v of a tile with v, w and m in fp32; z itself when not GATED."""
    v_RV = tl.load(v + at, mask=inside, other=0.0).to(tl.float32)
    w_RV = v_RV
    m_R1 = tl.full([v_RV.shape[0], 1], 1.0, tl.float32)
    if GATED:
        w_RV = tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
        if MASKED:
            m_R1 = tl.load(mask + token, mask=valid, other=0.0).to(tl.float32)[:, None]
            v_RV = tl.where(m_R1 != 0, v_RV, 0.0)
            w_RV = tl.where(m_R1 != 0, w_RV, 0.0)
        z_RV = w_RV * (m_R1 * v_RV)
    else:
        z_RV = v_RV
    return z_RV, v_RV, w_RV, m_R1


@triton.jit
def load_rows(x, total, tile, c, K: tl.constexpr):
    """E+ or q+ of a chunk [64,TILE]: as it meets its own half, and as it meets the first half from the second."""
    r = tl.arange(0, CHUNK)
    above = tl.load(total + (tile * 4 + 2) * K + c, mask=c < K, other=0.0)
    x_RK = tl.load(x + (tile * CHUNK + r)[:, None] * K + c[None, :], mask=(c < K)[None, :], other=0.0)
    block = (r // BLOCK)[:, None]
    far = tl.where(block == 3, tl.exp(above)[None, :], 1.0) * x_RK.to(tl.float32)
    return tl.where(block % 2 == 1, x_RK, 0.0), tl.where(block >= 2, far, 0.0)


@triton.jit
def load_columns(km, total, tile, c, K: tl.constexpr):
    """The k- of a chunk [TILE,64]: as its own half meets it, and as the second half meets the first."""
    r = tl.arange(0, CHUNK)
    below = tl.load(total + (tile * 4 + 1) * K + c, mask=c < K, other=0.0)
    k_KR = tl.load(km + (tile * CHUNK + r)[None, :] * K + c[:, None], mask=(c < K)[:, None], other=0.0)
    block = (r // BLOCK)[None, :]
    far = tl.where(block == 0, tl.exp(below)[:, None], 1.0) * k_KR.to(tl.float32)
    return tl.where(block % 2 == 0, k_KR, 0.0), tl.where(block < 2, far, 0.0)


@triton.jit
def invert(solved, A, tile, PRECISION: tl.constexpr, EMULATED: tl.constexpr):
    """A from its diagonal blocks and T: two inverted blocks, and T's block below the first, make one of twice the rows.

    In quarters of 32 rows and columns, by way of memory: a chunk's whole A and T would not fit the registers.
    """
    r = tl.arange(0, HALF)
    rows, columns = r[:, None], r[None, :]
    corner, diagonal = (rows >= BLOCK) & (columns < BLOCK), rows // BLOCK == columns // BLOCK
    for half in range(2):
        at = (tile * CHUNK + half * HALF + rows) * CHUNK + half * HALF + columns
        A_RR = tl.load(solved + at, mask=diagonal, other=0.0)
        T_RR = tl.load(solved + at, mask=corner, other=0.0)
        A_RR -= product(product(A_RR, T_RR, tl.float32, PRECISION, EMULATED), A_RR, tl.float32, PRECISION, EMULATED)
        tl.debug_barrier()
        tl.store(solved + at, A_RR)
        tl.store(A + at, A_RR)
    tl.debug_barrier()
    upper, lower = (tile * CHUNK + rows) * CHUNK + columns, (tile * CHUNK + HALF + rows) * CHUNK + columns
    step = product(tl.load(solved + lower + HALF), tl.load(solved + lower), tl.float32, PRECISION, EMULATED)
    A_RR = -product(step, tl.load(solved + upper), tl.float32, PRECISION, EMULATED)
    tl.debug_barrier()
    tl.store(solved + lower, A_RR)
    tl.store(A + lower, A_RR)
    tl.store(solved + upper + HALF, tl.zeros_like(A_RR))
    tl.store(A + upper + HALF, tl.zeros_like(A_RR))


# keys = K and values = V bound the loops at run time: bounds known to the compiler are unrolled, into spills.
@triton.jit(do_not_specialize=["T", "per_sequence", "keys", "values", "H"])
def chunks_forward(
    ep, qp, km, total, solved, P, A, v, w, mask, spans, Y, U, Qg, Kt, decay, T, per_sequence, H, keys, values,
    K: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, GATED: tl.constexpr, MASKED: tl.constexpr,
    PACKED: tl.constexpr, RATIOS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, SOLVED: tl.constexpr,
    EMULATED: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: A and the rest of P with RATIOS (else A is read), then Y, U, Qg, Kt and exp(G_C)."""
    head = tl.program_id(0) % H
    chunk = tl.program_id(0) // H
    begin, count = span(chunk, spans, T, per_sequence, PACKED)
    if count <= 0:
        return
    tile = chunk.to(tl.int64) * H + head
    r = tl.arange(0, CHUNK)
    row, block = tile * CHUNK + r, r // BLOCK
    rows, columns = block[:, None], block[None, :]
    at_RR = row[:, None] * CHUNK + r[None, :]
    if RATIOS:
        near, far = (rows == columns + 1) & (rows % 2 == 1), (rows >= 2) & (columns < 2)
        near_RR = tl.zeros([CHUNK, CHUNK], tl.float32)
        far_RR = tl.zeros([CHUNK, CHUNK], tl.float32)
        for first in range(0, keys, TILE):
            c = first + tl.arange(0, TILE)
            e_RK, ef_RK = load_rows(ep, total, tile, c, K)
            k_KR, kf_KR = load_columns(km, total, tile, c, K)
            near_RR += product(e_RK, k_KR, DOT, PRECISION, EMULATED)
            far_RR += product(ef_RK, kf_KR, DOT, PRECISION, EMULATED)
        tl.store(solved + at_RR, tl.where(near, near_RR, far_RR), mask=near | far)
        tl.debug_barrier()
        invert(solved, A, tile, PRECISION, EMULATED)
        tl.debug_barrier()
        # P apart from T: together their accumulators leave no registers for the inverse.
        near_RR = tl.zeros([CHUNK, CHUNK], tl.float32)
        far_RR = tl.zeros([CHUNK, CHUNK], tl.float32)
        for first in range(0, keys, TILE):
            c = first + tl.arange(0, TILE)
            q_RK, qf_RK = load_rows(qp, total, tile, c, K)
            k_KR, kf_KR = load_columns(km, total, tile, c, K)
            near_RR += product(q_RK, k_KR, DOT, PRECISION, EMULATED)
            far_RR += product(qf_RK, kf_KR, DOT, PRECISION, EMULATED)
        P_RR = tl.where(near, near_RR, tl.where(far, far_RR, 0.0))
        tl.store(P + at_RR, P_RR, mask=rows != columns)
        # Not the A that is rounded and saved: its entries reach hundreds where channels are erased unevenly.
        A_RR = tl.load(solved + at_RR)
    else:
        A_RR = tl.load(A + at_RR).to(tl.float32)
    for first in range(0, keys, TILE):
        c = first + tl.arange(0, TILE)
        inside = (r >= 0)[:, None] & (c < K)[None, :]
        at = row[:, None] * K + c[None, :]
        tot_0 = tl.load(total + (tile * 4 + 0) * K + c, mask=c < K, other=0.0)
        tot_1 = tl.load(total + (tile * 4 + 1) * K + c, mask=c < K, other=0.0)
        tot_2 = tl.load(total + (tile * 4 + 2) * K + c, mask=c < K, other=0.0)
        tot_3 = tl.load(total + (tile * 4 + 3) * K + c, mask=c < K, other=0.0)
        start = by_block(rows, tot_0 * 0.0, tot_0, tot_0 + tot_1, tot_0 + tot_1 + tot_2)
        tail = by_block(rows, tot_1 + tot_2 + tot_3, tot_2 + tot_3, tot_3, tot_3 * 0.0)
        tl.store(decay + tile * K + c, tl.exp(tot_0 + tot_1 + tot_2 + tot_3), mask=c < K)
        tl.store(Qg + at, tl.load(qp + at, mask=inside, other=0.0).to(tl.float32) * start, mask=inside)
        tl.store(Kt + at, tl.load(km + at, mask=inside, other=0.0).to(tl.float32) * tail, mask=inside)
        e_RK = tl.load(ep + at, mask=inside, other=0.0).to(tl.float32) * start
        tl.store(Y + at, product(A_RR, e_RK, tl.float32, SOLVED, EMULATED), mask=inside)
    for first in range(0, values, TILE):
        c = first + tl.arange(0, TILE)
        valid = r < count
        at = ((begin + r) * H + head)[:, None] * V + c[None, :]
        z_RV, _, _, _ = load_committed(
            v, w, mask, at, valid[:, None] & (c < V)[None, :], begin + r, valid, GATED, MASKED
        )
        u_RV = product(A_RR, z_RV, tl.float32, SOLVED, EMULATED)
        tl.store(U + row[:, None] * V + c[None, :], u_RV, mask=(r >= 0)[:, None] & (c < V)[None, :])


@triton.jit
def by_block(rows, x_0, x_1, x_2, x_3):
    """Exp of one vector per sub-block, spread over its rows."""
    low = tl.where(rows == 0, x_0[None, :], x_1[None, :])
    high = tl.where(rows == 2, x_2[None, :], x_3[None, :])
    return tl.exp(tl.where(rows < 2, low, high))


@triton.jit
def to_border(rows, tot_1, tot_2):
    """How far e+ and q+ of the last block, and k- of the first, decay on their way to the border of the halves."""
    return tl.where(rows == 0, tl.exp(tot_1)[None, :], tl.where(rows == 3, tl.exp(tot_2)[None, :], 1.0))


@triton.jit(do_not_specialize=["T", "per_sequence", "depth", "H"])
def chunks_backward(
    ep, qp, km, total, dT, dP, dE, dQ, dK, ddecay, dep, dqp, dkm, dtotal, spans, T, per_sequence, H, depth,
    K: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, PACKED: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """One chunk, one head, TILE channels: what T, P, Eg, Qg, Kt and exp(G_C) send to e+, q+, k- and tot."""
    tiles: tl.constexpr = (K + TILE - 1) // TILE
    c = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    head = tl.program_id(0) // tiles % H
    chunk = tl.program_id(0) // tiles // H
    _, count = span(chunk, spans, T, per_sequence, PACKED)
    if count <= 0:
        return
    tile = chunk.to(tl.int64) * H + head
    r = tl.arange(0, CHUNK)
    row, rows = tile * CHUNK + r, (r // BLOCK)[:, None]
    at = row[:, None] * K + c[None, :]
    inside = (r >= 0)[:, None] & (c < K)[None, :]
    tot_0 = tl.load(total + (tile * 4 + 0) * K + c, mask=c < K, other=0.0)
    tot_1 = tl.load(total + (tile * 4 + 1) * K + c, mask=c < K, other=0.0)
    tot_2 = tl.load(total + (tile * 4 + 2) * K + c, mask=c < K, other=0.0)
    tot_3 = tl.load(total + (tile * 4 + 3) * K + c, mask=c < K, other=0.0)
    dtot = tl.load(ddecay + tile * K + c, mask=c < K, other=0.0)

    # Reads and erases decay from the chunk's start, writes to its end; each tot lies in the path of the rows beyond it.
    e_RK = tl.load(ep + at, mask=inside, other=0.0).to(tl.float32)
    q_RK = tl.load(qp + at, mask=inside, other=0.0).to(tl.float32)
    k_RK = tl.load(km + at, mask=inside, other=0.0).to(tl.float32)
    factor = by_block(rows, tot_0 * 0.0, tot_0, tot_0 + tot_1, tot_0 + tot_1 + tot_2)
    de_RK = tl.load(dE + at, mask=inside, other=0.0).to(tl.float32) * factor
    dq_RK = tl.load(dQ + at, mask=inside, other=0.0).to(tl.float32) * factor
    both = de_RK * e_RK + dq_RK * q_RK
    dtot_0 = dtot + tl.sum(tl.where(rows > 0, both, 0.0), 0)
    dtot_1 = dtot + tl.sum(tl.where(rows > 1, both, 0.0), 0)
    dtot_2 = dtot + tl.sum(tl.where(rows > 2, both, 0.0), 0)
    factor = by_block(rows, tot_1 + tot_2 + tot_3, tot_2 + tot_3, tot_3, tot_3 * 0.0)
    dk_RK = tl.load(dK + at, mask=inside, other=0.0).to(tl.float32) * factor
    both = dk_RK * k_RK
    dtot_1 += tl.sum(tl.where(rows < 1, both, 0.0), 0)
    dtot_2 += tl.sum(tl.where(rows < 2, both, 0.0), 0)
    dtot_3 = dtot + tl.sum(tl.where(rows < 3, both, 0.0), 0)

    # Near pairs stay within a half; far ones meet at the border of the halves, DEPTH tokens of either side at a time.
    far_e, far_q, far_k = tl.zeros_like(e_RK), tl.zeros_like(e_RK), tl.zeros_like(e_RK)
    for first in range(0, depth, DEPTH):
        s = first + tl.arange(0, DEPTH)
        other, columns = tile * CHUNK + s, (s // BLOCK)[None, :]
        at_DK = other[:, None] * K + c[None, :]
        in_DK = (s >= 0)[:, None] & (c < K)[None, :]
        e_DK = tl.load(ep + at_DK, mask=in_DK, other=0.0)
        q_DK = tl.load(qp + at_DK, mask=in_DK, other=0.0)
        k_DK = tl.load(km + at_DK, mask=in_DK, other=0.0)
        at_RD, at_DR = row[:, None] * CHUNK + s[None, :], other[None, :] * CHUNK + r[:, None]
        near, turned = (rows == columns + 1) & (rows % 2 == 1), (columns == rows + 1) & (columns % 2 == 1)
        de_RK += product(tl.load(dT + at_RD, mask=near, other=0.0), k_DK, DOT, PRECISION, EMULATED)
        dq_RK += product(tl.load(dP + at_RD, mask=near, other=0.0), k_DK, DOT, PRECISION, EMULATED)
        dk_RK += product(tl.load(dT + at_DR, mask=turned, other=0.0), e_DK, DOT, PRECISION, EMULATED)
        dk_RK += product(tl.load(dP + at_DR, mask=turned, other=0.0), q_DK, DOT, PRECISION, EMULATED)
        far, turned = (rows >= 2) & (columns < 2), (columns >= 2) & (rows < 2)
        border = to_border((s // BLOCK)[:, None], tot_1, tot_2)
        x_DK = k_DK.to(tl.float32) * border
        far_e += product(tl.load(dT + at_RD, mask=far, other=0.0), x_DK, DOT, PRECISION, EMULATED)
        far_q += product(tl.load(dP + at_RD, mask=far, other=0.0), x_DK, DOT, PRECISION, EMULATED)
        x_DK = e_DK.to(tl.float32) * border
        far_k += product(tl.load(dT + at_DR, mask=turned, other=0.0), x_DK, DOT, PRECISION, EMULATED)
        x_DK = q_DK.to(tl.float32) * border
        far_k += product(tl.load(dP + at_DR, mask=turned, other=0.0), x_DK, DOT, PRECISION, EMULATED)
    factor = to_border(rows, tot_1, tot_2)
    far_e, far_q, far_k = far_e * factor, far_q * factor, far_k * factor
    dtot_1 += tl.sum(tl.where(rows == 0, far_k * k_RK, 0.0), 0)
    dtot_2 += tl.sum(tl.where(rows == 3, far_e * e_RK + far_q * q_RK, 0.0), 0)
    tl.store(dep + at, de_RK + far_e, mask=inside)
    tl.store(dqp + at, dq_RK + far_q, mask=inside)
    tl.store(dkm + at, dk_RK + far_k, mask=inside)
    tl.store(dtotal + (tile * 4 + 0) * K + c, dtot_0, mask=c < K)
    tl.store(dtotal + (tile * 4 + 1) * K + c, dtot_1, mask=c < K)
    tl.store(dtotal + (tile * 4 + 2) * K + c, dtot_2, mask=c < K)
    tl.store(dtotal + (tile * 4 + 3) * K + c, dtot_3, mask=c < K)
