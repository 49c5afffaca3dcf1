"""Sliding-window attention over the last W commits, their keys and values in a ring of fixed size.

    q, k = RMSNorm_K(x Wq), RMSNorm_K(x Wk)         v = x Wv
    l_j = K^-1/2 R(time - time_j) q . k_j + ln m_j  for the last W commits j, a commit's own token among them
    y   = [sum_j exp(l_j) v_j / (exp(sink[h]) + sum_j exp(l_j))] Wo

What is older than W commits is gone, whatever it was, and a step costs W times what a state matrix's column costs.
- R rotates pairs of channels by an angle of 10000^(-2i/K) per elapsed patch period, not per commit: two keys that a gap
  parts must look as far apart as they are, and a query asks from its own moment. On a stream without gaps it is the
  same. The ring holds unrotated keys and their ages, so no clock grows without end.
- The observed weight m is a prior: half a patch counts half as much, and m = 0 is never attended (it takes its place in
  the ring; the forecaster makes no such token). A query reads and is not read; the empty window gives 0.
- The sink is what a head gives to none of its keys; it starts at weight 1.
- A language model's attention is attention.py.

| symbol | shape | what |
|---|---|---|
| `keys`, `values` | [B,W,H,K], [B,W,H,V] | of commit n in slot n mod W |
| `weight` | [B,W] | m, 0 where nothing came yet |
| `age` | [B,W] | patch periods from that commit to the last one |

Legend: N commits, M queries, n blocks of readers, R readers of a block, J keys of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tsgdn2.adjoints import rms_norm
from tsgdn2.linear import Linear, product
from tsgdn2.mixers.contract import Commits, Mixer, MixerState, Queries
from tsgdn2.sequence import Ints, Sequences

_EPS = 1e-6
_BASE = 10_000.0
_LARGEST_BLOCK = 64


class SWAMixer(Mixer):
    """Attention of H heads over the last `window` commits; D width, K key and V value channels per head."""

    def __init__(self, width: int, *, heads: int, key_dim: int, value_dim: int, window: int) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim, self.window = heads, key_dim, value_dim, window
        self.sizes = (heads * key_dim, heads * key_dim, heads * value_dim)
        self.in_proj = Linear(width, sum(self.sizes), bias=False)
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(key_dim)), nn.Parameter(torch.ones(key_dim))
        self.sink = nn.Parameter(torch.zeros(heads))
        self.out_proj = Linear(heads * value_dim, width, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """keys [B,W,H,K], values [B,W,H,V], weight and age [B,W], all zero."""
        new = self.out_proj.weight.new_zeros
        return {
            "keys": new(batch, self.window, self.heads, self.key_dim),
            "values": new(batch, self.window, self.heads, self.value_dim),
            "weight": new(batch, self.window),
            "age": new(batch, self.window),
        }

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """A window in blocks of readers, each beside the keys that any of them can see; see Mixer.forward."""
        at = commits.at
        q, k, v = self.in_proj(commits.x).split(self.sizes, -1)
        # The table: the carried rings, then the commits. Times count from each sequence's last commit before them.
        table_k = torch.cat([state["keys"].flatten(0, 1), self._key(k)])
        table_v = torch.cat([state["values"].flatten(0, 1), v.unflatten(-1, (self.heads, -1))])
        table_m = torch.cat([state["weight"].flatten(), commits.observed])
        now = _running(commits.elapsed.double(), at)
        table_t = torch.cat([-state["age"].double().flatten(), now])
        readers, times, behind, owner = [], [], [], []
        if commit_output:
            readers.append(self._query(q))
            times.append(now)
            behind.append(np.arange(at.commits) - at.offsets[at.own] + 1)
            owner.append(at.own)
        if queries is not None:
            own = at.tensor(np.where(at.after < at.offsets[at.owner], -1, at.after))
            before = torch.cat([now, now.new_zeros(1)])[own]
            readers.append(self._query(product(queries.x, self.in_proj.weight[: self.sizes[0]])))
            times.append(before + queries.elapsed.double())
            behind.append(at.after - at.offsets[at.owner] + 1)
            owner.append(at.owner)
        read = None
        if readers:
            band = _band(at, np.concatenate(behind), np.concatenate(owner), self.window)
            read = self._attend(torch.cat(readers), torch.cat(times), table_k, table_v, table_m, table_t, band)
            read = torch.as_tensor(self.out_proj(read.flatten(-2)))
        ends = at.tensor(_ring(at, self.window))
        last = torch.cat([now, now.new_zeros(1)])[at.tensor(np.where(at.length > 0, at.offsets[1:] - 1, -1))]
        after = {
            "keys": _rows(table_k, ends),
            "values": _rows(table_v, ends),
            "weight": table_m[ends],
            "age": (last[:, None] - table_t[ends]).to(state["age"].dtype),
        }
        count = at.commits if commit_output else 0
        commit_y = read[:count] if commit_output and read is not None else None
        return commit_y, read[count:] if queries is not None and read is not None else None, after

    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """One commit per row: it takes the oldest one's slot, then attends; see Mixer.step."""
        q, k, v = self.in_proj(x).split(self.sizes, -1)
        own = torch.arange(self.window, device=x.device) == (count % self.window)[:, None]
        slot = own[..., None, None]
        after = {
            "keys": torch.where(slot, self._key(k)[:, None], state["keys"]),
            "values": torch.where(slot, v.unflatten(-1, (self.heads, -1))[:, None], state["values"]),
            "weight": torch.where(own, observed[:, None], state["weight"]),
            "age": torch.where(own, 0.0, state["age"] + elapsed[:, None]),
        }
        return self._look(self._query(q), torch.zeros_like(elapsed), after), after

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """One query per row, `elapsed` after the last commit; see Mixer.read."""
        return self._look(self._query(product(x, self.in_proj.weight[: self.sizes[0]])), elapsed, state)

    def _look(self, q: Tensor, time: Tensor, state: MixerState) -> Tensor:
        """One reader [B,H,K] per row over its whole ring, rotated by the keys' ages alone."""
        keys = _rotated(state["keys"], -(state["age"].double() + time.double()[:, None]))
        logits_BHW = self.key_dim**-0.5 * (q[:, None] * keys).sum(-1).transpose(1, 2)
        share = self._shares((logits_BHW + _log(state["weight"])[:, None])[:, :, None])[:, :, 0]
        o = (share.transpose(1, 2)[..., None] * state["values"]).sum(1)
        return torch.as_tensor(self.out_proj(o.flatten(-2)))

    def _attend(
        self, q: Tensor, time: Tensor, keys: Tensor, values: Tensor, m: Tensor, at_time: Tensor, band: _Band
    ) -> Tensor:
        """Readers q [*,H,K] over the table: [*,H,V]. Times are told from the first key of a block, before rounding."""
        anchor = at_time[band.keys[:, :1]]
        q_nRHK = _rotated(_rows(q, band.readers), time[band.readers] - anchor)
        k_nJHK = _rotated(_rows(keys, band.keys), at_time[band.keys] - anchor)
        logits_nHRJ = self.key_dim**-0.5 * q_nRHK.transpose(1, 2) @ k_nJHK.permute(0, 2, 3, 1)
        weight_nRJ = _log(m)[band.keys][:, None].masked_fill(~band.seen, -torch.inf)
        o_nHRV = self._shares(logits_nHRJ + weight_nRJ[:, None]) @ _rows(values, band.keys).transpose(1, 2)
        return _rows(o_nHRV.transpose(1, 2).flatten(0, 1), band.places)

    def _shares(self, logits: Tensor) -> Tensor:
        """Softmax [n,H,R,J] over the keys beside the sink, which is left out of the result."""
        sink = self.sink[:, None, None].expand(*logits.shape[:-1], 1)
        return torch.softmax(torch.cat([logits, sink], -1), -1)[..., :-1]

    def _query(self, x: Tensor) -> Tensor:
        return rms_norm(torch.unflatten(x, -1, (self.heads, self.key_dim)), self.q_norm, _EPS)

    def _key(self, x: Tensor) -> Tensor:
        return rms_norm(torch.unflatten(x, -1, (self.heads, self.key_dim)), self.k_norm, _EPS)


