"""Benchmark of the time to the next event: a trained predictor beside baselines, at one random moment in every hour.

    events before `since` are taken in as one history, the others as they come; at each moment every stream is asked

The same moments for all, drawn with one seed that is in the rows; the baselines see the same events. What lies past the
end of the data is censored, left out and counted (evaluation/waits.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.evaluation.metrics import LEVELS
from tsgdn2.evaluation.rows import Row, row
from tsgdn2.evaluation.waits import Moments, WaitScore, empirical, exponential, one_per_hour, score, waits
from tsgdn2.events.online import OnlineEvents
from tsgdn2.pipelines.predictor import GDN2Predictor

OURS: Final = "tsgdn2, streamed"
SEED: Final = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class WaitTest:
    """Events of a set, and the moments at which its training part and its test are asked."""

    name: str
    frame: pl.DataFrame
    times: dict[str, NDArray[np.int64]]
    training: Moments
    asked: Moments
    since: int

    @classmethod
    def of(cls, name: str, frame: pl.DataFrame, since: int, until: int) -> Self:
        """Cut a frame of events at `since`; ask from there to `until` [ns], and at every hour before for training."""
        parts = frame.partition_by(STREAM, as_dict=True, maintain_order=True)
        times = {str(key[0]): np.sort(part[TIME].to_physical().to_numpy()) for key, part in parts.items()}
        begin = max(int(own[0]) for own in times.values())
        return cls(
            name=name, frame=frame.sort(TIME, maintain_order=True), times=times, since=since,
            training=one_per_hour(list(times), begin, since, SEED), asked=one_per_hour(list(times), since, until, SEED),
        )  # fmt: skip

    def baselines(self) -> list[Row]:
        """Rows of what needs no model; a wait of the training part ends with that part's last event."""
        past = {name: own[own < self.since] for name, own in self.times.items()}
        each = {
            "exponential of the last hour": exponential(self.times, self.asked, LEVELS),
            "waits of the training part": empirical(past, self.training, self.asked, LEVELS),
            "waits of its hour of the day": empirical(past, self.training, self.asked, LEVELS, by_hour=True),
        }
        return [self._row(what, self._score(found)) for what, found in each.items()]

    def ours(self, predictor: GDN2Predictor, seed: int, bars: Sequence[Row]) -> Row:
        """The row of a predictor, with its share of the best of `bars`."""
        judged = self._score(self.streamed(predictor), predictor.config.quantiles)
        best = min(float(bar.values["CRPS wait"] or 0.0) for bar in bars)
        return self._row(OURS, judged, seed, **{"CRPS wait / best baseline": judged.crps / best})

    def streamed(self, predictor: GDN2Predictor) -> NDArray[np.float64]:
        """Quantiles [N, Q] in ns of a predictor that has seen all that came before each moment, and nothing else."""
        online, stamp = OnlineEvents.from_predictor(predictor), self.frame[TIME].to_physical()
        clocks = np.unique(self.asked.clock)
        cuts = np.searchsorted(stamp.to_numpy(), np.concatenate(([self.since], clocks))).tolist()
        online.observe_many(self.frame[: cuts[0]])
        levels, found = [str(level) for level in predictor.config.quantiles], []
        for begin, end, clock in zip(cuts, cuts[1:], clocks.tolist(), strict=False):
            if end > begin:
                online.observe_many(self.frame[begin:end])
            answer = online.next_event_many(list(self.times), at=clock)
            found.append(answer.select(pl.col(levels).to_physical()).to_numpy())
        return np.concatenate(found).astype(np.float64)

    def _score(self, quantiles: NDArray[np.float64], levels: Sequence[float] = LEVELS) -> WaitScore:
        return score(quantiles, waits(self.times, self.asked), levels)

    def _row(self, what: str, judged: WaitScore, seed: int | None = None, **values: float) -> Row:
        shape = {"moments": len(self.asked.streams), "moments_seed": SEED, "censored": judged.censored}
        figures: dict[str, Any] = {"CRPS wait": judged.crps, "coverage": judged.coverage, **values}
        return row(f"{self.name}: wait, {what}", shape, seed=seed, **figures)
