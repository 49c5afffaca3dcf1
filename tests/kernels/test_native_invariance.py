"""What must not change the native scan by a single bit: later tokens, packing, neighbours, threads, hidden values.

Here the scan is held against itself; whether its numbers are right is asked by test_native.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsgdn2.evaluation.kernel_grid import Case, Stream, results, stream, upstream, with_tokens
from tsgdn2.evaluation.kernel_grid import scan as scan_by
from tsgdn2.kernels.ops import delta_scan

BACKEND = "native"
CPU = torch.device("cpu")
TOKENS = ("q", "k", "v", "g", "b", "w")
PER_SEQUENCE = ("final", "dinitial_state")
CUTS = (1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 63, 64, 69)  # a state is kept every 16 tokens


@pytest.fixture(autouse=True)
def memory_that_nobody_wrote_is_nan():
    """torch.empty hands out NaN, so that a result which the library forgot to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def made(case: Case, seed: int = 0) -> Stream:
    x = stream(case, CPU, seed)
    if case.dtype != "fp64":
        return x
    return Stream(*(t.double() if t is not None and t.is_floating_point() else t for t in x))


def scan(x: Stream) -> tuple[Tensor, Tensor]:
    return scan_by(x, BACKEND)


def run(x: Stream, sent: Sequence[Tensor]) -> dict[str, Tensor]:
    return results(x, [t.to(kind.dtype) for t, kind in zip(sent, (x.v, x.initial_state), strict=True)], BACKEND)


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def tokens_of(x: Stream, begin: int, end: int) -> Stream:
    """The stream's tokens in [begin, end), with its state and without offsets."""
    mask = None if x.mask is None else x.mask[:, begin:end]
    return with_tokens(x, [t[:, begin:end] for t in x[:6]])._replace(mask=mask, cu_seqlens=None)


