"""The scan in chunks (WY form): few large batched products, and one sequential product per chunk (math.md 2).

    X    = J g                                sums of g from every anchor to every row, all <= 0
    T    = e_r . D_rs k_s  (s < r)            P = scale q_r . D_rs k_s  (s <= r)        D_rs = exp(sum of g over (s, r])
    [Y|U] = (I + T)^-1 [exp(G) e | z]         M = Diag(exp G_C) - Kt^T Y                N = Kt^T U
    S_c+1 = M S_c + N                         R = U - Y S_c
    o    = scale (exp(G) q) S_c + P R

No exponent is ever above 0, so no decay is too strong, and no token touches a bit of an earlier output. The backward is
analytic; the trade-off is memory: about (log2 C + 6) K + 2 V + 3 C numbers per token and head wait for it.

| symbol | shape | meaning |
|---|---|---|
| n | chunks x sequences x heads | chunk-major, longest sequence first |
| C | tokens of a chunk | a power of two |
| J | [(L+2) C, C] | 0 and 1; L = log2 C levels of anchors, then the chunk's start (G) and its end (tail) |
| eq | [n,C,2,K] | e, and scale q, of each token side by side |
| Kt | [n,C,K] | k decayed to the end of the chunk |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tsgdn2.kernels.packing import Packing

CHUNK = 16
_FORGET = -1e30  # stands in for a log-decay of -inf, which would meet the zeros of J as NaN; exp of it is 0


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
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Scan chunk by chunk; differentiable once, in every input and in the initial state.

    Arguments and results are those of `reference.delta_scan`; `chunk` (a power of two) is the number of tokens per
    chunk. Source: math.md 2.
    """
    out_dtype, state_dtype = z.dtype, initial_state.dtype
    packing = Packing(q.shape[0], q.shape[1], chunk, bounds)
    with torch.autocast(q.device.type, enabled=False):
        inputs = (x.to(state_dtype) for x in (q, k, e, z, g))
        o, final_state = _ChunkedScan.apply(*inputs, initial_state, scale, packing)  # type: ignore[no-untyped-call]
    return o.to(out_dtype), final_state


