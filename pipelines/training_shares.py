"""Where the seconds of a training step go: the quickstart's training, cut into shares that sum to the whole step.

    seconds(share) = profiled(share) - events(share) * (profiled(step) - plain(step)) / events(step)

Half of the steps of an epoch run plain and give the total, the other half run under torch's profiler and give the
shares; its cost, the same for every event, is taken off again. The total is processor time, and of every event the
lower quartile over the steps counts, because a shared machine spoils means. A backward belongs to the share whose
forward made it. The limit: what C++ does between two events of the profiler counts for whoever called it, and
validation and the ends of epochs are outside the step.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
from lightning.pytorch import LightningModule
from lightning.pytorch.loops.optimization.automatic import Closure
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from tsgdn2.block import Block, SwiGLU
from tsgdn2.evaluation.backtest import NYC_WEATHER
from tsgdn2.evaluation.rows import Row, Timing, row, timing_quantiles
from tsgdn2.forecaster import Forecaster
from tsgdn2.head import HorizonHead
from tsgdn2.mixers import delta
from tsgdn2.norm import RMSNorm
from tsgdn2.patch import SensorPatcher
from tsgdn2.pipelines.jobs import QUICKSTART_MODEL, Bench, DataOptions, ModelOptions
from tsgdn2.pipelines.lightning_module import ForecastTraining
from tsgdn2.pipelines.loader import WindowSampler
from tsgdn2.pipelines.screen import Phase
from tsgdn2.pipelines.source import open_source
from tsgdn2.pipelines.training import estimator

SCAN, MIXER, OUTPUT = "scan", "gates and activations", "gated output norm"
CONVOLUTION, ENGINE, REST = "convolution", "autograd engine", "Lightning and the rest"
# What is timed under which name; the innermost one holds.
SPANS: Final[tuple[tuple[object, str, str], ...]] = (
    (delta, "gdn2_scan", SCAN),
    (delta, "short_conv", CONVOLUTION),
    (delta.DeltaMixer, "_scan", "segments of the scan"),
    (delta.DeltaMixer, "forward", MIXER),
    (delta.DeltaMixer, "_output", OUTPUT),
    (Block, "_feed", "residual and dropout"),
    (RMSNorm, "forward", "norms"),
    (SwiGLU, "forward", "SwiGLU"),
    (HorizonHead, "forward", "head"),
    (SensorPatcher, "forward", "patcher and scaler"),
    (Forecaster, "forward", "forecaster, rest"),
    (ForecastTraining, "loss", "loss"),
    (ForecastTraining, "backward", ENGINE),
    (ForecastTraining, "configure_gradient_clipping", "gradient clipping"),
    (ForecastTraining, "optimizer_step", "weight average"),
    (LightningModule, "optimizer_step", REST),
    (Closure, "__call__", REST),
)
OWN_SPANS: Final = {"Optimizer.step#": "optimiser", "Optimizer.zero_grad#": "optimiser"}  # those that torch makes
LOADING: Final = "data loading"
PROFILED: Final = 7  # steps at the end of every epoch
QUARTILE: Final = 0.25
_MARK, _NODE = "share: ", "autograd::engine::evaluate_function: "


class Share(NamedTuple):
    """What a second was spent on."""

    name: str
    direction: str


class Event(NamedTuple):
    """One event of every step."""

    share: Share
    name: str
    occurrence: int


@dataclass(eq=False)
class Shares:
    """Steps as they were measured; `wrapped` fills it while a training runs."""

    conv: int
    """Channels of the mixer's convolution, by which its products are told from the others."""
    plain: list[float] = field(default_factory=list)
    """Processor seconds of every step without a profiler."""
    wall: list[float] = field(default_factory=list)
    """Wall-clock seconds of the same steps."""
    profiled: dict[Event, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Wall-clock seconds of every event of a profiled step, one per step."""
    costs: dict[Share, float] = field(default_factory=lambda: defaultdict(float))
    """Events that the profiler recorded, half of each booked to the share that it interrupted."""
    steps: int = 0
    """Profiled steps."""
    _profiler: profile | None = None
    _last: tuple[float, float] | None = None

    def seconds(self, skip: int = 10) -> dict[Share, float]:
        """Seconds per step of every share; their sum is the median of the plain steps after the first `skip`."""
        low, median = (float(np.quantile(self.plain[skip:], level)) for level in (QUARTILE, 0.5))
        found: dict[Share, float] = defaultdict(float)
        for (share, _, _), times in self.profiled.items():
            found[share] += float(np.quantile(times, QUARTILE)) * len(times) / self.steps
        each = (sum(found.values()) - low) / (sum(self.costs.values()) / self.steps)
        return {
            share: (seconds - each * self.costs[share] / self.steps) * median / low for share, seconds in found.items()
        }

    def batches(self, sampler: WindowSampler) -> Iterator[Any]:
        """The sampler's batches; every request is the border of two steps. The last ones of an epoch are profiled."""
        batches, size = BATCHES(sampler), len(sampler)
        for index in range(size):
            if index:  # the first two batches are asked for at once
                self._border(profiled=index >= size - PROFILED - 1, last=index == size - 1)
            with record_function(_MARK + LOADING):
                batch = next(batches)
            yield batch

    def _border(self, *, profiled: bool, last: bool) -> None:
        now = time.process_time(), time.perf_counter()
        if self._last is not None and self._profiler is None:
            self.plain.append(now[0] - self._last[0])
            self.wall.append(now[1] - self._last[1])
        self._last = None if profiled or last else now
        if profiled and self._profiler is None:
            self._profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True)
            self._profiler.start()
        elif last and self._profiler is not None:
            self._profiler.stop()
            self._read(list(self._profiler.events() or ()))  # type: ignore[no-untyped-call]
            self._profiler = None

    def _read(self, events: list[FunctionEvent]) -> None:
        """Add the steps of one stretch: self times, and what no event covers as the rest."""
        events.sort(key=lambda event: event.time_range.start)
        borders = [event.time_range.start for event in events if event.name == _MARK + LOADING]
        self.steps += len(borders)
        borders.append(events[-1].time_range.end)
        shares: dict[int, Share] = {}
        made: dict[int, str] = {}  # sequence number of an autograd node to the share that made it
        step, covered, seen = -1, 0.0, dict[Event, int]()
        for event in events:
            shares[event.id] = share = self._share(event, shares, made)
            if event.sequence_nr >= 0 and share.direction == "forward":
                made[event.sequence_nr] = share.name
            if event.name == _MARK + LOADING:
                step, seen = step + 1, defaultdict(int)
            if step < 0:
                continue
            parent = event.cpu_parent
            self.costs[share] += 0.5
            self.costs[share if parent is None else shares[parent.id]] += 0.5
            self._add(share, event.name, event.self_cpu_time_total, seen)
            if parent is None:
                self._add(Share(REST, "forward"), "between", event.time_range.start - max(covered, borders[step]), seen)
                covered = event.time_range.end

    def _add(self, share: Share, name: str, microseconds: float, seen: dict[Event, int]) -> None:
        """One event more; equal names in a step are told apart by their order."""
        event = Event(share, name, 0)
        seen[event] += 1
        self.profiled[event._replace(occurrence=seen[event])].append(microseconds / 1e6)

    def _share(self, event: FunctionEvent, shares: Mapping[int, Share], made: Mapping[int, str]) -> Share:
        """Share of an event, given those of its parents and of the forward."""
        if event.name.startswith(_MARK):
            return Share(event.name.removeprefix(_MARK), "forward")
        for start, name in OWN_SPANS.items():
            if event.name.startswith(start):
                return Share(name, "forward")
        if event.name.startswith(_NODE):
            return Share(made.get(event.sequence_nr, ENGINE), "backward")
        share = Share(REST, "forward") if event.cpu_parent is None else shares[event.cpu_parent.id]
        if share.direction == "forward" and share.name in (MIXER, OUTPUT) and event.name == "aten::linear":
            return share._replace(name="projections")
        shapes: Any = event.input_shapes or ()  # a list of them for each input; torch's own annotation says one
        if share == (MIXER, "forward") and any(shape and shape[-1] == self.conv for shape in shapes):
            return share._replace(name=CONVOLUTION)
        return share


