"""A language model's attention: causal, rotary, over the last W tokens, whose keys and values stay in a ring.

    q_n, k_n = R(n) x_n Wq, R(n) x_n Wk         v_n = x_n Wv         R(n) turns channels (i, i + D/2) by n 10000^(-2i/D)
    y_n = [sum_j softmax_j(D^-1/2 q_n . k_j) v_j] Wo                 over j in (n - W, n]

It is the rival whose memory is the text itself: within W tokens nothing is lost, behind them all of it, and the ring
grows with W where a state matrix does not grow. The forecaster's attention is swa.py, by elapsed time and observed
weight; here every token counts, so torch's fused attention does the work, one call for each document, or for each W
tokens of a longer one. Keys are kept turned: a step turns its own key alone.

| symbol | shape | what |
|---|---|---|
| `keys`, `values` | [B,W,H,D] | of token n in slot n mod W |

A state without tensors means that nothing was read before and that nobody wants what comes after: a training's packed
documents then hold no rings at all.

B documents, N tokens, H heads of D channels, n tokens before, W window.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tsgdn2.errors import ConfigError
from tsgdn2.linear import Linear
from tsgdn2.mixers.contract import Commits, Mixer, MixerState, Queries
from tsgdn2.sequence import Sequences

_BASE = 10_000.0


class AttentionMixer(Mixer):
    """Causal attention of H heads, width / H channels each, over the last `window` tokens."""

    def __init__(self, width: int, *, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.channels, self.window = heads, width // heads, window
        self.in_proj = Linear(width, 3 * heads * self.channels, bias=False)
        self.out_proj = Linear(heads * self.channels, width, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """keys and values [B,W,H,D], zero."""
        shape = (batch, self.window, self.heads, self.channels)
        return {name: self.out_proj.weight.new_zeros(shape) for name in ("keys", "values")}

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """Packed documents; see Mixer.forward. An empty state comes back empty."""
        if queries is not None:
            raise ConfigError("queries: a language model's attention has none; take the mixer swa for a forecaster")
        at = commits.at
        q, k, v = self._projected(commits.x, at.positions)
        y = self._packed(q, k, v, at, state) if commit_output else None
        after = state
        if state:
            rows, slots = at.ring(self.window)
            after = {"keys": _put(state["keys"], slots, k[rows]), "values": _put(state["values"], slots, v[rows])}
        return None if y is None else torch.as_tensor(self.out_proj(y.flatten(-2))), None, after

    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """One token per row: it takes the oldest one's slot, then looks at the whole ring; see Mixer.step."""
        q, k, v = self._projected(x, count)
        slots = torch.arange(self.window, device=x.device)
        own = (slots == (count % self.window)[:, None])[..., None, None]
        after = {
            "keys": torch.where(own, k[:, None].to(state["keys"].dtype), state["keys"]),
            "values": torch.where(own, v[:, None].to(state["values"].dtype), state["values"]),
        }
        filled = (slots <= count[:, None])[:, None, None]
        keys, values = after["keys"].to(q.dtype).transpose(1, 2), after["values"].to(q.dtype).transpose(1, 2)
        y = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=filled)
        return torch.as_tensor(self.out_proj(y.flatten(1))), after

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """A language model asks no queries: ConfigError."""
        raise ConfigError("mixer: attention answers no queries; take the mixer swa for a forecaster")

    def _projected(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turned q and k, and v, [N,H,D] each, of tokens x at positions [N] of their documents."""
        q, k, v = torch.unflatten(self.in_proj(x), -1, (3, self.heads, self.channels)).unbind(-3)
        half = self.channels // 2
        speed = _BASE ** (-torch.arange(half, dtype=torch.float64, device=x.device) / max(1, half))
        angle = position.double()[:, None, None] * speed  # float64: a document may be long
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        return _turned(q, cos, sin), _turned(k, cos, sin), v

    def _packed(self, q: Tensor, k: Tensor, v: Tensor, at: Sequences, state: MixerState) -> Tensor:
        """Every document for itself, [N,H,D]; new ones of equal length in one call."""
        fresh = not bool(at.count.any())
        if fresh and at.uniform is not None:
            q, k, v = (torch.unflatten(t, 0, (at.size, at.uniform)).transpose(1, 2) for t in (q, k, v))
            return self._seen(q, k, v, 0).transpose(1, 2).flatten(0, 1)
        parts = []
        for document in range(at.size):
            piece = slice(int(at.offsets[document]), int(at.offsets[document + 1]))
            if piece.start == piece.stop:
                continue
            keys, values, before = k[piece], v[piece], min(int(at.count[document]), self.window - 1)
            if before:
                slots = at.tensor((int(at.count[document]) - before + np.arange(before)) % self.window)
                keys = torch.cat([state["keys"][document, slots].to(k.dtype), keys])
                values = torch.cat([state["values"][document, slots].to(v.dtype), values])
            own, keys, values = (t.transpose(0, 1)[None] for t in (q[piece], keys, values))
            parts.append(self._seen(own, keys, values, before)[0].transpose(0, 1))
        return torch.cat(parts) if parts else q

    def _seen(self, q: Tensor, k: Tensor, v: Tensor, before: int) -> Tensor:
        """Readers q [B,H,n,D] behind `before` tokens, over k and v [B,H,before + n,D]: [B,H,n,D]."""
        parts = []
        for begin in range(0, q.shape[2], self.window):
            end = min(begin + self.window, q.shape[2])
            low = max(0, before + begin - self.window + 1)
            own, other = q[:, :, begin:end], slice(low, before + end)
            if before + begin == 0:
                parts.append(F.scaled_dot_product_attention(own, k[:, :, other], v[:, :, other], is_causal=True))
                continue
            place = torch.arange(before + begin - low, before + end - low, device=q.device)[:, None]
            column = torch.arange(before + end - low, device=q.device)
            seen = (column <= place) & (column > place - self.window)
            parts.append(F.scaled_dot_product_attention(own, k[:, :, other], v[:, :, other], attn_mask=seen))
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N,H,D] with its pairs of channels turned; an odd last one stays."""
    half = x.shape[-1] // 2
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


def _put(ring: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
    """ring [B,W,..] with rows at slots of its B W places."""
    return torch.unflatten(ring.flatten(0, 1).index_copy(0, slots, rows.to(ring.dtype)), 0, ring.shape[:2])
