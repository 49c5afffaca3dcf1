"""Sub-blocks of 16 tokens: their decays, their own part of T and P, its inverse; and the adjoint of all that.

    pre_r = sum of g over the sub-block up to r      suf_s = sum of g over (s, its end]      tot = sum over all of it
    e+ = exp(pre) e     q+ = scale exp(pre) q     k- = exp(suf) k
    T[r,s] = e_r . D_rs k_s  (s < r)      P[r,s] = scale q_r . D_rs k_s  (s <= r)      A = (I + T)^-1

All that other sub-blocks need of this one is e+, q+, k- and tot, and no exponent is positive. Within the block every
pair s < r meets at one border of one level h = 8, 4, 2, 1 (arithmetic.stretch). The trade-off: these three tensors go
through memory once, so that gates, masks and exponentials are computed once per token.

| symbol | shape | meaning |
|---|---|---|
| q, k, g, b | [tokens,H,K] | as in ops.py; b is e when not GATED |
| ep, qp, km | [chunks,H,64,K] | e+, q+, k- |
| total | [chunks,H,4,K] | tot, fp32 |
| solved | [chunks,H,64,64] | inverses of the diagonal blocks in their places, fp32 |
| P | [chunks,H,64,64] | only its diagonal blocks are written here, zeros above the diagonal |
"""

from __future__ import annotations

import triton
import triton.language as tl

from tsgdn2.kernels.gpu.arithmetic import BLOCK, CHUNK, FLOOR, beneath, product, span, stretch, sums


@triton.jit
def load_gated(q, k, g, b, mask, at, inside, token, valid, scale, GATED: tl.constexpr, MASKED: tl.constexpr):
    """Scale q, k, e, g, b and the mask of a tile in fp32; what the mask hides is 0 before any product (math.md 1)."""
    q_RK = tl.load(q + at, mask=inside, other=0.0).to(tl.float32)
    k_RK = tl.load(k + at, mask=inside, other=0.0).to(tl.float32)
    b_RK = tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
    g_RK = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    g_RK = tl.where(g_RK < FLOOR, FLOOR, g_RK)
    m_R1 = tl.full([BLOCK, 1], 1.0, tl.float32)
    if GATED:
        if MASKED:
            m_R1 = tl.load(mask + token, mask=valid, other=0.0).to(tl.float32)[:, None]
            seen = m_R1 != 0
            k_RK = tl.where(seen, k_RK, 0.0)
            b_RK = tl.where(seen, b_RK, 0.0)
            q_RK = tl.where(seen | (tl.abs(q_RK) < float("inf")), q_RK, 0.0)
        e_RK = b_RK * (m_R1 * k_RK)
    else:
        e_RK = b_RK
    return scale * q_RK, k_RK, e_RK, g_RK, b_RK, m_R1


