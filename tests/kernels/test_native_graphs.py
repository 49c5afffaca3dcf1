"""The native operators in torch's graphs: the rules of torch.library, torch.compile, and one graph for all sizes.

Equal bits with and without a graph; what a compiler makes of the code around the operators is not asked here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tsgdn2.evaluation.kernel_grid import Case, Stream, scan, stream, upstream
from tsgdn2.kernels.ops import gdn2_scan, gdn2_step

operators = torch.ops.tsgdn2
BACKEND = "native"
CPU = torch.device("cpu")
TOKENS = ("q", "k", "v", "g", "b", "w")
SCALE = 0.6
OPERATORS = torch.ops.tsgdn2  # defined when ops is imported


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def made(case: Case, seed: int = 0) -> Stream:
    x = stream(case, CPU, seed)
    if case.dtype != "fp64":
        return x
    return Stream(*(t.double() if t is not None and t.is_floating_point() else t for t in x))


def run(function: Callable[[Stream], tuple[Tensor, Tensor]], x: Stream, case: Case) -> list[Tensor]:
    """Results, and gradients of everything that is not the mask."""
    leaves = {n: t.detach().requires_grad_() for n, t in x._asdict().items() if n in (*TOKENS, "initial_state")}
    found = function(x._replace(**leaves))
    sent = [t.to(r.dtype) for t, r in zip(upstream(case, x), found, strict=True)]
    return [*(t.detach() for t in found), *torch.autograd.grad(found, list(leaves.values()), sent)]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert [n for n, (a, b) in enumerate(zip(actual, expected, strict=True)) if not torch.equal(a, b)] == []


CASES = {
    "dense": Case(2, 20, 2, 6, 11, "fp32"),
    "e and z given": Case(1, 37, 2, 5, 70, "fp64", None),
    "packed": Case(1, 41, 2, 6, 5, "fp32", lengths=(24, 17)),  # every state to keep is kept: nothing is left unwritten
}


@pytest.mark.parametrize("name", CASES)
def test_the_operators_of_the_scan_keep_the_rules_of_torch(name: str) -> None:
    x = made(CASES[name])
    write, mask = (None, None) if x.mask is None else (x.w, x.mask.to(x.v.dtype))
    arguments = [x.q, x.k, x.b, x.v, write, x.g, mask, x.initial_state, x.cu_seqlens, SCALE]
    o, final, u, checkpoints = operators.native_forward(*arguments, True)
    torch.library.opcheck(operators.native_backward.default, (*arguments, u, checkpoints, o, final))
    for n in (0, 1, 2, 3, 4, 5, 7):
        arguments[n] = arguments[n] if arguments[n] is None else arguments[n].clone().requires_grad_()
    torch.library.opcheck(operators.native_forward.default, (*arguments, True))


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("masked", [True, False])
def test_the_operator_of_the_step_keeps_the_rules_of_torch(masked: bool, index: torch.dtype) -> None:
    x = made(Case(2, 1, 2, 5, 12, "fp32"))
    mask = x.mask[:, 0] if masked else None
    row = [t[:, 0] for t in x[:6]]
    pool, slots = torch.randn(4, 2, 5, 12), torch.tensor([3, 1], dtype=index)
    torch.library.opcheck(operators.native_step.default, (pool, slots, *row, mask, SCALE))


def around(x: Stream) -> tuple[Tensor, Tensor]:
    o, final = scan(x._replace(q=2 * x.q), BACKEND)
    return o.sin(), final


@pytest.mark.parametrize("case", [*CASES.values(), Case(2, 20, 2, 6, 11, "bf16")], ids=[*CASES, "bf16"])
def test_a_compiled_function_without_graph_breaks_gives_the_same_bits(case: Case) -> None:
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    x = made(case)
    assert_same(run(compiled, x, case), run(around, x, case))


def test_one_graph_serves_every_number_of_tokens_and_of_packed_sequences() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def packed(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, cu_seqlens: Tensor) -> Tensor:
        return gdn2_scan(q, k, v, g, b, w, cu_seqlens=cu_seqlens, backend=BACKEND)[0]

    compiled = torch.compile(packed, backend=count, dynamic=True, fullgraph=True)
    for lengths in ((20, 30), (20, 30, 40), (3, 60, 7, 21)):
        x = made(Case(1, sum(lengths), 2, 4, 6, "fp32", None, lengths=lengths))
        assert torch.equal(compiled(*x[:6], x.cu_seqlens), packed(*x[:6], x.cu_seqlens))
    assert len(graphs) == 1


@pytest.mark.parametrize("masked", [True, False])
def test_a_compiled_step_changes_the_pool_in_place_with_the_same_bits(masked: bool) -> None:

    def twice(pool: Tensor, slots: Tensor, x: Stream) -> Tensor:
        mask = x.mask[:, 0] if masked else None
        row = [t[:, 0] for t in x[:6]]
        first = gdn2_step(pool, slots, *row, mask=mask, backend=BACKEND)
        return first + gdn2_step(pool, slots, *row, mask=mask, backend=BACKEND)

    x = made(Case(3, 1, 2, 5, 12, "fp32"))
    eager = torch.randn(5, 2, 5, 12, generator=torch.Generator().manual_seed(2))
    compiled, slots = eager.clone(), torch.tensor([4, 0, 2], dtype=torch.int32)
    expected = twice(eager, slots, x)
    assert torch.equal(torch.compile(twice, fullgraph=True, backend="aot_eager")(compiled, slots, x), expected)
    assert torch.equal(compiled, eager)
