"""The pages of `tsgdn2 bench`: what a benchmark asks, what its rows say in sentences, a figure, tables.

Tables are those of the READMEs (evaluation/tables.py), so a page and a README show one and the same line: the mean over
the seeds, with the smallest and the largest. Sentences are made of the rows; none of them is written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tsgdn2.evaluation.nab import PROFILES
from tsgdn2.evaluation.rows import Row
from tsgdn2.evaluation.tables import FILES, TABLES, cells
from tsgdn2.pipelines import bench_figures as figures
from tsgdn2.pipelines.report import Report

OURS: Final = "tsgdn2"
POINTS: Final = 0.02
"""Coverage may be so far from what was asked for."""
WIDTH: Final = 1.2
"""Mean width that adaptive intervals may have, over split-conformal's."""
TWICE: Final = 2.0
"""Time of the yardstick that a way into the service may take."""
PATIENCE: Final = 50.0
"""Milliseconds in which 99 % of the rows shall be on the disk at half of the sustained rate."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What a page says of one benchmark."""

    title: str
    about: str
    says: Callable[[Sequence[Row]], list[str]] = lambda _: []
    """Sentences made of the rows."""
    picture: Callable[[Sequence[Row]], bytes] | None = None
    caption: str = ""
    tables: Mapping[str, str] | None = None
    """Name in evaluation/tables.py: how the names of its rows begin; None takes all of the file's, for all rows."""


def page(what: str, rows: Sequence[Row]) -> Report:
    """The page of one benchmark's rows, of which there must be one."""
    suite = SUITES[what]
    report = Report(suite.title, _made(what, rows))
    report.paragraph(suite.about)
    for sentence in suite.says(rows):
        report.paragraph(sentence)
    if suite.picture is not None:
        report.figure(what, suite.picture(rows), suite.caption)
    parts = suite.tables or dict.fromkeys((what, *(name for name, file in FILES.items() if file == what)), "")
    for name, begins in parts.items():
        own = [row for row in rows if row.what.startswith(begins) and _has(row, name)]
        if not own:
            continue
        head, lines = cells(name, own)
        columns = ("row", *head[1:])
        table = [dict(zip(columns, line, strict=True)) for line in lines]
        if len(parts) > 1:
            report.heading(name.replace("_", " "))
        report.table(columns, table, ours=[line["row"] for line in table if line["row"].startswith(OURS)])
    return report


