"""An LSTM as a mixer: one cell over the commits, elapsed time as an input.

    h_t, c_t = LSTM([x_t, m_t, log(1 + elapsed_t)], h_{t-1}, c_{t-1})        y_t = h_t Wo
    query after commit t:   y = LSTM([x, 0, log(1 + elapsed)], h_t, c_t) Wo, its state thrown away

It runs token by token, because a query needs the cell state after every commit, which nn.LSTM does not hand out; the
inputs of all tokens are multiplied at once, and the backward of the loop is written by hand (autograd's costs several
times as much on a CPU):

    i, f, o = sigmoid, u = tanh of the gates [i, f, u, o] = pre_t + W h_{t-1}        c_t = f c_{t-1} + i u
    h_t = o tanh c_t         dc_t += dh_t o (1 - tanh^2 c_t)                         dc_{t-1} = f dc_t
    d gates = [dc_t u i(1-i), dc_t c_{t-1} f(1-f), dc_t i (1-u^2), dh_t tanh(c_t) o(1-o)]       dh_{t-1} += W^T d gates

In half precision the cell stays float32: its state is fed back into its own products.

B sequences, T tokens of the longest, J hidden units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from tsgdn2.linear import Linear
from tsgdn2.mixers.contract import Commits, Exact, Mixer, MixerState, Queries


class _Cell(Exact, nn.LSTMCell):
    """A cell that is not cast to half precision."""


class LSTMMixer(Mixer):
    """One LSTM cell of `hidden` units over tokens of `width`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = _Cell(width + 2, hidden)
        self.output = Linear(hidden, width, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """hidden and cell, [B, hidden] each."""
        zeros = self.cell.weight_hh.new_zeros(batch, self.hidden)
        return {"hidden": zeros, "cell": zeros.clone()}

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """Token by token, padded; see Mixer.forward."""
        at = commits.at
        inputs = F.linear(
            _with_time(commits.x, commits.observed, commits.elapsed),
            self.cell.weight_ih,
            self.cell.bias_ih + self.cell.bias_hh,
        ).to(self.cell.weight_hh.dtype)  # autocast rounds the product, the cell goes on in its own dtype
        # Behind a sequence's end the loop goes on over zeros; nobody reads what comes of it.
        padded = pad_sequence(list(inputs.split(at.length.tolist())))
        held, cells = _Unrolled.apply(padded, self.cell.weight_hh, state["hidden"], state["cell"])  # type: ignore[no-untyped-call]
        rows, length = torch.arange(at.size, device=at.device), at.tensor(at.length)
        after = {"hidden": held[length, rows], "cell": cells[length, rows]}
        commit_y = None
        if commit_output:
            place = at.tensor(np.arange(at.commits) - at.offsets[at.own] + 1)
            commit_y = self.output(held[place, at.commit_owner])
        if queries is None:
            return commit_y, None, after
        place = at.tensor(at.after - at.offsets[at.owner] + 1)
        asked = _with_time(queries.x, torch.zeros_like(queries.elapsed), queries.elapsed)
        h, _ = self.cell(asked, (held[place, at.query_owner], cells[place, at.query_owner]))
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


class _Unrolled(torch.autograd.Function):
    """pre [T,B,4J], W [4J,J] and the state [B,J] twice -> the states before and after every token, [T+1,B,J] twice."""

    @staticmethod
    def forward(ctx: FunctionCtx, pre: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        size = weight.shape[1]
        gates = torch.empty_like(pre)
        hiddens, cells = (state.new_empty(len(pre) + 1, *state.shape) for state in (hidden, cell))
        hiddens[0], cells[0] = hidden, cell
        for n, token in enumerate(gates):
            torch.addmm(pre[n], hiddens[n], weight.t(), out=token)
            token[:, : 2 * size].sigmoid_()
            token[:, 2 * size : 3 * size].tanh_()
            token[:, 3 * size :].sigmoid_()
            i, f, u, o = token.chunk(4, -1)
            torch.mul(f, cells[n], out=cells[n + 1]).addcmul_(i, u)
            torch.mul(o, cells[n + 1].tanh(), out=hiddens[n + 1])
        ctx.save_for_backward(gates, weight, hiddens, cells)
        return hiddens, cells

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_hiddens: Tensor, d_cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gates, weight, hiddens, cells = ctx.saved_tensors  # type: ignore[attr-defined]
        i, f, u, o = gates.chunk(4, -1)
        squashed = cells[1:].tanh()
        through = o * (1 - squashed.square())
        # What a gate moves per unit of dc (of dh for o), for all tokens at once: the loop only multiplies.
        moved = torch.stack([u * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - u.square())], 2)
        moved_o = squashed * o * (1 - o)
        d_pre = torch.empty_like(gates)
        by_cell, by_o = d_pre.unflatten(-1, (4, -1)).split([3, 1], 2)
        dh, dc = d_hiddens[-1], d_cells[-1]
        for n in range(len(gates) - 1, -1, -1):
            dc = torch.addcmul(dc, dh, through[n])
            torch.mul(dc[:, None], moved[n], out=by_cell[n])
            torch.mul(dh, moved_o[n], out=by_o[n, :, 0])
            dh = torch.addmm(d_hiddens[n], d_pre[n], weight)
            dc = torch.addcmul(d_cells[n], dc, f[n])
        return d_pre, d_pre.flatten(0, 1).t() @ hiddens[:-1].flatten(0, 1), dh, dc
