"""The one command for a machine with a GPU: are the kernels right there, and how fast are they?

    python -m tsgdn2.evaluation.gpu --output rows.jsonl [--quick] [--peers] [--part grid|promises|bench]

Needs torch and triton, nothing else, and no installation: run it from the root of the repository. Each row is written
at once, so a run that is killed leaves what it found. Exit code 0: everything that was checked is right; 1: a check
failed; 2: it could not start. The limit: parts that no longer fit into --minutes are left out, and a row says which.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tsgdn2.evaluation import rows

PARTS = ("promises", "grid", "bench")
MINUTES = {False: 7.5, True: 2.0}
"""Limit of a whole run, full and quick."""


class Recorder:
    """Writes a row for each figure, says it in one line, and counts checks that failed."""

    def __init__(self, path: Path, device: str, versions: Mapping[str, str], commit: str, seed: int) -> None:
        self._path, self._device, self._versions, self._commit, self._seed = path, device, versions, commit, seed
        self.checked = self.failed = 0

    def __call__(
        self,
        what: str,
        shape: Mapping[str, rows.Value],
        *,
        seconds: Mapping[str, float] | None = None,
        **values: rows.Value,
    ) -> None:
        """Append one row; `passed` among the values makes it a check. Numbers that are not finite become words."""
        values = {name: _json(value) for name, value in values.items() if value is not None}
        self.checked += "passed" in values
        self.failed += values.get("passed") is False
        row = rows.Row(
            what=what,
            shape=dict(shape),
            device=self._device,
            versions=self._versions,
            commit=self._commit,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seed=self._seed,
            seconds=dict(seconds or {}),
            values=values,
        )
        rows.append(self._path, row)
        print(line(row), flush=True)


def _json(value: rows.Value) -> rows.Value:
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def line(row: rows.Row) -> str:
    """A row for the eye: what, its shape without defaults, its median and its values."""

    def words(pairs: Mapping[str, object]) -> str:
        shown = {name: f"{x:.4g}" if isinstance(x, float) else x for name, x in pairs.items()}
        return " ".join(f"{name}={x}" for name, x in shown.items() if x not in (None, ""))

    median = f"{row.seconds['0.5'] * 1e3:.4g} ms" if "0.5" in row.seconds else ""
    verdict = {True: "right", False: "WRONG"}.get(bool(row.values["passed"]), "") if "passed" in row.values else ""
    rest = {name: x for name, x in row.values.items() if name != "passed"}
    return " | ".join(part for part in (verdict, row.what, words(row.shape), median, words(rest)) if part)


def run(record: Recorder, parts: Sequence[str], *, quick: bool, peers: bool, workers: int, minutes: float) -> None:
    """Run the parts one after the other, as long as there is time; one that breaks is a row, and the next one runs."""
    import torch

    from tsgdn2.evaluation import kernel_bench, kernel_grid, kernel_promises

    began, device, seed = time.monotonic(), torch.device("cuda"), 0
    cases, repeats = kernel_grid.grid(quick), 10 if quick else 30
    shapes = kernel_bench.SHAPES[: 1 if quick else None]
    streams = (256, 4096) if quick else kernel_bench.STREAMS

    def part(name: str, share: float, job: Callable[..., None], *arguments: object) -> None:
        """Run a job if less than this share of the time has passed."""
        if time.monotonic() - began >= share * 60 * minutes:
            record("left out", {"part": name}, error=f"more than {share:.0%} of {minutes:g} minutes had passed")
            return
        try:
            job(*arguments)
        except Exception as error:  # whatever a compiler or a driver raises
            record("broken off", {"part": name}, passed=False, error=f"{type(error).__name__}: {error}"[:500])

    def bench() -> None:
        bounds = kernel_bench.measure_bounds(record, device, repeats)
        part("scans", 0.9, kernel_bench.time_scans, record, device, bounds, repeats, shapes)
        part("decode timings", 0.9, kernel_bench.time_decode, record, device, bounds, repeats, streams)
        part("irregularity", 0.9, kernel_bench.time_irregular, record, device, bounds, repeats)
        if peers:
            part("peers", 0.9, kernel_bench.time_peers, record, device, bounds, repeats, shapes)

    compiled = [*(cases if "grid" in parts else []), *(kernel_bench.cases(shapes) if "bench" in parts else [])]
    part("compilation", 1.0, kernel_grid.compile_ahead, compiled, workers, record)
    if "promises" in parts:
        part("promises", 1.0, kernel_promises.check_promises, device, record, quick)
    if "grid" in parts:
        part("truth", 1.0, kernel_grid.truth_is_true, device, record, seed)
        part("decode", 1.0, kernel_grid.check_decode, device, record, seed)
        for case in cases:
            part(str(case), 0.6, kernel_grid.check_case, case, device, record, seed)
    if "bench" in parts:
        part("bench", 0.9, bench)
    record("run", {"parts": " ".join(parts), "quick": quick}, took_s=time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, look for a GPU, run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tsgdn2.evaluation.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help=".jsonl file that rows are appended to")
    parser.add_argument("--quick", action="store_true", help="about two minutes: fewer cases, shapes and repeats")
    parser.add_argument("--peers", action="store_true", help="time flash-linear-attention too, where it is installed")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given several times")
    parser.add_argument("--minutes", type=float, help="limit of the run; 7.5, or 2 with --quick")
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 2)), help="compilers")
    parser.add_argument("--commit", help="commit of the source, where this is no checkout")
    chosen = parser.parse_args(arguments)
    if chosen.workers < 1 or (chosen.minutes is not None and not chosen.minutes > 0):
        parser.error("--workers must be at least 1 and --minutes above 0")
    if chosen.output.suffix != ".jsonl":
        parser.error(f"--output must end in .jsonl, got {chosen.output}")
    if (why := refusal()) is not None:
        print(f"this command needs a GPU: {why}", file=sys.stderr)
        return 2
    record = Recorder(chosen.output, device_name(), versions(), chosen.commit or rows.commit(), seed=0)
    minutes = chosen.minutes or MINUTES[chosen.quick]
    parts = [part for part in PARTS if part in (chosen.part or PARTS)]
    run(record, parts, quick=chosen.quick, peers=chosen.peers, workers=chosen.workers, minutes=minutes)
    print(f"{record.checked - record.failed} of {record.checked} checks are right; rows in {chosen.output}")
    return 1 if record.failed else 0


def refusal() -> str | None:
    """Why the kernels cannot run here; None where they can."""
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed; pip install torch triton"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds none; run it where torch.cuda.is_available() is true"
    return None


def device_name() -> str:
    """The GPU and its architecture."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, {major}.{minor}"


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    import torch

    found = {**rows.versions(), "cuda": torch.version.cuda or "", "hip": getattr(torch.version, "hip", None) or ""}
    for package in ("flash-linear-attention", "fla-core"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {name: version for name, version in found.items() if version}


if __name__ == "__main__":
    sys.exit(main())