@triton.jit(do_not_specialize=["T", "per_sequence", "keys", "H"])
def blocks_forward(
    q, k, g, b, mask, spans, ep, qp, km, total, solved, P, scale, T, per_sequence, H, keys,
    K: tl.constexpr, BK: tl.constexpr, GATED: tl.constexpr, MASKED: tl.constexpr, PACKED: tl.constexpr,
    RATIOS: tl.constexpr, PARTS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """One sub-block of one head: e+, q+, k-, tot, and with RATIOS its blocks of A and P."""
    block = tl.program_id(0) % 4
    head = tl.program_id(0) // 4 % H
    chunk = tl.program_id(0) // 4 // H
    begin, count = span(chunk, spans, T, per_sequence, PACKED)
    if count <= 0:
        return
    r = tl.arange(0, BLOCK)
    row = block * BLOCK + r
    valid = row < count
    tile = chunk.to(tl.int64) * H + head
    rows, columns = r[:, None], r[None, :]
    upto = (columns <= rows).to(tl.float32)
    behind = (columns > rows).to(tl.float32)
    T_RR = tl.zeros([BLOCK, BLOCK], tl.float32)
    P_RR = tl.zeros([BLOCK, BLOCK], tl.float32)
    for first in range(0, keys, BK):
        c = first + tl.arange(0, BK)
        kept = (row[:, None] >= 0) & (c < K)[None, :]
        inside = valid[:, None] & (c < K)[None, :]
        at = ((begin + row) * H + head)[:, None] * K + c[None, :]
        q_RK, k_RK, e_RK, g_RK, _, _ = load_gated(
            q, k, g, b, mask, at, inside, begin + row, valid, scale, GATED, MASKED
        )
        pre_RK = tl.exp(sums(upto, g_RK, PARTS, EMULATED))
        suf_RK = tl.exp(sums(behind, g_RK, PARTS, EMULATED))
        out = (tile * CHUNK + row)[:, None] * K + c[None, :]
        tl.store(ep + out, e_RK * pre_RK, mask=kept)
        tl.store(qp + out, q_RK * pre_RK, mask=kept)
        tl.store(km + out, k_RK * suf_RK, mask=kept)
        tl.store(total + (tile * 4 + block) * K + c, tl.sum(g_RK, 0), mask=c < K)
        if RATIOS:
            P_RR += tl.where(rows == columns, tl.sum(q_RK * k_RK, 1)[:, None], 0.0)
            for level in range(4):
                d_RK = tl.exp(sums(stretch(rows, columns, level), g_RK, PARTS, EMULATED))
                pair = beneath(rows, columns, level)
                k_KR = tl.trans((k_RK * d_RK).to(DOT))
                T_RR += tl.where(pair, product(e_RK * d_RK, k_KR, DOT, PRECISION, EMULATED), 0.0)
                P_RR += tl.where(pair, product(q_RK * d_RK, k_KR, DOT, PRECISION, EMULATED), 0.0)
    if RATIOS:
        # Two inverted blocks of h rows and the block of T below the first make an inverted block of 2 h rows.
        A_RR = tl.where(rows == columns, 1.0, 0.0) - tl.where(beneath(rows, columns, 0), T_RR, 0.0)
        for level in range(1, 4):
            corner = tl.where(beneath(rows, columns, level), T_RR, 0.0)
            step = product(A_RR, corner, tl.float32, PRECISION, EMULATED)
            A_RR -= product(step, A_RR, tl.float32, PRECISION, EMULATED)
        own = tile * CHUNK + row
        tl.store(solved + own[:, None] * CHUNK + block * BLOCK + columns, A_RR)
        tl.store(P + own[:, None] * CHUNK + block * BLOCK + columns, P_RR)


@triton.jit(do_not_specialize=["T", "per_sequence", "H"])
def blocks_backward(
    q, k, g, b, mask, spans, dep, dqp, dkm, dtotal, dT, dP, dq, dk, dg, db, scale, T, per_sequence, H,
    K: tl.constexpr, BK: tl.constexpr, GATED: tl.constexpr, MASKED: tl.constexpr, PACKED: tl.constexpr,
    PARTS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """One sub-block and BK channels of one head: dq, dk, dg, db from what reached e+, q+, k-, tot and the blocks."""
    tiles: tl.constexpr = (K + BK - 1) // BK
    first = tl.program_id(0) % tiles * BK
    block = tl.program_id(0) // tiles % 4
    head = tl.program_id(0) // tiles // 4 % H
    chunk = tl.program_id(0) // tiles // 4 // H
    begin, count = span(chunk, spans, T, per_sequence, PACKED)
    r = tl.arange(0, BLOCK)
    row = block * BLOCK + r
    if block * BLOCK >= count:
        return
    valid = row < count
    tile = chunk.to(tl.int64) * H + head
    rows, columns = r[:, None], r[None, :]
    c = first + tl.arange(0, BK)
    inside = valid[:, None] & (c < K)[None, :]
    at = ((begin + row) * H + head)[:, None] * K + c[None, :]
    q_RK, k_RK, e_RK, g_RK, b_RK, m_R1 = load_gated(
        q, k, g, b, mask, at, inside, begin + row, valid, scale, GATED, MASKED
    )
    own = tile * CHUNK + block * BLOCK
    out = (own + r)[:, None] * K + c[None, :]
    pre_RK = tl.exp(sums((columns <= rows).to(tl.float32), g_RK, PARTS, EMULATED))
    suf_RK = tl.exp(sums((columns > rows).to(tl.float32), g_RK, PARTS, EMULATED))
    de_RK = tl.load(dep + out, mask=inside, other=0.0).to(tl.float32) * pre_RK
    dq_RK = tl.load(dqp + out, mask=inside, other=0.0).to(tl.float32) * pre_RK
    dk_RK = tl.load(dkm + out, mask=inside, other=0.0).to(tl.float32) * suf_RK
    dg_RK = tl.zeros([BLOCK, BK], tl.float32)
    dg_RK += tl.load(dtotal + (tile * 4 + block) * K + c, mask=c < K, other=0.0)[None, :]
    # The sums' adjoints: the transposed J, made by exchanging its rows and columns.
    dg_RK += sums((rows <= columns).to(tl.float32), de_RK * e_RK + dq_RK * q_RK, PARTS, EMULATED)
    dg_RK += sums((rows > columns).to(tl.float32), dk_RK * k_RK, PARTS, EMULATED)

    at_RR = (own + rows) * CHUNK + block * BLOCK + columns
    at_SR = (own + columns) * CHUNK + block * BLOCK + rows
    dP_diagonal = tl.load(dP + (own + r) * CHUNK + block * BLOCK + r).to(tl.float32)[:, None]
    for level in range(4):
        d_RK = tl.exp(sums(stretch(rows, columns, level), g_RK, PARTS, EMULATED))
        e_h, q_h, k_h = e_RK * d_RK, q_RK * d_RK, k_RK * d_RK
        lower, upper = beneath(rows, columns, level), beneath(columns, rows, level)
        dT_RR = tl.load(dT + at_RR, mask=lower, other=0.0)
        dP_RR = tl.load(dP + at_RR, mask=lower, other=0.0)
        dT_SR = tl.load(dT + at_SR, mask=upper, other=0.0)
        dP_SR = tl.load(dP + at_SR, mask=upper, other=0.0)
        xe_RK = product(dT_RR, k_h, DOT, PRECISION, EMULATED)
        xq_RK = product(dP_RR, k_h, DOT, PRECISION, EMULATED)
        xk_RK = product(dT_SR, e_h, DOT, PRECISION, EMULATED) + product(dP_SR, q_h, DOT, PRECISION, EMULATED)
        de_RK += xe_RK * d_RK
        dq_RK += xq_RK * d_RK
        dk_RK += xk_RK * d_RK
        dx_RK = xe_RK * e_h + xq_RK * q_h + xk_RK * k_h
        dg_RK += sums(stretch(columns, rows, level), dx_RK, PARTS, EMULATED)
    dq_RK += dP_diagonal * k_RK
    dk_RK += dP_diagonal * q_RK
    dq_RK *= scale
    if GATED:
        dk_RK += de_RK * (m_R1 * b_RK)
        tl.store(db + at, de_RK * (m_R1 * k_RK), mask=inside)
        if MASKED:
            # Where the mask hides a q that is not finite, the read is of 0 and has no gradient.
            raw_RK = tl.load(q + at, mask=inside, other=0.0).to(tl.float32)
            dq_RK = tl.where((m_R1 != 0) | (tl.abs(raw_RK) < float("inf")), dq_RK, 0.0)
    else:
        tl.store(db + at, de_RK, mask=inside)
    tl.store(dq + at, dq_RK, mask=inside)
    tl.store(dk + at, dk_RK, mask=inside)
    tl.store(dg + at, dg_RK, mask=inside)