BATCHES: Final = WindowSampler.__iter__


@contextmanager
def wrapped(shares: Shares) -> Iterator[None]:
    """Let every training that runs inside fill `shares`."""
    spans = [span for span in SPANS if hasattr(span[0], span[1])]  # an older tree may lack one, and is measured too
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in spans]
    for owner, name, share in spans:
        setattr(owner, name, _span(getattr(owner, name), _MARK + share))
    WindowSampler.__iter__ = lambda sampler: shares.batches(sampler)  # type: ignore[method-assign]
    try:
        yield
    finally:
        WindowSampler.__iter__ = BATCHES  # type: ignore[method-assign]
        for owner, name, function in before:
            if function is None:
                delattr(owner, name)  # it was inherited
            else:
                setattr(owner, name, function)


def _span(function: Callable[..., object], name: str) -> Callable[..., object]:
    @functools.wraps(function)
    def spanned(*args: object, **kwargs: object) -> object:
        with record_function(name):
            return function(*args, **kwargs)

    return spanned


def measure(model: ModelOptions = QUICKSTART_MODEL) -> tuple[Shares, float]:
    """Train the quickstart's model on its data as the quickstart does; returns the shares and the last val_loss."""
    source = open_source("nyc", DataOptions())
    train = NYC_WEATHER.train(source.entries("multivariate"))
    options = replace(model, seconds=None)  # measured steps are slower; all of them run
    made = estimator(options, source.freq, NYC_WEATHER.prediction_length, Phase("training"), names=source.channels)
    shares = Shares(conv=model.heads * (2 * model.key_dim + model.value_dim))
    with wrapped(shares):
        predictor = made.train(train)
    return shares, predictor.history[-1]["val_loss"]


def rows(settings: Bench) -> list[Row]:
    """One row per seed: quantiles of the plain step, and seconds per step of every share, forward and backward."""
    out = []
    for seed in settings.seeds:
        model = replace(QUICKSTART_MODEL, seed=seed)
        shares, loss = measure(model)
        timing = Timing(seconds=timing_quantiles(shares.wall[10:]), cpu_seconds=float(np.sum(shares.plain)))
        values: dict[str, Any] = {", ".join(share): seconds for share, seconds in sorted(shares.seconds().items())}
        shape = {"batch": model.batch_size, "tokens": (model.context_length or 0) // model.patch_length}
        step = float(np.median(shares.plain[10:]))
        out.append(
            row("training step of the quickstart", shape, seed=seed, timing=timing, step=step, val_loss=loss, **values)
        )
    return out
