"""How many bytes and FLOPs a scan or a step cannot do without: the lower bounds that timings are set against.

    seconds >= max(bytes / copy bandwidth, FLOPs / matmul rate)

Bytes: every input read once and every result written once, the states of chunks never; a backward reads the inputs
once more, the upstream gradients, and writes the gradients. FLOPs: the products of math.md 2 on chunks of 64 tokens,
triangles counted as triangles, two per multiplication; exponentials and gates are not counted. The limit: no kernel
reaches both bounds, and one that recomputes or spills chunk states through memory pays for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

CHUNK = 64
LEVELS = (0.1, 0.5, 0.9)


class Cost(NamedTuple):
    """What a job cannot do without."""

    bytes: int
    flops: float

    def seconds(self, bandwidth: float, rate: float) -> float:
        """The larger of both bounds; bandwidth in bytes and rate in FLOPs per second."""
        return max(self.bytes / bandwidth, self.flops / rate)


def scan_cost(
    sequences: int,
    tokens: int,
    H: int,
    K: int,
    V: int,
    *,
    size: int = 2,
    g_size: int = 4,
    backward: bool = False,
    gated: bool = True,
    masked: bool = False,
    initial: bool = False,
) -> Cost:
    """The cost of a scan of `tokens` tokens in all, `size` bytes per element of the inputs and `g_size` of g.

    `gated` is gdn2_scan (b and w are read), not gated delta_scan (e and z stand in the place of b and v). Per token and
    head, with triangles of (C + 1) / 2 on average, multiplications:

        forward: T, P, Y  3 K C/2   U, P R  2 V C/2   A = (I + T)^-1  C^2/6   Y S0, Qg S0, Kt^T R  3 K V
        backward: T, P, Y again  3 K C/2   U again  V C/2   A again  C^2/6   R again  K V
                  dP, P^T dO, dZ, half of dA  4 V C/2   dEg, half of dA, X, Xs, W1, W2  6 K C/2
                  A^T dA A^T  C^2/3   Kt dS, dKt, Qg^T dO, Y^T dR, dQg, dY  6 K V
    """
    half = (CHUNK + 1) / 2
    multiplications = 3 * K * half + 2 * V * half + CHUNK**2 / 6 + 3 * K * V
    keys, values = (3, 2) if gated else (3, 1)
    inputs = tokens * H * (size * (keys * K + values * V) + g_size * K) + 4 * tokens * masked
    states = 4 * sequences * H * K * V
    read_and_written = inputs + tokens * H * size * V + states * (2 if initial else 1)
    if backward:
        multiplications += 9 * K * half + 5 * V * half + CHUNK**2 / 2 + 7 * K * V
        gradients = tokens * H * (size * (keys * K + values * V) + g_size * K)
        read_and_written += inputs + gradients + tokens * H * size * V + states * (3 if initial else 1)
    return Cost(read_and_written, 2 * multiplications * tokens * H)


def step_cost(N: int, H: int, K: int, V: int, *, size: int = 2, g_size: int = 4, masked: bool = False) -> Cost:
    """The cost of one token for N streams: each state is read and written once; four products of a vector."""
    tokens = N * H * (size * (3 * K + 3 * V) + g_size * K) + 4 * N * masked + 8 * N
    return Cost(tokens + 2 * 4 * N * H * K * V, 2.0 * 4 * N * H * K * V)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Quantiles at LEVELS by linear interpolation between the sorted values, keys like "0.5"."""
    if not values:
        raise ValueError("values must hold at least one measurement; got none")
    ordered = sorted(values)
    found = {}
    for level in LEVELS:
        place = level * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        found[str(level)] = ordered[low] + (place - low) * (ordered[high] - ordered[low])
    return found
