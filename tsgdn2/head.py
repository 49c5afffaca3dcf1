"""Direct multi-horizon heads: one query token in, the whole horizon out, in standardised units.

    base = reshape(W h + bias)                                          [.., H, C, Q]
    with known covariates u of the horizon:  base += W2 GELU(A_h h + B u_h)
    with a lag skip over the last L scaled steps x:  base += K x        (one K for all quantiles; one per channel where
                                                                        channels know who they are, else one for all)

Quantiles are sorted when they are handed out, not in the loss. The lag skip bypasses the memory that the audit sees.
B batch, D width, H horizon, C channels, Q outputs per step (quantiles, or distribution parameters).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F  # noqa: N812

from tsgdn2.linear import Linear, filled


class HorizonHead(nn.Module):
    """Linear map from a query to H steps of C channels and Q outputs, with covariates and a lag skip where given."""

    def __init__(
        self,
        *,
        width: int,
        horizon: int,
        channels: int,
        outputs: int,
        known: int,
        lag_skip: int,
        identities: int,
        rank: int = 16,
    ) -> None:
        super().__init__()
        self.shape = (horizon, channels, outputs)
        self.rank = rank
        self.linear = Linear(width, horizon * channels * outputs)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.known = nn.ModuleDict()
        if known:
            self.known["horizon"] = Linear(known, rank)
            self.known["query"] = Linear(width, horizon * rank)
            self.known["out"] = Linear(rank, channels * outputs, bias=False)
        self.identities = identities
        self.skip = nn.Parameter(torch.zeros(max(1, identities), horizon, lag_skip)) if lag_skip else None

    def forward(self, h: Tensor, future: Tensor, lags: Tensor, static: Tensor) -> Tensor:
        """h [B(,N),D], future [B(,N),H,F] standardised, lags [B(,N),L,C] scaled, static [B,S] -> [B(,N),H,C,Q].

        The last `identities` of the static features say which channel a lane is, one-hot.
        """
        out = self.linear(h).unflatten(-1, self.shape)
        if len(self.known):
            hidden = self.known["query"](h).unflatten(-1, (self.shape[0], self.rank)) + self.known["horizon"](future)
            out = out + self.known["out"](F.gelu(hidden)).unflatten(-1, self.shape[1:])
        if self.skip is not None:
            out = out + self._skip(self.skip, lags, static)[..., None]
        return torch.as_tensor(out)

    def _skip(self, weights: Tensor, lags: Tensor, static: Tensor) -> Tensor:
        weights, lags = filled(weights), filled(lags, -2)  # as in linear.py: the lags of every row begin on 16 bytes
        if not self.identities:
            return torch.matmul(weights[0], lags)
        own = (static[:, -self.identities :] @ weights.flatten(1)).unflatten(-1, weights.shape[1:])  # [B, H, L]
        return torch.matmul(own if lags.ndim == own.ndim else own[:, None], lags)


def quantile_loss(prediction: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Mean over the levels of 2 (y - y_q)(q - 1{y < y_q}), [.., H, C] for prediction [.., H, C, Q], levels [Q].

    The same is mean_q e s with e = y - y_q and s = 2 q - 1 + sign(e), and -s / Q is its gradient: one tensor is kept.
    Where a prediction is hit exactly the slope is the mean of both sides. Targets and levels get no gradient.
    """
    loss: Tensor = _QuantileLoss.apply(prediction, target, levels)  # type: ignore[no-untyped-call]
    return loss


class _QuantileLoss(torch.autograd.Function):
    """What autograd makes of the maximum of two lines costs eight times as much; differentiable once."""

    @staticmethod
    def forward(ctx: FunctionCtx, prediction: Tensor, target: Tensor, levels: Tensor) -> Tensor:
        error = target[..., None] - prediction
        slope = error.sign().add_(2 * levels - 1)
        ctx.save_for_backward(slope)
        return error.mul_(slope).mean(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dloss: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return slope * (dloss / -slope.shape[-1])[..., None], None, None
