"""What this processor can do at most, measured among the jobs that are judged by it, and the least that a job needs.

    seconds >= max(operations / rate of sgemm, least bytes / rate of a copy)

Ceilings and jobs take turns in one process, round after round, so that what else the machine does falls on all alike;
a busy machine still interrupts a long job more often than a short one, so processor time is measured beside the clock.
Copies are measured beyond the last cache and over as many bytes as the job moves; the faster of both is the bound's.
The limit: a copy reads one place and writes another, so a pass over one buffer in place may be faster than its bound
(it is measured too); exponentials and gates are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsgdn2.evaluation.kernel_counts import Cost, quantiles
from tsgdn2.evaluation.kernel_grid import Case

FORWARD, BACKWARD = 7, 15
"""Operations per K V, token and head: decay 1, S^T e 2, rank-one 2, S^T q 2; and the reverse recurrence, dS += q do^T,
dq, dk, du, dSb, de, dg 2 each, decay 1 (math.md 1)."""
AGAIN = 3
"""The states once more from what was kept, decay 1 and rank-one 2: work of our backward, no operation of the task."""
FLOAT = 4  # bytes
_CACHE = 32 << 20  # bytes, where the system does not tell


class Job(NamedTuple):
    """Something to time, and how."""

    run: Callable[[], object]
    after: Callable[[], object] | None = None
    """Runs after each run, untimed."""
    rounds: int | None = None
    """Rounds that it takes part in, from the first on; None is all."""
    threads: int = 1


class Rates(NamedTuple):
    """What was measured on some number of threads."""

    sgemm: float
    """FLOPs per second of a product of float32 matrices."""
    copy: float
    """Bytes per second of a copy beyond the caches, read and written bytes together."""
    own: float
    """The same of a copy that moves as many bytes as the job."""
    in_place: float | None
    """The same of a pass in place over as many bytes, where it was measured: what a step on a pool could reach."""

    def bound(self, cost: Cost) -> tuple[float, str]:
        """The least seconds of a job, and whether operations or bytes set them."""
        by_operations, by_bytes = cost.flops / self.sgemm, cost.bytes / max(self.copy, self.own)
        return (by_operations, "operations") if by_operations >= by_bytes else (by_bytes, "bytes")


class Measured(NamedTuple):
    """What came of jobs that took turns, by their names."""

    wall: dict[str, list[float]]
    """Seconds of every run by the clock."""
    processor: dict[str, list[float]]
    """Seconds of the processors, all threads together."""
    refused: dict[str, str]
    """What the others raised."""


class Ceilings:
    """Jobs that measure Rates for the races of `name`.

    A product of matrices [side, side], copies that move `far` and `own` bytes, read and written together; with
    `in_place` a pass over a buffer as well.
    """

    def __init__(self, name: str, side: int, far: int, own: int, *, in_place: bool = False, threads: int = 1) -> None:
        many, few = max(1, far // (2 * FLOAT)), max(1, own // (2 * FLOAT))
        where = f" on {threads} threads" if threads > 1 else ""
        self.threads = threads
        self._jobs: dict[str, tuple[Callable[[], object], int]] = {
            f"sgemm{where}, GFLOP/s": (_product(side), 2 * side**3),
            f"copy beyond the caches{where}, GB/s": (_copy(many), 2 * FLOAT * many),
            f"{name}: copy of as many bytes, GB/s": (_copy(few), 2 * FLOAT * few),
        }
        if in_place:
            self._jobs[f"{name}: pass in place, GB/s"] = (partial(torch.randn(few).mul_, 1.0), 2 * FLOAT * few)

    @property
    def jobs(self) -> dict[str, Job]:
        """What to time, by name."""
        return {name: Job(run, threads=self.threads) for name, (run, _) in self._jobs.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """FLOPs of the product, bytes of the copies, by name."""
        return {name: size for name, (_, size) in self._jobs.items()}

    def rates(self, times: Mapping[str, list[float]]) -> Rates:
        """Rates by the median times of the jobs."""
        sgemm, copy, own, *rest = (size / quantiles(times[name])["0.5"] for name, size in self.sizes.items())
        return Rates(sgemm, copy, own, rest[0] if rest else None)


def in_turn(jobs: Mapping[str, Job], rounds: int, slot: float) -> Measured:
    """Time the jobs: after one or two unmeasured runs each, one turn a round.

    A turn is as many runs as fit into `slot` seconds, at least one and at most 64. Between the runs of a turn a small
    job's tensors stay in cache; nothing is flushed. What raises in its first run takes no part.
    """
    found = Measured({}, {}, {})
    runs, threads = {}, torch.get_num_threads()
    try:
        for name, job in jobs.items():
            try:
                first, _ = _timed(job)
                runs[name] = 1 if first >= slot else max(1, min(64, int(slot / _timed(job)[0])))
            except Exception as error:  # a contender may fail in any way; the others are still timed
                found.refused[name] = f"{type(error).__name__}: {error}"[:500]
        for number in range(rounds):
            for name, count in runs.items():
                if number < (jobs[name].rounds or rounds):
                    for _ in range(count):
                        wall, processor = _timed(jobs[name])
                        found.wall.setdefault(name, []).append(wall)
                        found.processor.setdefault(name, []).append(processor)
    finally:
        torch.set_num_threads(threads)
    return found


def scan_cost(case: Case, *, gated: bool, backward: bool, again: bool = False) -> Cost:
    """The least of a scan in float32: every input read and every result written once, states at the ends only.

    `gated` is gdn2_scan, which reads q, k, g, b, v, w; delta_scan reads q, k, g, e, z. A backward reads all that again
    and the gradient of o, and writes the gradient of every input but the mask. `again` counts the states that the
    backward makes once more.
    """
    tokens, states = case.B * case.T, case.B * case.H * case.K * case.V
    differentiable = tokens * case.H * (4 * case.K + (2 if gated else 1) * case.V) + states * case.initial
    inputs = differentiable + tokens * (gated and case.missing is not None)
    o = tokens * case.H * case.V
    numbers, operations = inputs + o + states, FORWARD
    if backward:
        numbers += inputs + o + differentiable
        operations += BACKWARD + AGAIN * again
    return Cost(FLOAT * numbers, float(operations) * tokens * case.H * case.K * case.V)


def step_cost(N: int, H: int, K: int, V: int) -> Cost:
    """The least of one token for N streams: their states read once and written once, the tokens themselves not."""
    return Cost(2 * FLOAT * N * H * K * V, float(FORWARD) * N * H * K * V)


def lstm_cost(B: int, T: int, inputs: int, hidden: int, *, backward: bool) -> Cost:
    """The least of nn.LSTM: four gates, two products each, in a backward three times; weights read once a direction.

    A backward writes their gradients too; the two bias vectors are left out.
    """
    weights, tokens = 4 * hidden * (hidden + inputs), B * T
    numbers = weights + tokens * (inputs + hidden)
    if backward:
        numbers += 2 * weights + tokens * (2 * inputs + hidden)
    return Cost(FLOAT * numbers, (3.0 if backward else 1.0) * 2 * weights * tokens)


def last_cache() -> int:
    """Bytes of the last level's cache of the first processor; 32 MiB where the system does not tell."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    found = [int(text[:-1]) << 10 for path in sizes if (text := path.read_text().strip()).endswith("K")]
    return max(found, default=_CACHE)


def _product(side: int) -> Callable[[], Tensor]:
    return partial(torch.mm, torch.randn(side, side), torch.randn(side, side), out=torch.empty(side, side))


def _copy(numbers: int) -> Callable[[], Tensor]:
    return partial(torch.empty(numbers).copy_, torch.randn(numbers))


def _timed(job: Job) -> tuple[float, float]:
    """Seconds by the clock and of the processors."""
    if torch.get_num_threads() != job.threads:
        torch.set_num_threads(job.threads)
    began, used = time.perf_counter(), time.process_time()
    job.run()
    seconds = time.perf_counter() - began, max(1e-9, time.process_time() - used)  # a clock may be coarser than a job
    if job.after is not None:
        job.after()
    return seconds
