"""The whole of tsgdn2 in one job: train on New York's weather, backtest, stream, audit, report.

Nine months train nine channels of three airports, independent, with shared weights; the last three are judged. The
streamed forecasts are the ones in the table, because the online predictor is what is used in production; batch
forecasts of some days check them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
from gluonts.dataset.split import TestData
from gluonts.model.forecast import Forecast

from tsgdn2.audit import AuditConfig
from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.evaluation import rows
from tsgdn2.evaluation.backtest import NYC_WEATHER, Protocol
from tsgdn2.evaluation.metrics import evaluate
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.accounts import Account, account
from tsgdn2.pipelines.audit_report import OnlineView, log_audit, online_view, write_audit
from tsgdn2.pipelines.comparison import COLUMNS, OURS, Comparison, Model, baselines, in_order
from tsgdn2.pipelines.jobs import AuditOptions, DataOptions, Quickstart
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.quickstart_page import page
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.source import Source, open_source
from tsgdn2.pipelines.streaming import Streamed, one_thread, stream_frame
from tsgdn2.pipelines.traces import collect
from tsgdn2.pipelines.training import estimator, record_model, record_options, record_training, write_settings

SMALL = replace(
    NYC_WEATHER, name="NYC weather, small", windows=5, train_end=pd.Period("2013-12-25 23:00", freq="h")
)  # fmt: skip
SMALL_CHANNELS = ("temp", "humid", "wind_gust")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far streamed forecasts are from batch forecasts at the same origins."""

    forecasts: int
    """How many were compared."""
    largest: float
    """Largest |streamed - batch| of a quantile, in standard deviations of its channel."""


def run(job: Quickstart) -> None:
    """Run the job; everything is written under `job.output`, the run goes to MLflow."""
    job = replace(job, output=job.output or job.runs / "quickstart")
    screen, folder, protocol = Screen(job.quiet), job.folder("quickstart"), NYC_WEATHER
    (folder / "rows.jsonl").unlink(missing_ok=True)  # a second run replaces everything else, too
    with Run.start(job.experiment, "quickstart", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "quickstart"}) as record:  # fmt: skip
        with screen.phase("reading the weather"):
            source = open_source("nyc", DataOptions())
            if job.budget == "small":
                source, protocol, job = _small(source, job)
            write_settings(job, folder)
            record_options(record, job)
            source.log(record)
            entries = source.entries()
            train, test = protocol.train(entries), protocol.test(entries)
            together = source.entries("multivariate")
        predictor = _train(job, source, protocol, protocol.train(together), screen)
        predictor_folder = folder / "predictor"
        predictor_folder.mkdir(exist_ok=True)
        predictor.serialize(predictor_folder)
        record_training(record, predictor)
        with screen.phase("baselines", total=3) as phase:
            rivals = []
            for model in baselines(train, test, horizon=protocol.prediction_length, season=protocol.season):
                rivals.append(model)
                phase.advance()
        online, streamed = _stream(job, source, protocol, predictor, screen)
        online.save(folder / "online.safetensors")
        streamed_forecasts = streamed.by_series()
        with screen.phase("streamed against batch"):
            agreement = _agreement(job, predictor, protocol.test(together), streamed_forecasts, together)
        with screen.phase("scores"):
            judged = evaluate(in_order(test, streamed_forecasts), test, season=protocol.season)
            ours = Model(name=OURS, judged=judged, microseconds=streamed.microseconds, state_bytes=online.state_nbytes)
            comparison = Comparison(models=(*rivals, ours))
        accounts, view = _audit(job, source, predictor, together, online, streamed, screen)
        with screen.phase("report"):
            subject = f"{source.name}: {len(source.streams)} streams, {len(source.channels)} channels each"
            found = write_audit(folder / "audit", accounts, view, subject)
            made = page(source, protocol, comparison, accounts, view, streamed, agreement, predictor, screen.seconds)
            written = made.write(folder)
            _write_tables(folder, comparison, streamed)
            _append_rows(folder, job, protocol, comparison, screen)
        with screen.phase("MLflow"):
            record.metrics(comparison.metrics() | {
                "streamed_against_batch": agreement.largest, "coverage_gap": _coverage_gap(comparison),
                "microseconds_per_observation_median": streamed.median_microseconds,
            })  # fmt: skip
            record.metrics({f"seconds/{name}": value for name, value in screen.seconds.items()})
            for path in (written, written.with_suffix(".md"), folder / "figures", folder / "windows.parquet"):
                record.artifact(path, "report")
            record_model(record, predictor_folder, predictor, together)
            log_audit(record, folder / "audit", found, {"threshold": job.audit.threshold, "window": job.audit.window})
    _show(screen, comparison, agreement, streamed, written, job)


def _small(source: Source, job: Quickstart) -> tuple[Source, Protocol, Quickstart]:
    """One airport, three sensors, two months, and a training of seconds."""
    begin = pl.datetime(2013, 10, 15, time_unit="ns", time_zone="UTC")
    frame = source.frame.filter((pl.col(STREAM) == "JFK") & (pl.col(TIME) >= begin))
    frame = frame.select(STREAM, TIME, *SMALL_CHANNELS)
    model = replace(job.model, epochs=1, batches=8, seconds=min(job.model.seconds or 5.0, 5.0))
    audit = replace(job.audit, window=min(job.audit.window, 64), heads=1)
    return replace(source, frame=frame), SMALL, replace(job, model=model, audit=audit, batch_every=2)


def _train(
    job: Quickstart, source: Source, protocol: Protocol, train: Sequence[Mapping[str, object]], screen: Screen
) -> GDN2Predictor:
    with screen.phase("training", total=job.model.epochs * job.model.batches) as phase:
        names = source.channels
        return estimator(job.model, source.freq, protocol.prediction_length, phase, names=names).train(train)


