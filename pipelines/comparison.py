"""Sets models side by side on the same windows: figures relative to SeasonalNaive, per channel, and who loses where.

    relative = exp( mean over channels of log(figure / SeasonalNaive's figure) )

Every channel has one vote, whatever its unit. A channel in which either figure is 0 or unknown has none, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from gluonts.dataset.split import TestData
from gluonts.model.forecast import Forecast

from tsgdn2.errors import SchemaError
from tsgdn2.evaluation.backtest import window_rows
from tsgdn2.evaluation.baselines import Climatology, SeasonalNaive
from tsgdn2.evaluation.metrics import Judged, Predicts, Score, calibration, evaluate, pooled, scores
from tsgdn2.evaluation.ridge import RidgeLags
from tsgdn2.pipelines import figures
from tsgdn2.pipelines.report import Report

NAIVE, CLIMATE, RIDGE, OURS = "SeasonalNaive", "climatology", "ridge on lags", "GDN-2"
COLUMNS = ("model", "CRPS rel.", "MASE rel.", "CRPS", "coverage 80 %", "µs / obs.", "state bytes")


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """One judged model and what it costs; None where a figure does not apply."""

    name: str
    judged: Judged
    microseconds: float | None = None
    """Mean wall clock of one observation of one stream."""
    state_bytes: int | None = None
    """Bytes that one stream's memory takes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Models on the same windows; the first one is the reference."""

    models: tuple[Model, ...]
    key: str = "channel"
    """Groups that have one vote each: "channel" of stream/channel series, or "item"."""

    def __post_init__(self) -> None:
        """Score every model once, by group and pooled."""
        found = {model.name: scores(model.judged, self._group) for model in self.models}
        object.__setattr__(self, "_scores", {name: {k[0]: v for k, v in own.items()} for name, own in found.items()})
        object.__setattr__(self, "_overall", {model.name: pooled(model.judged) for model in self.models})

    def _group(self, item: str, channel: str, _window: int) -> tuple[str]:
        _, slash, last = item.rpartition("/")
        if channel != "target":
            return (channel if self.key == "channel" else f"{item}/{channel}",)
        return (last if slash and self.key == "channel" else item,)

    @property
    def groups(self) -> dict[str, dict[str, Score]]:
        """Score of each model in each group."""
        found: dict[str, dict[str, Score]] = self.__dict__["_scores"]
        return found

    @property
    def overall(self) -> dict[str, Score]:
        """Score of each model over all cells."""
        found: dict[str, Score] = self.__dict__["_overall"]
        return found

    def relative(self, name: str, figure: str) -> float:
        """Geometric mean over the groups of a model's "crps" or "mase" over the reference's; NaN without a group."""
        reference = self.groups[self.models[0].name]
        logs = []
        for group, score in self.groups[name].items():
            mine, theirs = getattr(score, figure), getattr(reference[group], figure)
            if mine > 0 and theirs > 0:
                logs.append(math.log(mine / theirs))
        return math.exp(float(np.mean(logs))) if logs else math.nan

    def rows(self) -> list[dict[str, str]]:
        """The table as text, one row per model under COLUMNS."""
        out = []
        for model in self.models:
            score = self.overall[model.name]
            cells = (
                model.name,
                number(self.relative(model.name, "crps")),
                number(self.relative(model.name, "mase")),
                number(score.crps),
                f"{100 * score.coverage:.1f} %" if math.isfinite(score.coverage) else "-",
                "-" if model.microseconds is None else f"{model.microseconds:,.0f}",
                "-" if model.state_bytes is None else f"{model.state_bytes:,}",
            )
            out.append(dict(zip(COLUMNS, cells, strict=True)))
        return out

    def channel_rows(self) -> tuple[tuple[str, ...], list[dict[str, str]]]:
        """CRPS of every model in every group as text: headings, rows."""
        names = tuple(model.name for model in self.models)
        best = {g: min(self.groups[n][g].crps for n in names) for g in self.groups[names[0]]}
        return ("series", *names), [
            {"series": group, **{n: number(self.groups[n][group].crps) + (" *" if self.groups[n][group].crps == low
                                                                           else "") for n in names}}
            for group, low in best.items()
        ]  # fmt: skip

    def lost(self, ours: str) -> list[str]:
        """Groups in which another model has a lower CRPS than ours: "precip (climatology 1.00 against 1.21)"."""
        out = []
        for group, score in self.groups[ours].items():
            rivals = {name: own[group].crps for name, own in self.groups.items() if not name.startswith(ours)}
            best = min(rivals, key=lambda name: rivals[name]) if rivals else ours
            if rivals and rivals[best] < score.crps:
                out.append(f"{group} ({best} {number(rivals[best])} against {number(score.crps)})")
        return out

    def figures(self, name: str) -> dict[str, Any]:
        """What a row says of a model: crps, mase, coverage and crps_relative."""
        score = self.overall[name]
        return {"crps": score.crps, "mase": score.mase, "coverage": score.coverage,
                "crps_relative": self.relative(name, "crps")}  # fmt: skip

    def metrics(self) -> dict[str, float]:
        """Everything as metrics of a run: <figure>/<model> and crps/<model>/<group>."""
        out: dict[str, float] = {}
        for model in self.models:
            name = model.name
            own = {**self.figures(name), "mase_relative": self.relative(name, "mase"),
                   "microseconds_per_observation": model.microseconds, "state_bytes": model.state_bytes}  # fmt: skip
            out |= {f"{figure}/{name}": float(value) for figure, value in own.items() if value is not None}
            out |= {f"crps/{name}/{group}": score.crps for group, score in self.groups[name].items()}
        return {name: value for name, value in out.items() if math.isfinite(value)}

    def windows(self) -> pl.DataFrame:
        """One row per model, series and window."""
        parts = [window_rows(model.judged).with_columns(pl.lit(model.name).alias("model")) for model in self.models]
        return pl.concat(parts).select("model", pl.exclude("model"))


