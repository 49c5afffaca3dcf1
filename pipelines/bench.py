"""Benchmarks of the whole path: accuracy on ETTh1, phases of a patch, streams that do not end: rows and a page.

    etth1      CRPS of every seed and mixer, baselines in the same run           (never asserted in a test)
    phases     CRPS of every phase of a patch over hourly origins
    endurance  bytes of state and time per observation from 1e3 to 1e6 observations of one stream
    training   seconds of a step of the quickstart's training, cut into shares
    memory     ETTm1 streamed from its first row against restarts from 512 rows before each window
    events     flights and request traces streamed event by event (event_bench.py), their speed (event_speed.py)
    robustness CRPS against the share of missing cells on four sets, recovery after an outage (robustness.py)
    nab        anomaly scores of telemetry by the rules of the Numenta Anomaly Benchmark (nab_bench.py)
    calibration coverage and width of adaptive intervals on the same streams (calibration.py)
    serving    one update and one forecast against rivals, by age and number of streams (serving.py)
    service    HTTP, MQTT and the memory under load, beside predictor and journal alone (service_bench.py)

    <output>/<what>.jsonl                 a row is appended as soon as it is known
    <output>/<what>.html, <what>.md       the page of all rows of the file (bench_report.py), of earlier runs too

Every row states seed, processor seconds and versions; losing rows stay in the file, and of two rows of the same name,
sizes and seed the page has the newer one. The MLflow run has the figures of the rows that were made in it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl

from tsgdn2.datasets.catalog import ett
from tsgdn2.datasets.frame import channels
from tsgdn2.datasets.gluon import entries
from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.backtest import ETTH1_A, ETTH1_B, backtest
from tsgdn2.evaluation.baselines import SeasonalNaive
from tsgdn2.evaluation.metrics import Predicts
from tsgdn2.evaluation.ridge import RidgeLags
from tsgdn2.evaluation.rows import Row, append, mend, read, row
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.bench_report import metrics, newest, page
from tsgdn2.pipelines.calibration import calibration_rows
from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.event_bench import azure_rows, flight_rows
from tsgdn2.pipelines.event_speed import packed_rows, throughput_rows
from tsgdn2.pipelines.jobs import Bench
from tsgdn2.pipelines.nab_bench import nab_rows
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.robustness import QUICK, Plan, study
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.service_bench import service_rows
from tsgdn2.pipelines.serving import serving_rows
from tsgdn2.pipelines.training import record_options
from tsgdn2.pipelines.training_shares import rows as training
from tsgdn2.scale import Floats

ENDURANCE = (10**3, 10**4, 10**5, 10**6)
ETTH1_SETTINGS: Mapping[str, object] = {
    "lag_skip": 168,
    "patch_length": 4,
    "context_length": 256,
    "batch_size": 32,
    "num_batches_per_epoch": 30,
}
PHASES: Mapping[str, object] = {"patch_length": 8, "context_length": 512}


def run(job: Bench) -> None:
    """Run one benchmark: append its rows, then write the page of all rows of the file and log everything."""
    kinds: Mapping[str, Callable[[Bench], Iterable[Row]]] = {
        "etth1": etth1,
        "phases": phases,
        "endurance": endurance,
        "memory": memory,
        "training": training,
        "robustness": robustness,
        "events": events,
        "nab": lambda own: nab_rows(own.seeds, quick=own.quick),
        "calibration": lambda own: calibration_rows(own.seeds, quick=own.quick),
        "serving": lambda own: serving_rows(own.seeds[0], quick=own.quick),
        "service": service_rows,
    }
    screen = Screen(job.quiet)
    job = replace(job, output=job.output or job.runs / "bench")
    folder = job.folder("bench")
    name = f"{job.what}{'-quick' if job.quick else ''}"
    file = folder / f"{name}.jsonl"
    if job.page_only and not file.is_file():
        raise ConfigError(f"page_only: {file} has no rows yet; run the benchmark first, or name another output")
    with Run.start(job.experiment, f"bench {name}", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "bench"}) as record:  # fmt: skip
        record_options(record, job)
        if file.is_file():
            mend(file)
        for one in () if job.page_only else kinds[job.what](job):
            append(file, one)  # as soon as it is known: an hour's work is not lost with its last minute
            record.metrics(metrics(one), step=one.seed or 0)
            screen.say(_line(one))
        with screen.phase("report"):
            report = page(job.what, newest(read(file)))
            written = report.write(folder, name)
        for path in (file, written, written.with_suffix(".md"), *report.figure_files(folder)):
            record.artifact(path, "bench/figures" if path.suffix == ".png" else "bench")
    screen.say(f"page: {written}")


def _line(one: Row) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in one.values.items() if isinstance(value, int | float))
    return f"{one.what}, seed {one.seed}: {figures}; {one.cpu_seconds or 0:.0f} CPU-s"


def etth1(settings: Bench) -> list[Row]:
    """Windows A and B of every seed and mixer, and the baselines on the same windows."""
    data = entries(ett("ETTh1"), "1h")
    rows = []
    for mixer in settings.mixers:
        for seed in settings.seeds:
            began = time.process_time()
            predictor = etth1_estimator(seed, settings.epochs, mixer).train(ETTH1_A.train(data))
            used = time.process_time() - began
            weights = sum(p.numel() for p in predictor.forecaster.parameters())
            rows.append(_judged(f"tsgdn2 {mixer}", predictor, data, seed, used, parameters=weights))
    for lags in (48, 168):
        began = time.process_time()
        ridge = RidgeLags.train(ETTH1_A.train(data), 24, lags=lags)
        rows.append(_judged(f"ridge on {lags} lags", ridge, data, None, time.process_time() - began))
    rows.append(_judged("SeasonalNaive(24)", SeasonalNaive(24, 24), data, None, 0.0))
    return rows


def etth1_estimator(
    seed: int, epochs: int, mixer: str = "gdn2", changes: Mapping[str, object] = MappingProxyType({})
) -> GDN2Estimator:
    """The estimator of the ETTh1 benchmark."""
    arguments = {**ETTH1_SETTINGS, **changes}
    estimator: GDN2Estimator = GDN2Estimator(
        "h", 24, mixer=mixer, seed=seed, trainer_kwargs={"max_epochs": epochs}, **arguments
    )
    return estimator


def _judged(
    what: str, predictor: Predicts, data: Sequence[Mapping[str, object]], seed: int | None, used: float, **facts: int
) -> Row:
    values: dict[str, Any] = {}
    for protocol in (ETTH1_A, ETTH1_B):
        score = backtest(predictor, protocol.test(data), season=protocol.season).overall
        window = protocol.name[-1]
        values |= {f"CRPS {window}": score.crps, f"MASE {window}": score.mase, f"coverage {window}": score.coverage}
    return row(what, {"horizon": 24, **facts}, seed=seed, cpu_seconds=used, **values)


def phases(settings: Bench) -> list[Row]:
    """Stream ETTh1, forecast at every hour from row 11,520 to 14,400; CRPS by the phase of the clock in its patch."""
    frame = ett("ETTh1")
    names = channels(frame)
    rows = []
    for seed in settings.seeds:
        began = time.process_time()
        predictor = etth1_estimator(seed, settings.epochs, changes=PHASES).train(ETTH1_A.train(entries(frame, "1h")))
        used = time.process_time() - began
        online = OnlinePredictor.from_predictor(predictor, channels=names)
        forecasts, clocks = _stream(online, frame[:14_400], first=11_520, every=1, until=14_400 - 24)
        labels = frame.select(names).to_numpy()
        patch = predictor.config.patch_length
        phase = np.array(clocks) % patch
        crps = {
            int(p): crps_of(
                np.stack([f for f, at in zip(forecasts, phase, strict=True) if at == p]),
                np.stack([labels[11_521 + i : 11_545 + i] for i, at in enumerate(phase) if at == p]),
                online.config.quantiles,
            )
            for p in range(patch)
        }
        values: dict[str, Any] = {f"CRPS phase {p}": c for p, c in crps.items()}
        worst = max(crps.values()) / min(crps.values())
        rows.append(
            row("phases of a patch, ETTh1", {"P": patch}, seed=seed, cpu_seconds=used, worst_over_best=worst, **values)
        )
    return rows


def robustness(settings: Bench) -> Iterator[Row]:
    """Damaged histories at the ETTh1 benchmark's model settings, on all four sets."""
    return study(QUICK if settings.quick else Plan(), settings.seeds, ETTH1_SETTINGS, settings.folder("bench"))


