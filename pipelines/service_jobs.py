"""What `tsgdn2 serve`, `feed` and `audit sync` can be told, as in jobs.py; nothing heavy is imported here.

`serve` has the few options that most people need. Everything else of the service (limits, TLS, quotas, logs) is a
setting of its own: a file for --settings, or TSGDN2_SERVE_* in the environment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.options import ArrivalOptions, DataOptions, at_least_one

REGISTERED: Final = "models:/"
"""How the address of a registered model begins."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a model: rows in over HTTP and from sources, forecasts and audits out; no acknowledged row is lost."""

    model: str | None = None
    """Folder that `train` or `quickstart` wrote, a saved state (.safetensors), whose streams go on, or a registered
    version, models:/name/3. Not needed where every --source is host."""
    source: tuple[str, ...] = ()
    """Where rows come from beside HTTP; may be given several times: host, host:5s, mqtt://broker, mqtts://..,
    nats://server/STREAM, kafka://broker:9092, scrape:http://target/metrics, file:PATH?speed=10, tail:PATH. User and
    password stand in the address or in TSGDN2_MQTT_USERNAME and _PASSWORD, TSGDN2_NATS_.., TSGDN2_KAFKA_.., and in no
    log."""
    channels: tuple[str, ...] | None = None
    """Names of the channels, for a model that serves any number of them (independent, without identity); None takes
    those of the training."""
    arrivals: ArrivalOptions = field(default_factory=ArrivalOptions)
    """What becomes of rows out of order; late is tag unless given, and may not be raise: a row that is acknowledged is
    on the disk already."""
    audit: bool = True
    """Run the eviction audit beside the model: the last layer's first head, the newest 4 writes of every lane and 12
    drawn from all the others. A saved state keeps its own."""
    calibrate: bool | None = None
    """Widen and narrow the bands until they cover as often as they say, at more than twice the memory of a stream.
    None: where --source host is served without a model, and where a saved state has learned it already."""
    require_audit: bool = False
    """Refuse a registered version whose tag audit.status is not "passed"."""
    settings: Path | None = None
    """File (.yaml, .toml) with settings of the service; the environment wins over it, the options here over both."""
    host: str | None = None
    """Address to listen at; 127.0.0.1 unless set."""
    port: int | None = None
    """Port to listen at; 8321 unless set."""
    store: str | None = None
    """SQLite file or postgresql:// address of journal, states and ledger; tsgdn2-service.db unless set."""
    keys: Literal["required", "off"] | None = None
    """off lets everybody in, at a loopback address only; required unless set."""
    mapping: Path | None = None
    """File that says which topic or label is which stream and channel."""
    training_seconds: float = 60.0
    """--source host without a model: longest training of the one that is made, once, in `runs`."""
    ledger: Literal["mlflow", "off"] = "mlflow"
    """Whether the audit ledger is sent to MLflow; off keeps it in the store alone."""
    ledger_every: float = 60.0
    """Seconds between two sendings of what is new."""
    ledger_keep: int = 100_000
    """Newest ledger rows that stay in the store; older ones leave it once MLflow has them, or at once with off."""
    runs: Path = Path("runs")
    """Folder of the local MLflow store and of what is made once and kept."""
    experiment: str = "service"
    """MLflow experiment of the ledger's run."""
    tracking_uri: str | None = None
    """MLflow server or store; by default the sqlite file in `runs`."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        for name in ("training_seconds", "ledger_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: must be above 0, got {getattr(self, name)}")
        if self.ledger_keep < 0:
            raise ConfigError(f"ledger_keep: must be at least 0 rows, got {self.ledger_keep}")
        if not self.experiment.strip() or self.experiment == "Default":
            raise ConfigError(f"experiment: any name but '' and 'Default' is allowed, got {self.experiment!r}")
        if self.require_audit and not (self.model or "").startswith(REGISTERED):
            raise ConfigError(
                f"require_audit: only a registered version has the tag, got model={self.model!r}; name it as "
                "models:/name/3, or leave require_audit out"
            )


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Send a table or a named set to a running service, in the order of time; a second run sends nothing twice."""

    data: str
    """A file or a named set of sensors, as for `train`: nyc_weather, ett:ETTh1, sensors.csv .."""
    url: str = "http://127.0.0.1:8321"
    """Where the service listens."""
    key: str | None = None
    """API key with the role write; by default TSGDN2_KEY of the environment, which no list of processes shows."""
    columns: DataOptions = field(default_factory=DataOptions)
    """How the file is read."""
    speed: float | None = None
    """Seconds of data per second; None goes as fast as the service takes it."""
    batch: int = 4_096
    """Rows of one request at most."""
    timeout: float = 60.0
    """Seconds that the service may take to answer, and that this waits for one that is away or busy."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        at_least_one(batch=self.batch)
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url: must begin with http:// or https://, got {self.url!r}")
        if self.speed is not None and not self.speed > 0:
            raise ConfigError(f"speed: must be above 0 or null, got {self.speed}")
        if not self.timeout > 0:
            raise ConfigError(f"timeout: must be above 0, got {self.timeout}")


@dataclass(frozen=True, kw_only=True)
class AuditSync:
    """Send what waits to MLflow: runs of the local spool, after a server was down or a process died, and with --store
    the ledger of a service that is not running."""

    runs: Path = Path("runs")
    """Folder of the spool, as given to the jobs."""
    store: str | None = None
    """Store of a service, as given to `serve`; a service that runs sends its ledger by itself."""
    experiment: str = "service"
    """MLflow experiment of the ledger's run, as given to `serve`."""
    tracking_uri: str | None = None
    """MLflow server or store; None is the one that each run was meant for, and the sqlite file in `runs`."""
    timeout: float = 10.0
    """Seconds that a server may take to answer."""


def gathered(arguments: Sequence[str]) -> list[str]:
    """Arguments of `tsgdn2 serve ..` with every --source in one list, as the parser takes it."""
    given = list(arguments)
    if given[:1] != ["serve"]:
        return given
    kept, found = list[str](), list[str]()
    items = iter(given)
    for item in items:
        if item.startswith("--source="):
            found += _listed(item.removeprefix("--source="))
        elif item == "--source" and (value := next(items, None)) is not None:
            found += _listed(value)
        else:
            kept.append(item)
    return [*kept, f"--source={json.dumps(found)}"] if found else kept


def _listed(text: str) -> list[str]:
    """One source, or a list of them as a YAML file has it."""
    if not text.startswith("["):
        return [text]
    return [part.strip().strip("\"'") for part in text.strip("[]").split(",") if part.strip()]
