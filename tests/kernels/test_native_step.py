"""The native step on a pool of states: right numbers, the bits of the scan, and nothing else of the pool touched.

Equal bits matter more here than small errors: a stream that is replayed, batched with others or read from a
checkpoint must find the state that it left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsgdn2.evaluation.kernel_grid import DECAYS, DTYPES, Case, Stream, stream
from tsgdn2.kernels.ops import gdn2_scan, gdn2_step

BACKEND = "native"
CPU = torch.device("cpu")
SCALE = 0.6
TOLERANCE = {"fp64": 1e-12, "fp32": 1e-6}  # relative RMS error |a - b| / |b| of reads and states


@pytest.fixture(autouse=True)
def memory_that_nobody_wrote_is_nan():
    """torch.empty hands out NaN, so that a read which the library forgot to write shows."""
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
    """A stream of T tokens for each of B rows; where its mask is 0, everything but g holds NaN."""
    x = stream(case._replace(initial=False), CPU, seed)
    if x.mask is not None:
        hidden = (x.mask == 0)[..., None, None]
        x = Stream(*(t if n == 3 else t.masked_fill(hidden, math.nan) for n, t in enumerate(x[:6])), x.mask)
    return Stream(*(t if t is None or case.dtype != "fp64" else t.double() for t in x))


def pool_of(rows: int, case: Case, seed: int = 7) -> Tensor:
    dtype = torch.float64 if case.dtype == "fp64" else torch.float32
    shape = (rows, case.H, case.K, case.V)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def permuted(rows: int, pool: Tensor, index: torch.dtype = torch.int64) -> Tensor:
    return torch.randperm(len(pool), generator=torch.Generator().manual_seed(3))[:rows].to(index)


def step(pool: Tensor, slots: Tensor, x: Stream, t: int = 0, backend: str = BACKEND) -> Tensor:
    mask = None if x.mask is None else x.mask[:, t]
    return gdn2_step(pool, slots, *(token[:, t] for token in x[:6]), mask=mask, scale=SCALE, backend=backend)


def bits(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.int64 if t.dtype == torch.float64 else torch.int32)


def error(found: Tensor, expected: Tensor, floor: float) -> float:
    """Relative RMS; numbers that cancel to less than `floor` are set against that."""
    return float(
        (found.double() - expected).norm() / expected.norm().clamp_min(floor * expected.numel() ** 0.5 + 1e-30)
    )


def check(case: Case, pool: Tensor, slots: Tensor, seed: int = 0, floor: float = 0.0) -> None:
    """Steps of all T tokens against the reference in float64, and the rest of the pool bit for bit."""
    x = made(case, seed)
    true, before, chosen = pool.double().clone(), pool.clone(), slots.long()
    wide = Stream(*(None if t is None else t.double() for t in x))
    for t in range(case.T):
        o, expected = step(pool, slots, x, t), step(true, chosen, wide, t, "reference")
        assert error(o, expected, floor) <= TOLERANCE[case.dtype]
    assert error(pool[chosen], true[chosen], floor) <= TOLERANCE[case.dtype]
    rest = torch.ones(len(pool), dtype=torch.bool).index_fill_(0, chosen, False)
    assert torch.equal(bits(pool[rest]), bits(before[rest]))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("missing", [None, 0.0, 0.4, 1.0])
def test_steps_equal_the_reference_and_touch_no_other_row(decay: str, missing: float | None, dtype: str) -> None:
    case = Case(5, 4, 2, 9, 13, dtype, missing, decay)
    pool = pool_of(11, case)
    slots = permuted(5, pool)
    pool[torch.ones(11, dtype=torch.bool).index_fill_(0, slots, False)] = math.nan
    check(case, pool, slots)


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize(
    ("K", "V"), [(1, 1), (1, 17), (17, 1), (8, 8), (16, 16), (17, 100), (100, 17), (33, 65), (1, 256), (256, 256)]
)
def test_keys_and_values_of_any_width_equal_the_reference(K: int, V: int, dtype: str) -> None:
    case = Case(3, 3, 2, K, V, dtype)
    pool = pool_of(5, case)
    check(case, pool, permuted(3, pool, torch.int32))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    missing=st.none() | st.floats(0, 1),
    index=st.sampled_from([torch.int32, torch.int64]),
    dtype=st.sampled_from(sorted(TOLERANCE)),
    count=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_any_number_of_rows_of_any_size_equals_the_reference(
    rows: int,
    sizes: tuple[int, int, int],
    missing: float | None,
    index: torch.dtype,
    dtype: str,
    count: int,
    seed: int,
) -> None:
    case = Case(rows, 2, *sizes, dtype, missing)
    pool = pool_of(rows + 3, case)
    with threads(count):
        check(case, pool, permuted(rows, pool, index), seed, floor=0.1)


@pytest.mark.parametrize("dtype", [*TOLERANCE, "bf16", "fp16"])
@settings(max_examples=15, deadline=None)
@given(
    T=st.integers(1, 40),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    decay=st.sampled_from(sorted(DECAYS)),
    missing=st.none() | st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_stepping_has_the_bits_of_the_scan(
    dtype: str, T: int, sizes: tuple[int, int, int], decay: str, missing: float | None, seed: int
) -> None:
    case = Case(3, T, *sizes, dtype, missing, decay)
    x, pool = made(case, seed), pool_of(6, case)
    slots = permuted(3, pool)
    o, final = gdn2_scan(*x[:6], mask=x.mask, scale=SCALE, initial_state=pool[slots], backend=BACKEND)
    reads = [step(pool, slots, x, t) for t in range(T)]
    assert torch.equal(torch.stack(reads, 1), o)
    assert torch.equal(pool[slots], final)


@pytest.mark.parametrize("half_g", [True, False], ids=["half g", "fp32 g"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_inputs_step_a_float32_state_and_only_reads_are_rounded(dtype: str, half_g: bool) -> None:
    case = Case(6, 1, 2, 16, 24, dtype, 0.4)
    x, pool, single = made(case), pool_of(8, case), pool_of(8, case)
    x = x._replace(g=x.g.to(DTYPES[dtype])) if half_g else x
    o, wide = step(pool, permuted(6, pool), x), Stream(*(t if t is None else t.float() for t in x))
    assert torch.equal(o, step(single, permuted(6, pool), wide).to(DTYPES[dtype]))
    assert torch.equal(pool, single)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    place=st.integers(0, 15),
    seed=st.integers(0, 1000),
)
def test_the_bits_of_a_row_depend_neither_on_its_place_nor_on_the_other_rows(
    sizes: tuple[int, int, int], place: int, seed: int
) -> None:
    case = Case(16, 1, *sizes, "fp32", 0.4)
    alone, others, pool = made(case, seed), made(case, seed + 1), pool_of(16, case)
    first, second = pool[:1].clone(), pool.flip(0).clone()
    o = step(first, torch.tensor([0]), Stream(*(t if t is None else t[:1] for t in alone)))
    moved = Stream(*(t if t is None else t.clone() for t in others))
    for t, row in zip(moved[:7], alone[:7], strict=True):
        t[place] = row[0]
    slots = permuted(16, pool)
    second[slots[place]] = pool[0]
    for count in (1, 2):
        with threads(count):
            after = second.clone()
            read = step(after, slots, moved)
        assert torch.equal(read[place], o[0])
        assert torch.equal(after[slots[place]], first[0])


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    case = Case(500, 1, 4, 16, 16, "fp32")
    x, pools = made(case), []
    for count in (1, 2):
        with threads(count):
            pool = pool_of(600, case)
            pools.append((step(pool, permuted(500, pool), x), pool))
    assert all(torch.equal(a, b) for a, b in zip(*pools, strict=True))


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1.0])
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_mask_zero_without_decay_keeps_the_state_bit_for_bit(poison: float, dtype: str, zero: float) -> None:
    case = Case(4, 1, 2, 5, 18, dtype, missing=0.0)
    x, pool = made(case), pool_of(4, case)
    pool[0, 0, :, :6] = torch.tensor([-0.0, 0.0, 1e-42, -1e-42, 1e37, -1e37], dtype=pool.dtype)
    before, hidden = pool.clone(), [0, 2, 3]
    for n, t in enumerate(x[:6]):
        t[hidden] = zero if n == 3 else poison
    x.mask[hidden] = zero
    o = step(pool, torch.tensor([0, 1, 2, 3]), x)
    assert torch.equal(bits(pool[hidden]), bits(before[hidden]))
    assert not torch.equal(pool[1], before[1])
    assert torch.isfinite(o).all()


def test_a_nan_that_no_mask_hides_spoils_its_own_head_and_no_other() -> None:
    for n in range(6):
        case = Case(4, 1, 2, 5, 18, "fp32", None)
        x, pool, clean = made(case), pool_of(4, case), pool_of(4, case)
        slots = permuted(4, pool)
        expected = step(clean, slots, x)
        x[n][1, 0, 1, 2] = math.nan
        o = step(pool, slots, x)
        assert torch.isnan(o[1, 1]).any()
        kept = torch.ones(4, 2, dtype=torch.bool)
        kept[1, 1] = False
        assert torch.equal(o[kept], expected[kept])
        assert torch.equal(pool[slots][kept], clean[slots][kept])


@pytest.mark.parametrize("kind", [torch.bool, torch.bfloat16, torch.float64])
def test_a_mask_of_any_dtype_is_read_as_a_weight(kind: torch.dtype) -> None:
    case = Case(6, 1, 2, 5, 7, "fp32", 0.4)
    x, pool, other = made(case), pool_of(8, case), pool_of(8, case)
    slots, mask = permuted(6, pool), x.mask.to(kind)
    assert torch.equal(step(pool, slots, x._replace(mask=mask)), step(other, slots, x._replace(mask=mask.float())))
    assert torch.equal(pool, other)


@pytest.mark.parametrize("rows", [3, 700])
def test_slots_that_name_a_row_twice_or_none_are_refused_and_nothing_changes(rows: int) -> None:
    case = Case(rows, 1, 1, 2, 3, "fp32")
    x, pool = made(case), pool_of(rows + 1, case)
    before = pool.clone()
    for place, slot, said in ((0, 1, "unique"), (1, rows + 1, rf"\[0, {rows + 1}\)"), (2, -1, rf"\[0, {rows + 1}\)")):
        slots = torch.arange(rows)
        slots[place] = slot
        with pytest.raises(ValueError, match=f"slots.*{said}"):
            step(pool, slots, x)
    assert torch.equal(pool, before)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_inputs_slots_and_pools_need_not_be_contiguous(index: torch.dtype) -> None:
    case = Case(3, 1, 2, 5, 6, "fp32", None)
    x, plain = made(case), pool_of(4, case)
    expected, state = plain.clone(), plain.clone()
    slots = torch.tensor([2, 9, 0, 9, 1, 9], dtype=index)[::2]
    read = step(expected, slots.contiguous(), x)
    slab = pool_of(16, case, seed=1).view(4, 4, 2, 5, 6)
    slab[:, 1] = state
    before = slab.clone()
    apart = Stream(*(t.transpose(0, 3).contiguous().transpose(0, 3) for t in x[:6]))
    for pool in (slab[:, 1], state.transpose(2, 3).contiguous().transpose(2, 3), state.clone()):
        assert torch.equal(step(pool, slots, apart), read)
        assert torch.equal(pool, expected)
    assert torch.equal(slab[:, [0, 2, 3]], before[:, [0, 2, 3]])


def test_pools_of_inference_mode_are_stepped_in_place() -> None:
    case = Case(3, 1, 2, 5, 6, "fp32")
    x, expected = made(case), pool_of(4, case)
    slots = permuted(3, expected)
    read = step(expected, slots, x)
    with torch.inference_mode():
        for pool in (pool_of(4, case), pool_of(4, case).clone()):
            assert torch.equal(step(pool, slots.clone(), x), read)
            assert torch.equal(pool, expected)


def test_no_gradient_is_recorded_whatever_wants_one() -> None:
    case = Case(3, 1, 2, 5, 6, "fp32")
    x, pool = made(case), pool_of(4, case)
    leaves = Stream(*(t.requires_grad_() for t in x[:7]))
    assert not step(pool, permuted(3, pool), leaves).requires_grad
    assert not pool.requires_grad


def test_a_step_is_seen_by_what_saved_the_pool() -> None:
    case = Case(2, 1, 1, 4, 6, "fp32")
    pool = pool_of(3, case)
    weight = torch.ones_like(pool).requires_grad_()
    loss, version = (pool * weight).sum(), pool._version
    step(pool, torch.tensor([2, 0]), made(case))
    assert pool._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_call_without_rows_returns_no_reads() -> None:
    case = Case(0, 1, 2, 5, 6, "fp32", None)
    pool = pool_of(3, case)
    before = pool.clone()
    assert step(pool, torch.tensor([], dtype=torch.int64), made(case)).shape == (0, 2, 6)
    assert torch.equal(pool, before)
