"""What the benchmark of the processor times: both public scans, the step, and nn.LSTM beside them.

Each entry is a job through public functions and the least that it could take. The limit: gates and inputs are random,
and q and k of unit length; no figure here depends on their values.

nn.LSTM "of as many state bytes" has h and c of H K V numbers together, hidden = H K V / 2, and takes inputs of the
layer's width H V: its products are enormous, so some of its steps are timed and scaled to T, and with them what a call
costs whatever its length. "Of the layer's width" has hidden = H V, the usual layer; its state is K / 2 times smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tsgdn2.evaluation.ceilings import Job, lstm_cost, scan_cost, step_cost
from tsgdn2.evaluation.kernel_counts import Cost
from tsgdn2.evaluation.kernel_grid import Case, stream
from tsgdn2.evaluation.rows import Value
from tsgdn2.kernels.ops import delta_scan, gdn2_scan, gdn2_step

FORWARD, BOTH = "forward", "forward + backward"


class Entry(NamedTuple):
    """A job that is judged: what it is called in tables, its bound, and what it is set against."""

    what: str
    shape: Mapping[str, Value]
    job: Job
    cost: Cost
    again: Cost | None = None
    """The cost with states that are made twice."""
    factor: float = 1.0
    """What the measured seconds are multiplied by."""
    ours: str = ""
    """`what` of the entry that it is compared with."""
    alone: str = ""
    """`what` of the same on one thread."""
    quiet: bool = False
    """Measured for others to be compared with; no row of its own."""

    @property
    def key(self) -> str:
        """Its name among the jobs."""
        return self.beside(self.what)

    def beside(self, what: str) -> str:
        """The name of another job in the same direction."""
        return f"{what}, {self.shape['direction']}"


def directions(run: Callable[[], Sequence[Tensor]], leaves: Sequence[Tensor], sent: Tensor) -> tuple[Job, Job]:
    """Forward without gradients; forward and backward, whose gradients are given back after each run."""

    def forward() -> None:
        with torch.no_grad():
            run()

    def both() -> None:
        run()[0].backward(sent)

    def free() -> None:
        for x in leaves:
            x.grad = None

    return Job(forward), Job(both, after=free)


def scans(name: str, case: Case, backends: Sequence[str], threads: Sequence[int] = (1,)) -> list[Entry]:
    """Both public scans by each backend: forward alone without gradients, and with every input's gradient.

    The first backend is the one that the others are compared with. With several numbers of threads the first of them is
    timed for comparison alone.
    """
    x = stream(case, torch.device("cpu"))
    initial = {"initial_state": x.initial_state} if x.initial_state is not None else {}
    functions: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], dict[str, Tensor]]] = {
        "gdn2_scan": (partial(gdn2_scan, mask=x.mask), {letter: getattr(x, letter) for letter in "qkvgbw"}),
        "delta_scan": (delta_scan, {"q": x.q, "k": x.k, "e": x.b * x.k, "z": x.w * x.v, "g": x.g}),
    }
    sent, entries = torch.randn(x.v.shape), []
    for function_name, (function, inputs) in functions.items():
        leaves = {letter: t.clone().requires_grad_() for letter, t in (inputs | initial).items()}
        for count in threads:
            where = f"{name} on {count} threads" if count > 1 else name
            for backend in backends:
                run = partial(function, **leaves, backend=backend)
                forward, both = directions(run, list(leaves.values()), sent)
                for direction, job in ((FORWARD, forward), (BOTH, both)):
                    costs = partial(scan_cost, case, gated=function_name == "gdn2_scan", backward=direction == BOTH)
                    entries.append(
                        Entry(
                            f"{where}: {function_name}, {backend}", {"direction": direction, "backend": backend},
                            job._replace(threads=count), costs(), costs(again=True) if direction == BOTH else None,
                            ours="" if backend == backends[0] else f"{where}: {function_name}, {backends[0]}",
                            alone=f"{name}: {function_name}, {backend}" if count > threads[0] else "",
                            quiet=count == threads[0] and len(threads) > 1,
                        )
                    )  # fmt: skip
    return entries


def lstms(name: str, case: Case, ours: str, timed_steps: int, rounds: int) -> list[Entry]:
    """nn.LSTM of as many state bytes, over some of the steps, and of the layer's width, over all."""
    B, T, H, K, V = case[:5]
    entries = []
    for of, hidden, count, most in (
        ("as many state bytes", max(1, H * K * V // 2), min(T, timed_steps), rounds),
        ("the layer's width", H * V, T, None),
    ):
        net = nn.LSTM(H * V, hidden, batch_first=True)
        x = torch.randn(B, count, H * V, requires_grad=True)
        jobs = directions(partial(net, x), [x, *net.parameters()], torch.randn(B, count, hidden))
        for direction, job in zip((FORWARD, BOTH), jobs, strict=True):
            entries.append(
                Entry(
                    f"{name}: nn.LSTM of {of}",
                    {"direction": direction, "inputs": H * V, "hidden": hidden, "timed_steps": count},
                    job._replace(rounds=most), lstm_cost(B, T, H * V, hidden, backward=direction == BOTH),
                    factor=T / count, ours=ours,
                )
            )  # fmt: skip
    return entries


def steps(name: str, N: int, H: int, K: int, backends: Sequence[str]) -> list[Entry]:
    """One token for N streams at random distinct rows of a pool of twice as many."""
    x = stream(Case(N, 1, H, K, K, dtype="fp32", missing=None, initial=False), torch.device("cpu"))
    slots, tokens = torch.randperm(2 * N, generator=torch.Generator().manual_seed(0))[:N], [t[:, 0] for t in x[:6]]
    entries = []
    for backend in backends:
        run = partial(gdn2_step, torch.randn(2 * N, H, K, K), slots, *tokens, backend=backend)
        ours = "" if backend == backends[0] else f"{name}: {backends[0]}"
        shape = {"direction": FORWARD, "backend": backend}
        entries.append(Entry(f"{name}: {backend}", shape, Job(run), step_cost(N, H, K, K), ours=ours))
    return entries
