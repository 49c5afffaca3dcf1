"""What every job can be told: one dataclass per job, which are the options of the command line and of its YAML files.

This file imports nothing heavy, so that `tsgdn2 --help` is fast; what the options do is in the module that runs them.
Groups of options that several jobs share are in options.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final, Literal

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.options import (
    QUICKSTART_MODEL,
    ArrivalOptions,
    AuditOptions,
    DataOptions,
    Job,
    ModelOptions,
    at_least_one,
)
from tsgdn2.pipelines.pretrain.jobs import PRETRAIN, Verb
from tsgdn2.pipelines.service_bench_options import ServiceLoad
from tsgdn2.pipelines.service_jobs import AuditSync, Feed, Serve

__all__ = [
    "JOBS",
    "QUICKSTART_MODEL",
    "ArrivalOptions",
    "AuditOptions",
    "AuditRun",
    "AuditSync",
    "Backtest",
    "Bench",
    "DataOptions",
    "Feed",
    "Job",
    "ModelOptions",
    "Options",
    "Probe",
    "Quickstart",
    "Replay",
    "Serve",
    "Train",
    "runner",
]


@dataclass(frozen=True, kw_only=True)
class Quickstart(Job):
    """Train on New York's weather, backtest, stream, audit and report; about three minutes on two cores."""

    output: Path | None = None
    """Folder of this job's files; by default `quickstart` in `runs`."""
    experiment: str = "quickstart"
    """MLflow experiment of the run."""
    budget: Literal["full", "small"] = "full"
    """full: 27 series and 91 days. small: three series and five days, to see that everything works."""
    model: ModelOptions = field(default_factory=lambda: QUICKSTART_MODEL)
    """The forecaster and its training."""
    audit: AuditOptions = field(default_factory=AuditOptions)
    """What the eviction audit looks at."""
    batch_every: int = 7
    """Every how many days the streamed forecasts are compared with batch forecasts from the whole history."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        at_least_one(batch_every=self.batch_every)
        if self.model.channels != "independent":
            raise ConfigError("model.channels: the quickstart's series are univariate; only independent is allowed")


@dataclass(frozen=True, kw_only=True)
class Train(Job):
    """Train a forecaster on a file or a named set."""

    data: str
    """A file (CSV, Parquet, Arrow) or a set: nyc, ett:ETTh1, jena, beijing_pm25, uci_air_quality; flights, azure_code,
    azure_conv (events)."""
    columns: DataOptions = field(default_factory=DataOptions)
    """How the file is read."""
    prediction_length: int = 24
    """Steps of a forecast."""
    hold_out: int = 0
    """Last steps of every series that are not trained on, for a backtest."""
    targets: Literal["univariate", "multivariate"] = "univariate"
    """univariate: one series per stream and channel. multivariate: all channels of a stream together."""
    register_as: str | None = None
    """Name of the registered MLflow model that gets a new version; None registers nothing."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """The forecaster and its training."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        at_least_one(prediction_length=self.prediction_length)
        if self.hold_out < 0:
            raise ConfigError(f"hold_out: must be at least 0, got {self.hold_out}")


