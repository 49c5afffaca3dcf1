"""Calibrated intervals: an online predictor whose quantiles widen and narrow until they cover as often as they say.

What repeats exactly can be covered 80 % of the time only by intervals that now and then end a hair before it; there the
ends hover around the repeated value. Nothing is promised of any single moment: only of the share over time.

    pair u: levels a_u < 1/2 and 1 - a_u of the model, middle m;  alpha_u = 2 a_u, the share to be missed
    given out at the clock:   [m - f_u (m - q_lo),  m + f_u (q_hi - m)],   f_u = exp(s_u), and never inside pair u + 1
    when y comes, for each forecast of it that was made when a patch closed, in the block of its lead time:
                              s_u <- s_u + ETA (1{y outside} - alpha_u)

Each s is a quantile tracker, in the logarithm of a factor: no unit, no scale, no memory of past scores. Its sum
telescopes, so over any T judged values, whatever they are,

    share missed - alpha_u = (s_u(T) - s_u(0)) / (ETA T)         (exactly, while |s| < LIMIT)

| symbol | shape per stream | what |
|---|---|---|
| s | [K, C, U] | logarithm of the factor, by block of lead times (a patch of steps each), channel and pair |
| ends | [K, H, C, U, 2] | the ends that were given out at the last K closings, and `origin` [K], their clocks |
| judged, missed | [K, C, U] | values judged so far, and those outside |
| last | [C] | last step that was judged: repeats, replacements and late values are not judged again |

A block has a patch of lead times because each value then falls once into each. Cost: constant per value, no pass of the
model. A missing cell is judged by nothing and changes nothing. Surprise stays that of the model's own quantiles.

Sources: Gibbs and Candes 2021, arXiv 2106.00170 (adaptive conformal inference); Angelopoulos, Candes and Tibshirani
2023, arXiv 2307.16895 (quantile tracking and its telescoping sum); Romano, Patterson and Candes 2019, arXiv 1905.03222
(scores relative to a model's own quantiles).
H horizon, C channels, Q quantiles, K blocks, U pairs from the outermost, N streams, P patch.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.ingest import FILLED, NEW, Route
from tsgdn2.online import OnlinePredictor
from tsgdn2.scale import Floats
from tsgdn2.slab import NONE, Ints, Slab

ETA: Final = 0.06
"""Step of the tracker: one miss at 80 % widens by 5 %, one hit narrows by 1.2 %. A larger one follows sooner, and its
own noise makes it wider: by 3 % from 0.05 to 0.1."""
LIMIT: Final = 16.0
"""Bound on |s|, a factor of nine million: where the model's own interval has no width at all, nothing can widen it."""
PREFIX: Final = "conformal."


class Coverage(NamedTuple):
    """How often the intervals of one stream held what came."""

    wanted: float
    """Share that the pair of levels is to cover."""
    found: float
    """Share that it covered; NaN before the first judged value."""
    judged: int
    """Values judged."""


class Calibrated(OnlinePredictor):
    """An OnlinePredictor with calibrated quantiles: same verbs, same file, a little more time and memory.

    Begins uncalibrated (factors of 1), from a predictor or from the file of an OnlinePredictor, and learns from what is
    observed. A file of its own goes on bit for bit; an OnlinePredictor reads it too, without the calibration. Arguments
    are those of an OnlinePredictor, but no watermark: a row that is held back would be judged by nobody. ConfigError as
    there, for a watermark, and where no two levels of the model are a and 1 - a.
    """

    _calibration: Calibration

    def _fronted(self, route: Route) -> Route:
        """ConfigError for a watermark, and where no two levels of the model are a and 1 - a."""
        if self.policy.steps:
            raise ConfigError(
                "watermark: must be 0 for calibrated forecasts; sort rows before they come, or do without"
            )
        self._calibration = Calibration(route, self._slab)
        return self._calibration

    @property
    def coverages(self) -> tuple[float, ...]:
        """Shares that the pairs of levels are to cover, largest first: 0.8 is that of the levels 0.1 and 0.9."""
        return tuple(float(share) for share in 1 - self._calibration.alpha)

    def coverage(self, stream: str, channel: str | None = None, *, block: int = 0) -> tuple[Coverage, ...]:
        """What each pair of levels covered so far, over all channels or one, at lead times block * P + 1 to + P.

        Raises UnknownStreamError; ConfigError for a channel or block that is not there.
        """
        slot, blocks = self._slot(stream), self._calibration.blocks
        if not 0 <= block < blocks:
            raise ConfigError(f"block: must be 0 to {blocks - 1}, a patch of lead times each, got {block}")
        if channel is not None and channel not in self.channels:
            raise ConfigError(f"channel: must be one of {list(self.channels)}, got {channel!r}")
        own = slice(None) if channel is None else [self.channels.index(channel)]
        judged, missed = (a[block, own].sum(0) for a in self._calibration.counts(slot))
        shares = np.divide(missed, judged, out=np.full(len(judged), np.nan), where=judged > 0)
        found = zip(self.coverages, (1 - shares).tolist(), judged.tolist(), strict=True)
        return tuple(Coverage(*one) for one in found)

    @classmethod
    def of(cls, online: OnlinePredictor) -> Self:
        """Go on from an OnlinePredictor's streams, which stay its own; the factors begin at 1. ConfigError as above."""
        policy = online.policy
        made = cls(
            online.forecaster, online.standards, channels=online.channels, freq=online.freq, late=online.late,
            watermark=policy.steps * online.config.period_ns, checkpoints=policy.checkpoints or None,
            checkpoint_every=policy.every or None, audit=None if online.audit is None else online.audit.config,
        )  # fmt: skip
        rows = len(online.streams)
        made._route.restore(online._route.tensors(rows), rows)
        made._late.restore(online._late.tensors())
        if made.audit is not None and online.audit is not None:
            made.audit.load_state_tensors({name: t.clone() for name, t in online.audit.state_tensors().items()})
        made._slots = dict(online._slots)
        return made


