"""What every job can be told: one dataclass per job, which are the options of the command line and of its YAML files.

This file imports nothing heavy, so that `tsgdn2 --help` is fast; what the options do is in the module that runs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final, Literal

from tsgdn2.errors import ConfigError


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name}: must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where a job writes and how much it says."""

    runs: Path = Path("runs")
    """Folder of the MLflow store, of the spool, and of every output that has no path of its own."""
    output: Path | None = None
    """Folder of this job's files; by default runs/<job>-<date and time>."""
    experiment: str = "tsgdn2"
    """MLflow experiment of the run."""
    tracking_uri: str | None = None
    """MLflow server or store; by default the sqlite file in `runs`."""
    quiet: bool = False
    """No progress bars; results and errors are still printed."""

    def folder(self, name: str) -> Path:
        """Give the output folder, made if it is not there; ConfigError when it can not be one."""
        path = self.output or self.runs / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output: {path} can not be a folder ({error.strerror}); name another one") from error
        return path


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The forecaster and its training; every field but the last three goes to GDN2Estimator under its own name."""

    patch_length: int = 8
    """Steps per commit token. Smaller is dearer and remembers finer."""
    width: int = 64
    """Width of the residual stream."""
    layers: int = 1
    """Blocks."""
    heads: int = 4
    """Heads of the mixer."""
    key_dim: int = 16
    """Key channels of a head: how many directions its state can tell apart."""
    value_dim: int = 16
    """Value channels of a head."""
    mlp: int = 128
    """Hidden width of the SwiGLU."""
    dropout: float = 0.0
    """Dropout while training, in [0, 1)."""
    channels: Literal["independent", "joint"] = "independent"
    """independent: one sequence per channel, shared weights. joint: one token holds all channels of a target."""
    channel_identity: bool = False
    """Independent channels know which one they are, and have a lag skip of their own; needs multivariate targets."""
    mixer: Literal["gdn2", "lstm", "none"] = "gdn2"
    """Memory of the model; only gdn2 can be audited."""
    lag_skip: int = 0
    """Last steps that reach the horizon by a linear map, past the audited memory; 0 is off."""
    half_life: float | None = None
    """Observed values after which the scaler has forgotten half; None is two weeks' worth."""
    context_length: int | None = None
    """Steps of a training window; None is 64 patches. Memory at prediction time has no limit."""
    batch_size: int = 32
    """Windows per training step."""
    lr: float = 4e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Weight decay of matrices."""
    carry_windows: int = 1
    """Windows in a row whose state is carried (truncated backpropagation)."""
    validation_share: float = 0.1
    """Share at the end of each training series that picks the weights and is not trained on."""
    seed: int = 0
    """Seed of weights and windows."""
    epochs: int = 10
    """Epochs; the cosine schedule ends with the last one."""
    batches: int = 50
    """Training steps per epoch."""
    seconds: float | None = None
    """Longest training in seconds of wall clock; a slow machine stops early. None has no limit."""

    def __post_init__(self) -> None:
        """Check what the estimator does not."""
        _at_least_one(epochs=self.epochs, batches=self.batches)
        if self.seconds is not None and not self.seconds > 0:
            raise ConfigError(f"model.seconds: must be above 0 or null, got {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a file's table is read; named sets need none of this."""

    time: str | None = None
    """Column of the instant; None takes "time", "timestamp", "date" or "datetime"."""
    stream: str | None = None
    """Column of the stream's name; None takes "stream" or "item_id", or calls the only stream after the file."""
    name: str | None = None
    """Name of the only stream; None takes the file's."""
    time_format: str | None = None
    """strftime format of a text instant, such as %d/%m/%Y; None expects ISO 8601."""
    unit: Literal["ns", "us", "ms", "s"] | None = None
    """Unit of a numeric instant since 1970."""
    channels: tuple[str, ...] | None = None
    """Columns to keep, in this order; None keeps every numeric one."""
    period: str | None = None
    """Step of the grid, such as 15min or 1h; None takes the set's, or the most frequent step of the file."""
    season: int | None = None
    """Steps of a season for MASE and SeasonalNaive; None takes the set's, or a day."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What the eviction audit looks at; its cost grows with layers x heads x window squared."""

    layers: Literal["last", "all"] = "last"
    """Audited layers."""
    heads: int = 2
    """Audited heads of each layer, from the first on."""
    window: int = 384
    """Newest commits of each series whose writes are followed one by one."""
    streams: int = 1
    """Streams whose writes are followed offline, from the first on; the online audit follows all."""
    threshold: float = 0.1
    """Retention below which a write counts as evicted."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _at_least_one(heads=self.heads, window=self.window, streams=self.streams)
        if not 0 < self.threshold < 1:
            raise ConfigError(f"audit.threshold: must be in (0, 1), got {self.threshold}")


# Found by trials on this set (LOG.md); nothing here is a general recommendation.
QUICKSTART_MODEL: Final = ModelOptions(
    patch_length=4,
    context_length=256,
    channel_identity=True,
    half_life=120.0,
    dropout=0.15,
    validation_share=0.04,
    epochs=10,
    batches=30,
    seconds=70.0,
)


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
        _at_least_one(batch_every=self.batch_every)
        if self.model.channels != "independent":
            raise ConfigError("model.channels: the quickstart's series are univariate; only independent is allowed")


@dataclass(frozen=True, kw_only=True)
class Train(Job):
    """Train a forecaster on a file or a named set."""

    data: str
    """A CSV, Parquet or Arrow file, or a set: nyc, ett:ETTh1, jena, beijing_pm25, uci_air_quality."""
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
        _at_least_one(prediction_length=self.prediction_length)
        if self.hold_out < 0:
            raise ConfigError(f"hold_out: must be at least 0, got {self.hold_out}")


@dataclass(frozen=True, kw_only=True)
class Backtest(Job):
    """Judge a trained predictor on rolling windows, beside SeasonalNaive, climatology and ridge regression."""

    predictor: Path
    """Folder that `train` wrote: <output>/predictor."""
    data: str
    """A file or a named set, as for `train`."""
    columns: DataOptions = field(default_factory=DataOptions)
    """How the file is read."""
    windows: int = 10
    """Windows per series; the last one ends with the data."""
    distance: int | None = None
    """Steps between windows; None is the prediction length."""
    baselines: bool = True
    """Judge the baselines too; they are trained on what lies before the first window."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _at_least_one(windows=self.windows, distance=self.distance or 1)


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
    audit: bool = True
    """Run the eviction audit beside the predictor."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _at_least_one(forecast_every=self.forecast_every)
        if self.speed is not None and not self.speed > 0:
            raise ConfigError(f"speed: must be above 0 or null, got {self.speed}")


@dataclass(frozen=True, kw_only=True)
class AuditRun(Job):
    """Account for every write of a window: what the state kept, what it lost, why, and to whom."""

    predictor: Path
    """Folder that `train` wrote, or a saved online state (.safetensors), whose own audit is then shown too."""
    data: str | None = None
    """A file or a named set, as for `train`; without it only the audit of a saved online state is shown."""
    columns: DataOptions = field(default_factory=DataOptions)
    """How the file is read."""
    audit: AuditOptions = field(default_factory=AuditOptions)
    """What the audit looks at."""


@dataclass(frozen=True, kw_only=True)
class AuditSync:
    """Send what waits in the local spool to MLflow, after a server was down or a process died."""

    runs: Path = Path("runs")
    """Folder of the spool, as given to the jobs."""
    tracking_uri: str | None = None
    """MLflow server or store; None is the one that each run was meant for."""
    timeout: float = 10.0
    """Seconds that a server may take to answer."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure, and append rows: etth1, phases (accuracy), memory (ETTm1), endurance (an endless stream), training."""

    what: Literal["etth1", "phases", "memory", "endurance", "training"] = "etth1"
    """The benchmark; TSGDN2_DATA or a network must give its data."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trained rows."""
    epochs: int = 13
    """Epochs of 30 batches; `training` runs those of the quickstart."""
    mixers: tuple[str, ...] = ("gdn2", "lstm", "none")
    """Mixers of etth1, all at the same settings and number of batches."""
    output: Path = Path("runs/bench")
    """Folder of the .jsonl files."""


Options = type[Job] | type[AuditSync] | type[Bench]

# Job name on the command line: its options, and the module and function that run it.
JOBS: Final[dict[str, tuple[Options, str]]] = {
    "quickstart": (Quickstart, "quickstart"),
    "train": (Train, "train"),
    "backtest": (Backtest, "backtest"),
    "replay": (Replay, "replay"),
    "audit run": (AuditRun, "audit"),
    "audit sync": (AuditSync, "audit_sync"),
    "bench": (Bench, "bench"),
}


def runner(name: str) -> Callable[[object], None]:
    """Import the module of a job, and only now what it needs; its function is called `run`."""
    found: Callable[[object], None] = import_module(f"tsgdn2.pipelines.{JOBS[name][1]}").run
    return found