class _Band(NamedTuple):
    """Blocks of neighbouring readers: rows of the readers [n,R] and the keys [n,J], who sees whom, the way back."""

    readers: Tensor
    keys: Tensor
    seen: Tensor
    """bool [n,R,J]."""
    places: Tensor
    """Where each reader stands in the flattened [n,R]."""


def _band(at: Sequences, behind: Ints, owner: Ints, window: int) -> _Band:
    """Who sees whom; behind: commits of its sequence in this window that each reader may see.

    In a sequence's own row of W carried keys and then its commits, a reader of p commits sees rows p .. p + W - 1.
    Readers of n size + 1 .. (n + 1) size commits are a block, those of none are in the first.
    """
    size = max(1, min(window, _LARGEST_BLOCK, int(at.length.max(initial=0))))
    first = np.concatenate(([0], np.cumsum(np.maximum(at.length - 1, 0) // size + 1)))
    number = first[owner] + np.maximum(behind - 1, 0) // size
    used, block = np.unique(number, return_inverse=True)
    order = np.argsort(block, kind="stable")
    begins = np.searchsorted(block[order], np.arange(len(used)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - begins[block[order]]
    readers = np.zeros((len(used), int(rank.max(initial=-1)) + 1), np.int64)
    readers[block, rank] = np.arange(len(block))
    sequence = np.searchsorted(first, used, side="right") - 1
    begin = (used - first[sequence]) * size
    column = np.arange(window + size)
    row = begin[:, None] + column
    row = np.minimum(row, window + at.length[sequence, None] - 1)  # beyond the end nobody sees
    place = behind[readers][..., None] - begin[:, None, None]
    seen = (column >= place) & (column < place + window)
    return _Band(
        at.tensor(readers),
        at.tensor(_table(at, sequence[:, None], row, window)),
        at.tensor(seen),
        at.tensor(block * readers.shape[1] + rank),
    )


def _ring(at: Sequences, window: int) -> Ints:
    """Row of the table that each slot [B,W] of the ring holds after this window."""
    slots = np.arange(window)
    row = at.length[:, None] + (slots - (at.count + at.length)[:, None]) % window
    return _table(at, np.arange(at.size)[:, None], row, window)


def _table(at: Sequences, sequence: Ints, row: Ints, window: int) -> Ints:
    """Row of the table: of W carried keys per sequence, oldest first, and then the commits of all."""
    carried = sequence * window + (at.count[sequence] + row) % window
    return np.where(row < window, carried, at.size * window + at.offsets[sequence] + row - window)


def _running(elapsed: Tensor, at: Sequences) -> Tensor:
    """Time of each commit [N] since its sequence's last commit before this window."""
    total = torch.cat([elapsed.new_zeros(1), elapsed.cumsum(0)])
    return total[1:] - total[at.tensor(at.offsets[at.own])]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x [n,..] at index [..]; its backward adds rows, where that of x[index] sorts them first."""
    return torch.unflatten(x.index_select(0, index.flatten()), 0, index.shape)


def _log(m: Tensor) -> Tensor:
    return torch.where(m > 0, m, 1.0).log().masked_fill(m <= 0, -torch.inf)


def _rotated(x: Tensor, time: Tensor) -> Tensor:
    """x [..,H,K] with its pairs of channels (i, i + K // 2) rotated by time [..], float64; an odd last one stays."""
    half = x.shape[-1] // 2
    if not half:
        return x
    speed = _BASE ** (-torch.arange(half, dtype=time.dtype, device=x.device) / half)
    angle = time[..., None, None] * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)
