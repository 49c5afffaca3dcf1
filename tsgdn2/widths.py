"""How many rows one pass through the model may have: sixteen by the promise, more where more give the same bits.

    pass of 64 or 256 rows  ==  passes of 16 rows, bit for bit      tried here, once a model, process and thread count

A pass costs some three milliseconds of calls whatever it holds (LOG.md), so ten thousand streams that close together
want wide ones. Which bits a matrix product gives depends on its shape, on the library and on the machine, and never on
the numbers: what random rows of the model's own shapes show holds for all rows. Where they differ, it stays at sixteen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tsgdn2.events.patch import EventWindows
from tsgdn2.forecaster import Forecaster, QueryInputs
from tsgdn2.patch import Windows
from tsgdn2.state import ForecasterState

TILE: Final = 16
"""Rows of the pass that sets the bits (math.md 4, Rows)."""
WIDE: Final = (64, 256)
_ENOUGH: Final = 4 * TILE
"""Fewer rows than these are not worth the trial."""
_COMMITS: Final = 65
"""The trial's states have so many commits behind them, from none on: the bound of the state is at every 64th."""

AnyWindows = Windows | EventWindows


class Widths:
    """The sizes of passes that one forecaster may use."""

    def __init__(self, forecaster: Forecaster) -> None:
        self._forecaster = forecaster
        self._found: dict[int, tuple[int, ...]] = {}

    def sizes(self, rows: int, windows: AnyWindows, static: Tensor, state: ForecasterState) -> tuple[int, ...]:
        """Sizes that are allowed for so many rows, rising; windows, static and state show what rows look like."""
        threads = torch.get_num_threads()
        if threads not in self._found:
            if rows <= _ENOUGH:
                return (TILE,)
            self._found[threads] = (TILE, *self._agreeing(windows, static, state))
        return self._found[threads]

    @torch.inference_mode()
    def _agreeing(self, windows: AnyWindows, static: Tensor, state: ForecasterState) -> Iterator[int]:
        """The wide sizes whose passes give the bits of narrow ones."""
        count, dice = max(WIDE), np.random.default_rng(0)
        pick = np.arange(count) % len(windows.clock)
        drawn = resembling(windows, pick, dice)
        features = torch.from_numpy(dice.normal(size=(count, *static.shape[1:]))).to(static)
        before = _drawn(state.rows(torch.from_numpy(pick)), dice)
        narrow = self._passes(TILE, drawn, features, before)
        for size in WIDE:
            wide = self._passes(size, drawn, features, before)
            if all(same_bits(mine, theirs) for mine, theirs in zip(narrow, wide, strict=True)):
                yield size

    def _passes(self, size: int, windows: AnyWindows, static: Tensor, state: ForecasterState) -> list[Tensor]:
        """All that queries and commits of these rows give, in passes of one size."""
        cfg, parts = self._forecaster.config, list[list[Tensor]]()
        dice, count = np.random.default_rng(1), len(static)
        future = dice.normal(size=(count, cfg.prediction_length, cfg.horizon_covariates))
        lags, elapsed = dice.normal(size=(count, cfg.lag_skip, cfg.lane_channels)), dice.uniform(0, 3, count)
        for begin in range(0, count, size):
            rows = np.arange(begin, begin + size)
            mine, index = take(windows, rows), torch.from_numpy(rows)
            queries = QueryInputs(mine, future[rows], lags[rows])
            reading = self._forecaster.read(queries, elapsed[rows], static[index], state.rows(index))
            after, traces = self._forecaster.commit(mine, elapsed[rows], static[index], state.rows(index))
            found = [reading.horizon, *([] if reading.wait is None else [reading.wait]), after.count]
            for layer in (*after.layers, *traces):
                found += [layer[name] for name in sorted(layer)]
            parts.append(found)
        return [torch.cat(part) for part in zip(*parts, strict=True)]


def take(windows: AnyWindows, rows: np.ndarray) -> AnyWindows:
    """Some of the windows."""
    parts = (a[rows] for a in windows)
    return Windows._make(parts) if isinstance(windows, Windows) else EventWindows._make(parts)


def same_bits(mine: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are the same to the bit; a NaN is a NaN."""
    return torch.equal(mine.isnan(), theirs.isnan()) and torch.equal(mine.nan_to_num(), theirs.nan_to_num())


def resembling(windows: AnyWindows, pick: np.ndarray, dice: np.random.Generator) -> AnyWindows:
    """Windows of the cells seen, clocks and ages of some others, with other numbers in all of them."""
    parts = list[np.ndarray]()
    for array in take(windows, pick):
        kind = array.dtype.kind
        parts.append(np.abs(dice.normal(size=array.shape)) + 0.1 if kind == "f" else array)
    return Windows._make(parts) if isinstance(windows, Windows) else EventWindows._make(parts)


def _drawn(state: ForecasterState, dice: np.random.Generator) -> ForecasterState:
    """A state with other numbers in all its tensors."""
    for layer in state.layers:
        for name, tensor in layer.items():
            if tensor.is_floating_point():
                layer[name] = torch.from_numpy(dice.normal(size=tensor.shape)).to(tensor)
    state.count[:] = torch.arange(len(state.count)) % _COMMITS
    return state
