"""Are the Triton kernels right on this GPU? Outputs, final states and all gradients against float64, case by case.

The truth is the `chunked` path in float64 on the same GPU, a group of heads at a time; `truth_is_true` holds that path
itself against the token-by-token reference. Relative RMS error |a - b| / |b|; a gradient that is nothing beside the
largest is measured against that. Before each case the allocator's free memory is filled with NaN, so a result that no
kernel wrote shows. The limit: random streams; what must hold to the bit is asked by kernel_promises.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import Tensor

from tsgdn2.kernels.ops import delta_scan, gdn2_scan, gdn2_step

Record = Callable[..., None]
"""Takes what, shape, and by name seconds and the row's values; writes the row at once."""

DIFFERENTIABLE = ("q", "k", "v", "g", "b", "w", "initial_state")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
# Largest relative RMS error of outputs and states, and of gradients.
BARS = {"bf16": (5e-3, 2e-2), "fp16": (5e-3, 2e-2), "fp32": (1e-5, 1e-4)}
# Natural log of the decay per token, from draws in [0,1).
DECAYS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": torch.zeros_like,
    "slow": lambda u: -1e-4 * u,
    "moderate": lambda u: -u,
    "hard": lambda u: torch.where(u < 0.1, -1e4, -u),
    "forgetting": lambda u: torch.full_like(u, -1e4),
    "infinite": lambda u: torch.where(u < 0.05, -math.inf, -u),
}
_MEMORY = 24 << 30  # bytes that the truth may take at a time


class Case(NamedTuple):
    """One point of the grid; `lengths` packs sequences in one row, and then B is 1 and T their sum."""

    B: int
    T: int
    H: int
    K: int
    V: int
    dtype: str = "bf16"
    missing: float | None = 0.3
    decay: str = "moderate"
    initial: bool = True
    lengths: tuple[int, ...] = ()


class Stream(NamedTuple):
    """Inputs of gdn2_scan."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    b: Tensor
    w: Tensor
    mask: Tensor | None = None
    initial_state: Tensor | None = None
    cu_seqlens: Tensor | None = None


def grid(quick: bool = False) -> list[Case]:
    """B 1 - 4, T 63 - 8192, H 1 - 32, four sizes of state; masks, packing, decays and dtypes spread over them."""
    sizes = [(64, 64), (128, 128), (256, 256), (128, 256)]
    cases = []
    for number, (K, V) in enumerate(sizes[: 2 if quick else 4]):
        cases += [
            Case(2, 65, 4, K, V),
            Case(1, 2048, 32, K, V, missing=None, decay="slow", initial=False),
            Case(1, 2253, 8, K, V, lengths=(1024, 103, 1, 0, 1024, 101)),
            Case(1, 1000, 4, K, V, decay="hard"),
        ]
        if quick:
            continue
        cases += [
            Case(1, 63, 1, K, V, missing=0.0),
            Case(1, 64, 2, K, V, missing=None),
            Case(4, 130, 2, K, V, missing=0.9),
            Case(3, 777, 8, K, V, decay="none"),
            Case(1, 8192, 4, K, V),
            Case(1, 8192, 4, K, V, missing=None, decay="none", initial=False),
            Case(2, 300, 4, K, V, decay="forgetting"),
            Case(2, 300, 4, K, V, decay="infinite"),
            Case(2, 300, 4, K, V, decay="slow", missing=1.0),
            Case(2, 257, 4, K, V, dtype="fp16"),
            Case(2, 257, 4, K, V, dtype="fp32"),
            Case(1, 1000, 4, K, V, dtype="fp32", decay="hard"),
            Case(8 << number, 16, 4, K, V),
            Case(8 << number, 5, 4, K, V, missing=None),
        ]
    # Sizes that are no powers of two, and more heads than a warp has lanes.
    return [*cases, Case(1, 200, 3, 48, 80), *([] if quick else [Case(1, 70, 2048, 64, 64), Case(2, 90, 2, 16, 240)])]


def stream(case: Case, device: torch.device, seed: int = 0) -> Stream:
    """Random inputs of the case: unit q and k, g in float32, b and w uniform, mask fractions with zeros between."""
    r = torch.Generator(device).manual_seed(seed)
    B, T, H, K, V = case[:5]
    dtype = DTYPES[case.dtype]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=r, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=r, device=device)

    q, k = (torch.nn.functional.normalize(normal(B, T, H, K), dim=-1).to(dtype) for _ in range(2))
    v, g = normal(B, T, H, V).to(dtype), DECAYS[case.decay](uniform(B, T, H, K))
    b, w = uniform(B, T, H, K).to(dtype), uniform(B, T, H, V).to(dtype)
    x = Stream(q, k, v, g, b, w)
    if case.missing is not None:
        x = x._replace(mask=(0.1 + 0.9 * uniform(B, T)) * (uniform(B, T) >= case.missing))
    if case.initial:
        x = x._replace(initial_state=normal(len(case.lengths) or B, H, K, V))
    if case.lengths:
        x = x._replace(cu_seqlens=torch.tensor([0, *case.lengths], device=device).cumsum(0))
    return x


def with_tokens(x: Stream, tokens: Iterable[Tensor]) -> Stream:
    """The stream with other q, k, v, g, b, w."""
    return x._replace(**dict(zip("qkvgbw", tokens, strict=True)))


def scan(x: Stream, backend: str = "triton") -> tuple[Tensor, Tensor]:
    """gdn2_scan of a stream."""
    return gdn2_scan(
        x.q, x.k, x.v, x.g, x.b, x.w, mask=x.mask, initial_state=x.initial_state, cu_seqlens=x.cu_seqlens,
        backend=backend,
    )  # fmt: skip


def upstream(case: Case, x: Stream, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Gradients that reach the outputs and the final state."""
    r = torch.Generator(x.v.device).manual_seed(seed)
    states = len(case.lengths) or case.B
    final = torch.randn(states, case.H, case.K, case.V, generator=r, device=x.v.device)
    return torch.randn(x.v.shape, generator=r, device=x.v.device).to(x.v.dtype), final