def joined(a: Stream, b: Stream) -> Stream:
    """The tokens of b after those of a, from a's state."""
    pairs = zip(a[:7], b[:7], strict=True)
    return Stream(*(None if x is None else torch.cat([x, y], 1) for x, y in pairs), a.initial_state)


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("decay", ["none", "moderate", "infinite"])
@pytest.mark.parametrize(("K", "V"), [(5, 3), (16, 24), (33, 70)])
def test_changing_a_later_token_leaves_earlier_outputs_bit_identical(K: int, V: int, decay: str, dtype: str) -> None:
    case = Case(2, 70, 2, K, V, dtype, decay=decay)
    x, other = made(case), made(case._replace(decay="infinite"), seed=1)
    before, _ = scan(x)
    for cut in CUTS:
        spoiled = with_tokens(other, [torch.where(other.k[:, :, :1, :1] > 0, math.nan, t) for t in other[:6]])
        for later in (other, spoiled):
            after, _ = scan(joined(tokens_of(x, 0, cut), tokens_of(later, cut, 70)))
            assert torch.equal(before[:, :cut], after[:, :cut]), cut
            assert not torch.equal(before[:, cut:], after[:, cut:])


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(2, 80),
    share=st.floats(0, 1),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    missing=st.sampled_from([None, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_a_stream_in_two_calls_equals_one_call(
    dtype: str, T: int, share: float, sizes: tuple[int, int], missing: float | None, seed: int
) -> None:
    """Outputs, states and, the carried state handing them on, all gradients."""
    case = Case(2, T, 2, *sizes, dtype, missing)
    x = made(case, seed)
    cut, sent = 1 + int(share * (T - 2)), upstream(case, x, seed)
    whole = run(x, sent)
    first = tokens_of(x, 0, cut)
    carried = scan(first)[1]
    second = run(tokens_of(x, cut, T)._replace(initial_state=carried), [sent[0][:, cut:], sent[1]])
    begun = run(first, [sent[0][:, :cut], second["dinitial_state"]])
    assert torch.equal(begun["final"], carried)
    together = {name: torch.cat([begun[name], second[name]], 1) for name in whole if name not in PER_SEQUENCE}
    assert_same({**together, "final": second["final"], "dinitial_state": begun["dinitial_state"]}, whole)


def check_packed(lengths: Sequence[int], case: Case, index: torch.dtype = torch.int64, seed: int = 0) -> None:
    case = case._replace(B=1, T=sum(lengths), lengths=(*lengths,))
    x = made(case, seed)
    sent = upstream(case, x, seed)
    packed = run(x._replace(cu_seqlens=x.cu_seqlens.to(index)), sent)
    for n, (begin, end) in enumerate(pairwise(x.cu_seqlens.tolist())):
        cut = {name: t[n : n + 1] if name in PER_SEQUENCE else t[:, begin:end] for name, t in packed.items()}
        alone = tokens_of(x, begin, end)._replace(initial_state=x.initial_state[n : n + 1])
        if begin == end:
            assert torch.equal(cut["final"], alone.initial_state)
            assert torch.equal(cut["dinitial_state"], sent[1][n : n + 1])
        else:
            assert_same(cut, run(alone, [sent[0][:, begin:end], sent[1][n : n + 1]]))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "lengths", [(1, 64, 65), (0, 17, 0, 50), (15, 16, 17, 32, 33, 0), (3, 0, 1), (5, 2) * 20], ids=str
)
def test_packed_sequences_equal_the_same_sequences_one_by_one(lengths: Sequence[int], count: int) -> None:
    with threads(count):
        check_packed(lengths, Case(1, 1, 2, 16, 32, "fp32"))
        check_packed(lengths, Case(1, 1, 1, 7, 129, "fp64", missing=None), torch.int32)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(any),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 1000),
)
def test_any_packing_equals_the_same_sequences_one_by_one(
    lengths: Sequence[int], sizes: tuple[int, int], seed: int
) -> None:
    check_packed(lengths, Case(1, 1, 2, *sizes, "fp32"), torch.int32, seed)


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize(("K", "V"), [(16, 32), (7, 129), (40, 40), (64, 64), (33, 97), (100, 256)])
def test_bits_depend_neither_on_the_rows_beside_nor_on_the_number_of_threads(K: int, V: int, dtype: str) -> None:
    """Few rows may be cut over V to make work for all threads, many are not; sums over V must not notice."""
    case = Case(17, 40, 2, K, V, dtype)
    x = made(case)
    sent = upstream(case, x)
    with threads(1):
        together = run(x, sent)
    with threads(2):
        assert_same(run(x, sent), together)
    for at, heads in ((slice(0, 1), slice(1, 2)), (slice(14, 17), slice(0, 1))):
        one = with_tokens(x, [t[at, :, heads] for t in x[:6]])
        one = one._replace(mask=x.mask[at], initial_state=x.initial_state[at, heads])
        cut = {n: t[at, heads] if n in PER_SEQUENCE else t[at, :, heads] for n, t in together.items()}
        for count in (1, 2):
            with threads(count):
                assert_same(run(one, [sent[0][at, :, heads], sent[1][at, heads]]), cut)


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("shape", [(2, 66, 2, 16, 32), (2, 200, 3, 64, 64)], ids=["small", "large"])
def test_what_an_unobserved_token_holds_is_never_seen(shape: tuple[int, ...], dtype: str) -> None:
    case = Case(*shape, dtype, missing=0.5)
    x = made(case)
    sent, hidden = upstream(case, x), x.mask == 0
    blank = with_tokens(x, [t if n == "g" else t.masked_fill(hidden[..., None, None], 0) for n, t in named_tokens(x)])
    clean = run(blank, sent)
    for names, value in (("kvbw", math.nan), ("q", math.nan), ("qkvbw", math.inf), ("qkvbw", -math.inf)):
        holding = [t.masked_fill(hidden[..., None, None], value) if n in names else t for n, t in named_tokens(blank)]
        found = run(with_tokens(x, holding), sent)
        # A query that is no number reads nothing and has no slope; the others are those of a query of zeros.
        assert torch.equal(found["dq"][~hidden], clean["dq"][~hidden])
        assert torch.isfinite(found.pop("dq")).all()
        assert_same(found, {name: t for name, t in clean.items() if name != "dq"})
        assert all(torch.isfinite(t).all() for t in found.values())


def named_tokens(x: Stream) -> list[tuple[str, Tensor]]:
    return list(zip(TOKENS, x[:6], strict=True))


def test_a_finite_query_of_an_unobserved_token_still_reads() -> None:
    x = made(Case(1, 20, 1, 4, 6, "fp32", missing=1.0))
    o, _ = scan(x)
    assert o.abs().sum(-1).all()


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_nothing_but_no_op_tokens_keeps_the_initial_state_bit_for_bit(dtype: str, zero: float) -> None:
    x = made(Case(2, 50, 2, 5, 9, dtype, missing=1.0, decay="none"))
    x.initial_state[0, 0, :, :6] = torch.tensor([-0.0, 0.0, 1e-42, -1e-42, 1e37, -1e37], dtype=x.q.dtype)
    x.mask.fill_(zero)
    x.g.fill_(zero)
    for poison in (math.nan, math.inf, 1.0):
        o, final = scan(with_tokens(x, [t if n == "g" else t.fill_(poison) for n, t in named_tokens(x)]))
        integers = torch.int32 if dtype == "fp32" else torch.int64
        assert torch.equal(final.view(integers), x.initial_state.view(integers))
        assert torch.isfinite(o).all()


