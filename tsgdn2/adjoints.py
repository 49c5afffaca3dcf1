"""Small pieces of the model whose backward is written by hand: autograd's takes three to eight times as long on a CPU.

    unit            y = x r,  r = (sum x^2 + eps)^-1/2                      dx = r (dy - y (y . dy))
    rms_norm        y = u weight,  u = x r,  r = (mean x^2 + eps)^-1/2      dx = r (s - u mean(u s)),  s = weight dy
    short_conv      y_t = sum_i conv_i x_{t+i}                              dx_{t+i} += conv_i dy_t
    take_rows       y_i = x[index_i], distinct rows, 0 beyond the last      dx_j = dy[back_j]

The forward passes are the plain expressions, in their order, so training, batch and stream stay equal; without autograd
unit and rms_norm run bare, because a stream would pay for the bookkeeping. The limit: differentiable once.

B batch, N tokens, C channels, K key channels of a head, D width, R taps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def unit(x: Tensor, eps: float) -> Tensor:
    """x [.., K] divided by its length over the last axis; eps is added to the squared length."""
    if not torch.is_grad_enabled():
        return _over_length(x, eps)[0]
    y: Tensor = _Unit.apply(x, eps)  # type: ignore[no-untyped-call]
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; x [.., D], weight [D]."""
    if not torch.is_grad_enabled():
        return _over_rms(x, eps)[0] * weight
    y: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


def short_conv(inputs: Tensor, conv: Tensor, last: Tensor | None = None) -> Tensor:
    """Causal depthwise convolution of inputs [B,N+R-1,C] with conv [R,C] -> [B,N,C].

    With `last` [B,N,C] the last tap reads that and inputs are [B,N+R-2,C]: tokens that leave nothing in the sequence.
    """
    y: Tensor = _ShortConv.apply(inputs, conv, last)  # type: ignore[no-untyped-call]
    return y


def take_rows(x: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """Distinct rows of x [m, ..]: y [n, ..] with y_i = x[index_i] and index_{back_j} = j; one of them has holes.

    n < m: index [n] is whole, and back_j = n where row j is not taken. n > m: back [m] is whole, and index_i = m where
    y_i is zero.
    """
    y: Tensor = _TakeRows.apply(x, index, back)  # type: ignore[no-untyped-call]
    return y


def _over_length(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    r = torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
    return x * r, r


def _over_rms(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * r, r


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, eps: float) -> Tensor:
        y, r = _over_length(x, eps)
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, None]:
        y, r = ctx.saved_tensors  # type: ignore[attr-defined]
        along = (dy * y).sum(-1, keepdim=True)
        return torch.addcmul(dy, y, along, value=-1).mul_(r), None


class _TakeRows(torch.autograd.Function):
    """Autograd adds every row to zeros, one at a time, because it can not know that they are distinct."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(index, back)
        return _rows(x, index, back)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, None, None]:
        index, back = ctx.saved_tensors  # type: ignore[attr-defined]
        return _rows(dy, back, index), None, None


def _rows(x: Tensor, index: Tensor, back: Tensor) -> Tensor:
    if len(index) > len(x):  # rows that come from nowhere are zero
        return x.new_zeros(len(index), *x.shape[1:]).index_copy_(0, back, x)
    return x.index_select(0, index)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        u, r = _over_rms(x, eps)
        ctx.save_for_backward(u, r, weight)
        return u * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        u, r, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        both = dy * u
        along = (both @ weight)[..., None] / len(weight)
        dx = (dy * weight).addcmul_(u, along, value=-1).mul_(r)
        return dx, both.reshape(-1, len(weight)).sum(0), None


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, conv: Tensor, last: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, conv, last)  # type: ignore[arg-type]  # None is kept, too
        taps = _taps(inputs, len(conv), last)
        y = taps[0] * conv[0]
        for tap, weight in zip(taps[1:], conv[1:], strict=True):
            y += tap * weight
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs, conv, last = ctx.saved_tensors  # type: ignore[attr-defined]
        dinputs, dconv = torch.zeros_like(inputs), torch.empty_like(conv)
        dlast = None if last is None else torch.empty_like(last)
        taps, dtaps = _taps(inputs, len(conv), last), _taps(dinputs, len(conv), dlast)
        for tap, dtap, weight, dweight in zip(taps, dtaps, conv, dconv, strict=True):
            torch.sum(dy * tap, (0, 1), out=dweight)
            if dtap is dlast:
                torch.mul(dy, weight, out=dtap)
            else:
                dtap.addcmul_(dy, weight)
        return dinputs, dconv, dlast


def _taps(inputs: Tensor, count: int, last: Tensor | None) -> list[Tensor]:
    """What each tap reads, [B,N,C] each."""
    tokens = inputs.shape[1] + 1 - count if last is None else last.shape[1]
    taps = [inputs[:, i : i + tokens] for i in range(count if last is None else count - 1)]
    return taps if last is None else [*taps, last]
