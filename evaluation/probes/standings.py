"""What rows of probes say together: mean and range over the seeds, who is best, and who is level with whom.

    Range     mean, smallest and largest over the seeds
    best      the largest mean;  level with it are all whose range reaches the best one's smallest seed
    floor     what the probe's own floor gives at that length, guessing or the mean of the stream's own things

A range of three seeds is no proof; it is what was seen, and the sentences say no more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tsgdn2.evaluation.probes.suite import probe_of
from tsgdn2.evaluation.rows import Row

OURS: Final = "gdn2"
NEAR: Final = 0.05
"""A mean this close to the floor has learned nothing worth a rank."""


@dataclass(frozen=True)
class Range:
    """Mean, smallest and largest over the seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """The range of at least one value."""
        return cls(float(np.mean(values)), min(values), max(values))

    def __str__(self) -> str:
        """Write .91 (.90 - .93), or the value alone where all are equal."""
        if self.low == self.high:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ({self.low:.2f} - {self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One mixer on one probe at one level."""

    probe: str
    level: int
    mixer: str
    seeds: tuple[int, ...]
    scores: Mapping[str, Range]
    """Test point (x1, x16, gap 0.3 ..) or part of the score to its range."""
    figures: Mapping[str, Range]
    """Parameters, bytes, steps, processor seconds."""


FIGURES: tuple[str, ...] = (
    "parameters",
    "memory_floats",
    "state_bytes",
    "steps",
    "loss",
    "train_seconds",
    "step_seconds",
)


def standings(rows: Sequence[Row]) -> list[Standing]:
    """One standing per probe, level and mixer, in the order in which they first came."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        key = str(row.shape["probe"]), int(row.shape["level"] or 0), str(row.shape["mixer"])
        groups.setdefault(key, []).append(row)
    return [_standing(*key, group) for key, group in groups.items()]


def _standing(probe: str, level: int, mixer: str, rows: Sequence[Row]) -> Standing:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.values.items():
            if isinstance(value, int | float):
                found.setdefault(name, []).append(float(value))
    found["cpu_seconds"] = [row.cpu_seconds or 0.0 for row in rows]
    ranges = {name: Range.of(values) for name, values in found.items()}
    figures = {name: ranges.pop(name) for name in (*FIGURES, "cpu_seconds") if name in ranges}
    seeds = tuple(sorted(row.seed for row in rows if row.seed is not None))
    return Standing(probe=probe, level=level, mixer=mixer, seeds=seeds, scores=ranges, figures=figures)


def order(own: Sequence[Standing]) -> list[Standing]:
    """Standings of one probe, the best mean over all lengths first."""
    return sorted(own, key=lambda one: -_over_lengths(one))


def verdict(own: Sequence[Standing]) -> str:
    """Who wins on one probe at the length of training and at 16 times that, in plain words."""
    lengths = [int(name[1:]) for name in own[0].scores if name[0] == "x"]
    floor = float(np.mean([floor_at(own[0], factor) for factor in lengths]))
    said = [_at(own, 1, "At the length of training"), _at(own, 16, "At 16 times that length")]
    low = [one.mixer for one in own if _over_lengths(one) <= floor + NEAR]
    if low and len(low) < len(own):
        said.append(f"No better than the floor over all lengths: {_list(sorted(low))}.")
    return " ".join(said)


def floor_at(one: Standing, factor: int) -> float:
    """The floor of its probe at `factor` times the length of training."""
    probe = probe_of(one.probe, one.level)
    return probe.floor(factor * probe.length)


def _over_lengths(one: Standing) -> float:
    return float(np.mean([value.mean for name, value in one.scores.items() if name[0] == "x"]))


def _at(own: Sequence[Standing], factor: int, where: str) -> str:
    point, floor = f"x{factor}", floor_at(own[0], factor)
    ranked = sorted(own, key=lambda one: -one.scores[point].mean)
    first = ranked[0].scores[point]
    if first.mean <= floor + NEAR:
        return f"{where} no mixer is better than the floor ({floor:.2f}); the largest mean is {first}."
    level = [one.mixer for one in ranked[1:] if one.scores[point].high >= first.low]
    text = f"{where} **{ranked[0].mixer}** is best with {first}"
    text += f", and level with it {'is' if len(level) == 1 else 'are'} {_list(level)}." if level else ", alone."
    ours = [(place, one) for place, one in enumerate(ranked, 1) if one.mixer == OURS]
    if not ours or ours[0][0] == 1:
        return text
    place, one = ours[0]
    score = one.scores[point]
    above = [other.mixer for other in ranked[: place - 1] if other.scores[point].low > score.high]
    loses = f"; it loses to {_list(above)}" if above else ", not clearly behind any"
    return f"{text} {OURS} is number {place} of {len(ranked)} with {score}{loses}."


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
