"""Windows of packed documents, shuffled without a table: any position of any epoch is found in O(1).

    window w      tokens wL .. min((w+1)L, T) - 1 of the stream, W = ceil(T / L) windows; the last one may be shorter
    epoch e       window at position p = permute(p; seed, e), a keyed permutation of 0 .. W-1: a Feistel network over
                  the next even power of two, walked until it falls below W
    rank r of R   batch of n windows at position p takes p + r, p + r + R, .., p + r + (n-1) R; the next is at p + nR
    target of i   t_{i+1}, counted where it is known and of the same document

Positions run on into the next epoch, so every batch is full, and the same windows come in the same order whatever R
is, as long as n R is. A document that crosses the border of a window is cut there: its second part begins anew.

T tokens, L length of a window, R ranks, n windows of a batch, N tokens of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.datasets.tokens import TokenShards
from tsgdn2.errors import ConfigError

_ROUNDS: Final = 6
_U = np.uint64


class TokenBatch(NamedTuple):
    """Pieces of documents end to end."""

    tokens: Tensor
    """int64 [N]."""
    targets: Tensor
    """int64 [N]: the next token of the same document; 0 where there is none."""
    counted: Tensor
    """bool [N]: there is one."""
    lengths: list[int]
    """Tokens of each piece; they sum to N."""
    windows: list[int]
    """Numbers of the windows; empty where an epoch that does not go on has none left for this rank."""


class TokenLoader:
    """Endless, or finite with `epochs`; iterating goes on from the state, which moves with every batch."""

    def __init__(
        self, shards: TokenShards, *, length: int, windows: int, seed: int = 0, rank: int = 0, ranks: int = 1,
        epochs: int | None = None,
    ) -> None:  # fmt: skip
        """Look at shards in windows.

        Args:
            shards: The stream.
            length: Tokens L of a window.
            windows: Windows n of a batch of this rank.
            seed: Orders the windows; any whole number.
            rank: This process, 0 .. ranks - 1.
            ranks: Processes that share the stream; all have the same other arguments.
            epochs: End after so many; None goes on for ever. The last batch may be smaller, and a rank that has no
                window left for it gets the batch's first one with nothing counted, so that all ranks make the same
                number of steps.

        Raises:
            ConfigError: A bound is broken, or the stream is empty.
        """
        for name, value in {"length": length, "windows": windows, "ranks": ranks, "epochs": epochs or 1}.items():
            if value < 1:
                raise ConfigError(f"{name}: must be at least 1, got {value}")
        if not 0 <= rank < ranks:
            raise ConfigError(f"rank: must be within 0 .. {ranks - 1}, got {rank}")
        if shards.tokens == 0:
            raise ConfigError(f"shards: {shards.folder} holds no token; prepare it from more text")
        self.shards, self.length, self.windows = shards, length, windows
        self.seed, self.rank, self.ranks, self.epochs = seed, rank, ranks, epochs
        self.epoch_windows = -(-shards.tokens // length)
        """Windows W of an epoch."""
        self._position = 0
        self._keys: tuple[int, NDArray[np.uint64]] = (-1, np.zeros(0, _U))

    def __iter__(self) -> Iterator[TokenBatch]:
        """Give batches from the state on; the state counts a batch as read when it is handed out."""
        while (batch := self._next()) is not None:
            yield batch

    def __len__(self) -> int:
        """Batches from the start to the end of the last epoch; TypeError for an endless loader."""
        if self.epochs is None:
            raise TypeError("epochs: this loader is endless and has no length; give epochs")
        return -(-self.epochs * self.epoch_windows // (self.windows * self.ranks))

    @cached_property
    def identity(self) -> int:
        """48 bits that stand for the order of the windows: corpus, length of a window, seed; ranks do not matter."""
        order = f"{self.shards.manifest.to_json()}\0{self.length}\0{self.seed}"
        return int.from_bytes(hashlib.sha256(order.encode()).digest()[:6], "big")

    def state_dict(self) -> dict[str, int]:
        """Where all ranks together are: epoch, position of the next window in it, `identity`; equal on every rank."""
        epoch, position = divmod(self._position, self.epoch_windows)
        return {"epoch": epoch, "position": position, "identity": self.identity}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at a state in O(1), of a loader with other ranks or windows too.

        Errors: ConfigError for a place that this stream does not have, or a state of another corpus, length or seed; a
        state without `identity` is an older one and is believed.
        """
        epoch, position = int(state["epoch"]), int(state["position"])
        if state.get("identity", self.identity) != self.identity:
            raise ConfigError(
                f"state: it belongs to another corpus, length of window or seed than this loader's "
                f"{self.shards.folder}, {self.length} and {self.seed} (identity {state['identity']:012x}, here "
                f"{self.identity:012x}); give those that it was made with, or begin anew"
            )
        if epoch < 0 or not 0 <= position < self.epoch_windows:
            raise ConfigError(
                f"state: position must be within 0 .. {self.epoch_windows - 1}, got {dict(state)}; it belongs to "
                "another corpus or another length of window"
            )
        self._position = epoch * self.epoch_windows + position

    def window_at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the windows [n] at positions [n] of an epoch."""
        if self._keys[0] != epoch:
            self._keys = (epoch, round_keys(self.seed, epoch))
        return permute(positions, self.epoch_windows, self._keys[1])

    def batch(self, windows: list[int]) -> TokenBatch:
        """Pack windows, by number, end to end."""
        shards, length = self.shards, self.length
        tokens, targets, counted, lengths = [], [], [], []
        for window in windows:
            start = window * length
            stop = min(start + length, shards.tokens)
            read = shards.read(start, min(stop + 1, shards.tokens))
            size = stop - start
            after = np.zeros(size, np.int64)
            after[: len(read) - 1] = read[1:]
            ends = shards.ends(start, stop) - start
            known = np.ones(size, np.bool_)
            known[ends - 1] = False
            known[len(read) - 1 :] = False
            after[~known] = 0
            tokens.append(read[:size])
            targets.append(after)
            counted.append(known)
            bounds = np.unique(np.concatenate(([0], ends, [size])))
            lengths += np.diff(bounds).tolist()
        joined = [torch.from_numpy(np.concatenate(parts)) for parts in (tokens, targets, counted)]
        return TokenBatch(joined[0], joined[1], joined[2], lengths, windows)

    def _next(self) -> TokenBatch | None:
        end = None if self.epochs is None else self.epochs * self.epoch_windows
        first = self._position
        if end is not None and first >= end:
            return None
        places = first + self.rank + self.ranks * np.arange(self.windows, dtype=np.int64)
        kept = places if end is None else places[places < end]
        after = first + self.windows * self.ranks
        self._position = after if end is None else min(after, end)
        if len(kept) == 0:
            batch = self.batch(self._numbers(np.array([first])))
            return batch._replace(counted=torch.zeros_like(batch.counted), windows=[])
        return self.batch(self._numbers(kept))

    def _numbers(self, places: NDArray[np.int64]) -> list[int]:
        epochs, positions = np.divmod(places, self.epoch_windows)
        found = [self.window_at(int(epoch), positions[epochs == epoch]) for epoch in np.unique(epochs)]
        return [int(window) for window in np.concatenate(found)]


def round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """Keys of the rounds, uint64 [rounds]."""
    digest = hashlib.shake_256(f"tsgdn2 windows {seed} {epoch}".encode()).digest(8 * _ROUNDS)
    return np.frombuffer(digest, "<u8").astype(_U)


def permute(positions: NDArray[np.int64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each of positions [n] in 0 .. size - 1 goes: a permutation of 0 .. size - 1, fixed by keys.

    A Feistel network permutes 0 .. 4^h - 1 >= size; whoever lands outside goes on from there, and because the network
    is a permutation he comes back inside, alone, after fewer than four walks on average.
    """
    half = _U(max(1, -(-(size - 1).bit_length() // 2)))
    mask = _U((1 << int(half)) - 1)
    out = positions.astype(_U)
    walking = np.arange(len(out))
    while len(walking):
        x = out[walking]
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        out[walking] = (left << half) | right
        walking = walking[out[walking] >= _U(size)]
    return out.astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread 64 bits over 64: two multiplications and three shifts, each of which can be undone."""
    x = (x ^ (x >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U(27))) * _U(0x94D049BB133111EB)
    return x ^ (x >> _U(31))
