"""Runs models on GIFT-Eval's 23 configurations of ETT and Jena, and sets them beside the published ones.

    <output>/rows.jsonl                 one row per model, configuration and seed, appended as soon as it is known
    <output>/report.html, report.md     every configuration, and the aggregate with ranks among 120 published models
    <output>/standing.jsonl             the same relative figures as rows, for the READMEs' tables

A row that is there is not made again, so an interrupted run goes on where it was: the same output folder, the same
budget, seeds and recipes. The folder is <runs>/gift-eval unless another is named. Work is spread over processes by
configuration.
A model that fails on a configuration leaves a row that says so and is tried again by the next run; the command ends
with an error then.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from tsgdn2.datasets.catalog import SETS
from tsgdn2.datasets.gift_eval import FREQUENCIES, gift_eval_frame
from tsgdn2.datasets.grid import period_ns
from tsgdn2.errors import TsgdnError
from tsgdn2.evaluation.gift_eval import matching
from tsgdn2.evaluation.leaderboard import published
from tsgdn2.evaluation.rows import Row, Value, append, mend, read, row
from tsgdn2.pipelines.gift_eval_report import Standing, page
from tsgdn2.pipelines.gift_eval_task import Task, key, measure, tasks
from tsgdn2.pipelines.jobs import Backtest
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.source import Source
from tsgdn2.pipelines.training import record_options, write_settings
from tsgdn2.pipelines.workers import spread

HOMES: Final = {"ett1": "ETTm1", "ett2": "ETTm2", "jena_weather": "jena"}
"""The set of the catalogue that each family is made from."""


def run(job: Backtest) -> None:
    """Run the job. An error of one task becomes a row, and the same command tries it again."""
    screen = Screen(job.quiet)
    names = [one.name for one in matching(job.configurations)]
    wanted = tasks(job.models, names, job.seeds, job.budget, streaming=job.streaming, inside=job.inside)
    home = "gift-eval-inside" if job.inside else "gift-eval"
    folder = replace(job, output=job.output or job.runs / home).folder("gift-eval")
    file = folder / "rows.jsonl"
    known = _known(file)
    open_tasks = [task for task in wanted if not task.answered_by(known.get(task.key))]
    with Run.start(job.experiment, "backtest gift-eval", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "backtest", "tsgdn2.protocol": "gift-eval"}) as record:  # fmt: skip
        write_settings(job, folder)
        record_options(record, job)
        for family in dict.fromkeys(name.split("/")[0] for name in names):
            _source(family).log(record, context="test")
        if len(open_tasks) < len(wanted):
            screen.say(f"{len(wanted) - len(open_tasks)} of {len(wanted)} rows are in {file} and are not made again")
        with screen.phase("configurations", total=len(open_tasks)) as phase:
            for _, made in spread(_attempt, open_tasks, job.workers):
                append(file, made)
                screen.say(_line(made))
                phase.advance()
        known = _known(file)
        found = [known[task.key] for task in wanted if task.key in known]
        standing = Standing.of(found, names, published())
        written = page(standing, job).write(folder)
        record.metrics(standing.metrics())
        figures = folder / "standing.jsonl"
        figures.unlink(missing_ok=True)
        append(figures, *standing.lines())
        for path in (written, written.with_suffix(".md"), file, figures):
            record.artifact(path, "gift-eval")
    for title, columns, lines in standing.screens():
        screen.table(title, columns, lines, first=job.models[0])
    screen.say(f"report: {written}")
    failed = len(wanted) - len(found)
    if failed:
        raise TsgdnError(
            f"rows: {failed} of {len(wanted)} could not be made, {file} says why; the report has the others"
        )


def _known(file: Path) -> dict[tuple[object, ...], Row]:
    """Rows by their task, the newest of each; failed ones are not known."""
    if not file.is_file():
        return {}
    mend(file)
    rows = read(file)
    return {key(one): one for one in rows if "error" not in one.values}


def _attempt(task: Task) -> Row:
    """Do a task; an error of the model or the numbers is a row of its own."""
    try:
        return measure(task)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        said = " ".join(str(error).split())[:300]
        shape: dict[str, Value] = {"configuration": task.configuration, "budget": task.budget}
        return row(task.model, shape, seed=task.seed, error=f"{type(error).__name__}: {said}")


def _line(made: Row) -> str:
    """What is said of a row as soon as it is there."""
    head = f"{made.what} {made.shape['configuration']}" + ("" if made.seed is None else f" seed {made.seed}")
    if "error" in made.values:
        return f"{head}: {made.values['error']}"
    gap = made.values.get("streamed_minus_batch")
    streamed = f", streamed - batch {gap:.0e}" if isinstance(gap, float) else ""
    figures = f"MASE {made.values['MASE']:.4f}, CRPS {made.values['CRPS']:.4f}"
    return f"{head}: {figures}{streamed}; {made.cpu_seconds or 0:.0f} CPU-s"


def _source(family: str) -> Source:
    """The finest set of a family, as a run records it."""
    named = SETS[HOMES[family]]
    frame = gift_eval_frame(family, FREQUENCIES[family][0])
    period = period_ns(named.period)
    return Source(name=f"gift-eval {family}", origin=named.home, frame=frame, period=period, season=named.season)
