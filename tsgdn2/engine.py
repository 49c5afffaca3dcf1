"""The model beside the slab: closes patches, answers queries, always in tiles of sixteen lanes.

    close:  query at `last` -> reference forecast of the next observations;  open patch -> one commit -> new state
    answer: (open patch passed by the clock? commit it on a copy)  ->  query at the clock  ->  quantiles

A matrix product of one row differs in its last bits from the same row in a batch of another size, so every pass has
sixteen rows: what a stream computes does not depend on who else is in the call (math.md 4, Rows).

N streams, lanes per stream, C channels, P patch, H horizon, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tsgdn2.audit import AuditConfig, OnlineAudit
from tsgdn2.bridge import bridged
from tsgdn2.errors import ConfigError
from tsgdn2.forecaster import Forecaster, QueryInputs
from tsgdn2.patch import Windows
from tsgdn2.scale import Bools, Floats, Moments, forgetting, scale_of
from tsgdn2.sequence import Peers
from tsgdn2.slab import NONE, Ints, Slab
from tsgdn2.state import ForecasterState
from tsgdn2.timeline import scaled

TILE = 16
COHORTS = ("complete", "partial", "after_gap")


class Engine:
    """Runs one forecaster over the rows of one slab."""

    def __init__(self, forecaster: Forecaster, slab: Slab, audit: OnlineAudit | None) -> None:
        self.forecaster = forecaster.eval()
        self.config = forecaster.config
        self.slab = slab
        self.audit = audit
        self._lam = forgetting(self.config.half_life)

    @torch.inference_mode()
    def close(self, slots: Ints) -> None:
        """Close the open patch of every stream in slots [N]: score-keeping forecast first, then the commit."""
        slab, patch = self.slab, self.config.patch_length
        last = slab.last[slots]
        moments = slab.moments(slots, self._lam)
        state = slab.load(slab.lanes(slots))
        reference = self._query(slots, last, moments, state, slab.token_clock[slots], np.zeros(0))
        end = (last // patch + 1) * patch - 1
        written, after = self._commit(slots, end, moments, state, audit=True)
        lanes = slab.lanes(slots)
        slab.store(lanes[written], after.rows(torch.from_numpy(np.flatnonzero(written))))
        slab.reference[slots], slab.origin[slots] = reference, last
        slab.count[slots], slab.mean[slots], slab.m2[slots] = moments
        clocks = np.where(written.reshape(len(slots), -1), end[:, None], slab.token_clock[slots])
        slab.token_clock[slots] = clocks

    @torch.inference_mode()
    def answer(self, slots: Ints, clock: Ints, future: Floats) -> Floats:
        """Quantiles [N, H, C, Q] of the horizon after each clock; future [N, H, F]. Changes nothing."""
        slab, patch = self.slab, self.config.patch_length
        moments = slab.moments(slots, self._lam)
        state = slab.load(slab.lanes(slots))
        token_clock = slab.token_clock[slots]
        passed = clock // patch > slab.last[slots] // patch
        if passed.any():
            rows = np.flatnonzero(passed)
            end = (slab.last[slots[rows]] // patch + 1) * patch - 1
            lanes = np.flatnonzero(np.repeat(passed, self.config.lanes))
            before = state.rows(torch.from_numpy(lanes))
            written, after = self._commit(slots[rows], end, _rows(moments, rows), before, audit=False)
            _put(state, lanes[written], after.rows(torch.from_numpy(np.flatnonzero(written))))
            token_clock = token_clock.copy()
            token_clock[rows] = np.where(written.reshape(len(rows), -1), end[:, None], token_clock[rows])
        return self._query(slots, clock, moments, state, token_clock, future)

    def _query(
        self, slots: Ints, clock: Ints, moments: Moments, state: ForecasterState, token_clock: Ints, future: Floats
    ) -> Floats:
        cfg, slab = self.config, self.slab
        values, seen = slab.window(slots, clock, cfg.window)
        mean, scale = moments.mean, scale_of(moments, slab.prior[slots])
        values = bridged(values, seen, mean, scale, cfg.bridge)
        lags = scaled(values, mean, scale)[:, cfg.window - cfg.lag_skip :]
        recent = slice(cfg.window - cfg.patch_length, None)
        windows = self._lane_windows(
            slots, clock, values[:, recent], seen[:, recent], mean, scale, slab.known_window(slots, clock)
        )
        elapsed = np.where(token_clock == NONE, 0, clock[:, None] - token_clock).reshape(-1) / cfg.patch_length
        if not future.size:  # the reference forecast has no covariates of the future; it takes their training mean
            future = np.zeros((len(slots), cfg.prediction_length, cfg.horizon_covariates))
        horizon, lags = np.repeat(future, cfg.lanes, axis=0), self._split(lags)
        static = self._static(slots)
        out = []
        for tile, kept, peers in self._tiles(np.ones(len(elapsed), np.bool_), windows.heard()):
            part = QueryInputs(_take(windows, tile), horizon[tile], lags[tile])
            y = self.forecaster.read(
                part, elapsed[tile], static[tile], state.rows(torch.from_numpy(tile)), peers
            ).horizon
            out.append(y[torch.from_numpy(kept)].double().numpy())
        z = np.sort(np.concatenate(out), axis=-1)  # [N * lanes, H, lane C, Q]
        z = z.reshape(len(slots), cfg.lanes, cfg.prediction_length, cfg.lane_channels, -1)
        z = np.moveaxis(z, 1, 2).reshape(len(slots), cfg.prediction_length, cfg.channels, -1)
        return np.asarray(mean[:, None, :, None] + scale[:, None, :, None] * z)

    def _commit(
        self, slots: Ints, end: Ints, moments: Moments, state: ForecasterState, *, audit: bool
    ) -> tuple[Bools, ForecasterState]:
        """Commit the open patch of each stream; lanes with nothing observed are no token. Returns which were."""
        cfg, slab = self.config, self.slab
        values, seen = slab.window(slots, end, cfg.window if cfg.bridge else cfg.patch_length)
        mean, scale, recent = moments.mean, scale_of(moments, slab.prior[slots]), slice(-cfg.patch_length, None)
        values = bridged(values, seen, mean, scale, cfg.bridge)
        windows = self._lane_windows(
            slots, end, values[:, recent], seen[:, recent], mean, scale, slab.open_known[slots]
        )
        written = np.asarray(windows.seen.any((1, 2)))
        token_clock = slab.token_clock[slots].reshape(-1)
        clock = np.repeat(end, cfg.lanes)
        elapsed = np.where(token_clock == NONE, 0, clock - token_clock) / cfg.patch_length
        static, lanes = self._static(slots), slab.lanes(slots)
        rows = np.flatnonzero(written)
        after = state.rows(torch.arange(len(state.count)))  # one copy, edited in place below
        traced: list[list[dict[str, Tensor]]] = []
        for tile, kept, peers in self._tiles(written, written):
            before, mine = state.rows(torch.from_numpy(tile)), torch.from_numpy(kept)
            new, traces = self.forecaster.commit(_take(windows, tile), elapsed[tile], static[tile], before, peers)
            _put(after, tile[kept], new.rows(mine))
            traced.append([{name: t[mine] for name, t in trace.items()} for trace in traces])
        if audit and self.audit is not None and len(rows):
            cohort = cohorts(windows.seen[rows], elapsed[rows])
            self._observe(lanes[rows], state.rows(torch.from_numpy(rows)), traced, clock[rows], cohort)
        return written, after

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

    def _lane_windows(
        self, slots: Ints, clock: Ints, values: Floats, seen: Bools, mean: Floats, scale: Floats, known: Floats
    ) -> Windows:
        lanes = self.config.lanes
        since = self.slab.since(slots, clock)
        return Windows(
            values=self._split(values),
            seen=self._split(seen),
            mean=self._split(mean),
            scale=self._split(scale),
            since=self._split(since),
            clock=np.repeat(clock, lanes),
            known=np.repeat(known, lanes, axis=0),
        )

    def _split(self, x: np.ndarray) -> np.ndarray:
        """[N, .., C] -> [N * lanes, .., lane C]."""
        if self.config.lanes == 1:
            return x
        return np.moveaxis(x, -1, 1).reshape(len(x) * self.config.lanes, *x.shape[1:-1], 1)

    def _static(self, slots: Ints) -> Tensor:
        real = np.repeat(self.slab.static_real[slots], self.config.lanes, axis=0)
        categories = np.repeat(self.slab.static_categories[slots], self.config.lanes, axis=0)
        if self.config.channel_identity:
            channel = np.tile(np.arange(self.config.lanes), len(slots))[:, None]
            categories = np.concatenate([categories, channel], axis=1)
        return self.forecaster.static(real, categories)

    def _tiles(self, wanted: Bools, seen: Bools) -> Iterator[tuple[Ints, Ints, Peers | None]]:
        """Index tiles over lanes [N * lanes], which rows of each are real and wanted, and who stands beside whom.

        A tile has TILE rows and is padded with its first one. Where channels look at each other it holds whole streams,
        wanted lanes or not, in as many multiples of TILE rows as one stream needs; only `seen` lanes are looked at.
        """
        if not self.config.across:
            rows = np.flatnonzero(wanted)
            for begin in range(0, len(rows), TILE):
                real = rows[begin : begin + TILE]
                yield np.append(real, np.full(TILE - len(real), real[0])), np.arange(len(real)), None
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


def audit_of(config: AuditConfig | None, forecaster: Forecaster) -> OnlineAudit | None:
    """The online audit of a forecaster's states; None stays None, ConfigError for a mixer that has no such state."""
    cfg = forecaster.config
    if config is None:
        return None
    if cfg.mixer != "gdn2":
        raise ConfigError(f"audit: only a gdn2 state can be audited, the model has mixer {cfg.mixer!r}; pass None")
    if len(config.cohorts) != len(COHORTS):
        raise ConfigError(f"audit.cohorts: needs a name for each of {COHORTS}, in this order, got {config.cohorts}")
    return OnlineAudit(
        config, layers=cfg.layers, heads=cfg.heads, key_dim=cfg.key_dim, value_dim=cfg.value_dim, dtype=forecaster.dtype
    )


def cohorts(seen: Bools, elapsed: Floats) -> Ints:
    """Cohort of each committed patch [N]: 0 complete, 1 partial, 2 the first after a gap of a patch or more."""
    partial = ~seen.all((1, 2))
    return np.where(elapsed > 1, 2, partial.astype(np.int64))


def _take(windows: Windows, rows: Ints) -> Windows:
    return Windows._make(a[rows] for a in windows)


def _rows(moments: Moments, rows: Ints) -> Moments:
    return Moments(*[a[rows] for a in moments])


def _put(state: ForecasterState, rows: Ints, new: ForecasterState) -> None:
    """Write rows of a state that is ours alone."""
    index = torch.from_numpy(rows)
    for mine, theirs in zip(state.layers, new.layers, strict=True):
        for name, tensor in theirs.items():
            mine[name][index] = tensor
    state.count[index] = new.count