def newest(rows: Sequence[Row]) -> list[Row]:
    """Of rows of the same name, sizes and seed the last one, in the order of the first."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        shape = sorted((name, str(value)) for name, value in row.shape.items() if name != "turns")
        found[row.what, row.seed, *shape] = row
    return list(found.values())


def metrics(row: Row) -> dict[str, float]:
    """Figures of a row as MLflow has them: <figure>/<name>, with the observations where names differ by them alone."""
    age = row.shape.get("observations")
    name = row.what if age is None else f"{row.what}, {age} observations"
    name = name.replace("/", "-").replace("+", "-")
    numbers = {key: value for key, value in row.values.items() if isinstance(value, int | float)}
    return {f"{key}/{name}".replace(" / ", " over "): float(value) for key, value in numbers.items()}


def _made(what: str, rows: Sequence[Row]) -> str:
    """How the rows were made, in one line."""
    seeds = sorted({row.seed for row in rows if row.seed is not None})
    facts = [
        f"{len(rows)} rows", f"seeds {', '.join(map(str, seeds)) or 'none'}",
        *sorted({row.device for row in rows}),
        "torch " + ", ".join(sorted({row.versions.get("torch", "unknown") for row in rows})),
        "commit " + ", ".join(dict.fromkeys(row.commit for row in rows)),
    ]  # fmt: skip
    return f"{'; '.join(facts)}; `tsgdn2 bench --what {what}`"


def _has(row: Row, table: str) -> bool:
    """Whether a row has a figure of a table."""
    names = {source.partition("@")[0] for source in TABLES.get(table, {}).values()}
    return not names or any(row.values.get(name) is not None for name in names)


def _nab(rows: Sequence[Row]) -> list[str]:
    """The best detector, ours and chance, under every profile."""
    said = []
    own = figures.comparable(rows)
    for profile in (one.name for one in PROFILES):
        means = {name: [float(row.values[profile] or 0) for row in rows if row.what == name] for name in own}
        order = sorted(means, key=lambda name: -float(np.mean(means[name])))
        mine = [name for name in order if name.startswith(OURS)]
        text = f"**{profile}**: {order[0]} is first with {_range(means[order[0]])}"
        if mine:
            place = f"{mine[0]}, place {order.index(mine[0]) + 1} of {len(order)}"
            text += f"; ours at best {_range(means[mine[0]])} ({place})"
        if figures.CHANCE in means:
            text += f"; random numbers score {_range(means[figures.CHANCE])}"
        said.append(text + ".")
    return said


def _calibration(rows: Sequence[Row]) -> list[str]:
    """How many passes keep the two bars."""
    streams = figures.passes(rows)
    every = [row for row in rows if "worst off" in row.values]
    within = sum(float(row.values["off"] or 0) <= POINTS for row in streams)
    split = sum(abs(float(row.values["split coverage"] or 0) - figures.WANTED) <= POINTS for row in streams)
    said = [f"Adaptive intervals are within {100 * POINTS:g} points of {100 * figures.WANTED:g} % on {within} of "
            f"{len(streams)} passes of a stream, split-conformal ones on {split}."]  # fmt: skip
    for row in every:
        width = float(row.values["width ratio"] or 0)
        said.append(f"Seed {row.seed}: mean width {width:.3f} times split-conformal's, which "
                    f"{'keeps' if width <= WIDTH else 'misses'} the bar of {WIDTH}; the farthest stream is "
                    f"{100 * float(row.values['worst off'] or 0):.1f} points off.")  # fmt: skip
    return said


def _serving(rows: Sequence[Row]) -> list[str]:
    """At the greatest age and at the greatest number: what our growth is, and who is faster."""
    said = []
    alone = [row for row in rows if row.shape["streams"] == 1]
    for part in (alone, [row for row in rows if row.shape["streams"] != 1]):
        if not part:
            continue
        largest = max(figures.size(row) for row in part)
        own = [row for row in part if figures.size(row) == largest]
        streams, age = int(largest[0]), int(largest[1])
        where = f"{streams:,} stream{'s' if streams > 1 else ''} with {age:,} observations behind"
        said += [
            f"{where}: {_faster(own, 'forecast')}",
            f"{where}: {_faster(own, 'update')}",
        ]
        ours = next((row for row in own if row.what.startswith(OURS)), None)
        grown = None if ours is None else ours.values.get("update_over_youngest")
        if ours is not None and isinstance(grown, float):
            least = min(figures.size(row)[1] for row in part)
            forecast = float(ours.values["forecast_over_youngest"] or 0)
            said.append(f"Our update there takes {grown:.2f} times what it takes at {least:,.0f} observations, a "
                        f"forecast {forecast:.2f} times; a stream holds {ours.values['bytes']:,} bytes.")  # fmt: skip
    return said


def _service(rows: Sequence[Row]) -> list[str]:
    """Who keeps the two bars: TWICE the yardstick's time, and PATIENCE at half rate."""
    said = []
    for row in (row for row in rows if row.values.get("yardstick_over") is not None):
        over, p99 = float(row.values["yardstick_over"] or 0), float(row.values["half_p99_ms"] or 0)
        twice, patience = ("keeps" if kept else "misses" for kept in (over <= TWICE, p99 < PATIENCE))
        said.append(f"**{row.what}**: {row.values['rows_per_s']:,.0f} rows a second, x {over:.2f} of the yardstick's "
                    f"time ({twice} x {TWICE:g}); at half of that rate 99 % of the rows within {p99:.1f} ms "
                    f"({patience} {PATIENCE:g} ms).")  # fmt: skip
    return said


