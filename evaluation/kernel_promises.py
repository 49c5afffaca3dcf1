"""What the Triton kernels promise on a GPU beside small errors: equal bits, CUDA graphs, torch.compile, huge tensors.

Each promise is a function of the device that returns whether it held; one row each. The limit: a promise that holds
here was tried on a few streams, on this device and with these versions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from tsgdn2.evaluation.kernel_grid import Case, Record, Stream, poison, results, scan, stream, upstream, with_tokens
from tsgdn2.kernels.ops import gdn2_step

Promise = Callable[[torch.device], bool]
Result = TypeVar("Result")


def check_promises(device: torch.device, record: Record, quick: bool = False) -> None:
    """One row per promise: kept or not, or what was raised."""
    for promise in PROMISES if quick else (*PROMISES, *HUGE):
        words = promise.__name__.replace("_", " ")
        began = time.perf_counter()
        try:
            poison(device)
            passed, error = promise(device), None
        except Exception as raised:  # a promise that breaks is a row of its own, and the others still run
            passed, error = False, f"{type(raised).__name__}: {raised}"[:500]
        record("promise", {"promise": words}, passed=passed, error=error, took_s=time.perf_counter() - began)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of results are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def free_memory_is_poisoned(device: torch.device) -> bool:
    """The other rows mean less where this fails."""
    return all(bool(torch.empty(n, device=device).isnan().all()) for n in (1 << 10, 1 << 14, 1 << 20, 1 << 26))


def equal_inputs_give_equal_bits(device: torch.device) -> bool:
    """Outputs and gradients, twice; nothing is added up in an order that chance decides."""
    case = Case(2, 1000, 8, 128, 128)
    x = stream(case, device)
    sent = upstream(case, x)
    return same(results(x, sent), results(x, sent))


def later_tokens_leave_earlier_outputs_bit_identical(device: torch.device) -> bool:
    """Cuts inside a sub-block, between sub-blocks and between chunks; resets among the changed tokens."""
    kept = True
    for dtype in ("bf16", "fp32"):
        case = Case(1, 400, 2, 128, 128, dtype)
        x, other = stream(case, device), stream(case._replace(decay="infinite"), device, seed=1)
        before, _ = scan(x)
        for cut in (1, 7, 8, 15, 16, 17, 40, 63, 64, 65, 112, 200, 320, 399):
            mixed = [torch.cat([a[:, :cut], b[:, cut:]], 1) for a, b in zip(x[:6], other[:6], strict=True)]
            after, _ = scan(with_tokens(x, mixed))
            kept &= torch.equal(before[:, :cut], after[:, :cut]) and not torch.equal(before, after)
    return kept


def packed_sequences_equal_the_same_ones_alone(device: torch.device) -> bool:
    """Outputs, states and gradients of every sequence longer than the short path, bit for bit."""
    lengths = (130, 17, 64, 65, 1300, 128)
    case = Case(1, sum(lengths), 4, 128, 64, lengths=lengths)
    x = stream(case, device)
    sent = upstream(case, x)
    packed = results(x, sent)
    assert x.cu_seqlens is not None
    assert x.mask is not None
    assert x.initial_state is not None
    kept = True
    for n, (begin, end) in enumerate(pairwise(x.cu_seqlens.tolist())):
        rows = slice(begin, end)
        alone = with_tokens(x, [t[:, rows].contiguous() for t in x[:6]])
        alone = alone._replace(mask=x.mask[:, rows], initial_state=x.initial_state[n : n + 1], cu_seqlens=None)
        cut = {name: t[n : n + 1] if "state" in name or name == "final" else t[:, rows] for name, t in packed.items()}
        kept &= same(cut, results(alone, [sent[0][:, rows], sent[1][n : n + 1]]))
    return kept


def a_tail_of_no_op_tokens_keeps_the_state_bit_for_bit(device: torch.device) -> bool:
    """Padding of mask 0 and g 0 that holds NaN, inside the last chunk and beyond it."""
    x = stream(Case(2, 200, 4, 128, 128), device)
    assert x.mask is not None
    o, final = scan(x)
    kept = True
    for tail in (3, 56, 57, 300):
        blank = [torch.full((2, tail, *t.shape[2:]), math.nan, dtype=t.dtype, device=device) for t in x[:6]]
        blank[3].zero_()
        padded = [torch.cat([t, more], 1) for t, more in zip(x[:6], blank, strict=True)]
        mask = torch.cat([x.mask, x.mask.new_zeros(2, tail)], 1)
        longer, state = scan(with_tokens(x, padded)._replace(mask=mask))
        kept &= torch.equal(state, final) and torch.equal(longer[:, :200], o) and bool(longer.isfinite().all())
    return kept


def hidden_values_are_never_seen(device: torch.device) -> bool:
    """NaN in k, v, b and w where the mask is 0 changes no bit of any result."""
    case = Case(2, 200, 4, 64, 64, missing=0.5)
    x = stream(case, device)
    assert x.mask is not None
    sent, hidden = upstream(case, x), x.mask == 0
    spoiled = [t if name in "qg" else t.clone() for name, t in zip("qkvgbw", x[:6], strict=True)]
    clean = list(spoiled)
    for i in (1, 2, 4, 5):
        clean[i] = torch.where(hidden[..., None, None], 0.0, clean[i])
        spoiled[i][hidden] = math.nan
    return same(results(with_tokens(x, clean), sent), results(with_tokens(x, spoiled), sent))


def a_cuda_graph_replays_forward_and_backward(device: torch.device) -> bool:
    """Dense and packed, replayed on other inputs than it was captured with."""
    return all(
        _replayed(case, device) for case in (Case(2, 300, 4, 128, 128), Case(1, 300, 4, 64, 64, lengths=(200, 100)))
    )


def _replayed(case: Case, device: torch.device) -> bool:
    x, other = stream(case, device), stream(case, device, seed=1)
    sent = upstream(case, x)
    captured = capture(lambda: results(x, sent))
    for mine, new in zip(x[:8], other[:8], strict=True):
        if mine is not None and new is not None:
            mine.copy_(new)
    graph, found = captured
    graph.replay()
    torch.cuda.synchronize()
    return same(found, results(other, sent))


def capture(job: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A CUDA graph of a job and where a replay leaves its results; warmed up on a stream of its own."""
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(2):
            job()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = job()
    return graph, found


