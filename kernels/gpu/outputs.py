"""What a chunk reads from the state at its start and from its own tokens, and the adjoint of those products.

    O = Qg S + P R
    dP = dO R^T      dZ = A^T dR      dT = -tril(dZ U^T + dEg Y^T, -1)
    dQg = dO S^T     dKt = R dS^T     dEg = A^T dY,  dY = -dR S^T     d exp(G_C) = rowsum(dS * S)

Parallel over chunks. dT comes from products that the backward has anyway, so the inverse itself needs no adjoint.
The limit: the loops over K read dO, R and dR once per tile of K.

| symbol | shape | meaning |
|---|---|---|
| Y, U, Qg, A, P, S, R, dS, dR | | as in chunks.py and states.py |
| dT, dP | [chunks,H,64,64] | only their lower triangles mean anything |
| dE, dQ, dK | [chunks,H,64,K] | gradients of Eg, Qg and Kt |
| ddecay | [chunks,H,K] | exp(G_C) * rowsum(dS * S): what reaches each tot of the chunk, fp32 |
"""

from __future__ import annotations

import triton
import triton.language as tl

from tsgdn2.kernels.gpu.arithmetic import CHUNK, product, span
from tsgdn2.kernels.gpu.chunks import load_committed


@triton.jit(do_not_specialize=["T", "per_sequence", "H"])
def outputs_forward(
    Qg, P, S, R, spans, o, T, per_sequence, H,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr, PACKED: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """O of one chunk, one head, TILE columns of V."""
    tiles: tl.constexpr = (V + TILE - 1) // TILE
    v = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    head = tl.program_id(0) // tiles % H
    chunk = tl.program_id(0) // tiles // H
    begin, count = span(chunk, spans, T, per_sequence, PACKED)
    if count <= 0:
        return
    tile = chunk.to(tl.int64) * H + head
    r = tl.arange(0, CHUNK)
    row = tile * CHUNK + r
    value = (v < V)[None, :]
    o_CV = tl.zeros([CHUNK, TILE], tl.float32)
    for first in range(0, K, BK):
        c = first + tl.arange(0, BK)
        Q_CK = tl.load(Qg + row[:, None] * K + c[None, :], mask=(c < K)[None, :], other=0.0)
        S_KV = tl.load(S + tile * K * V + c[:, None] * V + v[None, :], mask=(c < K)[:, None] & value, other=0.0)
        o_CV += product(Q_CK, S_KV, DOT, PRECISION, EMULATED)
    P_CC = tl.load(P + row[:, None] * CHUNK + r[None, :])
    R_CV = tl.load(R + row[:, None] * V + v[None, :], mask=value, other=0.0)
    o_CV += product(P_CC, R_CV, DOT, PRECISION, EMULATED)
    at = ((begin + r) * H + head)[:, None] * V + v[None, :]
    tl.store(o + at, o_CV, mask=(r < count)[:, None] & value)


@triton.jit(do_not_specialize=["T", "per_sequence", "keys", "values", "H"])
def outputs_backward(
    do, R, dR, S, dS, Y, U, A, decay, v, w, mask, spans, dT, dP, dE, dQ, dK, ddecay, dv, dw,
    T, per_sequence, H, keys, values,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr, GATED: tl.constexpr,
    MASKED: tl.constexpr, PACKED: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: dv, dw, and what reaches P, T, Eg, Qg, Kt and exp(G_C)."""
    head = tl.program_id(0) % H
    chunk = tl.program_id(0) // H
    begin, count = span(chunk, spans, T, per_sequence, PACKED)
    if count <= 0:
        return
    tile = chunk.to(tl.int64) * H + head
    r = tl.arange(0, CHUNK)
    row = tile * CHUNK + r
    valid = r < count
    A_TR = tl.load(A + row[None, :] * CHUNK + r[:, None])
    dT_CC = tl.zeros([CHUNK, CHUNK], tl.float32)
    dP_CC = tl.zeros([CHUNK, CHUNK], tl.float32)
    for first in range(0, values, TILE):
        c = first + tl.arange(0, TILE)
        value = (c < V)[None, :]
        at = ((begin + r) * H + head)[:, None] * V + c[None, :]
        inside = valid[:, None] & value
        do_CV = tl.load(do + at, mask=inside, other=0.0)
        R_VC = tl.load(R + row[None, :] * V + c[:, None], mask=(c < V)[:, None], other=0.0)
        dP_CC += product(do_CV, R_VC, DOT, PRECISION, EMULATED)
        dR_CV = tl.load(dR + row[:, None] * V + c[None, :], mask=value, other=0.0)
        dz_CV = product(A_TR, dR_CV, DOT, PRECISION, EMULATED)
        U_VC = tl.load(U + row[None, :] * V + c[:, None], mask=(c < V)[:, None], other=0.0)
        dT_CC -= product(dz_CV, U_VC, DOT, PRECISION, EMULATED)
        if GATED:
            _, v_CV, w_CV, m_C1 = load_committed(v, w, mask, at, inside, begin + r, valid, GATED, MASKED)
            tl.store(dv + at, dz_CV * (m_C1 * w_CV), mask=inside)
            tl.store(dw + at, dz_CV * (m_C1 * v_CV), mask=inside)
        else:
            tl.store(dv + at, dz_CV, mask=inside)
    tl.store(dP + row[:, None] * CHUNK + r[None, :], dP_CC)
    for first in range(0, keys, BK):
        k = first + tl.arange(0, BK)
        key = (k < K)[None, :]
        dQ_CK = tl.zeros([CHUNK, BK], tl.float32)
        dK_CK = tl.zeros([CHUNK, BK], tl.float32)
        dY_CK = tl.zeros([CHUNK, BK], tl.float32)
        through_K = tl.zeros([BK], tl.float32)
        for begin_v in range(0, values, TILE):
            c = begin_v + tl.arange(0, TILE)
            value = (c < V)[None, :]
            at = ((begin + r) * H + head)[:, None] * V + c[None, :]
            at_VK = tile * K * V + k[None, :] * V + c[:, None]
            in_VK = (c < V)[:, None] & key
            S_VK = tl.load(S + at_VK, mask=in_VK, other=0.0)
            dS_VK = tl.load(dS + at_VK, mask=in_VK, other=0.0)
            through_K += tl.sum(S_VK.to(tl.float32) * dS_VK.to(tl.float32), 0)
            do_CV = tl.load(do + at, mask=valid[:, None] & value, other=0.0)
            dQ_CK += product(do_CV, S_VK, DOT, PRECISION, EMULATED)
            dR_CV = tl.load(dR + row[:, None] * V + c[None, :], mask=value, other=0.0)
            dY_CK -= product(dR_CV, S_VK, DOT, PRECISION, EMULATED)
            R_CV = tl.load(R + row[:, None] * V + c[None, :], mask=value, other=0.0)
            dK_CK += product(R_CV, dS_VK, DOT, PRECISION, EMULATED)
        dE_CK = product(A_TR, dY_CK, DOT, PRECISION, EMULATED)
        Y_KC = tl.load(Y + row[None, :] * K + k[:, None], mask=(k < K)[:, None], other=0.0)
        dT_CC -= product(dE_CK, Y_KC, DOT, PRECISION, EMULATED)
        at_CK = row[:, None] * K + k[None, :]
        tl.store(dE + at_CK, dE_CK, mask=key)
        tl.store(dQ + at_CK, dQ_CK, mask=key)
        tl.store(dK + at_CK, dK_CK, mask=key)
        through_K *= tl.load(decay + tile * K + k, mask=k < K, other=0.0)
        tl.store(ddecay + tile * K + k, through_K, mask=k < K)
    tl.store(dT + row[:, None] * CHUNK + r[None, :], dT_CC)