def baselines(
    train: Sequence[Mapping[str, object]],
    test: TestData,
    *,
    horizon: int,
    season: int,
    lags: int = 48,
    channels: Sequence[str] | None = None,
) -> Iterable[Model]:
    """Train and judge SeasonalNaive, climatology and ridge on lags, one at a time; `channels` as in `evaluate`."""
    for name, make in makers(train, horizon=horizon, season=season, lags=lags).items():
        yield Model(name=name, judged=evaluate(make(), test, season=season, channels=channels))


def makers(
    train: Sequence[Mapping[str, object]], *, horizon: int, season: int, lags: int
) -> dict[str, Callable[[], Predicts]]:
    """What trains each baseline, by name; nothing is trained before it is called."""
    return {
        NAIVE: lambda: SeasonalNaive(horizon, season),
        CLIMATE: lambda: Climatology.train(train, horizon, slots=season),
        RIDGE: lambda: RidgeLags.train(train, horizon, lags=lags, slots=season),
    }


def show(report: Report, comparison: Comparison, columns: Sequence[str]) -> None:
    """Put the models side by side on a page, under some of COLUMNS."""
    report.table(columns, comparison.rows(), ours=(OURS,), note=(
        f"CRPS rel. and MASE rel.: geometric mean over the channels of the figure over {comparison.models[0].name}'s."
    ))  # fmt: skip


def show_details(report: Report, comparison: Comparison, caption: str) -> None:
    """Put every channel and the calibration of all models but the reference's point on a page."""
    columns, lines = comparison.channel_rows()
    report.heading("Every channel")
    report.table(columns, lines, note="CRPS by channel; * is the lowest.")
    report.heading("Calibration")
    shares = {model.name: calibration(model.judged) for model in reversed(comparison.models) if model.name != NAIVE}
    report.figure("calibration", figures.reliability(shares), caption)


def in_order(test: TestData, found: Mapping[tuple[str, pd.Period], Forecast]) -> list[Forecast]:
    """Forecasts in the order of the windows, from (item_id, first step); SchemaError when one was not made."""
    out = []
    for label in test.label:
        key = (str(label["item_id"]), label["start"])
        if key not in found:
            raise SchemaError(
                f"no forecast of {key[0]} was made for {key[1]}; begin the stream before the first window"
            )
        out.append(found[key])
    return out


def number(value: float) -> str:
    """Three digits or so, for a table; `-` for what is not known."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
