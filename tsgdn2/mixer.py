"""What a sequence mixer is: tokens in, tokens out, with its whole memory in an explicit state.

Every mixer has `forward` (a window of packed sequences), `step` (one commit token) and `read` (one query token) side by
side; one property test holds them equal. A query reads and never writes, so `read` returns no state.

B sequences, N commits and M queries of all of them end to end, D width. A state is a flat dict of tensors, batch first,
so that a slab of streams, a checkpoint and a test need no knowledge of the mixer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tsgdn2.sequence import Peers, Sequences

MixerState = dict[str, Tensor]


class Commits(NamedTuple):
    """Commit tokens of packed sequences: x [N,D], observed [N], elapsed [N] patches; `at` says which are whose."""

    x: Tensor
    observed: Tensor
    elapsed: Tensor
    at: Sequences
    peers: Peers | None = None
    """Commits of the same moment, for attention across channels."""


class Queries(NamedTuple):
    """Queries of the same sequences: x [M,D], elapsed [M] patches since the commit before; Commits.at places them."""

    x: Tensor
    elapsed: Tensor
    peers: Peers | None = None


class Mixer(nn.Module, ABC):
    """One memory behind three verbs; see the module's docstring."""

    @abstractmethod
    def initial_state(self, batch: int) -> MixerState:
        """State of `batch` sequences that have seen nothing, in the module's dtype and device."""

    @abstractmethod
    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """Mix a window. Returns commit outputs [N,D] (None unless asked), query outputs [M,D] and the state after."""

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
        """Token by token, padded; see Mixer.forward."""
        hidden, cell, at = state["hidden"], state["cell"], commits.at
        length = torch.from_numpy(at.length)
        inputs = _with_time(commits.x, commits.observed, commits.elapsed)
        inputs = pad_sequence(list(inputs.split(at.length.tolist())), batch_first=True)
        hiddens, cells = [hidden], [cell]
        for n in range(inputs.shape[1]):
            alive = (n < length)[:, None]
            h, c = self.cell(inputs[:, n], (hidden, cell))
            hidden, cell = torch.where(alive, h, hidden), torch.where(alive, c, cell)
            hiddens.append(hidden)
            cells.append(cell)
        after, held = {"hidden": hidden, "cell": cell}, torch.stack(hiddens, 1)
        commit_y = None
        if commit_output:
            place = torch.from_numpy(np.arange(at.commits) - at.offsets[at.own] + 1)
            commit_y = self.output(held[at.commit_owner, place])
        if queries is None:
            return commit_y, None, after
        place = torch.from_numpy(at.after - at.offsets[at.owner] + 1)
        asked = _with_time(queries.x, torch.zeros_like(queries.elapsed), queries.elapsed)
        h, _ = self.cell(asked, (held[at.query_owner, place], torch.stack(cells, 1)[at.query_owner, place]))
        return commit_y, self.output(h), after

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