def events(settings: Bench) -> Iterator[Row]:
    """Accuracy on the two sets of events, throughput into tokens and states, packed training."""
    yield from throughput_rows(quick=settings.quick)
    yield from packed_rows(settings.seeds, quick=settings.quick)
    yield from azure_rows(settings.seeds, quick=settings.quick)
    yield from flight_rows(settings.seeds, quick=settings.quick)


def endurance(settings: Bench) -> list[Row]:
    """One stream of ETTh1's seven channels, repeated without end: bytes of state and time per observation.

    The state is saved at every mark; at the end the saved streams go on side by side, one observation each in turn, so
    that whatever else the machine does falls on all of them alike.
    """
    frame = ett("ETTh1")
    names = channels(frame)
    predictor = etth1_estimator(settings.seeds[0], 1).train(ETTH1_A.train(entries(frame, "1h")))
    online = OnlinePredictor.from_predictor(predictor, channels=names)
    values = frame.select(names).to_numpy()
    start = int(frame["time"].dt.timestamp("ns")[0])
    step = online.config.period_ns
    aged: dict[int, OnlinePredictor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in range(1, ENDURANCE[-1] + 1):
            online.observe("endless", start + count * step, values[count % len(values)])
            if count in ENDURANCE:
                path = Path(folder) / f"{count}.safetensors"
                online.save(path)
                aged[count] = OnlinePredictor.load(path)
    spent: dict[int, list[float]] = {count: [] for count in aged}
    for turn in range(1, 4_001):
        for count, old in aged.items():
            row_values = values[turn % len(values)]
            began = time.perf_counter()
            old.observe("endless", start + (count + turn) * step, row_values)
            spent[count].append(time.perf_counter() - began)
    return [
        row(
            "one stream without end",
            {"observations": count, "channels": len(names)},
            bytes=old.state_nbytes,
            median_us=float(np.median(spent[count]) * 1e6),
            mean_us=float(np.mean(spent[count]) * 1e6),
            median_over_first=float(np.median(spent[count]) / np.median(spent[ENDURANCE[0]])),
        )
        for count, old in aged.items()
    ]


def memory(settings: Bench) -> list[Row]:
    """ETTm1, training windows of 512 steps: one stream from the first row against restarts 512 rows before a window."""
    frame = ett("ETTm1")
    names = channels(frame)
    horizon, tail = 48, 6_968
    cut = len(frame) - tail
    rows = []
    for seed in settings.seeds:
        data = entries(frame[:cut], "15min")
        estimator = GDN2Estimator(
            "15min",
            horizon,
            context_length=512,
            seed=seed,
            trainer_kwargs={"max_epochs": settings.epochs},
            batch_size=32,
            num_batches_per_epoch=30,
        )
        began = time.process_time()
        predictor = estimator.train(data)
        used = time.process_time() - began
        online = OnlinePredictor.from_predictor(predictor, channels=names)
        origins = range(cut - 1, len(frame) - horizon, horizon)
        streamed, _ = _stream(online, frame, first=cut, every=horizon, until=len(frame) - horizon)
        labels = np.stack([frame.select(names).to_numpy()[o + 1 : o + 1 + horizon] for o in origins])
        restarted = _restarts(predictor, frame, names, list(origins), 512)
        whole = crps_of(np.stack(streamed), labels, online.config.quantiles)
        short = crps_of(restarted, labels, online.config.quantiles)
        rows.append(
            row(
                "ETTm1: streamed from the first row against restarts",
                {"context": 512, "windows": len(labels)},
                seed=seed,
                cpu_seconds=used,
                streamed=whole,
                restarts=short,
                ratio=whole / short,
            )
        )
    return rows


def _stream(
    online: OnlinePredictor, frame: pl.DataFrame, *, first: int, every: int, until: int
) -> tuple[list[Floats], list[int]]:
    """Observe row by row; forecast after rows first-1, first-1+every, .. below `until`. Quantiles [H,C,Q], clocks."""
    names = channels(frame)
    online.observe_many(frame[: first - 1].with_columns(stream=pl.lit("s")))
    stamps = frame["time"].dt.timestamp("ns").to_list()
    values = frame.select(names).to_numpy()
    forecasts, clocks = [], []
    for at in range(first - 1, until):
        online.observe("s", stamps[at], values[at])
        if (at - first + 1) % every == 0:
            forecasts.append(online.forecast("s").quantiles)
            clocks.append(stamps[at] // online.config.period_ns)
    return forecasts, clocks


def _restarts(
    predictor: GDN2Predictor, frame: pl.DataFrame, names: Sequence[str], origins: Sequence[int], rows: int
) -> Floats:
    parts = [
        {**entry, "item_id": str(entry["item_id"])}
        for origin in origins
        for entry in entries(frame[origin + 1 - rows : origin + 1], "15min")
    ]
    arrays = np.stack([f.forecast_array for f in predictor.predict(parts)])  # [windows * C, Q, H]
    by_window = arrays.reshape(len(origins), len(names), *arrays.shape[1:])
    return np.asarray(by_window.transpose(0, 3, 1, 2))


def crps_of(quantiles: Floats, labels: Floats, levels: Sequence[float]) -> float:
    """Mean weighted sum quantile loss of quantiles [N, H, C, Q] against labels [N, H, C], pooled."""
    error = labels[..., None] - quantiles
    level = np.array(levels)
    return float(
        np.nanmean(np.nansum(2 * np.maximum(level * error, (level - 1) * error), (0, 1, 2))) / np.nansum(np.abs(labels))
    )
