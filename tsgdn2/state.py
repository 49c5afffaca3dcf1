"""What a lane remembers between tokens: a frozen, batch-first value that can be stored, moved and compared.

It holds no raw observations (those belong to the stream that owns the lane) and no weights; the fingerprint says which
config made it, so that a state never meets another model in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tsgdn2.mixers.contract import MixerState

STATE_SCHEMA = 1


@dataclass(frozen=True)
class ForecasterState:
    """State of B lanes: per layer the mixer's tensors [B, ..], the commits counted so far [B], schema, fingerprint."""

    layers: tuple[MixerState, ...]
    count: Tensor
    fingerprint: str
    schema: int = STATE_SCHEMA

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; does not grow with the stream."""
        return sum(t.nbytes for t in (*[t for layer in self.layers for t in layer.values()], self.count))

    def to(self, target: torch.device | torch.dtype | str) -> ForecasterState:
        """Copy with every floating tensor moved or cast; the count keeps its dtype."""
        device = target if not isinstance(target, torch.dtype) else None
        layers = tuple({name: t.to(target) for name, t in layer.items()} for layer in self.layers)
        return replace(self, layers=layers, count=self.count if device is None else self.count.to(device))

    def after(self, layers: Sequence[MixerState], tokens: Tensor) -> ForecasterState:
        """The state with new layers and `tokens` [B] more commits counted."""
        return replace(self, layers=tuple(layers), count=self.count + tokens)

    def detach(self) -> ForecasterState:
        """Cut from the graph: truncated backpropagation carries the value, not the gradient."""
        return replace(self, layers=tuple({n: t.detach() for n, t in layer.items()} for layer in self.layers))

    def rows(self, index: Tensor) -> ForecasterState:
        """The state of some rows, copied."""
        return replace(
            self,
            layers=tuple({n: t[index] for n, t in layer.items()} for layer in self.layers),
            count=self.count[index],
        )
