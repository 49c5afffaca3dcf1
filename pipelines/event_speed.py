"""Benchmarks of events, time: how fast events become tokens, and what packing saves in training. One thread.

    tokens    int64 ns, type and marks of every event -> histories -> windows of all commits -> token embeddings
    frame     OnlineEvents.observe_many of a frame: the same with the model behind it, states kept
    rows      OnlineEvents.observe, one event at a time
    packed    seconds of forward + backward of one batch of streams whose lengths spread 10 : 1, against the same batch
              padded to the longest with tokens of weight 0 and no elapsed time; both losses are compared

What is compared takes turns, and medians count; processor time leaves the interruptions by other work on a shared
machine out, not the shared caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import polars as pl
import torch

from tsgdn2.datasets.event_sets import flights
from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.evaluation.rows import Row, Timing, row, timing_quantiles
from tsgdn2.events.history import EventSeries
from tsgdn2.events.online import OnlineEvents
from tsgdn2.events.patch import EventWindows
from tsgdn2.events.timeline import EventTimelines
from tsgdn2.forecaster import Forecaster, ForecasterConfig, Layout, QueryInputs
from tsgdn2.pipelines.lightning_module import ForecastTraining
from tsgdn2.pipelines.loader import Batch, assemble
from tsgdn2.pipelines.packing import patch_clocks, run_of
from tsgdn2.pipelines.streaming import one_thread
from tsgdn2.standards import Standards
from tsgdn2.timeline import Ints

HOUR, SECOND = 3_600_000_000_000, 1_000_000_000
SHORTEST, LONGEST = 13, 128
NAMES: Final = tuple("abcdefgh")


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Events as they come: a frame of the event schema, and what a model of them is."""

    name: str
    frame: pl.DataFrame
    config: ForecasterConfig


@one_thread()
def throughput_rows(*, quick: bool) -> list[Row]:
    """Events per second into tokens, into states from a frame, and row by row, of flights and of a synthetic stream."""
    rows = []
    for one in (departures(quick=quick), synthetic(20_000 if quick else 1_000_000)):
        torch.manual_seed(0)
        model = Forecaster(one.config).eval()
        first = one.frame.sort(TIME, STREAM, maintain_order=True)[: 500 if quick else 20_000]
        tokens, whole = into_tokens(one, model), one.frame.height
        jobs: dict[str, tuple[int, Callable[[], object]]] = {
            "events into tokens": (whole, partial(into_tokens, one, model)),
            "frame into states": (whole, partial(_at_once, one, model, one.frame)),
            "row by row into states": (first.height, partial(_row_by_row, one, model, first)),
        }
        for what, (count, job) in jobs.items():
            wall, used = _repeated(job, 1 if quick else 7 if what == "events into tokens" else 3)
            shape = {"events": count, "streams": one.frame[STREAM].n_unique(), "tokens": tokens,
                     "types": len(one.config.event_types), "marks": len(one.config.event_marks)}  # fmt: skip
            timing = Timing(seconds=timing_quantiles(wall), cpu_seconds=float(np.sum(used)))
            rows.append(row(f"speed: {what}, {one.name}", shape, timing=timing,
                            events_per_second=count / float(np.median(wall)),
                            events_per_processor_second=count / float(np.median(used))))  # fmt: skip
    return rows


@torch.inference_mode()
def into_tokens(one: Stream, model: Forecaster) -> int:
    """From int64 ns, name of the type and marks of every event to embeddings of every commit; gives their number."""
    config, schema = one.config, one.config.event_schema()
    series = []
    for part in one.frame.partition_by(STREAM, maintain_order=True):
        marks = np.column_stack([part[name].to_numpy() for name in config.event_marks])
        events = schema.arrays(part[TIME].to_physical().to_numpy(), part["type"].to_list(), marks)
        series.append(EventSeries(events=events, prior_scale=np.ones(config.channels)))
    lines = EventTimelines(series, config, schema, number=config.event_window)
    patch, done = config.patch_length, 0
    static = model.static(lines.static_real, lines.static_categories)
    for lane in range(len(lines)):
        clocks = lines.commit_clocks(lane, patch)
        waited = np.diff(clocks, prepend=clocks[:1])
        windows = lines.windows(np.full(len(clocks), lane), clocks, patch, waited)
        tokens = model.patcher(windows, "commit", static[lane].expand(len(clocks), -1))
        done += len(tokens.embedding)
    return done


