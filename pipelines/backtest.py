"""Judges a trained predictor on rolling windows of a file or set, beside the baselines.

    <output>/windows.parquet   one row per model, series and window
    <output>/report.html, report.md, figures/

Each window is forecast from the whole history before it. Baselines are trained on what lies before the first window.
The public protocol (--protocol gift-eval) is gift_eval.py's, and scoring row by row (prequential) is prequential.py's.
"""

from __future__ import annotations

from tsgdn2.evaluation import backtest as rolling
from tsgdn2.evaluation import rows
from tsgdn2.evaluation.metrics import evaluate
from tsgdn2.pipelines import gift_eval, prequential
from tsgdn2.pipelines.comparison import COLUMNS, OURS, Comparison, Model, baselines, show, show_details
from tsgdn2.pipelines.event_source import data_for
from tsgdn2.pipelines.jobs import Backtest
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.report import Report
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.saved import open_predictor
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.source import Source
from tsgdn2.pipelines.training import record_options, write_settings

TABLE = COLUMNS[:5]


def run(job: Backtest) -> None:
    """Run the job. Errors: those of the data and the predictor; ConfigError where the windows do not fit."""
    if job.protocol == "gift-eval":
        gift_eval.run(job)
        return
    if job.protocol == "prequential":
        prequential.run(job)
        return
    assert job.predictor is not None
    assert job.data is not None
    screen = Screen(job.quiet)
    predictor = open_predictor(job.predictor)
    with screen.phase("reading"):
        source = data_for(predictor, job.data, job.columns)
        names = list(predictor.channels) if predictor.config.channels > 1 else None
        entries = source.entries("univariate" if predictor.config.channels == 1 else "multivariate")
        horizon = predictor.prediction_length
        step = job.distance or horizon
        test = rolling.windows(entries, horizon, job.windows, distance=step)
        train = rolling.training(entries, -(horizon + (job.windows - 1) * step))
    folder = job.folder("backtest")
    with Run.start(job.experiment, f"backtest {source.name}", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "backtest"}) as record:  # fmt: skip
        write_settings(job, folder)
        record_options(record, job)
        source.log(record, context="test")
        models = []
        if job.baselines:
            with screen.phase("baselines", total=3) as phase:
                lags = min(2 * source.season, 168)
                for model in baselines(train, test, horizon=horizon, season=source.season, lags=lags, channels=names):
                    models.append(model)
                    phase.advance()
        with screen.phase("forecasting"):
            judged = evaluate(predictor, test, season=source.season, channels=names)
            models.append(Model(name=OURS, judged=judged))
        comparison = Comparison(models=tuple(models))
        with screen.phase("report"):
            comparison.windows().write_parquet(folder / "windows.parquet")
            page = _page(source, job, comparison, predictor).write(folder)
            for name in comparison.overall:
                rows.append(folder / "rows.jsonl", rows.row(
                    name, {"data": source.name, "horizon": horizon, "windows": job.windows}, **comparison.figures(name)
                ))  # fmt: skip
            record.metrics(comparison.metrics())
            for path in (page, page.with_suffix(".md"), folder / "windows.parquet", folder / "rows.jsonl"):
                record.artifact(path, "backtest")
    screen.table(f"{source.name}: {len(entries)} series, {job.windows} windows of {horizon} steps", TABLE,
                 comparison.rows(), first=OURS)  # fmt: skip
    if job.baselines:
        screen.say(f"GDN-2 is beaten in: {'; '.join(comparison.lost(OURS)) or 'nothing'}")
    screen.say(f"report: {page}")


def _page(source: Source, job: Backtest, comparison: Comparison, predictor: GDN2Predictor) -> Report:
    report = Report(
        f"Backtest on {source.name}",
        f"{job.windows} windows of {predictor.prediction_length} steps ({source.freq}) per series, "
        f"predictor `{job.predictor}`.",
    )
    show(report, comparison, TABLE)
    show_details(report, comparison, "All series together.")
    return report