GIFT_MODELS: Final = (
    "tsgdn2", "seasonal_naive", "naive", "SeasonalNaive", "DeepAR", "PatchTST", "TFT", "DLinear", "iTransformer",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Backtest(Job):
    """Judge a trained predictor on rolling windows or row by row beside baselines, or models on a public protocol."""

    protocol: Literal["rolling", "prequential", "gift-eval"] = "rolling"
    """rolling: --predictor forecasts windows of --data from the history before each. prequential: it is shown one row
    at a time, each after it was scored. gift-eval: trains and judges --models on its ETT and Jena."""
    predictor: Path | None = None
    """rolling, prequential: folder that `train` wrote, <output>/predictor."""
    data: str | None = None
    """rolling, prequential: a file or a named set, as for `train`."""
    columns: DataOptions = field(default_factory=DataOptions)
    """rolling, prequential: how the file is read."""
    windows: int = 10
    """rolling, prequential: windows per series; the last one ends with the data."""
    distance: int | None = None
    """rolling, prequential: steps between windows; None is the steps of a window."""
    baselines: bool = True
    """rolling, prequential: judge the baselines too; they are trained on what was there before the first window."""
    delay: int = 0
    """prequential: steps that every value arrives late; forecasts look over them and are judged behind them."""
    horizon: int | None = None
    """prequential: steps that are judged; None is the prediction length without the delay."""
    leaks: bool = True
    """prequential: run the first stream again with other values in place of those that had not arrived at three of its
    origins, and see that those forecasts stay as they were."""
    models: tuple[str, ...] = ("tsgdn2",)
    """gift-eval: of tsgdn2, seasonal_naive, naive, SeasonalNaive, DeepAR, PatchTST, TFT, DLinear, iTransformer."""
    configurations: tuple[str, ...] = ()
    """gift-eval: beginnings of names, ett1/H say; none are all 23."""
    seeds: tuple[int, ...] = (0,)
    """gift-eval: seeds of the trained models."""
    budget: float = 20.0
    """gift-eval: processor minutes of training for each model, seed and family (ett1, ett2, jena_weather)."""
    workers: int = 2
    """gift-eval: processes; each trains and judges one configuration at a time, on one thread."""
    streaming: bool = True
    """gift-eval: stream every series once too, and compare the forecasts with those of the batch."""
    inside: bool = False
    """gift-eval: judge windows inside the training parts, to choose settings without sight of the test windows."""

    def __post_init__(self) -> None:
        """Check the bounds, and that what the protocol needs is there."""
        at_least_one(windows=self.windows, distance=self.distance or 1, workers=self.workers)
        if self.protocol != "prequential" and (self.delay or self.horizon is not None):
            raise ConfigError("delay, horizon: are of --protocol prequential alone; name it, or leave them out")
        if self.protocol != "gift-eval":
            for name in ("predictor", "data"):
                if getattr(self, name) is None:
                    raise ConfigError(f"{name}: is needed by {self.protocol} windows; give it, or --protocol gift-eval")
            at_least_one(horizon=1 if self.horizon is None else self.horizon)
            if self.delay < 0:
                raise ConfigError(f"delay: must be at least 0 steps, got {self.delay}")
            return
        if self.predictor is not None or self.data is not None:
            raise ConfigError("predictor, data: gift-eval trains on its own sets; choose what with --models")
        unknown = [name for name in self.models if name not in GIFT_MODELS]
        if unknown or not self.models:
            raise ConfigError(f"models: must be among {', '.join(GIFT_MODELS)}, got {list(self.models)}")
        if not self.seeds:
            raise ConfigError("seeds: must hold at least one seed, got none")
        if not self.budget > 0:
            raise ConfigError(f"budget: must be above 0 processor minutes, got {self.budget}")


@dataclass(frozen=True, kw_only=True)
class Replay(Job):
    """Stream a file observation by observation through a predictor, and keep its forecasts, surprises and state."""

    predictor: Path
    """Folder that `train` wrote, or a state that `replay` or `quickstart` saved (.safetensors), to go on from there."""
    data: str
    """A file or a named set, as for `train`."""
    columns: DataOptions = field(default_factory=DataOptions)
    """How the file is read."""
    forecast_every: int = 24
    """Steps between forecasts of every stream."""
    speed: float | None = None
    """Seconds of data per second of replay; None goes as fast as it can."""
    arrivals: ArrivalOptions = field(default_factory=ArrivalOptions)
    """What becomes of rows out of order."""
    audit: bool = True
    """Run the eviction audit beside the predictor."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        at_least_one(forecast_every=self.forecast_every)
        if self.speed is not None and not self.speed > 0:
            raise ConfigError(f"speed: must be above 0 or null, got {self.speed}")


@dataclass(frozen=True, kw_only=True)
class AuditRun(Job):
    """Account for every write of a window: what the state kept, what it lost, why, and to whom."""

    predictor: Path
    """Folder that `train` wrote, a registered version (models:/name/3), whose tag audit.status this audit decides, or a
    saved online state (.safetensors), whose own audit is then shown too."""
    data: str | None = None
    """A file or a named set, as for `train`; without it only the audit of a saved online state is shown."""
    columns: DataOptions = field(default_factory=DataOptions)
    """How the file is read."""
    audit: AuditOptions = field(default_factory=AuditOptions)
    """What the audit looks at."""


@dataclass(frozen=True, kw_only=True)
class Probe(Job):
    """Memory probes: every mixer at equal state, weights and steps; a job that was stopped goes on where it was."""

    output: Path | None = None
    """Folder of the rows and of the page; by default `probe-<table>` in `runs`, so that the same command goes on."""
    experiment: str = "probes"
    """MLflow experiment of the run."""
    table: Literal["small", "full"] = "small"
    """small: five probes at one level, three seeds, under an hour on two cores. full: all probes at all levels, five
    seeds, some eight hours."""
    probes: tuple[str, ...] | None = None
    """Probes to run: recall, overwrite, lookup, rare, regime, effect, stale, topology, parity, s5. None is the
    table's; a probe outside the small table is run there at its hardest level."""
    mixers: tuple[str, ...] | None = None
    """Mixers by name, such as gdn2, kda, lstm or gdn2+swa, a hybrid; None is all of them."""
    seeds: tuple[int, ...] | None = None
    """Seeds of weights and of training streams; None is the table's."""
    steps: int = 900
    """Steps of training in each run, the same for every mixer and on every machine; the page says what they took."""
    seconds: float | None = None
    """Processor seconds of training in each run, instead of steps: then a mixer makes as many steps as fit."""
    workers: int = 2
    """Processes that share the runs, one core each."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        at_least_one(workers=self.workers, steps=self.steps)
        if self.seconds is not None and not self.seconds > 0:
            raise ConfigError(f"seconds: must be above 0, got {self.seconds}")
        for name in ("probes", "mixers", "seeds"):
            if getattr(self, name) == ():
                raise ConfigError(f"{name}: must hold at least one, got none; leave it out for the table's")


QUICK: Final = ("robustness", "events", "nab", "calibration", "serving", "service")
"""Benchmarks with a quick form."""


@dataclass(frozen=True, kw_only=True)
class Bench(Job):
    """Measure accuracy, anomaly scores, coverage or time: rows that are appended to a file, and a page of them all."""

    output: Path | None = None
    """Folder of the rows, <what>.jsonl, and of the page, <what>.html and <what>.md; by default `bench` in `runs`."""
    experiment: str = "bench"
    """MLflow experiment of the run."""
    what: Literal[
        "etth1", "phases", "memory", "endurance", "training", "robustness", "events", "nab", "calibration", "serving",
        "service",
    ] = "etth1"  # fmt: skip
    """Accuracy: etth1, phases, robustness, events, memory. Anomalies: nab. Coverage: calibration. Time: endurance,
    training, serving, service. TSGDN2_DATA or a network must give the data."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trained rows; robustness does all of its sets with the first one, ETTh1 with the others too."""
    epochs: int = 13
    """Epochs of 30 batches of etth1, phases and memory; the other benchmarks have their own budgets."""
    mixers: tuple[str, ...] = ("gdn2", "lstm", "none")
    """Mixers of etth1, all at the same settings and number of batches."""
    quick: bool = False
    """Seconds instead of minutes, to see that all works; rows and page are called <what>-quick."""
    page_only: bool = False
    """Measure nothing: make the page of the rows that are there."""
    service: ServiceLoad = field(default_factory=ServiceLoad)
    """Load, contenders and length of the service's benchmark."""

    def __post_init__(self) -> None:
        """Check what no benchmark does."""
        if not self.seeds:
            raise ConfigError("seeds: must hold at least one seed, got none")
        if self.quick and self.what not in QUICK:
            raise ConfigError(f"quick: only {', '.join(QUICK)} have a quick form, got what={self.what!r}")


Options = type[Job] | type[AuditSync] | type[Feed] | type[Serve] | Verb

# Job name on the command line: its options, and the module and function that run it.
JOBS: Final[dict[str, tuple[Options, str]]] = {
    "quickstart": (Quickstart, "quickstart"),
    "train": (Train, "train"),
    "backtest": (Backtest, "backtest"),
    "replay": (Replay, "replay"),
    "serve": (Serve, "serve"),
    "feed": (Feed, "feed"),
    "audit run": (AuditRun, "audit"),
    "audit sync": (AuditSync, "audit_sync"),
    "probe": (Probe, "probe"),
    "bench": (Bench, "bench"),
    **PRETRAIN,
}


def runner(name: str) -> Callable[[object], None]:
    """Import the module of a job, and only now what it needs; its function is called `run`."""
    found: Callable[[object], None] = import_module(f"tsgdn2.pipelines.{JOBS[name][1]}").run
    return found