@one_thread()
def packed_rows(seeds: Sequence[int], *, quick: bool) -> list[Row]:
    """Padded seconds over packed seconds for lengths that spread 10 : 1, evenly or geometrically."""
    rows = []
    lanes, turns = (6, 2) if quick else (32, 15)
    for spread in ("evenly", "geometrically"):
        for seed in seeds:
            training, packed = batch_of(lengths_of(spread, lanes), seed)
            whole, commits_only = padded(packed), padded(packed, queries=False)
            losses = [step(training, batch) for batch in (packed, whole, commits_only)]
            spent: list[list[tuple[float, float]]] = [[], [], []]
            for _ in range(turns):
                for batch, own in zip((packed, whole, commits_only), spent, strict=True):
                    wall, used = time.perf_counter(), time.process_time()
                    step(training, batch)
                    own.append((time.perf_counter() - wall, time.process_time() - used))
            median = np.median(np.array(spent), axis=1)
            wall_of, used_of = median[:, 0], median[:, 1]
            length = packed.layout.length
            rows.append(row(
                f"speed: training step, packed against padded, lengths spread {spread}",
                {"lanes": lanes, "shortest": int(length.min()), "longest": int(length.max()),
                 "tokens": int(length.sum()), "padded": int(lanes * length.max())},
                seed=seed, timing=Timing(seconds=timing_quantiles([w for w, _ in spent[0]]),
                                         cpu_seconds=float(np.array(spent)[..., 1].sum())),
                padded_over_packed=float(wall_of[1] / wall_of[0]),
                padded_over_packed_processor=float(used_of[1] / used_of[0]),
                padded_commits_over_packed=float(wall_of[2] / wall_of[0]),
                tokens_ratio=float(lanes * length.max() / length.sum()),
                loss_difference=float(max(abs(loss - losses[0]) / abs(losses[0]) for loss in losses[1:])),
            ))  # fmt: skip
    return rows


def padded(batch: Batch, *, queries: bool = True) -> Batch:
    """The batch with every lane as long as the longest: tokens that observed nothing, at no distance, asked nothing.

    queries: pad the queries too, one after each commit, as a rectangular batch has them; they weigh nothing.
    """
    length = batch.layout.length
    lanes, longest = len(length), int(length.max())
    owner = np.repeat(np.arange(lanes), length)
    place = owner * longest + np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length)
    size = lanes * longest
    commits, elapsed = _spread(batch.commits, place, size), _zeros(batch.elapsed, place, size)
    if not queries:
        return batch._replace(
            commits=commits, elapsed=elapsed, layout=Layout(np.full(lanes, longest), place, batch.layout.owner)
        )
    asked = batch.queries
    wait = None
    if batch.wait is not None:
        wait = np.full(size, np.nan)
        wait[place] = batch.wait
    return batch._replace(
        commits=commits,
        elapsed=elapsed,
        layout=Layout(np.full(lanes, longest), np.arange(size), np.repeat(np.arange(lanes), longest)),
        queries=QueryInputs(
            _spread(asked.windows, place, size), _zeros(asked.future, place, size), _zeros(asked.lags, place, size)
        ),
        query_elapsed=_zeros(batch.query_elapsed, place, size),
        target=_zeros(batch.target, place, size),
        weight=_zeros(batch.weight, place, size),
        wait=wait,
    )


def _spread(windows: object, place: Ints, size: int) -> EventWindows:
    """Windows at their places among `size`, the others empty; scales of nothing are 1."""
    assert isinstance(windows, EventWindows), "these batches are of events"
    parts = {name: _zeros(values, place, size) for name, values in windows._asdict().items()}
    empty = np.setdiff1d(np.arange(size), place)
    parts["scale"][empty] = 1.0
    parts["clock"][empty] = windows.clock[0]
    return EventWindows(**parts)


def _zeros(values: np.ndarray, place: Ints, size: int) -> np.ndarray:
    out = np.zeros((size, *values.shape[1:]), values.dtype)
    out[place] = values
    return out


def step(training: ForecastTraining, batch: Batch) -> float:
    """Forward and backward of one batch; gives the loss."""
    for parameter in training.forecaster.parameters():
        parameter.grad = None
    loss, _ = training.loss(training.forecaster, batch, None)
    loss.backward()
    return float(loss.detach())


def lengths_of(spread: str, lanes: int) -> Ints:
    """Lengths of the lanes in tokens, from SHORTEST to LONGEST."""
    found = np.linspace(SHORTEST, LONGEST, lanes) if spread == "evenly" else np.geomspace(SHORTEST, LONGEST, lanes)
    return np.asarray(np.rint(found), np.int64)


