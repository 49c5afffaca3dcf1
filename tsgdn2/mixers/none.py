"""No memory at all: a query sees its own window and the lag skip, nothing older. What a memory must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from tsgdn2.mixers.contract import Commits, Mixer, MixerState, Queries


class NoMixer(Mixer):
    """Zeros in the place of a memory's answer."""

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
