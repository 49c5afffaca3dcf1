"""Calibrated intervals: an online predictor whose quantiles widen and narrow until they cover as often as they say.

What repeats exactly can be covered 80 % of the time only by intervals that now and then end a hair before it; there the
ends hover around the repeated value. Nothing is promised of any single moment: only of the share over time.

    pair u: levels a_u < 1/2 and 1 - a_u of the model, middle m;  alpha_u = 2 a_u, the share to be missed
    arms    l = (1 - EVEN) (m - q_lo) + EVEN usual_u,   r = (1 - EVEN) (q_hi - m) + EVEN usual_u,   half = (l + r) / 2
    factor  f_u = exp(s_u) (recent_u / half)^LEAN
    given out at the clock:   [m - f_u l,  m + f_u r],   and never inside pair u + 1
    when a patch closes:      usual_u  <- usual_u + SLOW (mean over the block of (q_hi - q_lo) / 2 - usual_u)
    when y comes, for each forecast of it that was made when a patch closed, in the block of its lead time:
                              s_u      <- s_u + ETA (1{y outside} - alpha_u)
                              recent_u <- recent_u + FAST (min(c_u |y - m|, CAP max(recent_u, usual_u)) - recent_u)

The model's widths say which moments are hard, but overstate it, and say nothing of the errors just seen: the arms are
drawn towards their usual length, and it towards that of recent errors. The first closing is given out as it is; both
begin there. Each s is a quantile tracker, in the logarithm of a factor: no unit, no memory of past scores. Its sum
telescopes, whatever it multiplies, so over any T judged values, whatever they are,

    share missed - alpha_u = (s_u(T) - s_u(0)) / (ETA T)         (exactly, while |s| < LIMIT)

| symbol | shape per stream | what |
|---|---|---|
| s | [K, C, U] | logarithm of the factor, by block of lead times (a patch of steps each), channel and pair |
| usual | [K, C, U] | running mean of the model's half-widths; 0 before the first closing, and then nothing is changed |
| recent | [K, C, U] | running mean of the errors, as the half-width c_u of a normal law of mean absolute error 1 |
| ends, middle | [K, H, C, U, 2], [K, H, C] | given out at the last K closings, and `origin` [K], their clocks |
| judged, missed | [K, C, U] | values judged so far, and those outside |
| last | [C] | last step that was judged: repeats, replacements and late values are not judged again |

A block has a patch of lead times because each value then falls once into each. Cost: constant per value, no pass of the
model. A missing cell is judged by nothing and changes nothing. Surprise stays that of the model's own quantiles.

Sources: Gibbs and Candes 2021, arXiv 2106.00170 (adaptive conformal inference); Angelopoulos, Candes and Tibshirani
2023, arXiv 2307.16895 (quantile tracking, its telescoping sum, a forecast of scores beneath it); Romano, Patterson and
Candes 2019, arXiv 1905.03222 (scores relative to a model's own quantiles).
H horizon, C channels, Q quantiles, K blocks, U pairs from the outermost, N streams, P patch.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.ingest import FILLED, NEW, Route
from tsgdn2.online import OnlinePredictor
from tsgdn2.scale import Floats
from tsgdn2.slab import NONE, Ints, Slab

ETA: Final = 0.04
"""Step of the tracker: one miss at 80 % widens by 3 %; a larger one follows sooner, and is wider by its own noise."""
EVEN: Final = 0.3
"""Weight of the usual half-width in the arms: more is narrower, and leaves more misses on the long side."""
LEAN: Final = 0.5
"""Weight of recent errors in the logarithm of the width."""
FAST: Final = 0.12
"""Weight of the newest error: some eight values are remembered."""
CAP: Final = 10.0
"""Bound on one error, in widths: a single wild value widens by less than half."""
SLOW: Final = 0.01
"""Weight of the newest half-width: some hundred patches are remembered."""
LIMIT: Final = 16.0
"""Bound on |s|, a factor of nine million: where the model's own interval has no width at all, nothing can widen it."""
TINY: Final = float(np.finfo(np.float64).tiny)
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
    usual: Floats
    recent: Floats
    ends: Floats
    middle: Floats
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
            raise ConfigError(f"quantiles: calibration needs two levels a and 1 - a, not {levels}; train with them")
        self.low, self.high = ([pair[side] for pair in self.pairs] for side in (0, 1))
        self.alpha = np.array([2 * levels[i] for i in self.low])
        # a normal law of mean absolute error 1 has the deviation sqrt(pi / 2)
        self.normal = np.array([-NormalDist(sigma=np.sqrt(np.pi / 2)).inv_cdf(levels[i]) for i in self.low])
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
        own = {name: tensors[f"{PREFIX}{name}"] for name in ARRAYS if f"{PREFIX}{name}" in tensors}
        if own and len(own) < len(ARRAYS):
            raise CheckpointError(
                f"archive: its calibration lacks {[name for name in ARRAYS if name not in own]}, an earlier version "
                "wrote it; load it as an OnlinePredictor and begin anew by Calibrated.of"
            )
        self.route.restore(tensors, rows)
        self._reserve(rows)
        for name, tensor in own.items():
            getattr(self, name)[:rows] = tensor.numpy()

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
            own = self.slab.reference[rows]
            wide = self._widened(own, rows)
            self.ends[rows, place] = np.stack([wide[..., self.low], wide[..., self.high]], -1)
            self.middle[rows, place] = self._centre(own)[..., 0]
            self.origin[rows, place] = origin[made]
            self._meet(rows, own)  # afterwards: who asks before the next row comes is told the same ends

    def _meet(self, rows: Ints, own: Floats) -> None:
        """Learn the usual half-widths from the model's quantiles [N, H, C, Q] that were made at a closing."""
        half = (own[..., self.high] - own[..., self.low]) / 2
        mean = np.stack([half[:, k * self.patch : (k + 1) * self.patch].mean(1) for k in range(self.blocks)], 1)
        usual, recent, told = self.usual[rows], self.recent[rows], np.isfinite(mean)
        new = told & (usual == 0)
        self.usual[rows] = np.where(new, mean, np.where(told, usual + SLOW * (mean - usual), usual))
        self.recent[rows] = np.where(new, mean, recent)

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
            error = self.normal * np.abs(y - self.middle[slots[n], place, ahead, c][:, None])
            most = CAP * np.maximum(self.recent[at], self.usual[at])
            np.add.at(self.recent, at, FAST * (np.minimum(error, most) - self.recent[at]))
            np.add.at(self.judged, at, 1)
            np.add.at(self.missed, at, out.astype(np.int64))
            self.s[at] = np.clip(self.s[at], -LIMIT, LIMIT)
        self.last[slots] = np.where(seen, step[:, None], self.last[slots])

    def _widened(self, quantiles: Floats, slots: Ints) -> Floats:
        """Calibrated quantiles [N, H, C, Q]; levels without a partner stay, and those above never lie below them."""
        middle = self._centre(quantiles)
        s, usual, recent = self._known(slots, quantiles.shape[1])
        low, high = middle - quantiles[..., self.low], quantiles[..., self.high] - middle
        met = usual > 0
        low, high = (np.where(met, (1 - EVEN) * arm + EVEN * usual, arm) for arm in (low, high))
        half = np.maximum((low + high) / 2, TINY)
        factor = np.where(met, np.exp(s) * np.maximum(recent, TINY) ** LEAN / half**LEAN, 1.0)
        below, above = (np.maximum.accumulate((factor * arm)[..., ::-1], -1)[..., ::-1] for arm in (low, high))
        out = quantiles.copy()
        out[..., self.low], out[..., self.high] = middle - below, middle + above
        single = [q for q in range(out.shape[-1]) if q not in {*self.low, *self.high}]
        return np.maximum.accumulate(out, -1) if single else out

    def _known(self, slots: Ints, steps: int) -> tuple[Floats, Floats, Floats]:
        """s, usual and recent by lead time, [N, H, C, U]; 0 for streams of which nothing is known yet."""
        known = (slots < self.capacity)[:, None, None, None]
        at, block = np.where(slots < self.capacity, slots, 0), np.arange(steps) // self.patch
        s, usual, recent = (np.asarray((own[at] * known)[:, block]) for own in (self.s, self.usual, self.recent))
        return s, usual, recent

    def _centre(self, quantiles: Floats) -> Floats:
        """Middle of quantiles [..., Q], [..., 1]: the median, or the mean of the innermost pair."""
        levels = np.array(self.slab.config.quantiles)
        at = int(np.abs(levels - 0.5).argmin())
        inner = [at] if abs(levels[at] - 0.5) < 1e-9 else list(self.pairs[-1])
        return np.asarray(quantiles[..., inner].mean(-1, keepdims=True))

    def _reserve(self, rows: int) -> None:
        """Room for this many streams; rows keep their place and content."""
        if rows <= self.capacity:
            return
        room = max(rows, 2 * self.capacity)
        k, c, u = self.blocks, self.slab.config.channels, len(self.pairs)
        moved = {name: np.zeros((room, k, c, u)) for name in ("s", "usual", "recent")}
        counted = {name: np.zeros((room, k, c, u), np.int64) for name in ("judged", "missed")}
        clocks = {"origin": np.full((room, k), np.int64(NONE)), "last": np.full((room, c), np.int64(NONE))}
        ends, middle = (np.zeros((room, k, self.horizon, c, *tail)) for tail in ((u, 2), ()))
        for name, array in (moved | counted | clocks | {"ends": ends, "middle": middle}).items():
            if self.capacity:
                array[: self.capacity] = getattr(self, name)
            setattr(self, name, array)
        self.capacity = room


ARRAYS: Final = tuple(Calibration.__annotations__)
