"""What must not change the Triton scan by a single bit, in Triton's interpreter: later tokens, packing, hidden values.

Run by test_triton_interpreted.py in a process of its own. Here the scan is held against itself; whether its numbers are
right is asked by interpreted_scan.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsgdn2.kernels.ops import delta_scan, gdn2_scan, gdn2_step

BACKEND = "triton"
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # an example takes seconds: none is shrunk
TOKENS = ("q", "k", "v", "g", "b", "w")
SHORT = 16  # tokens; scans of so many, or packed ones of so many on average, run token by token
PER_SEQUENCE = ("final", "dinitial_state")


@pytest.fixture(autouse=True)
def memory_that_nobody_wrote_is_nan():
    """torch.empty hands out NaN, so that a result which a kernel forgot to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def stream(
    T: int, K: int = 16, V: int = 32, *, B: int = 1, H: int = 1, N: int | None = None, decay: float = 1.0, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs of gdn2_scan by name: N states of packed sequences, or B of them; `decay` is a token's largest."""
    r = torch.Generator().manual_seed(seed)
    normal = [torch.randn(B, T, H, D, generator=r) for D in (K, K, V)]
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in normal[:2])
    b, g, w = (torch.rand(B, T, H, D, generator=r) for D in (K, K, V))
    mask = torch.rand(B, T, generator=r) * (torch.rand(B, T, generator=r) > 0.3)
    state = torch.randn(N or B, H, K, V, generator=r)
    return {"q": q, "k": k, "v": normal[2], "g": -decay * g, "b": b, "w": w, "mask": mask, "initial_state": state}


def scan(inputs: Mapping[str, Tensor], **options: object) -> tuple[Tensor, Tensor]:
    return gdn2_scan(**inputs, backend=BACKEND, **options)


