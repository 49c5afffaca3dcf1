"""The private memory of an online predictor: one row per stream, all rows in a few arrays that are edited in place.

    ring slot of step s = s mod W: holds the last W steps up to `last`, the last step with a value
    closed patches live in the model state and in `moments`; the open patch lives in the ring alone

So a value of the open patch may still change, in any order, and nothing has to be taken back. A row has the same bytes
however long its stream is. Rows are handed out, put back and cleared by their slots: no cost grows with the other rows.

| array | shape | what |
|---|---|---|
| values, seen | [S, W, C] | ring of raw cells |
| known | [S, 2P, F] | ring of columns of covariates (columns.py), up to the clock |
| open_known, before_known | [S, P, F] | the same for the steps of the open patch, and of the P steps before it |
| count, mean, m2, prior | [S, C] | scaler before the open patch, and its prior deviation |
| last, clock, origin | [S] | last observed step, last step heard of, clock of the reference forecast |
| last_seen | [S, C] | last observed step of a channel |
| token_clock | [S, lanes] | clock of a lane's last commit |
| reference | [S, H, C, Q] | quantiles that score the next observations |
| counters | [S, 5] | observations, duplicates, replaced, late, replays: of what arrived, no part of the state |
| static_real, static_categories | [S, R], [S, K] | static features |
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.columns import merged
from tsgdn2.forecaster import Forecaster
from tsgdn2.patch import NEVER_SEEN
from tsgdn2.scale import Bools, Floats, Moments, update
from tsgdn2.state import ForecasterState

Ints = NDArray[np.int64]
NONE = -(2**62)
COUNTERS = ("observations", "duplicates", "replaced", "late", "replays")


class Slab:
    """Arrays of S rows for the streams and S x lanes rows for the model's state; grows by doubling."""

    values: Floats
    seen: Bools
    known: Floats
    open_known: Floats
    before_known: Floats
    count: Floats
    mean: Floats
    m2: Floats
    prior: Floats
    last: Ints
    clock: Ints
    origin: Ints
    last_seen: Ints
    token_clock: Ints
    reference: Floats
    counters: Ints
    static_real: Floats
    static_categories: Ints

    def __init__(self, forecaster: Forecaster, capacity: int = 16) -> None:
        self.config = forecaster.config
        self._forecaster = forecaster
        self.capacity = 0
        self.state = forecaster.initial_state(0)
        self._blank, self._blank_state = self._fresh(1), _flat(forecaster.initial_state(1))
        self.reserve(capacity)

    def reserve(self, capacity: int) -> None:
        """Make room for at least `capacity` streams; rows keep their place and content."""
        if capacity <= self.capacity:
            return
        capacity = max(capacity, 2 * self.capacity)
        arrays, grown = self._fresh(capacity), self._forecaster.initial_state(capacity * self.config.lanes)
        for new, old in zip(_flat(grown), _flat(self.state), strict=True):
            new[: len(old)] = old
        grow(self, arrays, self.capacity)  # memory is had by now: an error before leaves the old arrays
        self.state, self.capacity = grown, capacity

    def row_nbytes(self) -> int:
        """Bytes of one stream, all arrays and tensors."""
        return int(sum(getattr(self, name).nbytes for name in self._blank) + self.state.nbytes) // self.capacity

    def lanes(self, slots: Ints) -> Ints:
        """State rows of the streams in `slots` [N] -> [N * lanes]."""
        return np.asarray((slots[:, None] * self.config.lanes + np.arange(self.config.lanes)).reshape(-1), np.int64)

    def load(self, lanes: Ints) -> ForecasterState:
        """Copy of some state rows."""
        return self.state.rows(torch.from_numpy(lanes))

    def store(self, lanes: Ints, state: ForecasterState) -> None:
        """Write state rows in place."""
        index = torch.from_numpy(lanes)
        for mine, new in zip(_flat(self.state), _flat(state), strict=True):
            mine[index] = new

    def take(self, other: Slab, rows: Ints, into: Ints) -> None:
        """Copy whole rows [N] of another slab of the same forecaster into rows `into` [N] of this one."""
        for name in self._blank:
            getattr(self, name)[into] = getattr(other, name)[rows]
        target, source = torch.from_numpy(self.lanes(into)), torch.from_numpy(self.lanes(rows))
        for mine, theirs in zip(_flat(self.state), _flat(other.state), strict=True):
            mine[target] = theirs[source]

    def write(self, slots: Ints, step: Ints, values: Floats, seen: Bools) -> tuple[Bools, Bools]:
        """Put one observation per stream into its ring; returns per row: nothing new, and something replaced."""
        w = self.config.window
        last = self.last[slots]
        ring = np.arange(w)
        stale = step[:, None] - (step[:, None] - ring) % w > last[:, None]
        rows, columns = np.nonzero(stale)
        self.seen[slots[rows], columns] = False
        at = step % w
        old, had = self.values[slots, at], self.seen[slots, at]
        differs = seen & had & (old != values)
        self.values[slots, at] = np.where(seen, values, old)
        self.seen[slots, at] = had | seen
        self.last[slots] = np.maximum(last, step)
        self.last_seen[slots] = np.where(seen, np.maximum(self.last_seen[slots], step[:, None]), self.last_seen[slots])
        return (seen <= (had & ~differs)).all(1), differs.any(1)

    def write_known(self, slots: Ints, step: Ints, known: Floats, observed: Bools) -> None:
        """Put covariates into the rings of the clock and of the open patch, before `write` and before the clock moves.

        observed [N]: the row carries a value, so that it opens its patch if that is a later one.
        """
        p, past = self.config.patch_length, self.config.past
        clock, open_patch = self.clock[slots], self.last[slots] // p
        ring = np.arange(2 * p)
        rows, columns = np.nonzero(step[:, None] - (step[:, None] - ring) % (2 * p) > clock[:, None])
        self.known[slots[rows], columns] = 0.0
        fresh = step > clock - 2 * p
        place = slots[fresh], step[fresh] % (2 * p)
        self.known[place] = merged(self.known[place], known[fresh], past)
        opens = observed & (step // p > open_patch)
        if opens.any():  # steps of the new patch that came without a value, and those before it, are still in the ring
            at = (step[opens] // p * p)[:, None] + np.arange(-p, p)
            newest = np.maximum(clock, step)[opens, None]
            held = (at > newest - 2 * p) & (at <= newest)
            found = np.where(held[..., None], self.known[slots[opens, None], at % (2 * p)], 0.0)
            self.before_known[slots[opens]], self.open_known[slots[opens]] = found[:, :p], found[:, p:]
        inside = step // p == np.where(opens, step // p, open_patch)
        place = slots[inside], step[inside] % p
        self.open_known[place] = merged(self.open_known[place], known[inside], past)

    def window(self, slots: Ints, clock: Ints, steps: int) -> tuple[Floats, Bools]:
        """values and seen [N, steps, C] of the steps that end at each clock; 0 where not observed."""
        at = clock[:, None] + np.arange(1 - steps, 1)
        last = self.last[slots][:, None]
        held = (at <= last) & (at > last - self.config.window)
        row, ring = slots[:, None], at % self.config.window
        seen = self.seen[row, ring] & held[..., None]
        return np.where(seen, self.values[row, ring], 0.0), seen

    def known_window(self, slots: Ints, clock: Ints) -> Floats:
        """Covariates [N, P, F] of the P steps that end at each clock; 0 where none was given.

        Those that end at `last` do not depend on where the clock is: the reference forecast is the same in any case.
        """
        p = self.config.patch_length
        if not self.config.step_covariates:
            return np.zeros((len(slots), p, 0))
        at = clock[:, None] + np.arange(1 - p, 1)
        row, newest, last = slots[:, None], self.clock[slots][:, None], self.last[slots][:, None]
        held = (at <= newest) & (at > newest - 2 * p)
        found = np.where(held[..., None], self.known[row, at % (2 * p)], 0.0)
        own = np.where((at >= last // p * p)[..., None], self.open_known[row, at % p], self.before_known[row, at % p])
        return np.where((clock[:, None] == last)[..., None], own, found)

    def moments(self, slots: Ints, lam: float) -> Moments:
        """Scaler of each stream with its open patch absorbed, in the order of time; [N, C] each."""
        moments = Moments(self.count[slots], self.mean[slots], self.m2[slots])
        patch = self.config.patch_length
        values, seen = self.window(slots, (self.last[slots] // patch + 1) * patch - 1, patch)
        for p in range(patch):
            moments = update(moments, values[:, p], seen[:, p], lam)
        return moments

    def since(self, slots: Ints, clock: Ints) -> Ints:
        """Steps since each channel was last observed, [N, C]."""
        seen = self.last_seen[slots]
        return np.where(seen == NONE, NEVER_SEEN, clock[:, None] - seen)

    def clear(self, slots: Ints) -> None:
        """Forget everything in these rows [N]: they are as they were before their first stream."""
        for name, blank in self._blank.items():
            getattr(self, name)[slots] = blank
        lanes = torch.from_numpy(self.lanes(slots))
        for tensor, empty in zip(_flat(self.state), self._blank_state, strict=True):
            tensor[lanes] = empty[0]

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """Rows [N] as named tensors, in this order, for a file."""
        out = {f"stream.{name}": torch.from_numpy(getattr(self, name)[slots]) for name in self._blank}
        lanes = torch.from_numpy(self.lanes(slots))
        return out | {f"state.{i}": tensor[lanes] for i, tensor in enumerate(_flat(self.state))}

    def restore(self, tensors: dict[str, Tensor], slots: Ints) -> None:
        """Fill rows [N] from what `tensors` gave. KeyError or ValueError, with nothing changed, where it does not fit.

        A category that the model has not would be an error in the pass of another stream, so it is looked at here.
        """
        count, lanes = len(slots), len(slots) * self.config.lanes
        for name, blank in self._blank.items():
            fit(f"stream.{name}", tensors, torch.from_numpy(blank), count)
        for i, empty in enumerate(self._blank_state):
            fit(f"state.{i}", tensors, empty, lanes)
        sizes, codes = self.config.static_cardinalities, tensors["stream.static_categories"].numpy()
        if ((codes < 0) | (codes >= np.array(sizes, np.int64))).any():
            raise ValueError(f"stream.static_categories must be from 0 to below {sizes}, got {codes.tolist()}")
        self.reserve(int(slots.max(initial=-1)) + 1)
        for name in self._blank:
            getattr(self, name)[slots] = tensors[f"stream.{name}"].numpy()
        index = torch.from_numpy(self.lanes(slots))
        for i, tensor in enumerate(_flat(self.state)):
            tensor[index] = tensors[f"state.{i}"]

    def _fresh(self, rows: int) -> dict[str, NDArray[np.generic]]:
        cfg, c, w, p = self.config, self.config.channels, self.config.window, self.config.patch_length
        none = np.int64(NONE)
        return {
            "values": np.zeros((rows, w, c)),
            "seen": np.zeros((rows, w, c), np.bool_),
            "known": np.zeros((rows, 2 * p, cfg.step_covariates)),
            "open_known": np.zeros((rows, p, cfg.step_covariates)),
            "before_known": np.zeros((rows, p, cfg.step_covariates)),
            "count": np.zeros((rows, c)),
            "mean": np.zeros((rows, c)),
            "m2": np.zeros((rows, c)),
            "prior": np.ones((rows, c)),
            "last": np.full(rows, none),
            "clock": np.full(rows, none),
            "origin": np.full(rows, none),
            "last_seen": np.full((rows, c), none),
            "token_clock": np.full((rows, cfg.lanes), none),
            "reference": np.full((rows, cfg.prediction_length, c, len(cfg.quantiles)), np.nan),
            "counters": np.zeros((rows, len(COUNTERS)), np.int64),
            "static_real": np.zeros((rows, cfg.static_real)),
            "static_categories": np.zeros((rows, len(cfg.static_cardinalities)), np.int64),
        }


def grow(owner: object, fresh: Mapping[str, Floats | Ints | NDArray[np.generic]], rows: int) -> None:
    """Put larger arrays in the place of the owner's of the same names, whose first `rows` rows they take over."""
    for name, array in fresh.items():
        if rows:
            array[:rows] = getattr(owner, name)
        setattr(owner, name, array)


def fit(name: str, tensors: Mapping[str, Tensor], like: Tensor, count: int) -> None:
    """ValueError unless a tensor has `count` rows of the shape and dtype of those of `like`; KeyError without it."""
    found, shape = tensors[name], (count, *like.shape[1:])
    if found.dtype != like.dtype or found.shape != shape:
        raise ValueError(f"{name} must be {like.dtype} {shape}, got {found.dtype} {tuple(found.shape)}")


def _flat(state: ForecasterState) -> list[Tensor]:
    return [*(layer[name] for layer in state.layers for name in sorted(layer)), state.count]
