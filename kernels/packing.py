"""Where the tokens of many sequences lie when they are cut into chunks.

Chunks are ordered by their number, then by sequence (longest first), then by head, so that the sequences that still
have a chunk of a given number are one contiguous block. The limit: every sequence is padded to whole chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


class Packing:
    """The map [B,T,H,*] <-> [n,C,*] for B equal sequences, or for the sequences that `bounds` cuts from one row.

    Padding is zero in every tensor, and a token with k = e = z = g = 0 changes no state.
    """

    def __init__(self, batch: int, tokens: int, chunk: int, bounds: Sequence[int] | None = None) -> None:
        self.chunk, self.length = chunk, tokens
        self._take: Tensor | None = None
        if bounds is None:
            self.sequences = batch
            self._active = [batch] * -(-tokens // chunk)
            return
        begins, lengths = bounds[:-1], [b - a for a, b in pairwise(bounds)]
        self.sequences = len(lengths)
        by_length = sorted(range(len(lengths)), key=lambda n: -lengths[n])
        counts = [-(-lengths[n] // chunk) for n in by_length]
        self._active = [sum(count > step for count in counts) for step in range(max(counts, default=0))]
        self._order = torch.tensor(by_length, dtype=torch.int64)
        offset = torch.arange(chunk)
        take = [
            torch.where(offset < lengths[n] - step * chunk, begins[n] + step * chunk + offset, tokens)
            for step, active in enumerate(self._active)
            for n in by_length[:active]
        ]
        # The index `tokens` is a row of zeros behind the last token.
        self._take = torch.cat(take) if take else torch.empty(0, dtype=torch.int64)
        self._back = torch.empty(tokens + 1, dtype=torch.int64)
        self._back[self._take] = torch.arange(len(self._take))
        self._back = self._back[:-1]

    def steps(self, heads: int) -> list[tuple[slice, int]]:
        """Per chunk number the rows of [n,...] that hold it, and how many (sequence, head) pairs these are."""
        steps, begin = [], 0
        for active in self._active:
            steps.append((slice(begin, begin + active * heads), active * heads))
            begin += active * heads
        return steps

    def chunks(self, x: Tensor) -> Tensor:
        """[B,T,H,D] to a fresh [n,C,D]."""
        B, T, H, D = x.shape
        if self._take is not None:
            padded = torch.cat([x[0], x.new_zeros(1, H, D)])
            cut = padded.index_select(0, self._take.to(x.device)).view(-1, self.chunk, H, D)
            return cut.transpose(1, 2).reshape(-1, self.chunk, D)
        whole = len(self._active)
        full = x.new_empty(whole, B, H, self.chunk, D)
        body = T // self.chunk
        full[:body] = x[:, : body * self.chunk].view(B, body, self.chunk, H, D).permute(1, 0, 3, 2, 4)
        if body < whole:
            rest = T - body * self.chunk
            full[body, :, :, :rest] = x[:, body * self.chunk :].transpose(1, 2)
            full[body, :, :, rest:] = 0
        return full.view(-1, self.chunk, D)

    def tokens(self, x: Tensor, heads: int) -> Tensor:
        """[n,C,D] back to [B,T,H,D], without the padding."""
        D = x.shape[-1]
        if self._take is not None:
            flat = x.reshape(-1, heads, self.chunk, D).transpose(1, 2).reshape(-1, heads, D)
            return flat.index_select(0, self._back.to(x.device))[None]
        cut = x.view(len(self._active), self.sequences, heads, self.chunk, D).permute(1, 0, 3, 2, 4)
        return cut.reshape(self.sequences, -1, heads, D)[:, : self.length].contiguous()

    def order(self, state: Tensor) -> Tensor:
        """A copy of the states [N,H,K,V], longest sequence first."""
        return (
            state.clone(memory_format=torch.contiguous_format)
            if self._take is None
            else state[self._order.to(state.device)]
        )

    def restore(self, state: Tensor) -> Tensor:
        """The states [N,H,K,V] back in the caller's order."""
        if self._take is None:
            return state
        return torch.empty_like(state).index_copy_(0, self._order.to(state.device), state)
