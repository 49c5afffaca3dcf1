"""What a sequence mixer is: tokens in, tokens out, with its whole memory in an explicit state.

Every mixer has `forward` (a window of packed sequences), `step` (one commit token) and `read` (one query token) side by
side; one property test holds them equal. A query reads and never writes, so `read` returns no state.

B sequences, N commits and M queries of all of them end to end, D width. A state is a flat dict of tensors, batch first,
so that a slab of streams, a checkpoint and a test need no knowledge of the mixer. A mixer whose memory is one matrix
per head under one erase and one write a token (`TracedMixer`) can be audited; of the others it is an error to ask.

In half precision the products' matrices alone are rounded, as under autocast: what a mixer holds itself (decays, steps,
convolution, norms) and what it remembers stay float32. An attention's ring of keys and values is as its matrices are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from tsgdn2.sequence import Peers, Sequences

MixerState = dict[str, Tensor]

HALVES = (torch.bfloat16, torch.float16)


def exact(dtype: torch.dtype) -> torch.dtype:
    """What decays and memories are kept in beside matrices of this dtype."""
    return torch.float32 if dtype in HALVES else dtype


def rounded(x: Tensor) -> Tensor:
    """A token of the scan as it is given to it: under autocast in its dtype, where GPUs multiply fastest.

    Decays and memories are never rounded, and what is read is back in the memory's dtype.
    """
    kind = x.device.type
    if x.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


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


class Exact(nn.Module):
    """A module whose own parameters and buffers no cast to half precision reaches; those of its children are cast."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if recurse:
            for child in self.children():
                child._apply(fn)  # type: ignore[no-untyped-call]

        def kept(t: Tensor) -> Tensor:
            made = fn(t)
            return t.to(made.device) if made.dtype in HALVES and t.dtype not in HALVES else made

        super()._apply(kept, recurse=False)  # type: ignore[no-untyped-call]
        return self


class Mixer(Exact, ABC):
    """One memory behind three verbs; see the module's docstring."""

    @abstractmethod
    def initial_state(self, batch: int) -> MixerState:
        """State of `batch` sequences that have seen nothing, on the module's device, in `exact` of its dtype."""

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


class TracedMixer(Mixer):
    """A mixer whose state holds `memory` [B,H,K,V], S_t = factor ((I - k e^T) Diag(exp g) S_{t-1} + k z^T)."""

    @abstractmethod
    def trace(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        """`step` that also hands out what the audit needs: k, e, g [B,H,K], z [B,H,V], factor [B,H] of the bound."""
