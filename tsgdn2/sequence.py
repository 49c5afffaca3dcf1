"""Packed sequences: where the commits of B sequences lie end to end, and which of them each query follows.

    commits  c_0 .. c_{N-1}, those of sequence b at offsets[b] .. offsets[b+1] - 1          no padding anywhere
    query m  reads the state after commit after[m];  offsets[b] - 1 means the state that was carried in
    round r  tokens between two bounds of the norm:  commit i of b is in (count_b + i) // 64, a query after it in
             (count_b + i + 1) // 64, so that it reads the bounded state

The geometry is worked out once per window and shared by all layers; the model's numbers never come here. Where the norm
is not bounded (a language model) all of a window is one round. What is worked out on the host goes to the device of the
model's numbers once.

B sequences, N commits, M queries, R taps of the convolution.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.adjoints import take_rows

Ints = NDArray[np.int64]

BOUND_EVERY = 64
TAPS = 4


class Bound(NamedTuple):
    """The end of a round for the sequences that fill it: which of its rows, bool [b], and their last tokens in it."""

    rows: Tensor
    last: Tensor


class Round(NamedTuple):
    """A slice of the scanned tokens: offsets [b+1] in it, and its sequences, some of which end at a bound."""

    tokens: slice
    offsets: Tensor
    rows: Tensor | None
    """Sequences [b]; None is all of them, in order."""
    bound: Bound | None


class Plan(NamedTuple):
    """Rounds of a scan, and where each token goes in it (None: where it is)."""

    rounds: list[Round]
    order: Rows | None = None


class WholePlan(NamedTuple):
    """Rounds of a scan of commits and queries, and where each of them goes in it."""

    rounds: list[Round]
    commits: Rows
    queries: Rows


class Rows:
    """Distinct rows of a table of `size`: y_i = x[index_i], and the way back that a gradient takes."""

    def __init__(self, index: Ints, size: int, device: torch.device | None = None) -> None:
        back = np.full(size, len(index), np.int64)
        back[index] = np.arange(len(index))
        self.size, self.index = size, torch.from_numpy(np.ascontiguousarray(index)).to(device)
        self._back = torch.from_numpy(back).to(device)

    def take(self, x: Tensor) -> Tensor:
        """x [size, ..] -> [len, ..]."""
        return take_rows(x, self.index, self._back)

    def put(self, x: Tensor) -> Tensor:
        """x [len, ..] -> [size, ..], zero in between."""
        return take_rows(x, self._back, self.index)


class Peers:
    """Tokens of the same moment: token n stands in channel `column` of moment `group`; only seen ones are asked."""

    def __init__(self, group: Ints, column: Ints, seen: NDArray[np.bool_], *, groups: int, width: int) -> None:
        self.groups, self.width = groups, width
        place = group * width + column
        self.rows = Rows(place, groups * width)
        """Place of each token in the grid of moments and channels."""
        keys = np.zeros(groups * width, np.bool_)
        keys[place] = seen
        self.keys = torch.from_numpy(keys.reshape(groups, width))
        """Who is asked, bool [G,C]."""


class Sequences:
    """Geometry of one window: length and count [B] (commits before it), after and owner [M] of its queries.

    bounded: rounds end where the norm is bounded. device: where the model's numbers are.
    """

    def __init__(
        self, length: Ints, count: Ints, after: Ints | None = None, owner: Ints | None = None, *,
        bounded: bool = True, device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.bounded, self.device = bounded, device
        self.length, self.count = np.asarray(length, np.int64), np.asarray(count, np.int64)
        self.offsets = np.concatenate(([0], np.cumsum(self.length)))
        self.size, self.commits = len(self.length), int(self.offsets[-1])
        self.after = np.zeros(0, np.int64) if after is None else np.asarray(after, np.int64)
        self.owner = np.zeros(0, np.int64) if owner is None else np.asarray(owner, np.int64)
        self.own = np.repeat(np.arange(self.size), self.length)
        """Sequence of each commit [N]."""
        equal = self.size > 0 and bool((self.length == self.length[0]).all()) and self.length[0] > 0
        self.uniform = int(self.length[0]) if equal else None
        behind_each = len(self.after) == self.commits and bool((self.after == np.arange(self.commits)).all())
        self.dense = behind_each and bool((self.owner == self.own).all())
        """One query after every commit, each asked by that commit's own sequence."""
        self._rings: dict[int, tuple[Tensor, Tensor]] = {}

    def tensor(self, x: NDArray[Any]) -> Tensor:
        """What was worked out, where the model's numbers are."""
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

    @cached_property
    def positions(self) -> Tensor:
        """Commits of its sequence before each commit, those before this window among them, int64 [N]."""
        return self.tensor(self.count[self.own] + self._done)

    def ring(self, size: int) -> tuple[Tensor, Tensor]:
        """Commits [n] that are among the last `size` of their sequence, and their places in B rings of `size` slots.

        Commit number i of a sequence, those before this window counted, lies in slot i mod size. Worked out once.
        """
        if size not in self._rings:
            rows = np.flatnonzero(self.offsets[1:][self.own] - np.arange(self.commits) <= size)
            number = self.count[self.own[rows]] + self._done[rows]
            self._rings[size] = self.tensor(rows), self.tensor(self.own[rows] * size + number % size)
        return self._rings[size]

    @cached_property
    def commit_owner(self) -> Tensor:
        """Sequence of each commit, int64 [N]."""
        return self.tensor(self.own)

    @cached_property
    def query_owner(self) -> Tensor:
        """Sequence of each query, int64 [M]."""
        return self.tensor(self.owner)

    def extended(self, before: Tensor, x: Tensor) -> Tensor:
        """before [B,R-1,C] in front of every sequence of x [N,C]: [N + B (R-1), C]."""
        if self.uniform is not None:
            return torch.cat([before, x.unflatten(0, (self.size, self.uniform))], 1).flatten(0, 1)
        return self._extension.take(torch.cat([before.flatten(0, 1), x]))

    def each(self, x: Tensor) -> Tensor:
        """An extended x as rows that a convolution may run along: [B,n+R-1,C] where all are equal, else [1,..,C]."""
        return x[None] if self.uniform is None else x.unflatten(0, (self.size, self.uniform + TAPS - 1))

    def convolved(self, y: Tensor) -> Tensor:
        """What a convolution along `each` gave, for the commits alone: [N,C]."""
        if self.uniform is not None:
            return y.flatten(0, 1)
        return self._convolved.take(y[0])

    @cached_property
    def query_taps(self) -> Tensor:
        """Row [M] of a convolution of R - 1 taps along the extended inputs that ends at each query's last commit."""
        return self.tensor(self.after + (TAPS - 1) * self.owner + 1)

    @cached_property
    def cached(self) -> Rows:
        """The last R - 1 rows of every sequence in the extended inputs, B (R-1)."""
        ends = self.offsets[1:, None] + (TAPS - 1) * np.arange(1, self.size + 1)[:, None]
        return Rows((ends + np.arange(1 - TAPS, 0)).reshape(-1), self.commits + (TAPS - 1) * self.size, self.device)

    @cached_property
    def before(self) -> Rows:
        """Row of what stood before each commit [N], in a table of B carried rows and then those of the commits."""
        index = self.size + np.arange(self.commits) - 1
        index[self.offsets[:-1][self.length > 0]] = np.flatnonzero(self.length)
        return Rows(index, self.size + self.commits, self.device)

    @cached_property
    def held(self) -> Tensor:
        """Row [M] of what each query still holds, in the same table."""
        carried = self.after < self.offsets[self.owner]
        return self.tensor(np.where(carried, self.owner, self.size + self.after))

    @cached_property
    def last(self) -> Rows:
        """Row [B] of what every sequence ends with, in the same table."""
        return Rows(
            np.where(self.length > 0, self.size + self.offsets[1:] - 1, np.arange(self.size)),
            self.size + self.commits,
            self.device,
        )

    @cached_property
    def commit_plan(self) -> Plan:
        """A scan of the commits alone."""
        place, rounds = self._schedule(self.own, 2 * self._done + 1, self._done)
        at_home = bool((place == np.arange(self.commits)).all())
        return Plan(rounds, None if at_home else Rows(place, self.commits, self.device))

    @cached_property
    def whole_plan(self) -> WholePlan:
        """A scan of commits and queries in the order of time: a query stands between its commit and the next one."""
        behind = self.after + 1 - self.offsets[self.owner]
        turn = np.concatenate([2 * self._done + 1, 2 * behind])
        owner, done = np.concatenate([self.own, self.owner]), np.concatenate([self._done, behind])
        place, rounds = self._schedule(owner, turn, done)
        whole = len(place)
        commits, queries = place[: self.commits], place[self.commits :]
        return WholePlan(rounds, Rows(commits, whole, self.device), Rows(queries, whole, self.device))

    @cached_property
    def _done(self) -> Ints:
        """Commits of its sequence before each commit, in this window."""
        return np.asarray(np.arange(self.commits) - self.offsets[self.own])

    def _schedule(self, owner: Ints, turn: Ints, done: Ints) -> tuple[Ints, list[Round]]:
        """Place of every token, by round, sequence and turn; done: commits of its sequence before it."""
        phase = self.count % BOUND_EVERY
        number = (phase[owner] + done) // BOUND_EVERY if self.bounded else np.zeros_like(done)
        order = np.lexsort((turn, owner, number))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        rounds = []
        for r in range(int(number.max(initial=0)) + 1):
            begin, end = np.searchsorted(number[order], [r, r + 1])
            rounds.append(self._round(r, int(begin), int(end), owner[order[begin:end]], phase))
        return place, rounds

    def _round(self, r: int, begin: int, end: int, owner: Ints, phase: Ints) -> Round:
        size = np.bincount(owner, minlength=self.size)
        reached = self.bounded & ((phase + self.length) // BOUND_EVERY > r)
        rows = np.arange(self.size) if r == 0 else np.flatnonzero(size)
        offsets = np.concatenate(([0], np.cumsum(size[rows])))
        full = reached[rows]
        last = self.tensor(offsets[1:][full] - 1)
        return Round(
            slice(begin, end),
            self.tensor(offsets),
            None if r == 0 else self.tensor(rows),
            Bound(self.tensor(full), last) if full.any() else None,
        )

    @cached_property
    def _extension(self) -> Rows:
        front = TAPS - 1
        index = np.empty(self.commits + front * self.size, np.int64)
        starts = self.offsets[:-1] + front * np.arange(self.size)
        index[(starts[:, None] + np.arange(front)).reshape(-1)] = np.arange(front * self.size)
        index[np.arange(self.commits) + front * (self.own + 1)] = front * self.size + np.arange(self.commits)
        return Rows(index, len(index), self.device)

    @cached_property
    def _convolved(self) -> Rows:
        front = TAPS - 1
        return Rows(np.arange(self.commits) + front * self.own, self.commits + front * self.size - front, self.device)
