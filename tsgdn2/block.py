"""One residual block: x + mixer(RMSNorm(x)), attention across channels where asked for, then x + SwiGLU(RMSNorm(x)).

Commits and queries share its weights, and each attend to their own kind. The same block carries the forecaster and the
language model. It adds no state to its mixer's.
B rows, N commits, M queries, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tsgdn2.across import ChannelAttention
from tsgdn2.linear import Linear
from tsgdn2.mixers.contract import Commits, Mixer, MixerState, Queries, TracedMixer
from tsgdn2.norm import RMSNorm
from tsgdn2.sequence import Peers


class SwiGLU(nn.Module):
    """W3 (SiLU(W1 x) * W2 x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [.., D] -> [.., D]."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return torch.as_tensor(self.down(F.silu(gate) * up))


class Block(nn.Module):
    """Pre-norm residual block around one mixer; `across` heads of attention across channels, 0 for none."""

    def __init__(self, width: int, hidden: int, mixer: Mixer, dropout: float = 0.0, across: int = 0) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.mixer = mixer
        self.across = ChannelAttention(width, across) if across else None
        self.mlp = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """A window of commits and the queries between them; see Mixer.forward."""
        normed = commits._replace(x=self.mixer_norm(commits.x))
        asked = None if queries is None else queries._replace(x=self.mixer_norm(queries.x))
        commit_y, query_y, state = self.mixer(normed, asked, state, commit_output=commit_output)
        commit_y = None if commit_y is None else self._feed(commits.x, commit_y, commits.peers)
        query_y = None if queries is None or query_y is None else self._feed(queries.x, query_y, queries.peers)
        return commit_y, query_y, state

    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState, peers: Peers | None = None
    ) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        """One commit per row; the third result is the mixer's trace for the audit, empty where it has none."""
        normed = self.mixer_norm(x)
        if isinstance(self.mixer, TracedMixer):
            y, after, traced = self.mixer.trace(normed, observed, elapsed, count, state)
        else:
            (y, after), traced = self.mixer.step(normed, observed, elapsed, count, state), {}
        return self._feed(x, y, peers), after, traced

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState, peers: Peers | None = None) -> Tensor:
        """One query per row."""
        return self._feed(x, self.mixer.read(self.mixer_norm(x), elapsed, state), peers)

    def _feed(self, x: Tensor, y: Tensor, peers: Peers | None) -> Tensor:
        x = x + self.dropout(y)
        if self.across is not None:
            assert peers is not None, "attention across channels needs to know who is of the same moment"
            x = self.across(x, peers)
        return torch.as_tensor(x + self.dropout(self.mlp(self.mlp_norm(x))))
