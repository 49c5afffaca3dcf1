"""The one command for a processor: how far is the scan from what this machine can do, and what do its rivals take?

    python -m tsgdn2.evaluation.cpu --output rows.jsonl [--quick] [--backend native]

Public functions alone, one process, medians of runs that take turns: `gdn2_scan`, `delta_scan` and `gdn2_step` by the
backend that is judged and by the torch path, nn.LSTM (contenders.py), the machine's own ceilings (ceilings.py), and all
as fractions of their bounds. What cannot run is a row that says why; no figure makes the exit code other than 0. The
limit: the machine as it is, with other people's work on it. Case C is the scan as the quickstart's training calls it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from tsgdn2.evaluation import rows
from tsgdn2.evaluation.ceilings import Ceilings, Rates, in_turn, last_cache
from tsgdn2.evaluation.contenders import Entry, lstms, scans, steps
from tsgdn2.evaluation.gpu import Recorder
from tsgdn2.evaluation.kernel_counts import quantiles
from tsgdn2.evaluation.kernel_grid import Case
from tsgdn2.kernels.native import library

COLUMNS = {
    "": "what", "direction": "shape.direction", "threads": "shape.threads", "ms": "values.median_ms",
    "of its bound": "values.fraction_of_bound", "on processor time": "values.fraction_by_processor_time",
    "bound ms": "values.bound_ms", "by": "values.bound",
    "times ours": "values.times_ours", "over 1 thread": "values.gain", "rate": "values.rate",
    "cannot run": "values.error",
}  # fmt: skip


class Plan(NamedTuple):
    """What a run measures."""

    cases: Mapping[str, Case]
    rivals: tuple[str, ...]
    """Cases beside which nn.LSTM is timed."""
    threaded: str
    """The case that is run on two threads too."""
    streams: tuple[tuple[int, int, int], ...]
    """N streams of H heads, K = V, for a step."""
    side: int
    """Rows of the matrices whose product is the ceiling."""
    far: int
    """Bytes that the copy beyond the caches moves."""
    rounds: int
    lstm_steps: int
    lstm_rounds: int
    slot: float
    """Seconds that a small job is repeated for in each round."""


def plan(quick: bool) -> Plan:
    """Everything, or tiny sizes and one round."""
    plain = partial(Case, dtype="fp32", missing=None, initial=False)
    if quick:
        cases = {"A": plain(2, 20, 2, 8, 8), "odd": plain(1, 9, 1, 5, 7)}
        return Plan(cases, ("A",), "A", ((6, 2, 4),), 16, 1 << 12, 1, 8, 1, 0.0)
    cases = {
        "A": plain(32, 512, 4, 32, 32),
        "B": plain(8, 2048, 4, 64, 64),
        "C": Case(32, 64, 4, 16, 16, dtype="fp32"),
        "K = V = 17": plain(8, 512, 4, 17, 17),
        "K = V = 33": plain(8, 512, 4, 33, 33),
        "K = V = 100": plain(8, 512, 4, 100, 100),
        "K = 24, V = 40": plain(8, 512, 4, 24, 40),
    }
    streams = tuple((1024, 4, K) for K in (32, 64, 16))
    return Plan(cases, ("A", "B", "C"), "B", streams, 512, 4 * last_cache(), 9, 64, 3, 0.03)


def race(
    record: Recorder, shape: Mapping[str, rows.Value], entries: Sequence[Entry], ceilings: Ceilings, p: Plan
) -> None:
    """Time the entries of a case and the ceilings in turn, and write a row for each; `shape` is what all share."""
    wall, processor, refused = in_turn(
        ceilings.jobs | {entry.key: entry.job for entry in entries}, p.rounds, p.slot
    )  # fmt: skip
    for job, size in ceilings.sizes.items():
        found = quantiles(wall[job])
        record(
            job, {**shape, "threads": ceilings.threads, "size": size}, seconds=found,
            median_ms=1e3 * found["0.5"], rate=size / found["0.5"] / 1e9, runs=len(wall[job]),
        )  # fmt: skip
    for entry in entries:
        own = {**shape, **entry.shape, "threads": entry.job.threads}
        if entry.quiet:
            continue
        if entry.key in refused:
            record(entry.what, own, error=refused[entry.key])
            continue
        seconds = {level: entry.factor * x for level, x in quantiles(wall[entry.key]).items()}
        ours, alone = (
            quantiles(wall[key])["0.5"] if (key := entry.beside(what)) in wall else None
            for what in (entry.ours, entry.alone)
        )
        figures = _figures(entry, ceilings.rates(wall), seconds["0.5"])
        if entry.job.threads == 1:  # of several threads the sum over all of them would be set against a product's
            used = entry.factor * quantiles(processor[entry.key])["0.5"]
            figures["fraction_by_processor_time"] = ceilings.rates(processor).bound(entry.cost)[0] / used
        record(
            entry.what, own, seconds=seconds, **figures,
            times_ours=seconds["0.5"] / ours if ours else None, gain=alone / seconds["0.5"] if alone else None,
            runs=len(wall[entry.key]), target=library.target().decode() if own.get("backend") == "native" else None,
        )  # fmt: skip


def _figures(entry: Entry, rates: Rates, median: float) -> dict[str, rows.Value]:
    bound, kind = rates.bound(entry.cost)
    return {
        "median_ms": 1e3 * median,
        "bound_ms": 1e3 * bound,
        "bound": kind,
        "fraction_of_bound": bound / median,
        "fraction_with_recomputation": rates.bound(entry.again)[0] / median if entry.again else None,
        "fraction_of_in_place": entry.cost.bytes / rates.in_place / median if rates.in_place else None,
        "operations": entry.cost.flops,
        "bytes": entry.cost.bytes,
    }


def run(record: Recorder, p: Plan, backend: str, only: str) -> None:
    """All races whose name begins with `only`, one after the other."""
    backends = tuple(dict.fromkeys((backend, "chunked")))
    for name, case in p.cases.items():
        if not f"{name}:".startswith(only):
            continue
        entries = scans(name, case, backends)
        own = entries[0].cost.bytes
        if name in p.rivals:
            entries += lstms(name, case, f"{name}: gdn2_scan, {backend}", p.lstm_steps, p.lstm_rounds)
        race(record, _shape(name, case), entries, Ceilings(name, p.side, p.far, own), p)
    name, case = p.threaded, p.cases[p.threaded]
    where = f"{name} on 2 threads"
    if not where.startswith(only):
        pass
    elif processors() > 1:
        entries = scans(name, case, backends, threads=(1, 2))
        ceilings = Ceilings(where, p.side, p.far, entries[0].cost.bytes, threads=2)
        race(record, _shape(name, case), entries, ceilings, p)
    else:
        record(where, _shape(name, case), error="this process may use one processor only")
    for N, H, K in p.streams:
        name = f"step of {N:,} streams, K = V = {K}"
        if not name.startswith(only):
            continue
        shape: dict[str, rows.Value] = {"case": "step", "N": N, "H": H, "K": K, "V": K, "dtype": "fp32"}
        entries = steps(name, N, H, K, tuple(dict.fromkeys((backend, "reference"))))
        race(record, shape, entries, Ceilings(name, p.side, p.far, entries[0].cost.bytes, in_place=True), p)


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure on one thread, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tsgdn2.evaluation.cpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help=".jsonl file that rows are appended to")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: to see that everything runs")
    parser.add_argument("--backend", default="native", help="the backend that is judged; native")
    parser.add_argument("--rounds", type=int, help="turns of each job; 9, or 1 with --quick")
    parser.add_argument("--only", default="", help="races whose name begins so: 'A:', 'B on 2 threads', 'step'; all")
    parser.add_argument("--commit", help="commit of the source, where this is no checkout")
    chosen = parser.parse_args(arguments)
    if chosen.output.suffix != ".jsonl":
        parser.error(f"--output must end in .jsonl, got {chosen.output}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {chosen.rounds}")
    p = plan(chosen.quick)
    before = len(rows.read(chosen.output)) if chosen.output.exists() else 0
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        versions = {**rows.versions(), "native targets": " ".join(library.targets()) or "none"}
        device = rows.processor().rpartition(",")[0]
        record = Recorder(chosen.output, device, versions, chosen.commit or rows.commit(), seed=0)
        torch.manual_seed(0)
        run(record, p._replace(rounds=chosen.rounds or p.rounds), chosen.backend, chosen.only)
    finally:
        torch.set_num_threads(threads)
    print("\n" + rows.table(rows.read(chosen.output)[before:], COLUMNS))
    return 0


def _shape(name: str, case: Case) -> dict[str, rows.Value]:
    shape: dict[str, rows.Value] = {letter: getattr(case, letter) for letter in ("B", "T", "H", "K", "V", "dtype")}
    return {"case": name, **shape, "masked": case.missing is not None, "initial": case.initial}


if __name__ == "__main__":
    sys.exit(main())
