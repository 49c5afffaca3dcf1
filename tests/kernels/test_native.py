"""The native scan on this CPU: outputs, states and every gradient against the float64 reference.

The grid is the one that the GPU path is judged on, cut to the tokens, rows and heads that a token-by-token loop in
float64 can afford; sizes of state that only a CPU path takes are added. What must hold to the bit is asked by
test_native_invariance.py, what torch expects of an operator by test_native_operators.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsgdn2.evaluation.kernel_grid import DECAYS, DTYPES, Case, Stream, grid, relative, results, scan, stream, upstream
from tsgdn2.kernels.ops import delta_scan, gdn2_scan

BACKEND = "native"
# Largest relative RMS error |a - b| / |b|: of outputs and states, and of gradients.
TOLERANCE = {"fp32": (1e-6, 5e-6), "fp64": (1e-12, 1e-12)}
# Largest single error beside the largest value of the same tensor.
LARGEST = {"fp32": (2e-6, 1e-5), "fp64": (1e-12, 2e-12)}
SIZES = [
    *((1, 1), (1, 17), (17, 1), (2, 3), (5, 7), (8, 8), (16, 16), (17, 100), (100, 17), (31, 33), (64, 24)),
    *((100, 100), (65, 129), (1, 256), (256, 1), (255, 31), (256, 256)),
]
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 48, 63, 65, 130)  # a state is kept every 16 tokens


@pytest.fixture(autouse=True)
def memory_that_nobody_wrote_is_nan():
    """torch.empty hands out NaN, so that a result which the library forgot to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def cut(case: Case) -> Case:
    """The case in float32, small enough for the reference: a tenth of a second, a quarter of a second for 256 x 256."""
    wide = case.K * case.V > 1 << 12
    lengths = tuple(min(length, 18) for length in case.lengths)
    tokens = sum(lengths) or min(case.T, 35 if wide else 70)
    heads = min(case.H, 1 if wide else 3)
    return case._replace(B=min(case.B, 2), T=tokens, H=heads, dtype="fp32", lengths=lengths)


def doubled(x: Stream) -> Stream:
    """The same numbers in float64."""
    return Stream(*(t.double() if t is not None and t.is_floating_point() else t for t in x))


def inputs_of(case: Case, seed: int = 0) -> tuple[Stream, Sequence[Tensor]]:
    """A stream and the gradients that reach its results, all in float64 where the case is."""
    x = stream(case, torch.device("cpu"), seed)
    sent = upstream(case, x, seed + 1)
    return (doubled(x), [t.double() for t in sent]) if case.dtype == "fp64" else (x, sent)


def assert_close(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: str = "fp32", floor: float = 0.0
) -> None:
    """Relative RMS, and the largest error beside the largest value, within the tables.

    What cancels to less than `floor` is set against that: one number of a tiny stream may lose any share of its digits.
    """
    assert found.keys() == expected.keys()
    wrong = {name: found[name].double() - t for name, t in expected.items()}
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in expected.items()}
    count = {name: t.numel() for name, t in expected.items()}
    for bars, amount, numbers in (
        (TOLERANCE, lambda t: float(t.square().sum()), count),
        (LARGEST, lambda t: float(t.abs().max()) ** 2 if t.numel() else 0.0, dict.fromkeys(count, 1)),
    ):
        size = {name: max(amount(t), floor**2 * numbers[name]) for name, t in expected.items()}
        errors = relative({name: amount(t) for name, t in wrong.items()}, size, numbers)
        late = {n: f"{e:.1e}" for n, e in errors.items() if not e <= bars[dtype][n not in ("o", "final")]}
        assert not late, f"{'largest' if bars is LARGEST else 'RMS'} error: {late}"


def check(x: Stream, sent: Sequence[Tensor], dtype: str = "fp32", floor: float = 0.0) -> Mapping[str, Tensor]:
    """Hold every result of the stream against the reference; returns the reference's."""
    expected = results(doubled(x), [t.double() for t in sent], "reference")
    assert_close(results(x, sent, BACKEND), expected, dtype, floor)
    return expected


def gradients(
    function: Callable[[Mapping[str, Tensor]], Sequence[Tensor]], leaves: Mapping[str, Tensor], sent: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Results of a function of named leaves and the gradients of all of them, None as zero."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    found = function(leaves)
    slopes = torch.autograd.grad(found, list(leaves.values()), sent[: len(found)], allow_unused=True)
    named = {f"d{n}": torch.zeros_like(t) if d is None else d for (n, t), d in zip(leaves.items(), slopes, strict=True)}
    return {**dict(zip(("o", "final"), (t.detach() for t in found), strict=False)), **named}


def named(x: Stream) -> dict[str, Tensor]:
    return {name: t for name, t in x._asdict().items() if t is not None}


@pytest.mark.parametrize("case", dict.fromkeys(map(cut, grid())), ids=lambda case: "-".join(map(str, case)))
def test_the_grid_of_the_gpu_path_equals_the_reference(case: Case) -> None:
    check(*inputs_of(case))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("K", "V"), SIZES)
