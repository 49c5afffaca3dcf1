"""Scores a trained predictor row by row, every value before it is shown, with values that may arrive late.

    <output>/windows.parquet                one row per model, series and window
    <output>/rows.jsonl                     one row per model
    <output>/report.html, report.md, figures/

    origin t:   forecast of t + 1 .. t + H from what had arrived, that is up to t - d;  known at t + H + d

The windows are those of rolling windows, and with a delay of 0 so are the scores, to rounding; what differs is how the
predictor gets there: one pass of `OnlinePredictor` per stream, which never holds what it is scored on. Baselines keep
all rows and are asked anew, and are trained on what had arrived before the first window. The check for leaks runs the
first stream three times more and finds what depends on values; what training has seen it can not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
import pandas as pd

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation import backtest as rolling
from tsgdn2.evaluation import rows
from tsgdn2.evaluation.metrics import Judged, Predicts
from tsgdn2.evaluation.prequential import Learner, Prequential, Recall, Schedule, leaks, prequential
from tsgdn2.pipelines import bench_figures
from tsgdn2.pipelines.comparison import (
    COLUMNS,
    OURS,
    Comparison,
    Model,
    makers,
    show,
    show_details,
)
from tsgdn2.pipelines.event_source import data_for
from tsgdn2.pipelines.jobs import Backtest
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.report import Report
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.saved import go_online, open_predictor
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.source import Source
from tsgdn2.pipelines.streaming import one_thread
from tsgdn2.pipelines.training import record_options, write_settings
from tsgdn2.scale import Floats

TABLE: Final = COLUMNS[:5]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """One stream on the grid, and when it is forecast."""

    name: str
    values: Floats
    """[T, C]; NaN is missing."""
    plan: Schedule


def run(job: Backtest) -> None:
    """Run the job. Errors: those of the data and the predictor; ConfigError where the windows do not fit."""
    assert job.predictor is not None
    assert job.data is not None
    screen = Screen(job.quiet)
    predictor = open_predictor(job.predictor)
    horizon = horizon_of(job, predictor)
    with screen.phase("reading"):
        source = data_for(predictor, job.data, job.columns)
        streams = streams_of(source, job, horizon)
    path = job.predictor
    learners: dict[str, Callable[[str], Learner]] = {OURS: lambda _: learner(predictor, source.channels, path)}
    folder = job.folder("backtest-prequential")
    with Run.start(job.experiment, f"backtest prequential {source.name}", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "backtest", "tsgdn2.protocol": "prequential"}) as record:  # fmt: skip
        write_settings(job, folder)
        record_options(record, job)
        source.log(record, context="test")
        if job.baselines:
            with screen.phase("baselines"):
                learners = baselines(source, job, horizon, predictor.config.quantiles) | learners
        found: dict[str, list[Prequential]] = {name: [] for name in learners}
        with screen.phase("row by row", total=len(streams) * len(learners)) as phase, one_thread():
            for stream in streams:
                for name, make in learners.items():
                    found[name].append(prequential(
                        make(stream.name), stream.values, stream.plan, channels=source.channels, season=source.season,
                        levels=predictor.config.quantiles, stream=stream.name,
                    ))  # fmt: skip
                    phase.advance()
        leaking: list[int] | None = None
        if job.leaks:
            with screen.phase("leaks"), one_thread():
                first = streams[0]
                leaking = leaks(lambda _: learners[OURS](first.name), first.values, first.plan, stream=first.name)
        models = [Model(name=name, judged=together([one.judged for one in own])) for name, own in found.items()]
        comparison = Comparison(models=tuple(models))
        with screen.phase("report"):
            comparison.windows().write_parquet(folder / "windows.parquet")
            page = _page(source, job, comparison, found, leaking, horizon).write(folder)
            for name in comparison.overall:
                rows.append(folder / "rows.jsonl", rows.row(
                    name, {"data": source.name, "protocol": "prequential", "horizon": horizon, "delay": job.delay,
                           "windows": job.windows, "streams": len(streams)},
                    **comparison.figures(name),
                    leaks=len(leaking) if leaking is not None and name == OURS else None,
                ))  # fmt: skip
            record.metrics(comparison.metrics() | ({} if leaking is None else {"leaks": len(leaking)}))
            for file in (page, page.with_suffix(".md"), folder / "windows.parquet", folder / "rows.jsonl"):
                record.artifact(file, "backtest")
    screen.table(f"{source.name}: {len(streams)} streams, {job.windows} windows of {horizon} steps, values "
                 f"{job.delay} steps late", TABLE, comparison.rows(), first=OURS)  # fmt: skip
    if job.baselines:
        screen.say(f"GDN-2 is beaten in: {'; '.join(comparison.lost(OURS)) or 'nothing'}")
    if leaking is not None:
        screen.say(_leaks(leaking, streams[0].name))
    screen.say(f"report: {page}")


def horizon_of(job: Backtest, predictor: GDN2Predictor) -> int:
    """Steps that are judged. ConfigError for a predictor of events, or one that does not reach so far."""
    if predictor.config.event_types:
        raise ConfigError("predictor: prequential scores rows of sensors, and this is a predictor of events; "
                          "use --protocol rolling, or replay")  # fmt: skip
    reach = predictor.prediction_length
    horizon = reach - job.delay if job.horizon is None else job.horizon
    if horizon < 1 or job.delay + horizon > reach:
        raise ConfigError(f"delay, horizon: must be at most the predictor's {reach} steps together, got {job.delay} "
                          f"and {job.horizon}; train it for a longer prediction_length")  # fmt: skip
    return horizon


def streams_of(source: Source, job: Backtest, horizon: int) -> list[Stream]:
    """Every stream of a source with its plan; ConfigError names the one that is too short."""
    step = job.distance or horizon
    found = []
    for entry in source.entries("multivariate"):
        values = np.asarray(entry["target"], np.float64).T
        start, name = cast(pd.Period, entry["start"]), str(entry["item_id"])
        first = len(values) - 1 - horizon - (job.windows - 1) * step
        if first < job.delay:
            raise ConfigError(
                f"windows: {job.windows} of {horizon} steps, {step} apart and {job.delay} late, do not fit into the "
                f"{len(values)} rows of {name}; ask for fewer, or leave the stream out"
            )
        found.append(Stream(name=name, values=values, plan=Schedule(
            start=start.start_time.value, period=source.period, freq=source.freq, horizon=horizon, first=first,
            every=step, delay=job.delay,
        )))  # fmt: skip
    return found


def learner(predictor: GDN2Predictor, channels: Sequence[str], path: Path) -> Learner:
    """Our predictor at the beginning of a stream."""
    return cast(Learner, go_online(predictor, channels, path, audit=False))


def baselines(
    source: Source, job: Backtest, horizon: int, levels: Sequence[float]
) -> dict[str, Callable[[str], Learner]]:
    """SeasonalNaive, climatology and ridge on lags by name, trained on what had arrived at the first origin."""
    reach, step = job.delay + horizon, job.distance or horizon
    train = rolling.training(source.entries("univariate"), -(reach + (job.windows - 1) * step))
    made = makers(train, horizon=reach, season=source.season, lags=min(2 * source.season, 168))

    def asked(predictor: Predicts) -> Callable[[str], Learner]:
        return lambda _: Recall(predictor, freq=source.freq, channels=source.channels, levels=levels)

    return {name: asked(make()) for name, make in made.items()}


def together(parts: Sequence[Judged]) -> Judged:
    """Windows of several streams one after the other."""
    first = parts[0]
    return Judged(
        items=tuple(item for part in parts for item in part.items),
        starts=tuple(start for part in parts for start in part.starts),
        windows=tuple(window for part in parts for window in part.windows),
        labels=np.concatenate([part.labels for part in parts]),
        quantiles=np.concatenate([part.quantiles for part in parts]),
        seasonal=np.concatenate([part.seasonal for part in parts]),
        levels=first.levels,
        channels=first.channels,
    )


def running(parts: Sequence[Prequential]) -> tuple[np.ndarray, Floats]:
    """Moments [N] at which scores became known, in order, and the CRPS of all windows known by then, [N]."""
    whole = together([part.judged for part in parts])
    truth, levels = whole.labels[:, None], np.array(whole.levels)[None, :, None, None]
    loss = 2 * np.abs((truth - whole.quantiles) * ((truth <= whole.quantiles) - levels))
    lost = np.nansum(loss, axis=(2, 3)).mean(1)
    size = np.nansum(np.abs(whole.labels), axis=(1, 2))
    when = np.concatenate(list(_known(parts)))
    order = np.argsort(when, kind="stable")
    sums = np.cumsum(size[order])
    return when[order], np.cumsum(lost[order]) / np.where(sums > 0, sums, np.nan)


def _known(parts: Sequence[Prequential]) -> Iterator[np.ndarray]:
    """Moment at which the last label of each window had arrived."""
    for part in parts:
        ahead = part.known - part.origins
        yield np.array([(start + int(more)).to_timestamp().to_datetime64()
                        for start, more in zip(part.judged.starts, ahead, strict=True)])  # fmt: skip


def _page(
    source: Source, job: Backtest, comparison: Comparison, found: Mapping[str, Sequence[Prequential]],
    leaking: Sequence[int] | None, horizon: int,
) -> Report:  # fmt: skip
    report = Report(
        f"Score, then observe: {source.name}",
        f"{job.windows} windows of {horizon} steps ({source.freq}) per stream, every value {job.delay} steps late, "
        f"predictor `{job.predictor}`.",
    )
    report.paragraph(
        "Every value is forecast before the model is shown it, one row at a time. A window is judged when its last "
        f"value has arrived, {horizon + job.delay} steps after its origin."
    )
    show(report, comparison, TABLE)
    if leaking is not None:
        report.paragraph(_leaks(leaking, found[OURS][0].judged.items[0]))
    report.figure("running", bench_figures.running({name: running(own) for name, own in found.items()}, OURS),
                  "CRPS over all windows whose values had arrived, all streams together.")  # fmt: skip
    show_details(report, comparison, "All streams together.")
    return report


def _leaks(leaking: Sequence[int], stream: str) -> str:
    if leaking:
        return (f"Leak: forecasts of {stream} at the origins {', '.join(map(str, leaking))} changed when values were "
                "changed that had not arrived there.")  # fmt: skip
    return (f"No leak found: the forecasts of {stream} at its first, middle and last origin stay as they were, bit for "
            "bit, when every value is changed that had not arrived there.")  # fmt: skip