@pytest.mark.parametrize(("tokens", "tail"), [(50, 10), (5, 9), (64, 66), (16, 1), (15, 17)])
def test_a_tail_of_no_op_tokens_leaves_the_final_state_and_all_gradients_bit_for_bit(tokens: int, tail: int) -> None:
    case = Case(2, tokens, 2, 16, 33, "fp32")
    x, padding = made(case), made(case._replace(T=tail), seed=1)
    sent, more = upstream(case, x), upstream(case._replace(T=tail), padding)[0]
    for t in padding[:6]:
        t[:, ::2] = math.nan
    padding.g.zero_()
    padding.mask.zero_()
    expected = run(x, sent)
    padded = run(joined(x, padding), [torch.cat([sent[0], torch.zeros_like(more)], 1), sent[1]])
    assert all(torch.isfinite(t).all() for t in padded.values())
    assert_same({n: t if n in PER_SEQUENCE else t[:, :tokens] for n, t in padded.items()}, expected)


@pytest.mark.parametrize("name", TOKENS)
def test_a_nan_that_no_mask_hides_spoils_its_own_stream_from_its_token_on_and_no_other(name: str) -> None:
    case = Case(3, 40, 2, 9, 20, "fp32")
    x = made(case)
    x.mask.fill_(1.0)
    sent = upstream(case, x)
    expected = run(x, sent)
    spoiled = getattr(x, name).clone()
    spoiled[1, 21, 1, 2] = math.nan
    found = run(x._replace(**{name: spoiled}), sent)
    assert torch.isnan(found["o"][1, 21, 1]).any()
    assert torch.equal(found["o"][1, :21], expected["o"][1, :21])
    for result, t in found.items():
        kept = torch.ones_like(t, dtype=torch.bool)
        kept[(1, 1) if result in PER_SEQUENCE else (1, slice(None), 1)] = False
        assert torch.equal(t[kept], expected[result][kept]), result


def test_a_mask_of_ones_is_no_mask_and_booleans_are_ones_and_zeros() -> None:
    case = Case(2, 40, 2, 6, 11, "fp32")
    x = made(case)
    sent = upstream(case, x)
    plain = x._replace(mask=None)
    assert_same(run(x._replace(mask=torch.ones_like(x.mask)), sent), run(plain, sent))
    seen = x.mask > 0
    assert_same(run(x._replace(mask=seen), sent), run(x._replace(mask=seen.float()), sent))


def test_the_gated_scan_is_the_delta_scan_of_gated_inputs() -> None:
    x = made(Case(2, 40, 2, 6, 11, "fp64"))
    m = x.mask[..., None, None]
    given_e_and_z = delta_scan(
        x.q, x.k, m * x.b * x.k, m * x.w * x.v, x.g, initial_state=x.initial_state, backend=BACKEND
    )
    torch.testing.assert_close(given_e_and_z, scan(x), rtol=0, atol=1e-14)


def test_the_layout_of_the_inputs_and_of_the_upstream_gradient_changes_no_bit() -> None:
    x = made(Case(3, 21, 2, 6, 10, "fp32"))
    x = with_tokens(x, [t[:, :, :1].expand_as(t) if n in "vb" else t for n, t in named_tokens(x)])
    plain = Stream(*(None if t is None else t.clone(memory_format=torch.contiguous_format) for t in x))
    sent = [torch.full((1, 1, 1, 1), 0.7).expand_as(t) for t in (x.v, x.initial_state)]
    expected = run(plain, [t.contiguous() for t in sent])
    turned = [t if n in "vb" else t.transpose(1, 3).contiguous().transpose(1, 3) for n, t in named_tokens(x)]
    strided = with_tokens(x, turned)._replace(
        mask=x.mask.t().contiguous().t(), initial_state=x.initial_state.mT.contiguous().mT
    )
    every_other = [torch.stack([t, torch.full_like(t, math.nan)], -1)[..., 0] for t in plain[:6]]
    for y in (strided, with_tokens(x, every_other)):
        assert_same(run(y, sent), expected)
