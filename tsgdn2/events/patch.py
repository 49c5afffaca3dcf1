"""Event patches: the last P steps of an event stream before a moment tau become one token (math.md 4).

    c = (tau - 1) // period                  u = (tau - c period) / period in (0, 1]
    embedding = SensorPatcher(cells of the P steps that end with c) + Linear_kind([sums of the rows, idle, u])
    wait = Linear(h): quantiles of log1p(time to the next event / period)

tau is exclusive: every event before it is known, none at it. With u < 1 the last step is partial and its cells and sums
are those so far. A commit stands at the end of its patch, or right after the last of its n events; a query stands
anywhere, and its horizon starts with step c + 1. A window without an event must not come here as a commit.

| symbol | meaning | shape | unit |
|---|---|---|---|
| values, seen, mean, scale, since, known | as in tsgdn2/patch.py, C targets as the channels | [.., P, C] .. | |
| clock | tau | [..] | int64 ns |
| sums | sums.py, of the P steps, and with number windows of the events since the last commit | [.., R, F] | |
| idle | tau - moment of the newest event before it; NEVER periods without one | [..] | periods, >= 0 |
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tsgdn2.bridge import bridged
from tsgdn2.events.sums import feature_count, observed_share, token_features
from tsgdn2.linear import Linear
from tsgdn2.patch import NEVER_SEEN, Kind, SensorPatcher, Tokens, Windows
from tsgdn2.scale import Bools, Floats

NEVER = float(NEVER_SEEN)
_LONGEST_NS = 2.0**62


class EventWindows(NamedTuple):
    """Raw windows of events, numpy float64 and int64 arrays; shapes in the table above. The first seven are Windows."""

    values: Floats
    seen: Bools
    mean: Floats
    scale: Floats
    since: NDArray[np.int64]
    clock: NDArray[np.int64]
    known: Floats
    sums: Floats
    idle: Floats

    def heard(self) -> Bools:
        """Whether each window has an event before it, [..]: the lanes of a stream see the same events."""
        return np.asarray(self.idle < NEVER)


class EventPatcher(nn.Module):
    """Linear embedding of windows of events; knows no order of tokens and no elapsed time.

    slots and marks: sizes of the vocabulary with `other` and `missing`, and of the marks. by_number: windows hold one
    row more, the events since the last commit.
    """

    def __init__(
        self,
        *,
        patch_length: int,
        channels: int,
        width: int,
        known: int,
        static: int,
        period_ns: int,
        cycles: tuple[str, ...],
        slots: int,
        marks: int,
        by_number: bool,
    ) -> None:
        super().__init__()
        self.period_ns, self.slots, self.marks, self.by_number = period_ns, slots, marks, by_number
        self.rows = patch_length + by_number
        self.cells = SensorPatcher(
            patch_length=patch_length,
            channels=channels,
            width=width,
            known=known,
            static=static,
            period_ns=1,  # the phase of the calendar is that of the moment itself: its clock counts nanoseconds
            cycles=cycles,
        )
        size = self.rows * feature_count(slots, marks) + 2
        self.commit = Linear(size, width, bias=False)
        self.query = Linear(size, width, bias=False)

    def features(self, windows: EventWindows) -> Tensor:
        """What the events add to the cells' features, in the module's dtype; before the cast it is float64."""
        lead = windows.clock.shape
        rows = token_features(windows.sums, self.slots, self.marks)
        rows = rows.reshape(*lead, rows.shape[-2] * rows.shape[-1])
        idle = np.log1p(np.minimum(windows.idle, NEVER))
        parts = [rows, idle[..., None], phase(windows.clock, self.period_ns)[..., None]]
        return torch.from_numpy(np.concatenate(parts, axis=-1)).to(self.commit.weight.dtype)

    def forward(self, windows: EventWindows, kind: Kind, static: Tensor) -> Tokens:
        """Embed windows; static [.., S] is already in the module's dtype. Returns Tokens; a query's weight is 0."""
        cells = self.cells(Windows(*windows[:7]), kind, static)
        added = self.features(windows)
        if kind == "query":
            return Tokens(cells.embedding + self.query(added), torch.zeros_like(cells.observed), kind)
        own = windows.sums[..., -1, :] if self.by_number else windows.sums.sum(-2)
        observed = torch.from_numpy(observed_share(own, self.slots, self.marks)).to(cells.observed.dtype)
        return Tokens(cells.embedding + self.commit(added), observed, kind)


class WaitHead(nn.Module):
    """Quantiles of log1p(time to the next event / period) from a query's hidden state; sorted when handed out."""

    def __init__(self, width: int, levels: tuple[float, ...]) -> None:
        super().__init__()
        self.linear = Linear(width, len(levels))
        nn.init.normal_(self.linear.weight, std=0.02)
        # waits of a Poisson process with one event per period: -log(1 - level)
        start = torch.log1p(-torch.log1p(-torch.tensor(levels, dtype=torch.float64)))
        self.linear.bias.data.copy_(start)

    def forward(self, h: Tensor) -> Tensor:
        """h [.., D] -> [.., Q]."""
        return torch.as_tensor(self.linear(h))


def waits(outputs: Floats, period_ns: int) -> NDArray[np.int64]:
    """Times to the next event in ns, increasing along Q, from a WaitHead's outputs [.., Q] in float64."""
    periods = np.expm1(np.clip(np.sort(outputs, axis=-1), 0.0, 60.0))
    return np.asarray(np.minimum(periods * period_ns, _LONGEST_NS).astype(np.int64))


def shown(values: Floats, seen: Bools, mean: Floats, scale: Floats, patch: int, bridge: float) -> Floats:
    """Values [.., P, C] of the last P of W steps, what is missing taken for what the whole window makes of it."""
    steps = slice(None) if bridge else slice(values.shape[-2] - patch, None)
    filled = bridged(values[..., steps, :], seen[..., steps, :], mean, scale, bridge)
    return filled[..., filled.shape[-2] - patch :, :]


def lagged(
    values: Floats, seen: Bools, partial: Bools, mean: Floats, scale: Floats, count: int, bridge: float
) -> Floats:
    """The last `count` of W steps [.., L, C], standardised; the last step is missing where it is partial [..]."""
    steps = slice(None) if bridge else slice(values.shape[-2] - count, None)
    whole = seen[..., steps, :].copy()
    whole[partial, whole.shape[-2] - 1 :] = False
    filled = bridged(values[..., steps, :], whole, mean, scale, bridge)
    return np.asarray((filled[..., filled.shape[-2] - count :, :] - mean[..., None, :]) / scale[..., None, :])


def step_of(clock: NDArray[np.int64], period_ns: int) -> NDArray[np.int64]:
    """Step c of the exclusive moment tau: the last step that has begun before it."""
    return (clock - 1) // period_ns


def phase(clock: NDArray[np.int64], period_ns: int) -> Floats:
    """The share u in (0, 1] of step c that has passed at tau."""
    return (clock - step_of(clock, period_ns) * period_ns) / period_ns