def a_cuda_graph_replays_decoding(device: torch.device) -> bool:
    """One graph replayed for three tokens equals three steps, on a pool that both change in place."""
    case = Case(64, 3, 4, 64, 64, initial=False)
    x = stream(case, device)
    assert x.mask is not None
    pool = torch.randn(100, 4, 64, 64, device=device)
    slots = torch.randperm(100, device=device)[:64]
    tokens, mask = [t[:, 0].clone() for t in x[:6]], x.mask[:, 0].clone()
    mine = pool.clone()
    graph, o = capture(lambda: gdn2_step(mine, slots, *tokens, mask=mask, backend="triton"))
    mine.copy_(pool)
    kept = True
    for t in range(3):
        for token, whole in zip(tokens, x[:6], strict=True):
            token.copy_(whole[:, t])
        mask.copy_(x.mask[:, t])
        graph.replay()
        expected = gdn2_step(pool, slots, *tokens, mask=mask, backend="triton")
        kept &= torch.equal(o, expected) and torch.equal(mine, pool)
    return kept


def torch_compile_keeps_one_graph_and_every_bit(device: torch.device) -> bool:
    """fullgraph=True with the default compiler, for two lengths."""
    compiled = torch.compile(_around, fullgraph=True)
    kept = True
    for tokens in (200, 333):
        case = Case(2, tokens, 4, 64, 64)
        x = stream(case, device)
        sent = upstream(case, x)
        outcomes = []
        for function in (_around, compiled):
            leaves = [t.detach().requires_grad_() for t in x[:6]]
            o, final = function(with_tokens(x, leaves))
            outcomes.append([o, final, *torch.autograd.grad([o, final], leaves, list(sent))])
        kept &= all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    return kept


def _around(x: Stream) -> tuple[Tensor, Tensor]:
    o, final = scan(x._replace(q=-x.q))
    return o + 1, final + 1


def more_than_2_to_the_31_elements_of_a_key_tensor_are_addressed(device: torch.device) -> bool:
    """Forward and backward; after a hard reset near the end the results are those of the last tokens alone."""
    return _cut_off(Case(1, 530_000, 32, 128, 16, missing=None, initial=False), device, backward=True)


def more_than_2_to_the_31_elements_of_a_value_tensor_are_addressed(device: torch.device) -> bool:
    """Forward only."""
    return _cut_off(Case(1, 530_000, 32, 16, 128, missing=None, initial=False), device, backward=False)


def _cut_off(case: Case, device: torch.device, *, backward: bool, last: int = 1040) -> bool:
    """Whether the last tokens of a long stream, cut off by a reset at a chunk's border, are as if alone."""
    begin = case.T // 64 * 64 - last // 64 * 64
    dtype = torch.bfloat16
    wide, narrow = ((1, case.T, case.H, D) for D in (case.K, case.V))
    r = torch.Generator(device).manual_seed(0)
    # Made in place: float32 copies of these would be the larger part of the device's memory.
    q, k, b = (torch.empty(wide, dtype=dtype, device=device).uniform_(-0.1, 0.1, generator=r) for _ in range(3))
    v, w = (torch.empty(narrow, dtype=dtype, device=device).uniform_(generator=r) for _ in range(2))
    g = torch.empty(wide, dtype=dtype, device=device).uniform_(-1, 0, generator=r)
    g[:, begin] = -1e4
    x = Stream(q, k, v, g, b.abs_(), w)
    # What the reset hides is -1e4 deep, but the reset token's own gradient of g counts what lies before it.
    alone = with_tokens(x, [t[:, begin:].contiguous() for t in x[:6]])
    if not backward:
        return torch.equal(scan(x)[0][:, begin:], scan(alone)[0])
    sent = torch.empty(narrow, dtype=dtype, device=device).uniform_(generator=r)
    final = torch.zeros(1, case.H, case.K, case.V, device=device)
    found, expected = results(x, [sent, final]), results(alone, [sent[:, begin:].contiguous(), final])
    return all(
        torch.equal(t if n == "final" else t[:, begin:], expected[n]) for n, t in found.items() if n != "dg"
    ) and (torch.equal(found["dg"][:, begin + 1 :], expected["dg"][:, 1:]))


PROMISES: tuple[Promise, ...] = (
    free_memory_is_poisoned,
    equal_inputs_give_equal_bits,
    later_tokens_leave_earlier_outputs_bit_identical,
    packed_sequences_equal_the_same_ones_alone,
    a_tail_of_no_op_tokens_keeps_the_state_bit_for_bit,
    hidden_values_are_never_seen,
    a_cuda_graph_replays_forward_and_backward,
    a_cuda_graph_replays_decoding,
    torch_compile_keeps_one_graph_and_every_bit,
)
HUGE: tuple[Promise, ...] = (
    more_than_2_to_the_31_elements_of_a_key_tensor_are_addressed,
    more_than_2_to_the_31_elements_of_a_value_tensor_are_addressed,
)
