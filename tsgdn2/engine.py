"""The model beside the slab: closes patches, answers queries, always in tiles of sixteen lanes (tiles.py).

    close:  query at `last` -> reference forecast of the next observations;  open patch -> one commit -> new state
    answer: (open patch passed by the clock? commit it on a copy)  ->  query at the clock  ->  quantiles

N streams, lanes per stream, C channels, P patch, H horizon, Q quantiles.
"""

from __future__ import annotations

import numpy as np
import torch

from tsgdn2.audit import AuditConfig, OnlineAudit
from tsgdn2.bridge import bridged
from tsgdn2.errors import ConfigError
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.mixers.gates import MEMBERS
from tsgdn2.patch import Windows
from tsgdn2.scale import Bools, Floats, Moments, forgetting, scale_of
from tsgdn2.slab import NONE, Ints, Slab
from tsgdn2.state import ForecasterState
from tsgdn2.tiles import Tiles
from tsgdn2.timeline import scaled

COHORTS = ("complete", "partial", "after_gap")
SLICE = 1024
"""Lanes that are closed together."""


class Engine:
    """Runs one forecaster over the rows of one slab."""

    def __init__(self, forecaster: Forecaster, slab: Slab, audit: OnlineAudit | None) -> None:
        self.config, self.slab = forecaster.config, slab
        self._tiles = Tiles(forecaster, slab, audit)
        self._lam = forgetting(self.config.half_life)
        self._slice = max(1, SLICE // self.config.lanes)

    @torch.inference_mode()
    def close(self, slots: Ints) -> None:
        """Close the open patch of every stream in slots [N]: score-keeping forecast first, then the commit.

        In slices, whatever the caller has: copies of states that leave the cache cost more than the passes do.
        """
        for begin in range(0, len(slots), self._slice):
            self._close(slots[begin : begin + self._slice])

    def _close(self, slots: Ints) -> None:
        slab, patch = self.slab, self.config.patch_length
        last = slab.last[slots]
        moments = slab.moments(slots, self._lam)
        lanes = slab.lanes(slots)
        reference = self._query(slots, last, moments, slab.state, lanes, slab.token_clock[slots], np.zeros(0))
        end = (last // patch + 1) * patch - 1
        written = self._commit(slots, end, moments, slab.state, lanes, audit=True)
        slab.reference[slots], slab.origin[slots] = reference, last
        slab.count[slots], slab.mean[slots], slab.m2[slots] = moments
        clocks = np.where(written.reshape(len(slots), -1), end[:, None], slab.token_clock[slots])
        slab.token_clock[slots] = clocks

    @torch.inference_mode()
    def answer(self, slots: Ints, clock: Ints, future: Floats) -> Floats:
        """Quantiles [N, H, C, Q] of the horizon after each clock; future [N, H, F]. Changes nothing."""
        slab, patch = self.slab, self.config.patch_length
        moments = slab.moments(slots, self._lam)
        state, every = slab.load(slab.lanes(slots)), np.arange(len(slots) * self.config.lanes)
        token_clock = slab.token_clock[slots]
        passed = clock // patch > slab.last[slots] // patch
        if passed.any():
            rows = np.flatnonzero(passed)
            end = (slab.last[slots[rows]] // patch + 1) * patch - 1
            lanes = every[np.repeat(passed, self.config.lanes)]
            written = self._commit(slots[rows], end, _rows(moments, rows), state, lanes, audit=False)
            token_clock = token_clock.copy()
            token_clock[rows] = np.where(written.reshape(len(rows), -1), end[:, None], token_clock[rows])
        return self._query(slots, clock, moments, state, every, token_clock, future)

    def _query(
        self, slots: Ints, clock: Ints, moments: Moments, state: ForecasterState, lanes: Ints, token_clock: Ints,
        future: Floats,
    ) -> Floats:  # fmt: skip
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
        z = self._tiles.read(slots, windows, future, lags, elapsed, state, lanes).horizon
        return np.asarray(mean[:, None, :, None] + scale[:, None, :, None] * z)

    def _commit(
        self, slots: Ints, end: Ints, moments: Moments, state: ForecasterState, lanes: Ints, *, audit: bool
    ) -> Bools:
        """Commit the open patch of each stream into these rows of a state; lanes with nothing observed are no token.

        Returns which were.
        """
        cfg, slab = self.config, self.slab
        values, seen = slab.window(slots, end, cfg.window if cfg.bridge else cfg.patch_length)
        mean, scale, recent = moments.mean, scale_of(moments, slab.prior[slots]), slice(-cfg.patch_length, None)
        values = bridged(values, seen, mean, scale, cfg.bridge)
        windows = self._lane_windows(
            slots, end, values[:, recent], seen[:, recent], mean, scale, slab.open_known[slots]
        )
        written = np.asarray(windows.seen.any((1, 2)))
        token_clock, clock = slab.token_clock[slots].reshape(-1), np.repeat(end, cfg.lanes)
        elapsed = np.where(token_clock == NONE, 0, clock - token_clock) / cfg.patch_length
        cohort = cohorts(windows.seen, elapsed) if audit else None
        self._tiles.commit(slots, windows, written, elapsed, state, clock, cohort, lanes)
        return written

    def _lane_windows(
        self, slots: Ints, clock: Ints, values: Floats, seen: Bools, mean: Floats, scale: Floats, known: Floats
    ) -> Windows:
        lanes, split = self.config.lanes, self._tiles.split
        since = self.slab.since(slots, clock)
        return Windows(
            values=split(values),
            seen=split(seen),
            mean=split(mean),
            scale=split(scale),
            since=split(since),
            clock=np.repeat(clock, lanes),
            known=np.repeat(known, lanes, axis=0),
        )


def audit_of(config: AuditConfig | None, forecaster: Forecaster) -> OnlineAudit | None:
    """The online audit of a forecaster's states; None stays None, ConfigError for layers that have no such state."""
    cfg = forecaster.config
    if config is None:
        return None
    if not set(config.sampled_layers(cfg.layers)) <= set(cfg.traced_layers):
        raise ConfigError(f"audit: {untraced(cfg)}; pass None, or name layers that can be audited")
    if len(config.cohorts) != len(COHORTS):
        raise ConfigError(f"audit.cohorts: needs a name for each of {COHORTS}, in this order, got {config.cohorts}")
    return OnlineAudit(
        config, layers=cfg.layers, heads=cfg.heads, key_dim=cfg.key_dim, value_dim=cfg.value_dim, dtype=forecaster.dtype
    )


def untraced(config: ForecasterConfig) -> str:
    """Say why some layers of a model can not be audited, for the message of an error."""
    layers = ", ".join(f"{n} {name}" for n, name in enumerate(config.layer_mixers))
    return f"only states of the delta family ({', '.join(MEMBERS)}) can be audited, the model's layers are {layers}"


def cohorts(seen: Bools, elapsed: Floats) -> Ints:
    """Cohort of each committed patch [N]: 0 complete, 1 partial, 2 the first after a gap of a patch or more."""
    partial = ~seen.all((1, 2))
    return np.where(elapsed > 1, 2, partial.astype(np.int64))


def _rows(moments: Moments, rows: Ints) -> Moments:
    return Moments(*[a[rows] for a in moments])
