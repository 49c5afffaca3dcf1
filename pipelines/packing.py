"""Runs of patches laid end to end: the commits of every lane, and the queries that stand between them.

    run     consecutive patches of one stream, in which any of its lanes has an observation
    lane    commits the patches that hold an observation of its own; the others are no tokens
    query   one after every patch, the same moment for all lanes of a stream, so that they can look at each other

A stream is one lane, or several (mode attention). Training windows and prediction from a history share this file.
B lanes of all runs, N commits, M queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tsgdn2.events.timeline import EventTimelines
from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.pipelines.entries import RawSeries
from tsgdn2.scale import Bools
from tsgdn2.sequence import Peers
from tsgdn2.standards import Standards
from tsgdn2.timeline import Ints, Timelines

NONE = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Run:
    """Consecutive patches of one stream: its lanes, the clocks [n] at their ends, and those of the patches after."""

    lanes: Ints
    clocks: Ints
    nexts: Ints
    before: Ints
    """Clock of each lane's last commit before the run, NONE without one."""
    warm: int = 0
    """Queries at the start that weigh nothing."""

    def part(self, begin: int, end: int, before: Ints) -> Run:
        """Some of the patches."""
        return replace(self, clocks=self.clocks[begin:end], nexts=self.nexts[begin:end], before=before)


class Tokens(NamedTuple):
    """Tokens of one kind: lane, clock, time since that lane's last commit (0 without one), moment and column of each.

    The clocks of a lane are in the order of time; a moment is one patch of one run, a column one lane of it.
    """

    lane: Ints
    clock: Ints
    waited: Ints
    moment: Ints
    column: Ints

    def peers(self, moments: int, seen: Bools) -> Peers:
        """Who stands beside whom; only those that were `seen` are asked."""
        width = int(self.column.max(initial=0)) + 1
        return Peers(self.moment, self.column, seen, groups=moments, width=width)


class Packed(NamedTuple):
    """What `pack` found: lanes [B] of the runs in their order, commits with length [B], queries after and owner [M]."""

    lanes: Ints
    length: Ints
    commits: Tokens
    queries: Tokens
    after: Ints
    owner: Ints
    warm: Bools
    last: list[Ints]
    """Per run, the clock of each lane's last commit up to its end."""
    moments: int


Lines = Timelines | EventTimelines


def pack(timelines: Lines, runs: list[Run], patch: int, asked: Ints) -> Packed:
    """Lay runs end to end; asked holds the query clock of every patch of every run."""
    commits, queries, last, length, asks = [], [], [], [], []
    after, warm = [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
    first = moment = 0
    for run in runs:
        n = len(run.clocks)
        own, moments = asked[moment : moment + n], moment + np.arange(n)
        newest = run.before.copy()
        for column, lane in enumerate(run.lanes.tolist()):
            lanes, columns = np.full(n, lane), np.full(n, column)
            here = timelines.anything(lanes, run.clocks, patch) if len(run.lanes) > 1 else np.ones(n, np.bool_)
            mine, done = run.clocks[here], np.cumsum(here)
            held = np.concatenate((run.before[column : column + 1], mine))
            commits.append((lanes[here], mine, since(mine, held[:-1]), moments[here], columns[here]))
            queries.append((lanes, own, since(own, held[done]), moments, columns))
            after.append(first + done - 1)
            warm.append(np.arange(n) < run.warm)
            length.append(len(mine))
            asks.append(n)
            newest[column] = held[-1]
            first += len(mine)
        last.append(newest)
        moment += n
    return Packed(
        np.concatenate([run.lanes for run in runs]),
        np.array(length, np.int64),
        Tokens(*(np.concatenate(part) for part in zip(*commits, strict=True))),
        Tokens(*(np.concatenate(part) for part in zip(*queries, strict=True))),
        np.concatenate(after),
        np.repeat(np.arange(len(asks)), asks),
        np.concatenate(warm),
        last,
        moment,
    )


def timelines_of(
    raw: Sequence[RawSeries], config: ForecasterConfig, standards: Standards, channels: tuple[str, ...]
) -> tuple[Lines, Ints]:
    """Histories of the lanes of all series, and the number of the series of each lane."""
    if config.event_types:
        schema = config.event_schema(standards.mark_mean, standards.mark_scale)
        events = [one.event_series(standards, channels, config.period_ns) for one in raw]
        found = EventTimelines(events, config, schema, number=config.event_window)
        return found, found.stream
    lanes = [one.series(standards, channels).lanes(config) for one in raw]
    entry = np.repeat(np.arange(len(lanes)), [len(own) for own in lanes])
    lines = Timelines(
        [lane for own in lanes for lane in own],
        window=config.window,
        horizon=config.prediction_length,
        half_life=config.half_life,
        bridge=config.bridge,
        group=entry if config.across else None,
    )
    return lines, entry


def streams_of(timelines: Lines) -> list[Ints]:
    """Lanes of every stream."""
    return np.split(np.arange(len(timelines)), np.flatnonzero(np.diff(timelines.group)) + 1)


def patch_clocks(timelines: Lines, lanes: Ints, patch: int, shift: int, until: Ints) -> Ints:
    """Ends of the patches in which any of the lanes has an observation, before step until [lanes], oldest first."""
    own = [timelines.commit_clocks(lane, patch, shift, before=int(until[lane])) for lane in lanes.tolist()]
    return own[0] if len(own) == 1 else np.unique(np.concatenate(own))


def run_of(lanes: Ints, clocks: Ints, first: int, stop: int, span: int, *, warm: int = 0) -> Run:
    """Patches [first:stop] and, for each, the clock of the one after it (one `span` on, where there is none)."""
    part, nexts = clocks[first:stop], clocks[first + 1 : stop + 1]
    if len(nexts) < len(part):
        nexts = np.append(nexts, part[-1] + span)
    return Run(lanes, part, nexts, np.full(len(lanes), NONE), warm)


def since(clock: Ints, held: Ints) -> Ints:
    """Time from what is held to each clock; 0 where nothing is (NONE)."""
    return np.where(held == NONE, 0, clock - np.where(held == NONE, 0, held))
