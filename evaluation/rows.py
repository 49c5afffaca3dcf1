"""Benchmark rows: one line of JSON per measurement, with everything needed to doubt it, and tables made from them.

Rows are only ever appended, so losing rows stay; a table shows what it is asked for and hides nothing else.
Timings are quantiles over repeats, never a single run.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tsgdn2.errors import ConfigError, DataError

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("tsgdn2", "torch", "triton", "numpy", "gluonts", "polars", "lightning", "river")
TIMING_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)

Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement."""

    what: str
    """What was measured, in words that a table's reader understands."""
    shape: Mapping[str, Value]
    """Sizes and settings that the figure depends on."""
    device: str
    """Processor, with the number of threads used."""
    versions: Mapping[str, str]
    """Package versions, Python among them."""
    commit: str
    """Commit of the source, ending in + when the tree differed from it; unknown outside a checkout."""
    date: str
    """UTC day and second, ISO 8601."""
    seed: int | None = None
    """Seed of the run, if chance had a part."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds of one repeat at the levels of TIMING_LEVELS, keys like 0.5."""
    cpu_seconds: float | None = None
    """Processor seconds of everything that the row reports, all threads."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """The other figures: CRPS, bytes, ratios."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long repeats of a job took."""

    seconds: Mapping[str, float]
    """Quantiles of the wall-clock seconds of one repeat."""
    cpu_seconds: float
    """Processor seconds of all measured repeats together."""


def measure(job: Callable[[], object], *, repeats: int = 20, warmup: int = 3) -> Timing:
    """Run a job `warmup` times unmeasured, then `repeats` times measured; the job itself synchronizes accelerators."""
    if repeats < 1 or warmup < 0:
        raise ConfigError(f"repeats must be at least 1 and warmup at least 0, got repeats={repeats}, warmup={warmup}")
    for _ in range(warmup):
        job()
    durations = []
    cpu_began = time.process_time()
    for _ in range(repeats):
        began = time.perf_counter()
        job()
        durations.append(time.perf_counter() - began)
    return Timing(seconds=timing_quantiles(durations), cpu_seconds=time.process_time() - cpu_began)


def timing_quantiles(durations: Sequence[float]) -> dict[str, float]:
    """Reduce durations to the levels that rows hold."""
    import numpy as np  # here, so that rows can be written where only torch is installed

    if not durations:
        raise ConfigError("durations must hold at least one measurement")
    return {
        str(level): float(value)
        for level, value in zip(TIMING_LEVELS, np.quantile(durations, TIMING_LEVELS), strict=True)
    }


def row(
    what: str,
    shape: Mapping[str, Value],
    *,
    seed: int | None = None,
    timing: Timing | None = None,
    cpu_seconds: float | None = None,
    device: str | None = None,
    **values: Value,
) -> Row:
    """Make a row of now and here; `device` is the processor unless the job ran elsewhere."""
    return Row(
        what=what,
        shape=dict(shape),
        device=device or processor(),
        versions=versions(),
        commit=commit(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seed=seed,
        seconds=dict(timing.seconds) if timing else {},
        cpu_seconds=timing.cpu_seconds if timing and cpu_seconds is None else cpu_seconds,
        values=values,
    )


def append(path: Path, *rows: Row) -> None:
    """Add rows to a .jsonl file, which is created with its folder when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for line in rows:
            file.write(json.dumps(dataclasses.asdict(line), sort_keys=True) + "\n")


def read(path: Path) -> list[Row]:
    """Read what `append` wrote, in order; DataError names the line that is no row."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(Row(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            raise DataError(f"{path.name} line {number} must be one row as append writes it: {error}") from error
    return found


def mend(path: Path) -> None:
    """Remove what a killed job left behind the last whole line, so that the next one can go on."""
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        path.write_bytes(text[:whole])


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """Render a Markdown table; what a row lacks is left empty.

    columns: heading to where its cells come from: `what`, `seed`, `device`, `commit`, `date`, `cpu_seconds`,
    `shape.NAME`, `values.NAME`, `versions.NAME` or `seconds.LEVEL`.
    """
    if not columns:
        raise ConfigError("columns must name at least one column, such as {'model': 'what'}")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for line in rows:
        known = dataclasses.asdict(line)
        lines.append("| " + " | ".join(_text(_cell(known, source)) for source in columns.values()) + " |")
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a figure can depend on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Commit of the checkout that holds this file; see Row.commit."""
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else "unknown"


def processor() -> str:
    """Name the processor and the threads that torch uses on it."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads"


def _cell(known: Mapping[str, object], source: str) -> object:
    part, _, name = source.partition(".")
    if part not in known:
        raise ConfigError(f"columns must come from {', '.join(known)}, got {source!r}")
    value = known[part]
    return value.get(name) if name and isinstance(value, Mapping) else value


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