def _faster(rows: Sequence[Row], part: str) -> str:
    """Who takes less than ours for an update or a forecast, and who takes more; times of ours."""
    ratios = {row.what.rpartition(", ")[0].split(",")[0]: float(row.values[f"{part}_over_ours"] or 0) for row in rows
              if row.values.get(f"{part}_over_ours") is not None}  # fmt: skip
    order = sorted(ratios, key=lambda name: ratios[name])
    below = [f"{name} ({_times(ratios[name])})" for name in order if ratios[name] < 1]
    above = [f"{name} ({_times(ratios[name])})" for name in order if ratios[name] >= 1]
    what = "a forecast" if part == "forecast" else "an update"
    return f"{what} takes less than ours with {', '.join(below) or 'none'}; more with {', '.join(above) or 'none'}."


def _times(value: float) -> str:
    return f"x {value:.3g}"


def _range(values: Sequence[float]) -> str:
    mean = math.fsum(values) / len(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f} - {max(values):.1f})"


SUITES: Final[Mapping[str, Suite]] = {
    "etth1": Suite(
        title="ETTh1",
        about="CRPS, MASE and coverage on windows A and B, every mixer and seed, beside baselines of the same run.",
    ),
    "phases": Suite(
        title="Phases of a patch",
        about="Forecasts at every hour of ETTh1, by the phase of the clock in its patch: the worst over the best.",
    ),
    "memory": Suite(
        title="Streamed from the first row, or restarted",
        about="ETTm1: one stream from its first row against restarts from 512 rows before each window.",
    ),
    "endurance": Suite(
        title="One stream without end",
        about="Bytes of state and time of an observation, from a thousand to a million observations behind it.",
    ),
    "training": Suite(
        title="A step of training", about="Seconds of a step of the quickstart's training, cut into shares."
    ),
    "robustness": Suite(
        title="Missing cells and outages",
        about="Scores against the share of missing cells, and how long a model needs after an outage.",
    ),
    "events": Suite(
        title="Streams of events",
        about="Flights and request traces streamed event by event, throughput and packed training.",
    ),
    "nab": Suite(
        title="Anomalies in telemetry",
        about="Scores of the Numenta Anomaly Benchmark by its paper's rules: 0 is no detection, 100 a perfect one. "
        "The threshold of each profile is picked with the labels, so these are the best that a detector could have "
        "done. Published figures are over 58 files and stand beside ours for orientation alone.",
        says=_nab,
        picture=figures.nab,
        caption="Score of each detector; the bar spans the seeds, the band is what random numbers score.",
    ),
    "calibration": Suite(
        title="Calibration under drift",
        about="Coverage of 80 % intervals on streams that drift: adaptive ones, which learn from each value in "
        "constant time, against split-conformal ones, whose factor is found once, on the same forecasts.",
        says=_calibration,
        picture=figures.calibration,
        caption="Coverage of each stream, mean over the seeds; the bar spans them, the band is 78 to 82 %.",
        tables={"calibration_all": "all ", "calibration": "real"},
    ),
    "serving": Suite(
        title="One update and one forecast",
        about="Wall clock of an update and of a forecast of 24 steps, per stream, medians over turns in which every "
        "contender has one; ratios are of one turn. An update of ours closes a patch every eighth time, so the mean "
        "of eight is what it costs. Models that keep no state are re-run on their contexts, the least they need.",
        says=_serving,
        picture=figures.serving,
        caption="Mean update of a patch and one forecast together, microseconds per stream: left, one stream by what "
        "is behind it; right, by the number of streams.",
    ),
    "service": Suite(
        title="The service under load",
        about="Rows a second at full speed, and how long a row takes until it is on the disk, at full speed and at "
        "half of it, counted from when it was due. Service, senders and broker share the cores. The yardstick is a "
        "loop of the journal's append and the predictor's observe_many, measured before and after each contender; "
        "spread: a part of the streams closes a patch in each sweep, aligned: all of them in the same one.",
        says=_service,
    ),
}
"""Every benchmark."""