class _ChunkedScan(torch.autograd.Function):
    """The forward and the backward of math.md 2, over all chunks at once; second derivatives are refused."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        e: Tensor,
        z: Tensor,
        g: Tensor,
        state: Tensor,
        scale: float,
        packing: Packing,
    ) -> tuple[Tensor, Tensor]:
        H, K, V, C = q.shape[2], q.shape[3], z.shape[3], packing.chunk
        k_nCK, g_nCK = packing.chunks(k), packing.chunks(g).clamp_(min=_FORGET)
        eq_nC2K = torch.stack([packing.chunks(e), packing.chunks(q).mul_(scale)], 2)
        decay_nLCK = torch.exp(torch.matmul(_anchors(C, g.dtype, g.device), g_nCK)).view(len(g_nCK), -1, C, K)
        start_nCK, tail_nCK = decay_nLCK[:, -2], decay_nLCK[:, -1]
        T_nCC, P_nCC = _ratios(eq_nC2K, k_nCK, decay_nLCK)

        A_nCC = _unit_inverse(T_nCC)
        right_nCKV = torch.cat([eq_nC2K[:, :, 0] * start_nCK, packing.chunks(z)], -1)
        YU_nCKV = torch.bmm(A_nCC, right_nCKV)
        MN_nKKV = torch.bmm((k_nCK * tail_nCK).transpose(1, 2), YU_nCKV)
        M_nKK, N_nKV = -MN_nKKV[..., :K], MN_nKKV[..., K:]
        M_nKK.diagonal(dim1=1, dim2=2).add_(start_nCK[:, -1])

        S_nKV = state.new_empty(len(M_nKK), K, V)
        last_NKV = packing.order(state).flatten(0, 1)
        for rows, active in packing.steps(H):
            S_nKV[rows] = last_NKV[:active]
            torch.baddbmm(N_nKV[rows], M_nKK[rows], S_nKV[rows], out=last_NKV[:active])

        R_nCV = torch.baddbmm(YU_nCKV[..., K:], YU_nCKV[..., :K], S_nKV, alpha=-1)
        o_nCV = torch.bmm(eq_nC2K[:, :, 1] * start_nCK, S_nKV).baddbmm_(P_nCC, R_nCV)
        ctx.save_for_backward(k_nCK, eq_nC2K, decay_nLCK, P_nCC, A_nCC, YU_nCKV, M_nKK, S_nKV, R_nCV)
        ctx.scale, ctx.packing, ctx.heads = scale, packing, H  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return packing.tokens(o_nCV, H), packing.restore(last_NKV.view(-1, H, K, V))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, do: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        k_nCK, eq_nC2K, decay_nLCK, P_nCC, A_nCC, YU_nCKV, M_nKK, S_nKV, R_nCV = ctx.saved_tensors  # type: ignore[attr-defined]
        scale, packing, H = ctx.scale, ctx.packing, ctx.heads  # type: ignore[attr-defined]
        K, V, C = S_nKV.shape[1], S_nKV.shape[2], packing.chunk
        if do is None and dfinal is None:
            return (None,) * 8
        start_nCK, tail_nCK = decay_nLCK[:, -2], decay_nLCK[:, -1]
        Qg_nCK, Kt_nCK, Y_nCK = eq_nC2K[:, :, 1] * start_nCK, k_nCK * tail_nCK, YU_nCKV[..., :K]
        do_nCV = torch.zeros_like(R_nCV) if do is None else packing.chunks(do)

        dR_nCV = torch.bmm(P_nCC.transpose(1, 2), do_nCV)
        dS_nKV = torch.bmm(Qg_nCK.transpose(1, 2), do_nCV).baddbmm_(Y_nCK.transpose(1, 2), dR_nCV, alpha=-1)
        dnext_nKV = torch.empty_like(dS_nKV)
        zeros_NHKV = S_nKV.new_zeros(packing.sequences, H, K, V)
        carry_NKV = (zeros_NHKV if dfinal is None else packing.order(dfinal)).flatten(0, 1)
        for rows, active in reversed(packing.steps(H)):
            dnext_nKV[rows] = carry_NKV[:active]
            torch.baddbmm(dS_nKV[rows], M_nKK[rows].transpose(1, 2), dnext_nKV[rows], out=carry_NKV[:active])

        dR_nCV.baddbmm_(Kt_nCK, dnext_nKV)
        dYU_nCKV = torch.cat([torch.bmm(dR_nCV, S_nKV.transpose(1, 2)).neg_(), dR_nCV], -1)
        dright_nCKV = torch.bmm(A_nCC.transpose(1, 2), dYU_nCKV)
        dT_nCC = torch.bmm(dright_nCKV, YU_nCKV.transpose(1, 2)).neg_()
        dP_nCC = torch.bmm(do_nCV, R_nCV.transpose(1, 2))
        dQg_nCK = torch.bmm(do_nCV, S_nKV.transpose(1, 2))
        dKt_nCK = torch.bmm(R_nCV, dnext_nKV.transpose(1, 2))

        deq_nC2K = torch.stack([dright_nCKV[..., :K], dQg_nCK], 2).mul_(start_nCK[:, :, None])
        dk_nCK = dKt_nCK * tail_nCK
        dX_nLCK = torch.empty_like(decay_nLCK)
        torch.sum(deq_nC2K * eq_nC2K, 2, out=dX_nLCK[:, -2])
        dX_nLCK[:, -2, -1] += start_nCK[:, -1] * (dnext_nKV * S_nKV).sum(-1)
        torch.mul(dKt_nCK, Kt_nCK, out=dX_nLCK[:, -1])
        _ratios_backward(dT_nCC, dP_nCC, eq_nC2K, k_nCK, decay_nLCK, deq_nC2K, dk_nCK, dX_nLCK)
        dg_nCK = torch.matmul(_anchors(C, k_nCK.dtype, k_nCK.device).t(), dX_nLCK.flatten(1, 2))

        return (
            packing.tokens(deq_nC2K[:, :, 1], H).mul_(scale),
            packing.tokens(dk_nCK, H),
            packing.tokens(deq_nC2K[:, :, 0], H),
            packing.tokens(dright_nCKV[..., K:], H),
            packing.tokens(dg_nCK, H),
            packing.restore(carry_NKV.view(-1, H, K, V)),
            None,
            None,
        )


@lru_cache(maxsize=32)
def _anchors(chunk: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """J, the 0/1 matrix that sums g again from every anchor; its products are sums, never differences of sums.

    Level h = 1, 2, 4, ...: row r of an odd block of h tokens sums (anchor, r], the anchor its block's first token; row
    s of an even block sums (s, anchor], the anchor the first token of the next block. Then (start, r] and (s, end].
    """
    rows, levels = torch.arange(chunk)[:, None], []
    columns = rows.t()
    h = 1
    while h < chunk:
        block = h * (rows // h)
        after = (columns > block) & (columns <= rows)
        before = (columns > rows) & (columns <= block + h)
        levels.append(torch.where(rows // h % 2 == 1, after, before))
        h *= 2
    return torch.cat([*levels, columns <= rows, columns > rows]).to(device=device, dtype=dtype)


def _levels(eq_nC2K: Tensor, k_nCK: Tensor, decay_nLCK: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Per level (its number, h) the rows [n,C/2h,2h,K] and columns [n,C/2h,h,K], both decayed to their anchor."""
    n, C, K = k_nCK.shape
    for level in range(decay_nLCK.shape[1] - 2):
        h = 1 << level
        pair = (n, C // (2 * h), 2, h)
        decay = decay_nLCK[:, level].view(*pair, K)
        rows = eq_nC2K.view(*pair, 2, K)[:, :, 1] * decay[:, :, 1, :, None]
        yield level, h, rows, k_nCK.view(*pair, K)[:, :, 0] * decay[:, :, 0]


def _ratios(eq_nC2K: Tensor, k_nCK: Tensor, decay_nLCK: Tensor) -> tuple[Tensor, Tensor]:
    """T (strictly lower) and P (lower), [n,C,C] each: every pair s < r meets at one anchor of one level."""
    n, C, _, _ = eq_nC2K.shape
    TP_n2CC = k_nCK.new_zeros(2, n, C, C)
    for _, h, rows, columns in _levels(eq_nC2K, k_nCK, decay_nLCK):
        both = torch.bmm(rows.reshape(-1, 2 * h, k_nCK.shape[2]), columns.flatten(0, 1).transpose(1, 2))
        _lower(TP_n2CC, h).copy_(both.view(n, -1, h, 2, h).permute(3, 0, 2, 4, 1))
    torch.sum(eq_nC2K[:, :, 1] * k_nCK, -1, out=TP_n2CC[1].diagonal(dim1=1, dim2=2))
    return TP_n2CC[0], TP_n2CC[1]


def _ratios_backward(
    dT_nCC: Tensor,
    dP_nCC: Tensor,
    eq_nC2K: Tensor,
    k_nCK: Tensor,
    decay_nLCK: Tensor,
    deq_nC2K: Tensor,
    dk_nCK: Tensor,
    dX_nLCK: Tensor,
) -> None:
    """Adds what T and P contribute to deq and dk, and fills the levels of dX; reads the lower triangles alone."""
    n, C, K = k_nCK.shape
    for level, h, rows, columns in _levels(eq_nC2K, k_nCK, decay_nLCK):
        pair = (n, C // (2 * h), 2, h)
        both = torch.stack([_lower(dT_nCC, h), _lower(dP_nCC, h)], 2).permute(0, 4, 1, 2, 3).reshape(-1, 2 * h, h)
        drows = torch.bmm(both, columns.flatten(0, 1)).view_as(rows)
        dcolumns = torch.bmm(both.transpose(1, 2), rows.reshape(-1, 2 * h, K)).view_as(columns)
        decay, dX = decay_nLCK[:, level].view(*pair, K), dX_nLCK[:, level].view(*pair, K)
        dX[:, :, 0] = columns.mul_(dcolumns)
        rows.mul_(drows)
        torch.add(rows[..., 0, :], rows[..., 1, :], out=dX[:, :, 1])
        dk_nCK.view(*pair, K)[:, :, 0].addcmul_(dcolumns, decay[:, :, 0])
        deq_nC2K.view(*pair, 2, K)[:, :, 1].addcmul_(drows, decay[:, :, 1, :, None])
    same_nC1 = dP_nCC.diagonal(dim1=1, dim2=2)[..., None]
    deq_nC2K[:, :, 1].addcmul_(same_nC1, k_nCK)
    dk_nCK.addcmul_(same_nC1, eq_nC2K[:, :, 1])


def _lower(x: Tensor, h: int) -> Tensor:
    """View of the blocks (odd block of h rows, the even block of h columns before it) of [...,C,C]: [...,h,h,C/2h]."""
    pair = (x.shape[-1] // (2 * h), 2, h)
    return x.view(*x.shape[:-2], *pair, *pair).diagonal(dim1=-6, dim2=-3)[..., 1, :, 0, :, :]


def _unit_inverse(T_nCC: Tensor) -> Tensor:
    """(I + T)^-1 for strictly lower T, by substitution: entries can reach hundreds, so never through powers of T."""
    eye = torch.eye(T_nCC.shape[-1], dtype=T_nCC.dtype, device=T_nCC.device)
    A_nCC: Tensor = torch.linalg.solve_triangular(T_nCC, eye.expand_as(T_nCC), upper=False, unitriangular=True)
    return A_nCC
