"""Options that several jobs share: where a job writes, the model, how a table is read, what the audit looks at.

This file imports nothing heavy, as jobs.py, whose dataclasses hold these.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tsgdn2.errors import ConfigError


def at_least_one(**values: int) -> None:
    """ConfigError for the first value below 1."""
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
    channels: Literal["independent", "joint", "attention"] = "independent"
    """independent: one sequence per channel, shared weights. joint: one token holds all channels of a target.
    attention: independent, and the channels of one moment look at each other."""
    channel_identity: bool = False
    """Independent channels know which one they are, and have a lag skip of their own; needs multivariate targets."""
    mixer: Literal[
        "gdn2", "kda", "kda-sigmoid", "gdn", "deltanet", "mamba2", "gdn2-scalar-erase", "gdn2-scalar-write",
        "gdn2-scalar-both", "gdn2-erase-2", "mamba3", "mamba3-mimo", "rwkv7", "swa", "lstm", "none",
    ] = "gdn2"  # fmt: skip
    """Memory of the model; the states of the first ten can be audited."""
    attention_every: int = 0
    """A hybrid: every n-th layer is sliding-window attention (swa); 0 for none."""
    attention_window: int = 64
    """Commits that a layer of swa sees; its state grows with it."""
    lag_skip: int = 0
    """Last steps that reach the horizon by a linear map, past the audited memory; 0 is off."""
    bridge: float | None = None
    """Steps over which a value reaches into missing cells; None is half a season, 0 takes them for the mean."""
    hidden_shares: tuple[float, ...] = ()
    """Every series also trains in copies of which these shares of the cells are hidden: for data with more gaps."""
    half_life: float | None = None
    """Observed values after which the scaler has forgotten half; None is two weeks' worth."""
    event_unknown: Literal["raise", "other"] = "raise"
    """A type of events that training never saw is an error, or one of the others."""
    event_window: int = 0
    """Events per commit token; 0 is one token per patch_length periods."""
    event_mark_low: tuple[float, ...] | None = None
    """Least value of each mark, an event below it is an error; None has no limit."""
    event_mark_high: tuple[float, ...] | None = None
    """Largest value of each mark; None has no limit."""
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
        at_least_one(epochs=self.epochs, batches=self.batches)
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
    targets: tuple[str, ...] | None = None
    """What to forecast of events: count, mean(mark), sum(mark)[type]. None: the rows are no events, or the set's."""
    type: str | None = None
    """Column of an event's type; None takes "type", an empty word takes all events for one kind."""
    marks: tuple[str, ...] | None = None
    """Numeric columns that a model of events sees; None takes the set's, or every one. Known when the event happens."""
    longest_gap: str = "731d"
    """Longest silence of a stream, in the file or behind a saved state; a longer one is an error, for it is a wrong
    stamp. Two years: what comes once a year meets half of it, clocks set to 1970, 2000 or 2200 lie far off."""


@dataclass(frozen=True, kw_only=True)
class ArrivalOptions:
    """What becomes of rows out of order. A file goes row by row in the order of time, so they come with a later file;
    a saved state goes on with what it was begun with."""

    late: Literal["raise", "drop", "tag", "replay"] | None = None
    """A value for a closed patch is an error, counted, also listed in the state, or replayed exactly; None is drop."""
    watermark: str | None = None
    """How long rows wait for others, such as 2h; None: not at all."""
    checkpoints: int | None = None
    """late=replay: copies of a stream that it can be taken back to; None is the predictor's default."""
    checkpoint_every: int | None = None
    """late=replay: patches from one copy to the next; None is the predictor's default."""


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
        at_least_one(heads=self.heads, window=self.window, streams=self.streams)
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
