"""How fast the Triton kernels are on this GPU, set against what its memory and its matrix units can do at most.

Times are medians, 10 % and 90 % quantiles of CUDA events after a warm-up that compiles; before every run the L2 cache
is flushed, and what is compared takes turns in one process. Bounds are counted in kernel_counts.py and measured on the
same device: a copy, and a product of bf16 matrices. The limit: one job at a time, with the clocks as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tsgdn2.evaluation.kernel_counts import Cost, quantiles, scan_cost, step_cost
from tsgdn2.evaluation.kernel_grid import Case, Record, Stream, scan, stream
from tsgdn2.evaluation.kernel_peers import PEERS, peer
from tsgdn2.evaluation.kernel_promises import capture
from tsgdn2.kernels.ops import delta_scan, gdn2_step

SHAPES = ((1, 8192, 96, 128), (2, 16384, 16, 128), (4, 4096, 64, 64))
STREAMS = (16, 64, 256, 1024, 4096, 8192)
DIRECTIONS = ("forward", "forward + backward")
_FLUSH = 512 << 20  # bytes; several times any L2 cache


class Bounds(NamedTuple):
    """What this device can do at most, measured."""

    bandwidth: float
    """Bytes per second of a copy, read and written bytes together."""
    rate: float
    """FLOPs per second of a product of bf16 matrices."""


class Contender(NamedTuple):
    """A scan to time: a function of named tensors, which returns outputs first, and what it cannot do without."""

    name: str
    function: Callable[[Mapping[str, Tensor]], Tensor]
    leaves: Mapping[str, Tensor]
    tokens: int
    costs: tuple[Cost, Cost]
    """Of the forward, and of forward + backward."""


def interleaved(
    jobs: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Seconds of every run of every job; the jobs take turns, and the L2 cache is flushed before each run."""
    flush = torch.empty(_FLUSH, dtype=torch.int8, device=device)
    for job in jobs.values():
        for _ in range(warmup):
            job()
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        marks = {}
        for name, job in jobs.items():
            flush.zero_()
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            job()
            ended.record()
            marks[name] = (began, ended)
        torch.cuda.synchronize()
        for name, (began, ended) in marks.items():
            found[name].append(began.elapsed_time(ended) / 1e3)
    return found


