"""What every engine shares: lanes of many streams in tiles of sixteen rows, and the audit beside them.

A matrix product of one row differs in its last bits from the same row in a batch of another size, so every pass has
sixteen rows, or more where that gives the same bits (widths.py): what a stream computes does not depend on who else is
in the call (math.md 4, Rows).

N streams, lanes per stream, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tsgdn2.audit import OnlineAudit
from tsgdn2.forecaster import Forecaster, QueryInputs, Reading
from tsgdn2.scale import Bools, Floats
from tsgdn2.sequence import Peers
from tsgdn2.slab import Ints, Slab
from tsgdn2.state import ForecasterState
from tsgdn2.widths import TILE, AnyWindows, Widths, take


class Read(NamedTuple):
    """What the queries of N streams read: horizon [N, H, C, Q] standardised and sorted, wait [N, Q] or None."""

    horizon: Floats
    wait: Floats | None


class Tiles:
    """Passes of one forecaster over the lanes of a slab's streams; knows no stream."""

    def __init__(self, forecaster: Forecaster, slab: Slab, audit: OnlineAudit | None) -> None:
        self.forecaster = forecaster.eval()
        self.config = forecaster.config
        self.audit = audit
        self._rows, self._widths = slab, Widths(self.forecaster)

    def read(
        self, slots: Ints, windows: AnyWindows, future: Floats, lags: Floats, elapsed: Floats,
        state: ForecasterState, at: Ints | None = None,
    ) -> Read:  # fmt: skip
        """One query per lane: windows and elapsed [N * lanes], future [N, H, F] or nothing, lags [N, L, C].

        The lanes' states are the rows `at` [N * lanes] of `state`, or all of its rows.

        Without a future (the reference forecast has none) the covariates are at their training mean. Of the lanes'
        waits it hands out the mean, level by level.
        """
        cfg, count = self.config, len(slots)
        if not future.size:
            future = np.zeros((count, cfg.prediction_length, cfg.horizon_covariates))
        future, lags, static = np.repeat(future, cfg.lanes, axis=0), self.split(lags), self.static(slots)
        out: list[Floats] = []
        waits: list[Floats] = []
        sizes = self._widths.sizes(len(elapsed), windows, static, state) if not cfg.across else (TILE,)
        for tile, kept, peers in self.tiles(np.ones(len(elapsed), np.bool_), windows.heard(), sizes):
            part = QueryInputs(take(windows, tile), future[tile], lags[tile])
            rows = state.rows(torch.from_numpy(tile if at is None else at[tile]))
            reading: Reading = self.forecaster.read(part, elapsed[tile], static[tile], rows, peers)
            mine = torch.from_numpy(kept)
            out.append(reading.horizon[mine].double().numpy())
            if reading.wait is not None:
                waits.append(reading.wait[mine].double().numpy())
        z = np.sort(np.concatenate(out), axis=-1)  # [N * lanes, H, lane C, Q]
        z = z.reshape(count, cfg.lanes, cfg.prediction_length, cfg.lane_channels, -1)
        horizon = np.moveaxis(z, 1, 2).reshape(count, cfg.prediction_length, cfg.channels, -1)
        if not waits:
            return Read(horizon, None)
        each = np.sort(np.concatenate(waits), axis=-1).reshape(count, cfg.lanes, -1)
        return Read(horizon, np.asarray(each.mean(1)))

    def commit(
        self,
        slots: Ints,
        windows: AnyWindows,
        written: Bools,
        elapsed: Floats,
        state: ForecasterState,
        clock: Ints,
        cohort: Ints | None,
        at: Ints | None = None,
    ) -> ForecasterState:
        """One commit per lane that is `written`, all arrays [N * lanes]. Returns a new state of all lanes.

        at: the lanes' rows in `state`, which is then edited in place and returned: no copy of what stays as it is. It
        is edited when all passes are done, so an error or an interrupt in one of them leaves it as it was.
        cohort: shown to the audit with the commits and their clocks; None leaves the audit out.
        """
        static, rows, shown = self.static(slots), np.flatnonzero(written), self.audit is not None and cohort is not None
        sizes = self._widths.sizes(len(rows), windows, static, state) if not self.config.across else (TILE,)
        place = np.arange(len(elapsed)) if at is None else at
        after = state.rows(torch.from_numpy(place)) if at is None else state
        before = state.rows(torch.from_numpy(place[rows])) if shown else None
        traced: list[list[dict[str, Tensor]]] = []
        made: list[tuple[Ints, ForecasterState]] = []
        for tile, kept, peers in self.tiles(written, written, sizes):
            held, mine = state.rows(torch.from_numpy(place[tile])), torch.from_numpy(kept)
            new, traces = self.forecaster.commit(take(windows, tile), elapsed[tile], static[tile], held, peers)
            made.append((place[tile[kept]], new if len(kept) == len(tile) else new.rows(mine)))
            if shown:
                traced.append([{name: t[mine] for name, t in trace.items()} for trace in traces])
        for index, new in made:
            put(after, index, new)
        if before is not None and cohort is not None and len(rows):
            lanes = self._rows.lanes(slots)[rows]
            self._observe(lanes, before, traced, clock[rows], cohort[rows])
        return after

    def _observe(
        self, lanes: Ints, before: ForecasterState, traced: list[list[dict[str, Tensor]]], clock: Ints, cohort: Ints
    ) -> None:
        """Show the audit all committed rows of a layer at once: its cost is per call, and bits do not depend on it."""
        assert self.audit is not None
        for layer, held in enumerate(before.layers):
            if not self.audit.samples(layer):
                continue
            parts = [tile[layer] for tile in traced]
            trace = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            self.audit.update(
                torch.from_numpy(lanes),
                layer,
                held["memory"],
                trace["k"],
                trace["e"],
                trace["z"],
                trace["g"],
                trace["factor"],
                torch.from_numpy(clock),
                torch.from_numpy(cohort),
            )

    def split(self, x: np.ndarray) -> np.ndarray:
        """[N, .., C] -> [N * lanes, .., lane C]."""
        if self.config.lanes == 1:
            return x
        return np.moveaxis(x, -1, 1).reshape(len(x) * self.config.lanes, *x.shape[1:-1], 1)

    def static(self, slots: Ints) -> Tensor:
        """Static features [N * lanes, S]."""
        real = np.repeat(self._rows.static_real[slots], self.config.lanes, axis=0)
        categories = np.repeat(self._rows.static_categories[slots], self.config.lanes, axis=0)
        if self.config.channel_identity:
            channel = np.tile(np.arange(self.config.lanes), len(slots))[:, None]
            categories = np.concatenate([categories, channel], axis=1)
        return self.forecaster.static(real, categories)

    def tiles(self, wanted: Bools, seen: Bools, sizes: tuple[int, ...]) -> Iterator[tuple[Ints, Ints, Peers | None]]:
        """Index tiles over lanes [N * lanes], which rows of each are real and wanted, and who stands beside whom.

        A tile has the least of the sizes that holds what is left, or the largest, and is padded with its first row.
        Where channels look at each other it holds whole streams, wanted lanes or not, in as many multiples of TILE rows
        as one stream needs; only `seen` lanes are looked at.
        """
        if not self.config.across:
            rows, begin = np.flatnonzero(wanted), 0
            while begin < len(rows):
                size = next((size for size in sizes if size >= len(rows) - begin), sizes[-1])
                real = rows[begin : begin + size]
                yield np.append(real, np.full(size - len(real), real[0])), np.arange(len(real)), None
                begin += size
            return
        width = self.config.lanes
        many = max(1, TILE // width)
        size = -(-many * width // TILE) * TILE
        place = np.arange(size)
        streams = np.flatnonzero(wanted.reshape(-1, width).any(1))
        for begin in range(0, len(streams), many):
            real = streams[begin : begin + many]
            lanes = (real[:, None] * width + np.arange(width)).reshape(-1)
            tile = np.append(lanes, np.full(size - len(lanes), lanes[0]))
            peers = Peers(
                place // width,
                place % width,
                seen[tile] & (place < len(lanes)),
                groups=-(-size // width),
                width=width,
            )
            yield tile, np.flatnonzero(wanted[lanes]), peers


def put(state: ForecasterState, rows: Ints, new: ForecasterState) -> None:
    """Write rows of a state that is ours alone."""
    index = torch.from_numpy(rows)
    for mine, theirs in zip(state.layers, new.layers, strict=True):
        for name, tensor in theirs.items():
            mine[name][index] = tensor
    state.count[index] = new.count
