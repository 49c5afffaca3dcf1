"""An LSTM as a mixer: one cell over the commits, elapsed time as an input.

    h_t, c_t = LSTM([x_t, m_t, log(1 + elapsed_t)], h_{t-1}, c_{t-1})        y_t = h_t Wo
    query after commit t:   y = LSTM([x, 0, log(1 + elapsed)], h_t, c_t) Wo, its state thrown away

It runs token by token, because a query needs the cell state after every commit, which nn.LSTM does not hand out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tsgdn2.linear import Linear
from tsgdn2.mixers.contract import Commits, Mixer, MixerState, Queries


class LSTMMixer(Mixer):
    """One LSTM cell of `hidden` units over tokens of `width`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.LSTMCell(width + 2, hidden)
        self.output = Linear(hidden, width, bias=False)

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