class Calibration:
    """The route in front of another one: judges what comes, widens what is answered."""

    s: Floats
    ends: Floats
    origin: Ints
    judged: Ints
    missed: Ints
    last: Ints

    def __init__(self, route: Route, slab: Slab) -> None:
        """route: where rows go on. ConfigError where no two levels of the slab's model are a and 1 - a."""
        cfg = slab.config
        self.route, self.slab = route, slab
        self.patch, self.horizon = cfg.patch_length, cfg.prediction_length
        self.blocks = -(-self.horizon // self.patch)
        levels = cfg.quantiles
        self.pairs = [
            (i, j) for i, a in enumerate(levels) for j, b in enumerate(levels) if a < 0.5 and abs(a + b - 1) < 1e-9
        ]
        if not self.pairs:
            raise ConfigError(
                f"quantiles: calibration needs two levels a and 1 - a, the model has {levels}; train with them"
            )
        self.alpha = np.array([2 * levels[i] for i, _ in self.pairs])
        self.capacity = 0
        self._reserve(1)

    def advance(self, slots: Ints, step: Ints, values: Floats, known: Floats) -> tuple[Floats, Ints]:
        """See Route; then the row is judged by the forecasts that were made before it came."""
        surprise, status = self.route.advance(slots, step, values, known)
        self._reserve(int(slots.max()) + 1)
        self._give_out(slots)
        fresh = (status == NEW) | (status == FILLED)
        self._judge(slots[fresh], step[fresh], values[fresh])
        return surprise, status

    def answer(self, slots: Ints, clock: Ints, future: Floats) -> Floats:
        """See Route; the quantiles are calibrated."""
        return self._widened(self.route.answer(slots, clock, future), slots)

    def check(self, names: list[str], slots: Ints, order: Ints, waves: list[Ints], steps: Ints, values: Floats) -> None:
        """See Route."""
        self.route.check(names, slots, order, waves, steps, values)

    def clock(self, slots: Ints) -> Ints:
        """See Route."""
        return self.route.clock(slots)

    def flush(self, slots: Ints) -> None:
        """See Route."""
        self.route.flush(slots)

    def row_nbytes(self) -> int:
        """See Route."""
        return self.route.row_nbytes() + int(sum(getattr(self, name).nbytes for name in ARRAYS)) // self.capacity

    def tensors(self, rows: int) -> dict[str, Tensor]:
        """See Route."""
        self._reserve(rows)
        own = {f"{PREFIX}{name}": torch.from_numpy(getattr(self, name)[:rows].copy()) for name in ARRAYS}
        return self.route.tensors(rows) | own

    def restore(self, tensors: dict[str, Tensor], rows: int) -> None:
        """See Route; what no calibration wrote begins uncalibrated."""
        self.route.restore(tensors, rows)
        self._reserve(rows)
        if any(name.startswith(PREFIX) for name in tensors):
            for name in ARRAYS:
                getattr(self, name)[:rows] = tensors[f"{PREFIX}{name}"].numpy()

    def counts(self, slot: int) -> tuple[Ints, Ints]:
        """Values judged and missed, [K, C, U] each."""
        self._reserve(slot + 1)
        return self.judged[slot], self.missed[slot]

    def _give_out(self, slots: Ints) -> None:
        """Keep the ends of forecasts that have just been made at a closing."""
        origin = self.slab.origin[slots]
        place = origin // self.patch % self.blocks
        made = (origin != NONE) & (self.origin[slots, place] != origin)
        if made.any():
            rows, place = slots[made], place[made]
            wide = self._widened(self.slab.reference[rows], rows)
            self.ends[rows, place] = np.stack(
                [wide[..., [i for i, _ in self.pairs]], wide[..., [j for _, j in self.pairs]]], -1
            )
            self.origin[rows, place] = origin[made]

    def _judge(self, slots: Ints, step: Ints, values: Floats) -> None:
        """Move the factors of every block that forecast these values [N, C]."""
        seen = np.isfinite(values) & (step[:, None] > self.last[slots])
        lead = step[:, None] - self.origin[slots]
        reached = (lead >= 1) & (lead <= self.horizon) & (self.origin[slots] != NONE)
        n, place, c = np.nonzero(reached[:, :, None] & seen[:, None, :])
        if len(n):
            ahead = lead[n, place] - 1
            ends, y = self.ends[slots[n], place, ahead, c], values[n, c, None]
            out = ~((y >= ends[..., 0]) & (y <= ends[..., 1]))
            at = slots[n], ahead // self.patch, c  # after a gap, two forecasts may reach a value in one block
            np.add.at(self.s, at, ETA * (out - self.alpha))
            np.add.at(self.judged, at, 1)
            np.add.at(self.missed, at, out.astype(np.int64))
            self.s[at] = np.clip(self.s[at], -LIMIT, LIMIT)
        self.last[slots] = np.where(seen, step[:, None], self.last[slots])

    def _widened(self, quantiles: Floats, slots: Ints) -> Floats:
        """Calibrated quantiles [N, H, C, Q]; levels without a partner stay, and those above never lie below them."""
        factor = np.exp(self._factors(slots, quantiles.shape[1]))
        low, high = (quantiles[..., [pair[side] for pair in self.pairs]] for side in (0, 1))
        middle = quantiles[..., self._middle()].mean(-1, keepdims=True)
        below = np.maximum.accumulate((factor * (middle - low))[..., ::-1], -1)[..., ::-1]
        above = np.maximum.accumulate((factor * (high - middle))[..., ::-1], -1)[..., ::-1]
        out = quantiles.copy()
        out[..., [i for i, _ in self.pairs]], out[..., [j for _, j in self.pairs]] = middle - below, middle + above
        single = [q for q in range(out.shape[-1]) if q not in {side for pair in self.pairs for side in pair}]
        return np.maximum.accumulate(out, -1) if single else out

    def _factors(self, slots: Ints, steps: int) -> Floats:
        """Logarithms of the factors by lead time, [N, H, C, U]; 0 for streams of which nothing is known yet."""
        known = slots < self.capacity
        found = self.s[np.where(known, slots, 0)] * known[:, None, None, None]
        return np.asarray(found[:, np.arange(steps) // self.patch])

    def _middle(self) -> list[int]:
        """Quantiles whose mean is the middle: the median, or the innermost pair."""
        levels = np.array(self.slab.config.quantiles)
        at = int(np.abs(levels - 0.5).argmin())
        return [at] if abs(levels[at] - 0.5) < 1e-9 else list(self.pairs[-1])

    def _reserve(self, rows: int) -> None:
        """Room for this many streams; rows keep their place and content."""
        if rows <= self.capacity:
            return
        room = max(rows, 2 * self.capacity)
        k, c, u = self.blocks, self.slab.config.channels, len(self.pairs)
        fresh = {
            "s": np.zeros((room, k, c, u)),
            "ends": np.zeros((room, k, self.horizon, c, u, 2)),
            "origin": np.full((room, k), np.int64(NONE)),
            "judged": np.zeros((room, k, c, u), np.int64),
            "missed": np.zeros((room, k, c, u), np.int64),
            "last": np.full((room, c), np.int64(NONE)),
        }
        for name, array in fresh.items():
            if self.capacity:
                array[: self.capacity] = getattr(self, name)
            setattr(self, name, array)
        self.capacity = room


ARRAYS: Final = tuple(Calibration.__annotations__)
