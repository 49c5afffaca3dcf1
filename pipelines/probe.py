"""The job `probe`: every mixer on the memory probes, one row per finished run, and a page made of the rows.

    <output>/probe.jsonl     a row is appended as soon as its run ends; a run that has its row is never done again
    <output>/report.html     the page, its Markdown twin report.md and figures/
    <output>/probe.lock      held while a job works there; it stays, and holds nothing once its job has ended

A job that was stopped in any way goes on where it was when it is started again with the same output; a line that was
cut off in the middle is dropped, and its run is done again. Runs are independent, so several processes share them. Rows
of another budget do not count; rows of another version of the code do, and the page names every version that it shows.
Two jobs never work in one output at the same time: the second one is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.probes.suite import MIXERS, PROBES, SMALL, config_of
from tsgdn2.evaluation.probes.trial import Budget, Trial, run_alone
from tsgdn2.evaluation.rows import Row, append, mend, read
from tsgdn2.pipelines.folder_lock import alone
from tsgdn2.pipelines.jobs import Probe
from tsgdn2.pipelines.probe_report import POINTS, page
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.streaming import one_thread
from tsgdn2.pipelines.training import record_options, write_settings
from tsgdn2.pipelines.workers import spread

ROWS: Final = "probe.jsonl"
SEEDS: Final = {"small": 3, "full": 5}


def run(job: Probe) -> None:
    """Do the runs that have no row yet, then write the page and log everything."""
    screen = Screen(job.quiet)
    job = replace(job, output=job.output or job.runs / f"probe-{job.table}")
    budget = Budget(steps=job.steps, seconds=job.seconds)
    wanted = trials(job)
    folder = job.folder("probe")
    path = folder / ROWS
    with (
        alone(folder, "probe job works in"),
        Run.start(job.experiment, f"probe {job.table}", root=job.runs, tracking_uri=job.tracking_uri,
                  tags={"tsgdn2.job": "probe"}) as record,
    ):  # fmt: skip
        write_settings(job, folder)
        record_options(record, job)
        done = finished(path, budget)
        missing = [trial for trial in wanted if trial not in done]
        if len(missing) < len(wanted):
            screen.say(f"{len(wanted) - len(missing)} of {len(wanted)} runs have their row already")
        with screen.phase("probes", total=len(missing)) as phase:
            for trial, row in results(missing, budget, job.workers):
                append(path, row)
                done[trial] = row
                screen.say(_line(trial, row))
                phase.advance()
        rows = [done[trial] for trial in wanted]
        with screen.phase("report"):
            written = page(f"Memory probes, {job.table} table", rows, made_with(job, budget, rows)).write(folder)
        for row in rows:
            names = {f"{row.shape['probe']} {row.shape['level']}/{row.shape['mixer']}/{point}".replace("+", "-"): value
                     for point in POINTS if isinstance(value := row.values.get(point), float)}  # fmt: skip
            record.metrics(names, step=row.seed or 0)
        for file in (path, written, written.with_suffix(".md"), folder / "figures"):
            record.artifact(file, "report")
    screen.say(f"page: {written}")


def trials(job: Probe) -> list[Trial]:
    """Every run of the table, seed by seed, so that a table that was stopped has all mixers; ConfigError for names."""
    names: tuple[str, ...] = (
        tuple(SMALL) if job.table == "small" and job.probes is None else (job.probes or tuple(PROBES))
    )
    mixers = job.mixers or MIXERS
    for mixer in mixers:
        config_of(mixer)
    levels: list[tuple[str, int]] = []
    for name in names:
        if name not in PROBES:
            raise ConfigError(f"probes: must be among {', '.join(PROBES)}, got {name!r}")
        small = SMALL.get(name, PROBES[name].levels[-1])
        levels += [(name, level) for level in PROBES[name].levels if job.table == "full" or level == small]
    seeds = job.seeds or tuple(range(SEEDS[job.table]))
    return [Trial(name, level, mixer, seed) for seed in seeds for name, level in levels for mixer in mixers]


def finished(path: Path, budget: Budget) -> dict[Trial, Row]:
    """Rows of this budget by their run; what was cut off behind the last whole line is removed from the file."""
    if not path.exists():
        return {}
    mend(path)
    found: dict[Trial, Row] = {}
    for row in read(path):
        shape = row.shape
        if {name: shape[name] for name in budget.key} == budget.key and row.seed is not None:
            found[Trial(str(shape["probe"]), int(shape["level"] or 0), str(shape["mixer"]), row.seed)] = row
    return found


def results(missing: Sequence[Trial], budget: Budget, workers: int) -> Iterator[tuple[Trial, Row]]:
    """Run what is missing, in this process for one worker; rows come as they are made, in any order."""
    with one_thread() if workers == 1 else nullcontext():
        yield from spread(partial(run_alone, budget=budget), missing, workers)


def _line(trial: Trial, row: Row) -> str:
    first, last = (row.values[name] for name in ("x1", "x16"))
    return (f"{trial.probe} {trial.level}, {trial.mixer}, seed {trial.seed}: {first:.3f} at T, {last:.3f} at 16 T; "
            f"{row.values['steps']} steps, {row.cpu_seconds or 0:.0f} CPU-s")  # fmt: skip


def made_with(job: Probe, budget: Budget, rows: Sequence[Row]) -> str:
    """How the rows were made, in a sentence that names every commit and device among them."""
    length = f"{budget.steps} steps" if budget.seconds is None else f"{budget.seconds:g} CPU-seconds"
    seeds = sorted({row.seed for row in rows if row.seed is not None})
    torches = sorted({f"torch {row.versions['torch']}" for row in rows})
    commits, devices = sorted({f"commit {row.commit}" for row in rows}), sorted({row.device for row in rows})
    return (
        f"{len(rows)} runs: seeds {', '.join(map(str, seeds))}, {length} of training each, "
        f"batches of {budget.streams} streams, AdamW at {budget.lr:g}; "
        f"{'; '.join(devices)}; {', '.join(torches + commits)}; `tsgdn2 probe --table {job.table}`"
    )
