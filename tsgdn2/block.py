"""One residual block: x + mixer(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)); commits and queries share its weights.

The same block carries the forecaster and the language model. It adds no state to its mixer's.
B batch, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tsgdn2.adjoints import rms_norm
from tsgdn2.gdn2 import GDN2Mixer
from tsgdn2.mixer import Commits, Mixer, MixerState, Queries


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [.., D]."""
        return rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """W3 (SiLU(W1 x) * W2 x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [.., D] -> [.., D]."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return torch.as_tensor(self.down(F.silu(gate) * up))


class Block(nn.Module):
    """Pre-norm residual block around one mixer."""

    def __init__(self, width: int, hidden: int, mixer: Mixer, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.mixer = mixer
        self.mlp = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """A window of commits, each followed by at most one query; see Mixer.forward."""
        normed = commits._replace(x=self.mixer_norm(commits.x))
        asked = None if queries is None else queries._replace(x=self.mixer_norm(queries.x))
        commit_y, query_y, state = self.mixer(normed, asked, state, commit_output=commit_output)
        commit_y = None if commit_y is None else self._feed(commits.x, commit_y)
        query_y = None if queries is None or query_y is None else self._feed(queries.x, query_y)
        return commit_y, query_y, state

    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        """One commit per row; the third result is the mixer's trace for the audit, empty where it has none."""
        normed = self.mixer_norm(x)
        if isinstance(self.mixer, GDN2Mixer):
            y, after, traced = self.mixer.trace(normed, observed, elapsed, count, state)
        else:
            (y, after), traced = self.mixer.step(normed, observed, elapsed, count, state), {}
        return self._feed(x, y), after, traced

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """One query per row."""
        return self._feed(x, self.mixer.read(self.mixer_norm(x), elapsed, state))

    def _feed(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(y)
        return torch.as_tensor(x + self.dropout(self.mlp(self.mlp_norm(x))))