def batch_of(lengths: Ints, seed: int) -> tuple[ForecastTraining, Batch]:
    """One packed batch of streams with so many commits each, and a model that trains on it."""
    rng = np.random.default_rng(seed)
    config = _config(types=NAMES, marks=("x", "y"), targets=("count", "mean(x)"), period=HOUR)
    schema, patch = config.event_schema(), config.patch_length
    series = []
    for length in lengths.tolist():
        steps = (length + 1) * patch + config.prediction_length
        count = 3 * steps
        moment = np.sort(rng.integers(0, steps * HOUR, count)) + rng.integers(400_000, 500_000) * HOUR
        moment = np.union1d(moment, (moment[0] // HOUR + np.arange(steps)) * HOUR + 1)  # no step is silent
        types = rng.integers(0, len(NAMES), len(moment))
        events = schema.arrays(moment, types, rng.normal(size=(len(moment), 2)))
        series.append(EventSeries(events=events, prior_scale=np.ones(2), end=int(moment[-1] // HOUR + 1) * HOUR))
    lines = EventTimelines(series, config, schema, number=0)
    until = lines.start + lines.steps
    runs = []
    for lane in range(0, len(lines), config.lanes):
        own = np.array([lane])
        clocks = patch_clocks(lines, own, patch, 0, until)
        runs.append(run_of(own, clocks, 0, int(lengths[lane // config.lanes]), lines.span(patch)))
    batch, _ = assemble(lines, config, runs, rng, until=until, fresh=True)
    torch.manual_seed(seed)
    return ForecastTraining(Forecaster(config), learning_rate=4e-3, weight_decay=0.05, steps=1), batch


def _config(
    *, types: Sequence[str], marks: Sequence[str], targets: Sequence[str], period: int, lag_skip: int = 0,
    bridge: float = 0.0,
) -> ForecasterConfig:  # fmt: skip
    free = (float("inf"),) * len(marks)
    return ForecasterConfig(
        prediction_length=24, period_ns=period, channels=len(targets), patch_length=4, lag_skip=lag_skip, bridge=bridge,
        calendar=("day", "week"), event_types=tuple(types), event_marks=tuple(marks), event_targets=tuple(targets),
        event_mark_low=tuple(-bound for bound in free), event_mark_high=free,
    )  # fmt: skip


def departures(*, quick: bool) -> Stream:
    """The flights of the accuracy benchmark, or those of one week."""
    frame = flights(time="actual").select(STREAM, TIME, "type", "dep_delay", "distance")
    frame = frame.filter(pl.col(TIME).dt.ordinal_day() < 8) if quick else frame
    types = sorted(str(name) for name in frame["type"].unique())
    config = _config(types=types, marks=("dep_delay", "distance"), targets=("count", "mean(dep_delay)"), period=HOUR,
                     lag_skip=168, bridge=12.0)  # fmt: skip
    return Stream(name="flights", frame=frame, config=config)


def synthetic(count: int) -> Stream:
    """One stream of a hundred events a second, counted every ten seconds."""
    rng = np.random.default_rng(0)
    moment = 1_700_000_000 * SECOND + np.cumsum(rng.exponential(SECOND / 100, count)).astype(np.int64)
    frame = pl.DataFrame({
        STREAM: ["s"] * count, TIME: pl.Series(moment).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC"),
        "type": np.array(NAMES)[rng.integers(0, len(NAMES), count)], "x": rng.normal(size=count),
        "y": rng.normal(size=count),
    })  # fmt: skip
    config = _config(types=NAMES, marks=("x", "y"), targets=("count", "mean(x)"), period=10 * SECOND)
    return Stream(name="synthetic stream", frame=frame, config=config)


def _online(one: Stream, model: Forecaster) -> OnlineEvents:
    marks = len(one.config.event_marks)
    units = Standards(default=(1.0,) * one.config.channels, mark_mean=(0.0,) * marks, mark_scale=(1.0,) * marks)
    return OnlineEvents(model, units, freq="h")


def _at_once(one: Stream, model: Forecaster, frame: pl.DataFrame) -> None:
    _online(one, model).observe_many(frame)


def _row_by_row(one: Stream, model: Forecaster, frame: pl.DataFrame) -> None:
    online = _online(one, model)
    names, stamps, types = frame[STREAM].to_list(), frame[TIME].to_physical().to_list(), frame["type"].to_list()
    marks = frame.select(online.schema.marks).to_numpy()
    for each in range(len(names)):
        online.observe(names[each], stamps[each], types[each], marks[each])


def _repeated(job: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of the wall clock and of the processor of every repeat, after one that is not counted."""
    job()
    wall, used = [], []
    for _ in range(repeats):
        began, spent = time.perf_counter(), time.process_time()
        job()
        wall.append(time.perf_counter() - began)
        used.append(time.process_time() - spent)
    return wall, used
