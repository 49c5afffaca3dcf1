"""Training windows cut from timelines by array slicing: no per-sample Python objects, no transformation chain.

A window is N consecutive commits of one lane and a query after each, at a random step before the next commit's end:
dense supervision of every phase of a patch. Patch borders are shifted at random, because a model that was trained on
one anchor fails on another (math.md 4).

B batch, N commits, H horizon, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor, from_numpy

from tsgdn2.forecaster import ForecasterConfig, QueryInputs
from tsgdn2.patch import Windows
from tsgdn2.scale import Bools, Floats
from tsgdn2.timeline import Ints, Timelines


class Batch(NamedTuple):
    """What Forecaster.forward takes, and the targets: target [B,N,H,C] standardised, weight the same shape."""

    commits: Windows
    elapsed: Floats
    length: Tensor
    queries: QueryInputs
    query_elapsed: Floats
    static_real: Floats
    static_categories: Ints
    target: Floats
    weight: Bools
    fresh: bool
    """False: these windows follow those of the batch before, lane by lane (carried state)."""


class WindowSampler:
    """An endless stream of batches; two samplers with the same seed give the same batches."""

    def __init__(
        self,
        timelines: Timelines,
        config: ForecasterConfig,
        *,
        tokens: int,
        batch_size: int,
        batches: int,
        seed: int,
        carry: int = 1,
        until: Ints | None = None,
    ) -> None:
        self.timelines, self.config = timelines, config
        self.tokens, self.batch_size, self.batches, self.carry = tokens, batch_size, batches, carry
        self.rng = np.random.default_rng(seed)
        patch = config.patch_length
        self.until = until if until is not None else timelines.start + timelines.steps
        self._clocks = [
            [timelines.commit_clocks(lane, patch, shift, before=int(self.until[lane])) for shift in range(patch)]
            for lane in range(len(timelines))
        ]
        sizes = np.array([len(clocks[0]) for clocks in self._clocks], np.float64)
        self._chance = sizes / sizes.sum() if sizes.sum() else sizes
        self.empty = not sizes.sum()

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self.batches):
            if index % self.carry == 0:
                runs = self._draw()
            part = slice((index % self.carry) * self.tokens, (index % self.carry + 1) * self.tokens)
            yield assemble(
                self.timelines,
                self.config,
                [(lane, clocks[part], nexts[part]) for lane, clocks, nexts in runs],
                self.rng,
                until=self.until,
                previous=[
                    clocks[part.start - 1] if part.start and len(clocks) >= part.start else None
                    for _, clocks, _ in runs
                ],
                fresh=index % self.carry == 0,
            )

    def _draw(self) -> list[tuple[int, Ints, Ints]]:
        """For each row of a batch: a lane, the clocks of its commits and of the commit after each."""
        runs = []
        span = self.tokens * self.carry
        lanes = self.rng.choice(len(self._chance), self.batch_size, p=self._chance)
        for lane in lanes.tolist():
            clocks = self._clocks[lane][int(self.rng.integers(self.config.patch_length))]
            if not len(clocks):
                clocks = self._clocks[lane][0]
            first = int(self.rng.integers(max(1, len(clocks) - span + 1)))
            runs.append((lane, *_span(clocks, first, first + span, self.config.patch_length)))
        return runs


def validation_batches(
    timelines: Timelines, config: ForecasterConfig, *, tokens: int, since: Ints, seed: int, batch_size: int
) -> list[Batch]:
    """Windows that score targets from step `since` [lanes] on, each commit interval once, warmed by `tokens` commits.

    Batches without an observed target are left out; with none left, nothing picks the weights.
    """
    rng = np.random.default_rng(seed)
    runs = []
    for lane in range(len(timelines)):
        clocks = timelines.commit_clocks(lane, config.patch_length)
        first = max(0, int(np.searchsorted(clocks, since[lane])) - 1)
        for begin in range(first, len(clocks), tokens):
            low = max(0, begin - tokens)
            span = _span(clocks, low, begin + tokens, config.patch_length)
            runs.append((lane, *span, begin - low))
    out = []
    for at in range(0, len(runs), batch_size):
        part = runs[at : at + batch_size]
        batch = assemble(
            timelines,
            config,
            [run[:3] for run in part],
            rng,
            until=timelines.start + timelines.steps,
            previous=[None] * len(part),
            fresh=True,
            since=since,
        )
        for row, (*_, warm) in enumerate(part):
            batch.weight[row, :warm] = False
        if batch.weight.any():
            out.append(batch)
    return out


def assemble(
    timelines: Timelines,
    config: ForecasterConfig,
    runs: list[tuple[int, Ints, Ints]],
    rng: np.random.Generator,
    *,
    until: Ints,
    previous: list[np.int64 | None],
    fresh: bool,
    since: Ints | None = None,
) -> Batch:
    """Pad runs of (lane, commit clocks, next commit clocks) to a batch; only targets in [since, until) weigh."""
    patch = config.patch_length
    length = np.array([len(clocks) for _, clocks, _ in runs])
    size = int(length.max(initial=1))
    lane = np.repeat(np.array([run[0] for run in runs], np.int64)[:, None], size, 1)
    clock = np.repeat(timelines.start[lane[:, :1]], size, 1)  # padding reads the lane's first step and weighs nothing
    upper = clock + 1
    elapsed = np.zeros(clock.shape)
    for row, ((_, clocks, nexts), before) in enumerate(zip(runs, previous, strict=True)):
        n = len(clocks)
        clock[row, :n], upper[row, :n] = clocks, nexts
        if n:
            elapsed[row, 0] = 0 if before is None else (clocks[0] - before) / patch
            elapsed[row, 1:n] = np.diff(clocks) / patch
    query = clock + rng.integers(1, upper - clock + 1)
    target, seen = timelines.targets(lane, query)
    step = query[..., None] + np.arange(1, timelines.horizon + 1)
    valid = (np.arange(size) < length[:, None])[..., None] & (step < until[lane][..., None])
    if since is not None:
        valid &= step >= since[lane][..., None]
    queries = QueryInputs(
        timelines.windows(lane, query, patch),
        timelines.future(lane, query),
        timelines.lags(lane, query, config.lag_skip),
    )
    return Batch(
        commits=timelines.windows(lane, clock, patch),
        elapsed=elapsed,
        length=from_numpy(length),
        queries=queries,
        query_elapsed=(query - clock) / patch,
        static_real=timelines.static_real[lane[:, 0]],
        static_categories=timelines.static_categories[lane[:, 0]],
        target=target,
        weight=seen & valid[..., None],
        fresh=fresh,
    )


def _span(clocks: Ints, first: int, stop: int, patch: int) -> tuple[Ints, Ints]:
    """Clocks [first:stop] and, for each, the clock of the commit after it (one patch on, where there is none)."""
    part = clocks[first:stop]
    nexts = clocks[first + 1 : stop + 1]
    if len(nexts) < len(part):
        nexts = np.append(nexts, part[-1] + patch)
    return part, nexts
