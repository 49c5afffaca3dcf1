"""Attention across the channels of one moment: what the tokens of other sensors say at the same clock.

    x_i <- x_i + W_o sum_j softmax_j(q_i . k_j / sqrt(d)) v_j,   q, k, v = RMSNorm(x) (W_q, W_k, W_v)
    j runs over the tokens of the same moment that were seen, and over i itself

No token of another moment is ever read, and no channel has a name here: the same weights serve any number of channels
in any order, and one that appears or vanishes changes who is asked, nothing else. It holds no state.

N tokens, G moments, C channels of the widest of them, H heads, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsgdn2.linear import Linear
from tsgdn2.norm import RMSNorm
from tsgdn2.sequence import Peers


class ChannelAttention(nn.Module):
    """Pre-norm residual attention among peers; at the start it adds nothing."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(width)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, peers: Peers) -> Tensor:
        """x [N,D] -> [N,D]."""
        grid = peers.rows.put(self.qkv(self.norm(x))).unflatten(0, (peers.groups, peers.width))
        q, k, v = grid.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [G,H,C,d] each
        hidden = ~(peers.keys[:, None] | torch.eye(peers.width, dtype=torch.bool, device=x.device))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        chances = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
        read = (chances @ v).transpose(1, 2).flatten(-2)  # [G,C,D]
        return torch.as_tensor(x + self.out(peers.rows.take(read.flatten(0, 1))))
