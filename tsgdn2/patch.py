"""Sensor patches: the last P steps of C channels before a clock become one token (math.md 4, Two kinds of token).

    x = asinh((v - mean) / scale)        features = [x, observed, since, calendar, known, static]
    embedding = Linear_kind(features)        observed = observed cells / all cells        (the weight m of a commit)

A commit token's clock is the end of its patch, a query's is any step; the two kinds have their own linear map. A
window with nothing observed must not come here as a commit: it is no token (math.md 4). Cells that were not observed
hold what they are taken for (bridge.py).

| symbol | meaning | shape | unit |
|---|---|---|---|
| values, seen | cells of the window, and which were observed | [.., P, C] | units of the channel |
| mean, scale | the scaler after the token's last observed value | [.., C] | units of the channel |
| since | steps between the clock and the channel's last observed value | [.., C] | steps, >= 0 |
| clock | absolute step of the token | [..] | steps |
| known | known covariates of the window | [.., P, F] | standardised |
| static | static features of the sequence | [.., S] | standardised, embedded |
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tsgdn2 import clock as clock_
from tsgdn2.linear import Linear
from tsgdn2.scale import Bools, Floats

Kind = Literal["commit", "query"]
NEVER_SEEN = 10**6


class Windows(NamedTuple):
    """Raw windows of numpy float64 and int64 arrays; shapes in the table above."""

    values: Floats
    seen: Bools
    mean: Floats
    scale: Floats
    since: NDArray[np.int64]
    clock: NDArray[np.int64]
    known: Floats

    def heard(self) -> Bools:
        """Whether any channel of each window was ever observed, [..]."""
        return np.asarray((self.since < NEVER_SEEN).any(-1))


class Tokens(NamedTuple):
    """embedding [.., D], observed [..] in [0, 1], and the kind of all of them."""

    embedding: Tensor
    observed: Tensor
    kind: Kind


class SensorPatcher(nn.Module):
    """Linear embedding of windows of P steps and C channels; knows no order of tokens and no elapsed time."""

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
    ) -> None:
        super().__init__()
        self.patch_length = patch_length
        self.period_ns = period_ns
        self.cycles = cycles
        size = patch_length * channels * 2 + channels + 2 * len(cycles) + patch_length * known + static
        self.commit = Linear(size, width)
        self.query = Linear(size, width)

    def features(self, windows: Windows) -> Tensor:
        """Features [.., size - static] in the module's dtype; the arithmetic before the cast is float64."""
        x = np.arcsinh((windows.values - windows.mean[..., None, :]) / windows.scale[..., None, :])
        since = np.log1p(np.minimum(windows.since, NEVER_SEEN) / self.patch_length)
        parts = [
            _flat(x),
            _flat(windows.seen),
            since,
            clock_.calendar(windows.clock, self.period_ns, self.cycles),
            _flat(windows.known),
        ]
        return torch.from_numpy(np.concatenate(parts, axis=-1)).to(self.commit.weight.dtype)

    def forward(self, windows: Windows, kind: Kind, static: Tensor) -> Tokens:
        """Embed windows; static [.., S] is already in the module's dtype. Returns Tokens."""
        embed = self.commit if kind == "commit" else self.query
        features = torch.cat([self.features(windows), static], dim=-1)
        observed = torch.from_numpy(windows.seen.mean(axis=(-2, -1))).to(features.dtype)
        return Tokens(embed(features), observed, kind)


def _flat(x: NDArray[np.generic]) -> NDArray[np.generic]:
    """[.., P, C] -> [.., P * C], also of no window at all."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
