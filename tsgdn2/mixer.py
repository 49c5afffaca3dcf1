"""What a sequence mixer is: tokens in, tokens out, with its whole memory in an explicit state.

Every mixer has `forward` (a window of tokens), `step` (one commit token) and `read` (one query token) side by side;
one property test holds them equal. A query reads and never writes, so `read` returns no state.

B batch, N tokens, D width. A state is a flat dict of tensors, batch first, so that a slab of streams, a checkpoint and
a test need no knowledge of the mixer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

MixerState = dict[str, Tensor]


class Commits(NamedTuple):
    """Commit tokens, right-padded: x [B,N,D], observed [B,N], elapsed [B,N] patches, length [B], count [B] before."""

    x: Tensor
    observed: Tensor
    elapsed: Tensor
    length: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls on commits


class Queries(NamedTuple):
    """One query after each commit: x [B,N,D], elapsed [B,N] patches since that commit."""

    x: Tensor
    elapsed: Tensor


class Mixer(nn.Module, ABC):
    """One memory behind three verbs; see the module's docstring."""

    @abstractmethod
    def initial_state(self, batch: int) -> MixerState:
        """State of `batch` sequences that have seen nothing, in the module's dtype and device."""

    @abstractmethod
    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """Mix a window. Returns commit outputs [B,N,D] (None unless asked), query outputs [B,N,D], the state after."""

    @abstractmethod
    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """Commit one token per row: x [B,D], observed, elapsed [B], count [B] commits before. Returns (y, state)."""

    @abstractmethod
    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """Answer one query per row, x [B,D], elapsed [B] patches since the last commit; the state stays as it is."""


class NoMixer(Mixer):
    """No memory at all: the query sees its own P steps and the lag skip. The baseline that a memory must beat."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    def initial_state(self, batch: int) -> MixerState:
        """Nothing."""
        return {}

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """Zeros."""
        query_output = None if queries is None else torch.zeros_like(queries.x)
        return torch.zeros_like(commits.x) if commit_output else None, query_output, state

    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """Zeros."""
        return torch.zeros_like(x), state

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """Zeros."""
        return torch.zeros_like(x)


class LSTMMixer(Mixer):
    """One LSTM cell over the commits, elapsed time as an input; the rival at the same budget.

    A query runs the cell once from the state after its commit and the result is thrown away. The cell runs token by
    token, because a query needs the cell state after every commit, which nn.LSTM does not hand out.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.LSTMCell(width + 2, hidden)
        self.output = nn.Linear(hidden, width, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """hidden and cell, [B, hidden] each."""
        zeros = self.output.weight.new_zeros(batch, self.hidden)
        return {"hidden": zeros, "cell": zeros.clone()}

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """Token by token; see Mixer.forward."""
        hidden, cell = state["hidden"], state["cell"]
        inputs = _with_time(commits.x, commits.observed, commits.elapsed)
        hiddens, cells = [], []
        for n in range(commits.x.shape[1]):
            alive = (n < commits.length)[:, None]
            h, c = self.cell(inputs[:, n], (hidden, cell))
            hidden, cell = torch.where(alive, h, hidden), torch.where(alive, c, cell)
            hiddens.append(hidden)
            cells.append(cell)
        after = {"hidden": hidden, "cell": cell}
        commit_y = self.output(torch.stack(hiddens, 1)) if commit_output else None
        if queries is None:
            return commit_y, None, after
        flat_x = _with_time(queries.x, torch.zeros_like(queries.elapsed), queries.elapsed).flatten(0, 1)
        h, _ = self.cell(flat_x, (torch.stack(hiddens, 1).flatten(0, 1), torch.stack(cells, 1).flatten(0, 1)))
        return commit_y, self.output(h).unflatten(0, queries.x.shape[:2]), after

    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """One cell."""
        hidden, cell = self.cell(_with_time(x, observed, elapsed), (state["hidden"], state["cell"]))
        return self.output(hidden), {"hidden": hidden, "cell": cell}

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """One cell, its state thrown away."""
        inputs = _with_time(x, torch.zeros_like(elapsed), elapsed)
        return torch.as_tensor(self.output(self.cell(inputs, (state["hidden"], state["cell"]))[0]))


def _with_time(x: Tensor, observed: Tensor, elapsed: Tensor) -> Tensor:
    return torch.cat([x, observed[..., None], torch.log1p(elapsed)[..., None]], dim=-1)