def results(x: Stream, sent: Sequence[Tensor], backend: str = "triton") -> dict[str, Tensor]:
    """O, the final state and the gradients dq, dk, ... of everything that a stream has."""
    leaves = {name: t.detach().requires_grad_() for name in DIFFERENTIABLE if (t := getattr(x, name)) is not None}
    o, final = scan(x._replace(**leaves), backend)
    found = torch.autograd.grad([o, final], list(leaves.values()), list(sent))
    gradients = dict(zip([f"d{name}" for name in leaves], found, strict=True))
    return {"o": o.detach(), "final": final.detach(), **gradients}


def errors(x: Stream, sent: Sequence[Tensor], found: Mapping[str, Tensor], truth: str = "chunked") -> dict[str, float]:
    """Relative RMS errors of `found` against the float64 truth, which is made for a group of heads at a time."""
    B, T, H, K = x.q.shape
    V = x.v.shape[-1]
    per_head = B * T * 8 * (K * (K + V) // 4 + 60 * (K + V))
    group = max(1, min(H, _MEMORY // per_head))
    wrong, size = dict.fromkeys(found, 0.0), dict.fromkeys(found, 0.0)
    for begin in range(0, H, group):
        heads = slice(begin, begin + group)
        part = {name: t[:, :, heads].double() for name in "qkvgbw" if (t := getattr(x, name)) is not None}
        if x.initial_state is not None:
            part["initial_state"] = x.initial_state[:, heads].double()
        true = results(x._replace(**part), [sent[0][:, :, heads].double(), sent[1][:, heads].double()], truth)
        for name, expected in true.items():
            by_state = name in ("final", "dinitial_state")
            cut = found[name][:, heads] if by_state else found[name][:, :, heads]
            wrong[name] += float((cut.double() - expected).square().sum())
            size[name] += float(expected.square().sum())
    return relative(wrong, size, {name: t.numel() for name, t in found.items()})


def relative(wrong: Mapping[str, float], size: Mapping[str, float], count: Mapping[str, int]) -> dict[str, float]:
    """Root of sums of squares, wrong / size; a gradient below 1e-6 of the largest RMS is set against the largest."""
    rms = {name: math.sqrt(size[name] / max(1, count[name])) for name in size}
    largest = max((value for name, value in rms.items() if name.startswith("d")), default=0.0)
    found = {}
    for name in size:
        tiny = name.startswith("d") and rms[name] <= 1e-6 * largest
        beside = largest if tiny else rms[name]
        root = math.sqrt(wrong[name] / max(1, count[name])) if wrong[name] >= 0 else math.nan
        found[name] = root / beside if beside else root
    return found


def within(found: Mapping[str, float], dtype: str) -> bool:
    """Whether every error is at most the bar of its dtype; NaN is not."""
    return all(error <= BARS[dtype][name not in ("o", "final")] for name, error in found.items())


def poison(device: torch.device, large: int = 4 << 30) -> None:
    """Fill the allocator's free memory with NaN: `large` bytes of big blocks, and small ones beside them."""
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    blocks = [torch.full((large // 16,), math.nan, device=device) for _ in range(4)]
    blocks += [torch.full((1 << 14,), math.nan, device=device) for _ in range(1024)]
    del blocks


def check_case(case: Case, device: torch.device, record: Record, seed: int) -> None:
    """One row: the errors of one case, or what was raised."""
    shape = {**case._asdict(), "lengths": " ".join(map(str, case.lengths)), "truth": "chunked fp64"}
    began = time.perf_counter()
    try:
        x = stream(case, device, seed)
        sent = upstream(case, x)
        poison(device)
        found = errors(x, sent, results(x, sent))
    except Exception as error:  # a case that breaks is a row of its own, and the others still run
        record("scan against float64", shape, passed=False, error=f"{type(error).__name__}: {error}"[:500])
        return
    record("scan against float64", shape, passed=within(found, case.dtype), took_s=time.perf_counter() - began, **found)


def truth_is_true(device: torch.device, record: Record, seed: int) -> None:
    """Rows that hold the float64 `chunked` path against the float64 reference, packed and not."""
    for case in (Case(2, 130, 2, 64, 128, dtype="fp64", decay="hard"), Case(1, 90, 1, 16, 16, lengths=(70, 0, 20))):
        x = stream(case._replace(dtype="fp64"), device, seed)
        x = x._replace(g=x.g.double(), initial_state=None if x.initial_state is None else x.initial_state.double())
        sent = [t.double() for t in upstream(case, x)]
        found = errors(x, sent, results(x, sent, "chunked"), truth="reference")
        shape = {**case._asdict(), "dtype": "fp64", "lengths": " ".join(map(str, case.lengths)), "truth": "reference"}
        record("chunked fp64 against the reference", shape, passed=max(found.values()) < 1e-10, **found)


def check_decode(device: torch.device, record: Record, seed: int) -> None:
    """Rows that hold a few steps of gdn2_step against the reference in float64, on scattered slots."""
    for dtype, (N, H, K, V) in (("bf16", (257, 4, 64, 64)), ("fp32", (33, 3, 48, 80)), ("bf16", (64, 2, 256, 128))):
        shape = {"N": N, "H": H, "K": K, "V": V, "dtype": dtype, "steps": 4, "truth": "reference fp64"}
        r = torch.Generator(device).manual_seed(seed)
        pool = torch.randn(2 * N, H, K, V, generator=r, device=device)
        slots = torch.randperm(2 * N, generator=r, device=device)[:N]
        true, before = pool.double(), pool.clone()
        worst = {"o": 0.0}
        for step in range(4):
            x = stream(Case(N, 1, H, K, V, dtype, 0.3, ("moderate", "hard")[step % 2], initial=False), device, step)
            mask = None if x.mask is None or step == 3 else x.mask[:, 0]
            tokens = [t[:, 0] for t in x[:6]]
            o = gdn2_step(pool, slots, *tokens, mask=mask, backend="triton")
            expected = gdn2_step(true, slots, *(t.double() for t in tokens), mask=mask, backend="reference")
            worst["o"] = max(worst["o"], float((o.double() - expected).norm() / expected.norm()))
        worst["final"] = float((pool[slots].double() - true[slots]).norm() / true[slots].norm())
        rest = torch.ones(2 * N, dtype=torch.bool, device=device).index_fill_(0, slots, False)
        untouched = torch.equal(pool[rest], before[rest])
        record("decode against float64", shape, passed=within(worst, dtype) and untouched, **worst)


def compile_ahead(cases: Iterable[Case], workers: int, record: Record) -> None:
    """Fill Triton's cache on disk from several processes at once; kernels do not depend on B and T."""
    small = {signature(case) for case in cases}
    began = time.perf_counter()
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            broken = [text for text in pool.map(_compile, sorted(small, key=str)) if text]
    except BrokenProcessPool as error:  # a compiler that crashes takes its process along
        broken = [str(error)]
    values = {"passed": not broken, "took_s": time.perf_counter() - began, "error": "; ".join(broken)[:500] or None}
    record("compilation", {"signatures": len(small), "workers": workers}, **values)


def signature(case: Case) -> Case:
    """A small case that runs the same compiled kernels: of H counts only whether it is 1 or a multiple of 16."""
    heads = 1 if case.H == 1 else 2 if case.H % 16 else 16
    masked = None if case.missing is None else 0.3
    small = Case(2, 5 if case.T <= 16 else 70, heads, case.K, case.V, case.dtype, masked)
    return small._replace(B=1, lengths=(40, 30)) if case.lengths else small


def _compile(case: Case) -> str:
    device = torch.device("cuda")
    try:
        x = stream(case, device)
        sent = upstream(case, x)
        results(x, sent)
        if x.mask is None:  # the scan without gates is timed too
            leaves = [t.requires_grad_() for t in (x.q, x.k, x.b * x.k, x.w * x.v, x.g)]
            torch.autograd.grad(delta_scan(*leaves, cu_seqlens=x.cu_seqlens, backend="triton")[0], leaves, sent[0])
        torch.cuda.synchronize()
    except Exception as error:  # the case itself will say it again in its row
        return f"{case}: {type(error).__name__}: {error}"[:200]
    return ""