def _stream(
    job: Quickstart, source: Source, protocol: Protocol, predictor: GDN2Predictor, screen: Screen
) -> tuple[OnlinePredictor, Streamed]:
    """Stream everything from the first row, forecasting before every judged window."""
    config = AuditConfig(threshold=job.audit.threshold) if predictor.config.audited else None
    online = OnlinePredictor.from_predictor(predictor, channels=source.channels, audit=config)
    end = _step(protocol.end, source.period) + 1
    origins = [
        end - protocol.prediction_length - number * protocol.distance - 1
        for number in reversed(range(protocol.windows))
    ]
    with screen.phase("streaming", total=source.frame.height) as phase:
        return online, stream_frame(online, source.frame, origins, tick=phase.advance)


@one_thread()
def _agreement(
    job: Quickstart, predictor: GDN2Predictor, test: TestData, streamed: Mapping[tuple[str, pd.Period], Forecast],
    entries: Sequence[Mapping[str, object]],
) -> Agreement:  # fmt: skip
    """Forecast every n-th window of each series in batch, from its whole history, and compare."""
    spread = {str(entry["item_id"]): np.nanstd(np.asarray(entry["target"]), axis=-1) + 1e-12 for entry in entries}
    chosen, seen = [], dict.fromkeys(spread, 0)
    for past in test.input:
        item = str(past["item_id"])
        if seen[item] % job.batch_every == 0:
            chosen.append(past)
        seen[item] += 1
    largest = 0.0
    for batch in predictor.predict(chosen):
        item = str(batch.item_id)
        twins = [streamed[f"{item}/{channel}", batch.start_date] for channel in predictor.channels]
        for level in predictor.config.quantiles:
            twin = np.stack([one.quantile(level) for one in twins], -1)
            largest = max(largest, float((np.abs(batch.quantile(level) - twin) / spread[item]).max()))
    return Agreement(forecasts=len(chosen) * len(predictor.channels), largest=largest)


def _audit(
    job: Quickstart, source: Source, predictor: GDN2Predictor, entries: Sequence[Mapping[str, object]],
    online: OnlinePredictor, streamed: Streamed, screen: Screen,
) -> tuple[list[Account], OnlineView | None]:  # fmt: skip
    """Account for the writes of the first streams offline, and read the online audit of all."""
    if not predictor.config.audited:
        return [], None
    names = _audited(source, job.audit)
    chosen = [entry for entry in entries if str(entry["item_id"]) in names]
    layers = range(job.model.layers) if job.audit.layers == "all" else (job.model.layers - 1,)
    with screen.phase("audit"):
        traces = collect(predictor, chosen, layers=tuple(layers), window=job.audit.window)
        accounts = [account(one.heads(job.audit.heads), source.period, threshold=job.audit.threshold) for one in traces]
        return accounts, online_view(online, streamed.evictions)


def _audited(source: Source, options: AuditOptions) -> list[str]:
    """JFK first, because it is the one that the report shows."""
    return sorted(source.streams, key=lambda name: name != "JFK")[: options.streams]


def _step(period: object, length: int) -> int:
    assert isinstance(period, pd.Period)
    return int(period.start_time.value // length)


def _write_tables(folder: Path, comparison: Comparison, streamed: Streamed) -> None:
    comparison.windows().write_parquet(folder / "windows.parquet")
    streamed.forecast_frame().write_parquet(folder / "forecasts.parquet")
    streamed.surprises.write_parquet(folder / "surprises.parquet")


def _append_rows(folder: Path, job: Quickstart, protocol: Protocol, comparison: Comparison, screen: Screen) -> None:
    """Benchmark rows, losing ones too."""
    shape: dict[str, rows.Value] = {"data": protocol.name, "horizon": protocol.prediction_length, "budget": job.budget}
    for name, score in comparison.overall.items():
        rows.append(
            folder / "rows.jsonl",
            rows.row(
                name, shape, seed=job.model.seed if name == OURS else None,
                crps_relative=comparison.relative(name, "crps"), mase_relative=comparison.relative(name, "mase"),
                crps=score.crps, coverage=score.coverage,
                training_seconds=screen.seconds["training"] if name == OURS else None,
            ),
        )  # fmt: skip


def _coverage_gap(comparison: Comparison) -> float:
    return abs(comparison.overall[OURS].coverage - 0.8)


def _show(
    screen: Screen, comparison: Comparison, agreement: Agreement, streamed: Streamed, written: Path, job: Quickstart
) -> None:
    """Print the table and where things are."""
    channels, days = len(comparison.groups[OURS]), len(set(comparison.models[0].judged.windows))
    screen.table(
        f"New York weather, {channels} channels, {days} days, horizon 24 h", COLUMNS, comparison.rows(), first=OURS
    )
    lost = comparison.lost(OURS)
    screen.say(f"GDN-2 is beaten in {len(lost)} of {channels} channels: {'; '.join(lost) or 'none'}")
    screen.say(
        f"streamed against batch: {agreement.largest:.1e} standard deviations at most, in {agreement.forecasts} "
        f"forecasts; median time per observation {streamed.median_microseconds:,.0f} µs, "
        f"mean {streamed.microseconds:,.0f} µs"
    )
    where = job.tracking_uri or f"sqlite:///{job.runs / 'mlflow.db'}"
    screen.say(f"report: {written}\nMLflow: mlflow ui --backend-store-uri {where}")
    screen.say(f"took {sum(screen.seconds.values()):.0f} s")