def measure_bounds(record: Record, device: torch.device, repeats: int) -> Bounds:
    """Two rows: the copy bandwidth and the bf16 matmul rate of this device."""
    source = torch.ones(1 << 30, dtype=torch.float32, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    times = quantiles(interleaved({"copy": copy}, device, repeats)["copy"])
    bandwidth = 2 * source.nbytes / times["0.5"]
    record("copy bandwidth", {"bytes": 2 * source.nbytes}, seconds=times, bytes_per_s=bandwidth)
    n = 8192
    product = partial(torch.mm, *(torch.randn(n, n, device=device).bfloat16() for _ in range(2)))
    times = quantiles(interleaved({"product": product}, device, repeats)["product"])
    rate = 2 * n**3 / times["0.5"]
    record("bf16 matmul rate", {"n": n}, seconds=times, flops_per_s=rate)
    return Bounds(bandwidth, rate)


def race(
    record: Record,
    device: torch.device,
    what: str,
    shape: Mapping[str, object],
    entered: Sequence[Contender],
    bounds: Bounds,
    repeats: int,
) -> None:
    """A row per contender and direction, with what a token costs over the others.

    A contender that raises gets a row that says so and leaves the race.
    """
    contenders = []
    for contender in entered:
        try:
            _both(contender)()
            torch.cuda.synchronize()
            contenders.append(contender)
        except Exception as error:  # a peer may fail in any way; the others are still timed
            record(what, {**shape, "of": contender.name}, error=f"{type(error).__name__}: {error}"[:500])
    beside = ", ".join(contender.name for contender in contenders)
    for number, (direction, job) in enumerate(zip(DIRECTIONS, (_forward, _both), strict=True)):
        times = interleaved({contender.name: job(contender) for contender in contenders}, device, repeats)
        per_token = {c.name: quantiles(times[c.name])["0.5"] / c.tokens for c in contenders}
        for name, _, _, tokens, costs in contenders:
            bound = costs[number].seconds(*bounds)
            record(
                what,
                {**shape, "of": name, "direction": direction, "beside": beside},
                seconds=quantiles(times[name]),
                over_bound=per_token[name] * tokens / bound,
                bound_s=bound,
                bytes=costs[number].bytes,
                flops=costs[number].flops,
                s_per_token=per_token[name],
                **{f"over {other}": per_token[name] / x for other, x in per_token.items() if other != name},
            )


def _forward(contender: Contender) -> Callable[[], object]:
    def job() -> object:
        with torch.no_grad():
            return contender.function(contender.leaves)

    return job


def _both(contender: Contender) -> Callable[[], object]:
    leaves = {name: x.detach().requires_grad_() for name, x in contender.leaves.items()}
    sent: list[Tensor] = []

    def job() -> object:
        o = contender.function(leaves)
        if not sent:
            sent.append(torch.randn_like(o))
        return torch.autograd.grad(o, list(leaves.values()), sent)

    return job


def ours(name: str, case: Case, x: Stream) -> Contender:
    """Our gdn2_scan of a stream; its mask, offsets and states are fixed."""
    sequences = len(case.lengths) or case.B
    costs = [
        scan_cost(
            sequences, case.B * case.T, case.H, case.K, case.V, backward=backward, masked=x.mask is not None,
            initial=x.initial_state is not None,
        )
        for backward in (False, True)
    ]  # fmt: skip
    leaves = {letter: getattr(x, letter) for letter in "qkvgbw"}
    return Contender(name, lambda t: scan(x._replace(**t))[0], leaves, case.B * case.T, (costs[0], costs[1]))


def ours_kda(case: Case, x: Stream) -> Contender:
    """Our delta_scan as KDA: e = beta k, z = beta v, with one beta per token and head."""
    beta = x.b[..., :1]
    leaves = {"q": x.q, "k": x.k, "e": beta * x.k, "z": beta * x.v, "g": x.g}
    costs = [
        scan_cost(case.B, case.B * case.T, case.H, case.K, case.V, backward=backward, gated=False)
        for backward in (False, True)
    ]

    def function(t: Mapping[str, Tensor]) -> Tensor:
        return delta_scan(t["q"], t["k"], t["e"], t["z"], t["g"], backend="triton")[0]

    return Contender("our KDA", function, leaves, case.B * case.T, (costs[0], costs[1]))


def time_scans(
    record: Record, device: torch.device, bounds: Bounds, repeats: int, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> None:
    """Gdn2_scan and its KDA special case at every shape."""
    for B, T, H, D in shapes:
        case = Case(B, T, H, D, D, missing=None, initial=False)
        x = stream(case, device)
        race(record, device, "scan", _shape(case), [ours("our GDN-2", case, x), ours_kda(case, x)], bounds, repeats)


def time_peers(
    record: Record, device: torch.device, bounds: Bounds, repeats: int, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> None:
    """The same beside other people's kernels, where they can be imported."""
    for B, T, H, D in shapes:
        case = Case(B, T, H, D, D, missing=None, initial=False)
        x = stream(case, device)
        entered = [ours("our GDN-2", case, x), ours_kda(case, x)]
        for name in PEERS:
            try:
                function, leaves, differs = peer(name, x)
            except Exception as error:  # missing, or with other parameters than its documentation says: a row says so
                record("scan", {**_shape(case), "of": name}, error=f"{type(error).__name__}: {error}"[:500])
                continue
            costs = entered[0 if "w" in leaves else 1].costs
            entered.append(Contender(name, function, leaves, B * T, costs))
            record("peer against our result", {**_shape(case), "of": name}, relative_rms=differs)
        race(record, device, "scan beside peers", _shape(case), entered, bounds, repeats)


def irregular_cases(H: int = 16, D: int = 128) -> dict[str, Case]:
    """Batches of about as many tokens each: dense, masked, of all lengths, and packed ten to one."""
    drawn = torch.randint(200, 4097, (15,), generator=torch.Generator().manual_seed(0)).tolist()
    return {
        "dense": Case(16, 2048, H, D, D, missing=None, initial=False),
        "masked": Case(16, 2048, H, D, D, missing=0.5, initial=False),
        "irregular": Case(1, sum(drawn), H, D, D, missing=0.3, decay="hard", initial=False, lengths=tuple(drawn)),
        "packed 10:1": Case(1, 15 * 2253, H, D, D, missing=None, initial=False, lengths=(2048, 205) * 15),
    }


def time_irregular(record: Record, device: torch.device, bounds: Bounds, repeats: int) -> None:
    """Masked, irregular and 10:1 packed batches beside the dense one: what a token costs in each."""
    contenders = []
    for name, case in irregular_cases().items():
        x = stream(case, device)
        if name == "irregular":  # gaps of random lengths between tokens: the decay of a token grows with its gap
            gaps = torch.rand(x.g.shape[:2], generator=torch.Generator(device).manual_seed(1), device=device)
            x = x._replace(g=x.g * (-10 * torch.log(gaps))[..., None, None])
        contenders.append(ours(name, case, x))
    race(record, device, "irregularity", {"H": 16, "K": 128, "V": 128, "dtype": "bf16"}, contenders, bounds, repeats)


def cases(shapes: Sequence[tuple[int, ...]]) -> list[Case]:
    """What is timed, to be compiled ahead."""
    return [*(Case(B, T, H, D, D, missing=None, initial=False) for B, T, H, D in shapes), *irregular_cases().values()]


def time_decode(
    record: Record, device: torch.device, bounds: Bounds, repeats: int, streams: Sequence[int] = STREAMS
) -> None:
    """Rows per number of streams: gdn2_step as called and as a CUDA graph, beside a copy of the same states."""
    for H, D in ((16, 128), (4, 64)):
        for N in streams:
            x = stream(Case(N, 1, H, D, D, missing=None, initial=False), device)
            pool = torch.randn(N, H, D, D, device=device)
            slots, tokens = torch.randperm(N, device=device), [t[:, 0] for t in x[:6]]
            step = partial(gdn2_step, pool, slots, *tokens, backend="triton")
            copy = partial(torch.empty_like(pool).copy_, pool)
            shape, cost = {"N": N, "H": H, "K": D, "V": D}, step_cost(N, H, D, D)
            jobs: dict[str, Callable[[], object]] = {"step": step, "copy": copy}
            try:
                graph, _ = capture(step)
                jobs["step in a CUDA graph"] = graph.replay
            except Exception as error:  # what cannot be captured is still timed as called
                record(
                    "decode", {**shape, "of": "step in a CUDA graph"}, error=f"{type(error).__name__}: {error}"[:500]
                )
            times = interleaved(jobs, device, repeats)
            copied = 2 * pool.nbytes / quantiles(times.pop("copy"))["0.5"]
            for name, found in times.items():
                reached = cost.bytes / quantiles(found)["0.5"]
                record(
                    "decode",
                    {**shape, "of": name},
                    seconds=quantiles(found),
                    bytes=cost.bytes,
                    share_of_copy=reached / copied,
                    share_of_copy_bandwidth=reached / bounds.bandwidth,
                )


def _shape(case: Case) -> dict[str, object]:
    return {letter: getattr(case, letter) for letter in ("B", "T", "H", "K", "V", "dtype")}