def test_keys_and_values_of_any_width_equal_the_reference(K: int, V: int, dtype: str) -> None:
    check(*inputs_of(Case(1, 20 if K * V > 1 << 12 else 37, 2, K, V, dtype)), dtype)


@pytest.mark.parametrize("missing", [None, 0.4])
@pytest.mark.parametrize("T", LENGTHS)
def test_lengths_around_a_checkpoint_equal_the_reference(T: int, missing: float | None) -> None:
    check(*inputs_of(Case(2, T, 3, 6, 10, "fp64", missing, initial=T % 2 == 0)), "fp64")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("missing", [None, 0.0, 0.5, 1.0])
def test_any_decay_and_any_share_of_missing_tokens_equal_the_reference(
    decay: str, missing: float | None, dtype: str
) -> None:
    check(*inputs_of(Case(2, 41, 2, 9, 13, dtype, missing, decay)), dtype)


@settings(max_examples=40, deadline=None)
@given(
    T=st.integers(1, 70),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rows=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    missing=st.none() | st.floats(0, 1),
    decay=st.sampled_from(sorted(DECAYS)),
    dtype=st.sampled_from(sorted(TOLERANCE)),
    initial=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_length_size_mask_and_decay_equals_the_reference(
    T: int,
    sizes: tuple[int, int],
    rows: tuple[int, int],
    missing: float | None,
    decay: str,
    dtype: str,
    initial: bool,
    seed: int,
) -> None:
    check(*inputs_of(Case(rows[0], T, rows[1], *sizes, dtype, missing, decay, initial), seed), dtype, floor=0.1)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    index=st.sampled_from([torch.int32, torch.int64]),
    initial=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_packing_equals_the_reference(
    lengths: list[int], sizes: tuple[int, int], index: torch.dtype, initial: bool, seed: int
) -> None:
    x, sent = inputs_of(Case(1, sum(lengths), 2, *sizes, initial=initial, dtype="fp64", lengths=(*lengths,)), seed)
    check(x._replace(cu_seqlens=x.cu_seqlens.to(index)), sent, "fp64", floor=0.1)


@pytest.mark.parametrize("case", [Case(700, 3, 1, 2, 3), Case(2, 5, 300, 3, 1), Case(150, 17, 2, 8, 4)], ids=str)
def test_many_rows_of_tiny_heads_equal_the_reference(case: Case) -> None:
    check(*inputs_of(case._replace(dtype="fp32")))


def test_many_short_sequences_packed_equal_the_reference() -> None:
    lengths = tuple(n % 4 for n in range(400))
    check(*inputs_of(Case(1, sum(lengths), 2, 4, 3, "fp32", lengths=lengths)))


@pytest.mark.parametrize("lengths", [(), (0, 0, 1), (0, 1), (1, 0)], ids=str)
def test_a_scan_of_one_token_equals_the_reference(lengths: tuple[int, ...]) -> None:
    check(*inputs_of(Case(1, 1, 2, 5, 7, "fp64", lengths=lengths)), "fp64")


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)], ids=str)
def test_a_scan_of_no_token_hands_back_the_state_and_its_gradient(lengths: tuple[int, ...]) -> None:
    x, sent = inputs_of(Case(1, 0, 2, 5, 7, "fp32", lengths=lengths))
    state = x.initial_state.requires_grad_()
    o, final = scan(x, BACKEND)
    assert o.shape == (1, 0, 2, 7)
    assert torch.equal(final, state)
    assert torch.equal(torch.autograd.grad(final, state, sent[1])[0], sent[1])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("missing", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("lengths", [(), (17, 0, 24)], ids=["dense", "packed"])
def test_a_mask_that_wants_a_gradient_gets_its_own(missing: float, lengths: tuple[int, ...], dtype: str) -> None:
    x, sent = inputs_of(Case(1 if lengths else 2, 41, 2, 6, 5, dtype, missing, lengths=lengths))
    outcomes = []
    for y, backend in ((x, BACKEND), (doubled(x), "reference")):
        leaves, offsets = named(y), y.cu_seqlens
        leaves.pop("cu_seqlens", None)
        upstream_y = [t.to(y.v.dtype) for t in sent]
        outcomes.append(
            gradients(
                lambda leaf, offsets=offsets, backend=backend: gdn2_scan(**leaf, cu_seqlens=offsets, backend=backend),
                leaves,
                upstream_y,
            )
        )
    assert "dmask" in outcomes[0]
    assert_close(*outcomes, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [(), (17, 0, 24)], ids=["dense", "packed"])
@pytest.mark.parametrize("scale", [None, -0.7, 0.0])
def test_the_delta_scan_has_the_gradients_of_its_own_inputs(
    scale: float | None, lengths: tuple[int, ...], dtype: str
) -> None:
    x, sent = inputs_of(Case(1 if lengths else 2, 41, 2, 7, 12, dtype, None, "hard", lengths=lengths))
    erase = 0.7 * torch.nn.functional.normalize(x.b - 0.5, dim=-1)  # no multiple of k: every address is allowed
    leaves = {"q": x.q, "k": x.k, "e": erase, "z": x.v, "g": x.g, "initial_state": x.initial_state}
    outcomes = []
    for kind, backend in ((x.v.dtype, BACKEND), (torch.float64, "reference")):
        cast = {name: t.to(kind) for name, t in leaves.items()}
        options = {"scale": scale, "cu_seqlens": x.cu_seqlens, "backend": backend}
        outcomes.append(gradients(lambda leaf, o=options: delta_scan(**leaf, **o), cast, [t.to(kind) for t in sent]))
    assert_close(*outcomes, dtype)


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("used", ["o", "final"])
def test_a_loss_on_only_one_of_the_two_results_has_the_right_gradients(used: str, initial: bool) -> None:
    x, sent = inputs_of(Case(2, 37, 2, 6, 5, "fp64", initial=initial))
    leaves, kept = named(x), used == "final"
    leaves.pop("mask")
    outcomes = [
        gradients(lambda leaf, b=b: [gdn2_scan(**leaf, mask=x.mask, backend=b)[kept]], leaves, [sent[kept]])
        for b in (BACKEND, "reference")
    ]
    assert_close(*outcomes, "fp64")


@pytest.mark.parametrize("half_g", [True, False], ids=["half g", "fp32 g"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_inputs_are_computed_in_float32_and_rounded_once(dtype: str, half_g: bool) -> None:
    x, sent = inputs_of(Case(2, 50, 2, 16, 24, dtype))
    x = x._replace(g=x.g.to(DTYPES[dtype])) if half_g else x
    expected = results(Stream(*(t if t is None else t.float() for t in x)), [t.float() for t in sent], BACKEND)
    states = ("final", "dinitial_state", *(() if half_g else ("dg",)))
    for name, t in results(x, sent, BACKEND).items():
        assert t.dtype == (torch.float32 if name in states else DTYPES[dtype])
        assert torch.equal(t, expected[name].to(t.dtype)), name


def test_a_mask_of_any_dtype_is_read_as_a_weight() -> None:
    x, sent = inputs_of(Case(2, 20, 2, 5, 6, "fp32"))
    for kind in (torch.bool, torch.bfloat16, torch.float64):
        check(x._replace(mask=x.mask.to(kind)), sent)


def unit(*parts: float, keys: int = 16) -> Tensor:
    return torch.nn.functional.pad(torch.tensor(parts, dtype=torch.float64), (0, keys - len(parts)))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_identical_keys_that_erase_all_do_not_blow_up(dtype: str) -> None:
    x, sent = inputs_of(Case(1, 70, 1, 16, 32, dtype, None, "none"))
    k = x.k[:, :1].expand_as(x.k)
    check(x._replace(k=k, b=torch.ones_like(x.b), w=torch.ones_like(x.w)), sent, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_two_keys_that_make_the_state_grow_as_fast_as_it_can_are_followed(dtype: str) -> None:
    """The product of the two transitions has the eigenvalue 1.25: 1.118 per token, the largest growth (math.md 2)."""
    x, sent = inputs_of(Case(1, 65, 1, 16, 32, dtype, None, "none"))
    c = math.sqrt(2) - 1
    s = math.sqrt(1 - c * c)
    k, b = x.k.clone(), x.b.clone()
    k[0, 0::2, 0], k[0, 1::2, 0] = unit(c, s).to(k.dtype), unit(s, c).to(k.dtype)
    b[0, 0::2, 0], b[0, 1::2, 0] = unit(1.0, 0.0).to(k.dtype), unit(0.0, 1.0).to(k.dtype)
    expected = check(x._replace(k=k, b=b), sent, dtype)
    assert expected["final"].norm() > 300 * x.initial_state.norm()


@pytest.mark.parametrize("decay", ["none", "slow", "moderate"])
def test_gates_of_zero_and_one_on_keys_that_resemble_each_other_cost_no_digits(decay: str) -> None:
    """Channel-wise gates expand what a scalar gate never does."""
    x, sent = inputs_of(Case(2, 65, 2, 16, 32, "fp32", None, decay))
    k = torch.nn.functional.normalize(x.k + 0.5 * unit(1.0, 1.0, 1.0, 1.0).float(), dim=-1)
    check(x._replace(k=k, b=x.b.round()), sent)


def test_a_hard_reset_in_a_slow_stream_costs_no_digits() -> None:
    x, sent = inputs_of(Case(1, 96, 1, 8, 8, "fp32", None, "slow"))
    g = x.g.clone()
    g[:, 5::7] = -1e4
    g[:, 20] = -math.inf
    g[:, 33, :, ::3] = -math.inf
    check(x._replace(g=g), sent)


def test_the_slope_of_a_gate_behind_a_reset_is_exactly_zero() -> None:
    """A long gap multiplies it by the elapsed time, and rounding noise with it."""
    x, sent = inputs_of(Case(1, 40, 2, 6, 5, "fp32", None, "slow"))
    for depth in (-1e4, -math.inf):
        g = x.g.clone()
        g[:, 25] = depth
        found = results(x._replace(g=g), [torch.zeros_like(sent[0]), sent[1]], BACKEND)
        assert not found["dg"][:, :26].any()
        assert found["dg"][:, 26:].all()