def upstream(inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Gradients that reach the outputs and the final state."""
    r = torch.Generator().manual_seed(9)
    return [torch.randn(inputs[name].shape, generator=r) for name in ("v", "initial_state")]


def run(
    inputs: Mapping[str, Tensor],
    sent: Sequence[Tensor],
    function: Callable[..., tuple[Tensor, Tensor]] = scan,
    **options: object,
) -> dict[str, Tensor]:
    """Outputs, final state, and the gradients dq, dk, ... of every input but the mask."""
    leaves = {name: x.detach().clone().requires_grad_(name != "mask") for name, x in inputs.items()}
    results = function(leaves, **options)
    wanted = [name for name in leaves if name != "mask"]
    found = torch.autograd.grad(results, [leaves[name] for name in wanted], sent)
    named = zip(["o", "final", *(f"d{name}" for name in wanted)], [*results, *found], strict=True)
    return {name: x.detach() for name, x in named}


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


@pytest.mark.parametrize("decay", [1.0, 1e4])
def test_changing_a_later_token_leaves_earlier_outputs_bit_identical(decay: float) -> None:
    inputs = stream(70, decay=decay)
    before, _ = scan(inputs)
    other = stream(70, decay=100 * decay + 1, seed=1)
    other["g"][:, ::5] = -torch.inf
    for cut in (1, 8, 15, 16, 21, 32, 63, 64, 69):
        changed = {n: torch.cat([inputs[n][:, :cut], other[n][:, cut:]], 1) for n in (*TOKENS, "mask")}
        after, _ = scan({**inputs, **changed})
        assert torch.equal(before[:, :cut], after[:, :cut]), cut
        assert not torch.equal(before[:, cut:], after[:, cut:])


def check_packed(lengths: Sequence[int], *, seed: int = 0, dtype: torch.dtype = torch.int64) -> None:
    """Equal bits, but where a sequence alone takes the path of short scans and the packed batch does not."""
    inputs = stream(sum(lengths), N=len(lengths), seed=seed)
    offsets = torch.tensor([0, *lengths], dtype=dtype).cumsum(0, dtype=dtype)
    sent = upstream(inputs)
    packed = run(inputs, sent, cu_seqlens=offsets)
    for n, (begin, end) in enumerate(pairwise(offsets.tolist())):
        part = {name: x[n : n + 1] if name == "initial_state" else x[:, begin:end] for name, x in inputs.items()}
        cut = {name: x[n : n + 1] if name in PER_SEQUENCE else x[:, begin:end] for name, x in packed.items()}
        if begin == end:
            assert torch.equal(cut["final"], part["initial_state"])
            assert torch.equal(cut["dinitial_state"], sent[1][n : n + 1])
            continue
        alone = run(part, [sent[0][:, begin:end], sent[1][n : n + 1]])
        if (end - begin > SHORT) == (sum(lengths) > SHORT * len(lengths)):
            assert_same(cut, alone)
        torch.testing.assert_close(cut, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(1, 64, 65), (0, 17, 0, 50), (100, 10), (3, 0, 1)], ids=str)
def test_packed_sequences_equal_the_same_sequences_one_by_one(lengths: Sequence[int]) -> None:
    check_packed(lengths)


@settings(max_examples=3, deadline=None, phases=UNSHRUNK)
@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=2).filter(any), seed=st.integers(0, 1000))
def test_any_packing_equals_the_same_sequences_one_by_one(lengths: Sequence[int], seed: int) -> None:
    check_packed(lengths, seed=seed, dtype=torch.int32)


@pytest.mark.parametrize(("row", "head"), [(0, 1), (1, 0)])
def test_rows_and_heads_do_not_feel_each_other(row: int, head: int) -> None:
    inputs = stream(20, B=2, H=2)
    sent = upstream(inputs)
    together = run(inputs, sent)
    one = {name: inputs[name][row : row + 1, :, head : head + 1] for name in TOKENS}
    one |= {"mask": inputs["mask"][row : row + 1]}
    one |= {"initial_state": inputs["initial_state"][row : row + 1, head : head + 1]}
    alone = run(one, [sent[0][row : row + 1, :, head : head + 1], sent[1][row : row + 1, head : head + 1]])
    for name, x in alone.items():
        index = (row, head) if name in PER_SEQUENCE else (row, slice(None), head)
        assert torch.equal(together[name][index], x[0, 0] if name in PER_SEQUENCE else x[0, :, 0]), name


@pytest.mark.parametrize("tokens", [12, 66])
def test_what_an_unobserved_token_holds_is_never_seen(tokens: int) -> None:
    inputs = stream(tokens)
    hidden = inputs["mask"] == 0
    for name in ("q", "k", "v", "b", "w"):
        inputs[name][hidden] = 0
    sent = upstream(inputs)
    clean = run(inputs, sent)
    for names, value in (
        (("k", "v", "b", "w"), torch.nan),
        (("q",), torch.nan),
        (("q", "k", "v", "b", "w"), torch.inf),
    ):
        spoiled = {**inputs, **{name: inputs[name].clone() for name in names}}
        for name in names:
            spoiled[name][hidden] = value
        found = run(spoiled, sent)
        # A query that is no number reads nothing and has no slope; the others are those of a query of zeros.
        assert torch.equal(found["dq"][~hidden], clean["dq"][~hidden])
        assert torch.isfinite(found.pop("dq")).all()
        assert_same(found, {name: x for name, x in clean.items() if name != "dq"})
        assert all(torch.isfinite(x).all() for x in found.values())


@pytest.mark.parametrize(("tokens", "tail"), [(50, 10), (50, 60), (64, 66), (5, 9)])
def test_a_tail_of_no_op_tokens_leaves_the_final_state_bit_for_bit(tokens: int, tail: int) -> None:
    inputs, padding = stream(tokens), stream(tail, seed=1)
    for name in ("q", "k", "v", "b", "w"):
        padding[name][:, ::2] = torch.nan
    padding["g"].zero_()
    padding["mask"].zero_()
    padded = {name: torch.cat([inputs[name], padding[name]], 1) for name in (*TOKENS, "mask")}
    o, final = scan(inputs)
    longer, kept = scan({**inputs, **padded})
    assert torch.equal(kept, final)
    assert torch.equal(longer[:, :tokens], o)
    assert torch.isfinite(longer).all()


def test_nothing_but_no_op_tokens_keeps_the_initial_state_bit_for_bit() -> None:
    inputs = stream(66, decay=0.0)
    inputs["mask"].zero_()
    for name in ("q", "k", "v", "b", "w"):
        inputs[name][:, ::3] = torch.nan
    o, final = scan(inputs)
    assert torch.equal(final, inputs["initial_state"])
    assert torch.isfinite(o).all()


def test_a_mask_of_ones_is_no_mask_and_booleans_are_ones_and_zeros() -> None:
    inputs = stream(40)
    ones, plain = torch.ones_like(inputs["mask"]), {n: x for n, x in inputs.items() if n != "mask"}
    sent = upstream(inputs)
    assert_same(run({**inputs, "mask": ones}, sent), run(plain, sent))
    seen = inputs["mask"] > 0
    assert_same(run(plain, sent, mask=seen), run({**inputs, "mask": seen.float()}, sent))


def test_the_gated_scan_is_the_delta_scan_of_gated_inputs() -> None:
    inputs = stream(40)
    m = inputs["mask"][..., None, None]
    e, z = m * inputs["b"] * inputs["k"], m * inputs["w"] * inputs["v"]
    o, final = delta_scan(
        inputs["q"], inputs["k"], e, z, inputs["g"], initial_state=inputs["initial_state"], backend=BACKEND
    )
    torch.testing.assert_close((o, final), scan(inputs), rtol=0, atol=2e-6)


def test_the_layout_of_the_inputs_and_of_the_upstream_gradient_changes_no_bit() -> None:
    inputs = stream(21, H=2)
    sent = [torch.ones(1, 1, 1, 1).expand_as(inputs[name]) for name in ("v", "initial_state")]

    def turned(x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        strided = {name: x[name].transpose(1, 2).contiguous().transpose(1, 2) for name in TOKENS}
        state = x["initial_state"].mT.contiguous().mT
        return scan({**strided, "mask": x["mask"].t().contiguous().t(), "initial_state": state})

    assert_same(run(inputs, sent, function=turned), run(inputs, [x.contiguous() for x in sent]))


def test_a_compiled_function_without_graph_breaks_gives_the_same_bits() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        o, final = scan({**x, "q": 2 * x["q"]})
        return o.sin(), final

    def plain(x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        o, final = scan({**x, "q": 2 * x["q"]})
        return o.sin(), final

    for tokens in (20, 37):
        inputs = stream(tokens)
        sent = upstream(inputs)
        assert_same(run(inputs, sent, function=compiled), run(inputs, sent, function=plain))


def test_inputs_that_the_kernels_do_not_take_are_refused_with_advice() -> None:
    wide = {name: x.double() for name, x in stream(20).items()}
    with pytest.raises(ValueError, match=r"(?s)float64.*chunked"):
        scan(wide)
    with pytest.raises(ValueError, match="256"):
        scan(stream(20, K=272))


def test_one_graph_serves_every_number_of_tokens_and_of_packed_sequences() -> None:
    frames = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        frames.append(graph)
        return graph.forward

    def packed(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, cu_seqlens: Tensor) -> Tensor:
        return gdn2_scan(q, k, v, g, b, w, cu_seqlens=cu_seqlens, backend=BACKEND)[0]

    compiled = torch.compile(packed, backend=count, dynamic=True, fullgraph=True)
    for lengths in ((20, 30), (20, 30, 40), (33, 60, 7, 21)):
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        inputs = stream(int(bounds[-1]), N=len(lengths))
        tokens = [inputs[name] for name in TOKENS]
        assert torch.equal(compiled(*tokens, bounds), packed(*tokens, bounds))
    assert len(frames) == 1


def test_a_step_is_seen_by_what_saved_the_pool() -> None:
    inputs = stream(2)
    pool = torch.zeros(3, 1, 16, 32)
    weight = torch.ones_like(pool).requires_grad_()
    loss = (pool * weight).sum()
    row = [inputs[name][0] for name in TOKENS]
    gdn2_step(pool, torch.tensor([2, 0]), *row, backend=BACKEND)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("read", ["outputs", "final state"])
def test_what_no_gradient_reaches_costs_none_and_changes_none(read: str) -> None:
    inputs = {name: x.requires_grad_() for name, x in stream(20).items() if name in TOKENS}
    both = gdn2_scan(**inputs, backend=BACKEND)
    alone = torch.autograd.grad(both[read == "final state"].sum(), list(inputs.values()), allow_unused=True)
    both = gdn2_scan(**inputs, backend=BACKEND)
    zero = both[read == "outputs"].sum() * 0
    together = torch.autograd.grad(both[read == "final state"].sum() + zero, list(inputs.values()))
    for a, b in zip(alone, together, strict=True):
        assert a is not None
        assert torch.equal(a, b)
