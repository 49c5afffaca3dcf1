"""Training windows cut from timelines by array slicing: no per-sample Python objects, no transformation chain.

A window is N consecutive patches of one stream and a query after each, at a random step before the next patch's end:
dense supervision of every phase of a patch. Patch borders are shifted at random, because a model that was trained on
one anchor fails on another (math.md 4). Windows of different length lie end to end: nothing is padded.

A stream is one lane, or several that look at each other: these share their queries, and each commits its own patches.
B lanes of all windows, N commits, M queries, H horizon, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tsgdn2.events.patch import EventWindows
from tsgdn2.events.timeline import EventTimelines
from tsgdn2.forecaster import ForecasterConfig, Layout, QueryInputs
from tsgdn2.patch import Windows
from tsgdn2.pipelines.packing import Lines, Run, pack, patch_clocks, run_of, streams_of
from tsgdn2.scale import Bools, Floats
from tsgdn2.timeline import Ints


class Batch(NamedTuple):
    """What Forecaster.forward takes, and the targets: target [M,H,C] standardised, weight the same shape."""

    commits: Windows | EventWindows
    elapsed: Floats
    layout: Layout
    queries: QueryInputs
    query_elapsed: Floats
    static_real: Floats
    static_categories: Ints
    target: Floats
    weight: Bools
    wait: Floats | None
    """Periods to the next event [M], NaN where it is not known; None where there are no events."""
    fresh: bool
    """False: these windows follow those of the batch before, lane by lane (carried state)."""


class WindowSampler:
    """An endless stream of batches; two samplers with the same seed give the same batches."""

    def __init__(
        self,
        timelines: Lines,
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
        self.until = until if until is not None else timelines.start + timelines.steps
        self._streams, patch = streams_of(timelines), config.patch_length
        self._clocks = [
            [patch_clocks(timelines, lanes, patch, shift, self.until) for shift in range(patch)]
            for lanes in self._streams
        ]
        sizes = np.array([len(clocks[0]) for clocks in self._clocks], np.float64)
        self._chance = sizes / sizes.sum() if sizes.sum() else sizes
        self.empty = not sizes.sum()

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self.batches):
            turn = index % self.carry
            if turn == 0:
                runs = self._draw()
                held = [run.before for run in runs]
            span = turn * self.tokens, (turn + 1) * self.tokens
            now = [run.part(*span, before) for run, before in zip(runs, held, strict=True)]
            batch, held = assemble(self.timelines, self.config, now, self.rng, until=self.until, fresh=turn == 0)
            yield batch

    def _draw(self) -> list[Run]:
        """For each window of a batch: a stream, the clocks of its patches and of the patch after each."""
        runs = []
        span = self.tokens * self.carry
        for stream in self.rng.choice(len(self._chance), self.batch_size, p=self._chance).tolist():
            clocks = self._clocks[stream][int(self.rng.integers(self.config.patch_length))]
            if not len(clocks):
                clocks = self._clocks[stream][0]
            first = int(self.rng.integers(max(1, len(clocks) - span + 1)))
            runs.append(
                run_of(
                    self._streams[stream], clocks, first, first + span, self.timelines.span(self.config.patch_length)
                )
            )
        return runs


def validation_batches(
    timelines: Lines, config: ForecasterConfig, *, tokens: int, since: Ints, seed: int, batch_size: int
) -> list[Batch]:
    """Windows that score targets from step `since` [lanes] on, each commit interval once, warmed by `tokens` commits.

    Batches without an observed target are left out; with none left, nothing picks the weights.
    """
    rng = np.random.default_rng(seed)
    until = timelines.start + timelines.steps
    runs = []
    for lanes in streams_of(timelines):
        clocks = patch_clocks(timelines, lanes, config.patch_length, 0, until)
        first = max(0, int(np.searchsorted(clocks, since[lanes].min())) - 1)
        for begin in range(first, len(clocks), tokens):
            low = max(0, begin - tokens)
            runs.append(
                run_of(lanes, clocks, low, begin + tokens, timelines.span(config.patch_length), warm=begin - low)
            )
    parts = [runs[at : at + batch_size] for at in range(0, len(runs), batch_size)]
    batches = [assemble(timelines, config, part, rng, until=until, fresh=True, since=since)[0] for part in parts]
    return [batch for batch in batches if batch.weight.any()]


def assemble(
    timelines: Lines,
    config: ForecasterConfig,
    runs: list[Run],
    rng: np.random.Generator,
    *,
    until: Ints,
    fresh: bool,
    since: Ints | None = None,
) -> tuple[Batch, list[Ints]]:
    """Lay runs end to end; only targets at steps in [since, until) weigh. Also the last commits of every run."""
    patch = config.patch_length
    clock = np.concatenate([run.clocks for run in runs])
    first = np.repeat([run.lanes[0] for run in runs], [len(run.clocks) for run in runs])
    asked = timelines.draw(first, clock, np.concatenate([run.nexts for run in runs]), rng)
    packed = pack(timelines, runs, patch, asked)
    commits, queries, lanes = packed.commits, packed.queries, packed.lanes
    lane, query = queries.lane, queries.clock
    target, seen = timelines.targets(lane, query)
    step = timelines.horizon_steps(query)
    valid = (step < until[lane][:, None]) & ~packed.warm[:, None]
    if since is not None:
        valid &= step >= since[lane][:, None]
    windows = timelines.windows(lane, query, patch, queries.waited)
    layout = Layout(packed.length, packed.after, packed.owner)
    if config.across:
        everyone = np.ones(len(commits.lane), np.bool_)
        layout = layout._replace(
            commit_peers=commits.peers(packed.moments, everyone),
            query_peers=queries.peers(packed.moments, windows.heard()),
        )
    batch = Batch(
        commits=timelines.windows(commits.lane, commits.clock, patch, commits.waited),
        elapsed=commits.waited / timelines.span(patch),
        layout=layout,
        queries=QueryInputs(windows, timelines.future(lane, query), timelines.lags(lane, query, config.lag_skip)),
        query_elapsed=queries.waited / timelines.span(patch),
        static_real=timelines.static_real[lanes],
        static_categories=timelines.static_categories[lanes],
        target=target,
        weight=seen & valid[..., None],
        wait=timelines.wait(lane, query, until) if isinstance(timelines, EventTimelines) else None,
        fresh=fresh,
    )
    return batch, packed.last
