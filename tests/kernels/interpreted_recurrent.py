"""The recurrent kernel in Triton's interpreter: steps on a pool and short scans against the float64 reference.

TRITON_INTERPRET must be set before triton is first imported, so `test_triton_interpreted.py` runs this file in a
process of its own. Sizes are small: the interpreter takes milliseconds per program and token.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tsgdn2.kernels import ops
from tsgdn2.kernels.gpu.recurrent import recurrent_scan, recurrent_step, scan, step

# Relative RMS error |a - b| / |b| of outputs; states are fp32 whatever the inputs.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 5e-3}
STATE_TOLERANCE = 2e-6
SCALE = 0.6
# Natural log of the decay per token, from draws in [0,1): resets among moderate decay.
DECAY = {
    "none": torch.zeros_like,
    "moderate": lambda u: -u,
    "hard": lambda u: torch.where(u < 0.1, -1e4, -u),
    "reset": lambda u: torch.where(u < 0.1, -torch.inf, torch.where(u < 0.2, -1e30, -u)),
}


@pytest.fixture(autouse=True)
def memory_that_nobody_wrote_is_nan():
    """torch.empty hands out NaN, so that a result which the kernel forgot to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Tokens(NamedTuple):
    """q, k, g, b [B,T,H,K]; v, w [B,T,H,V]; mask [B,T] or None; where it is 0, k, v, b, w hold what poisons a sum."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    b: Tensor
    w: Tensor
    mask: Tensor | None

    def reference(self, state: Tensor, cu_seqlens: Tensor | None = None, gated: bool = True) -> tuple[Tensor, Tensor]:
        """O and the final state, in float64, of what the tokens hold after rounding."""
        q, k, v, g, b, w = (x.double() for x in self[:6])
        rest = {"scale": SCALE, "initial_state": state.double(), "cu_seqlens": cu_seqlens, "backend": "reference"}
        if gated:
            mask = None if self.mask is None else self.mask.double()
            return ops.gdn2_scan(q, k, v, g, b, w, mask=mask, **rest)
        return ops.delta_scan(q, k, b, v, g, **rest)

    def at(self, t: int) -> tuple[Tensor, ...]:
        """The arguments of a step after pool and slots."""
        return tuple(x if x is None else x[:, t] for x in self)


def tokens(
    B, T, H, K, V, *, missing=0.3, decay="moderate", dtype=torch.float32, half_g=False, poison=torch.nan, seed=0
):
    r = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=r)

    q, k = (torch.nn.functional.normalize(torch.randn(B, T, H, K, generator=r), dim=-1).to(dtype) for _ in range(2))
    v, b, w = (x.to(dtype) for x in (torch.randn(B, T, H, V, generator=r), uniform(B, T, H, K), uniform(B, T, H, V)))
    g = DECAY[decay](uniform(B, T, H, K)).to(dtype if half_g else torch.float32)
    if missing is None:
        return Tokens(q, k, v, g, b, w, None)
    mask = torch.where(uniform(B, T) < missing, 0.0, 0.25 + 0.75 * uniform(B, T))
    for x in (k, v, b, w):
        x[mask == 0] = poison
    q[..., 0] = torch.where(mask[..., None] == 0, poison, q[..., 0])
    return Tokens(q, k, v, g, b, w, mask)


def states(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(x: Tensor, expected: Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


def check_scan(x: Tokens, state: Tensor, cu_seqlens: Tensor | None = None, gated: bool = True) -> None:
    write = x.w if gated else None
    o, final = scan(x.q, x.k, x.b, x.v, write, x.g, x.mask, scale=SCALE, initial_state=state, bounds_tensor=cu_seqlens)
    expected_o, expected = x.reference(state, cu_seqlens, gated)
    assert o.dtype == x.v.dtype
    assert final.dtype == torch.float32
    assert torch.isfinite(o).all()
    assert error(o, expected_o) <= TOLERANCE[o.dtype]
    assert error(final, expected) <= STATE_TOLERANCE


@pytest.mark.parametrize("T", [1, 2, 15, 17, 33])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "e and z given"])
def test_a_scan_of_any_length_equals_the_reference(T, gated):
    check_scan(tokens(1, T, 2, 5, 7, missing=0.3 if gated else None), states(1, 2, 5, 7), gated=gated)


@pytest.mark.parametrize(("K", "V"), [(1, 1), (16, 48), (64, 32), (80, 16), (3, 65), (200, 20)])
def test_keys_and_values_of_any_width_equal_the_reference(K, V):
    check_scan(tokens(2, 3, 1, K, V), states(2, 1, K, V))


@pytest.mark.parametrize("decay", DECAY)
@pytest.mark.parametrize("missing", [None, 0.0, 0.5, 1.0])
def test_any_decay_and_any_share_of_missing_tokens_equal_the_reference(decay, missing):
    check_scan(tokens(1, 9, 2, 6, 10, missing=missing, decay=decay), states(1, 2, 6, 10))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("half_g", [True, False], ids=["half g", "fp32 g"])
def test_half_precision_inputs_round_nothing_but_the_reads(dtype, half_g):
    x = tokens(1, 17, 2, 16, 24, dtype=dtype, half_g=half_g)
    check_scan(x, states(1, 2, 16, 24))
    check_scan(tokens(1, 5, 1, 16, 24, dtype=dtype, half_g=half_g, missing=None), states(1, 1, 16, 24), gated=False)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "e and z given"])
def test_packed_sequences_some_of_them_empty_equal_the_reference(index, gated):
    bounds = torch.tensor([0, 0, 3, 3, 14, 15, 15], dtype=index)
    check_scan(tokens(1, 15, 2, 5, 18, missing=0.3 if gated else None), states(6, 2, 5, 18), bounds, gated)


@pytest.mark.parametrize("bounds", [None, torch.tensor([0, 0])], ids=["dense", "packed"])
def test_a_scan_of_no_tokens_hands_back_a_copy_of_the_state(bounds):
    x, state = tokens(1, 0, 2, 3, 4), states(1, 2, 3, 4)
    o, final = recurrent_scan(
        x.q, x.k, x.b, x.v, x.w, x.g, x.mask, scale=SCALE, initial_state=state, bounds_tensor=bounds
    )
    assert o.shape == (1, 0, 2, 4)
    assert torch.equal(final, state)
    assert final.data_ptr() != state.data_ptr()


def test_no_initial_state_is_a_state_of_zeros():
    x = tokens(2, 3, 1, 4, 6)
    arguments = (x.q, x.k, x.b, x.v, x.w, x.g, x.mask)
    given = scan(*arguments, scale=SCALE, initial_state=torch.zeros(2, 1, 4, 6), bounds_tensor=None)
    absent = scan(*arguments, scale=SCALE, initial_state=None, bounds_tensor=None)
    assert all(torch.equal(a, b) for a, b in zip(given, absent, strict=True))


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("K", "V", "dtype"), [(5, 7, torch.float32), (64, 40, torch.float32), (16, 48, torch.bfloat16)]
)
@pytest.mark.parametrize("missing", [None, 0.4])
def test_a_step_advances_the_rows_of_its_slots_and_touches_no_other(index, K, V, dtype, missing):
    slots = torch.tensor([6, 0, 3, 5], dtype=index)
    x = tokens(4, 1, 2, K, V, missing=missing, dtype=dtype)
    pool = torch.full((8, 2, K, V), torch.nan)
    pool[slots] = states(4, 2, K, V)
    before = pool.clone()
    expected_o, expected = x.reference(pool[slots])
    o = step(pool, slots, *x.at(0), scale=SCALE)
    assert o.dtype == dtype
    assert error(o, expected_o[:, 0]) <= TOLERANCE[dtype]
    assert error(pool[slots], expected) <= STATE_TOLERANCE
    untouched = [1, 2, 4, 7]
    assert torch.equal(bits(pool[untouched]), bits(before[untouched]))


def test_stepping_equals_the_scan():
    x, pool, slots = tokens(3, 9, 2, 6, 20), states(5, 2, 6, 20), torch.tensor([4, 0, 2])
    o, final = scan(x.q, x.k, x.b, x.v, x.w, x.g, x.mask, scale=SCALE, initial_state=pool[slots], bounds_tensor=None)
    reads = [step(pool, slots, *x.at(t), scale=SCALE) for t in range(9)]
    assert error(torch.stack(reads, 1), o.double()) <= TOLERANCE[torch.float32]
    assert error(pool[slots], final.double()) <= STATE_TOLERANCE


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 1.0])
def test_a_token_of_mask_and_decay_zero_changes_no_bit_of_a_state(poison):
    x = tokens(3, 1, 1, 5, 18, missing=1.0, decay="none", poison=poison)
    for zero in (0.0, -0.0):
        x.mask.fill_(zero)
        x.g.fill_(zero)
        pool = states(3, 1, 5, 18)
        pool[0, 0, :, :6] = torch.tensor([-0.0, 0.0, 1e-42, -1e-42, 1e37, -1e37])
        before = pool.clone()
        o = step(pool, torch.tensor([2, 0, 1]), *x.at(0), scale=SCALE)
        assert torch.equal(bits(pool), bits(before))
        assert torch.isfinite(o).all()
        _, final = scan(x.q, x.k, x.b, x.v, x.w, x.g, x.mask, scale=SCALE, initial_state=pool, bounds_tensor=None)
        assert torch.equal(bits(final), bits(before))


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float64])
def test_a_mask_of_any_dtype_is_read_as_a_weight(dtype):
    x = tokens(4, 2, 1, 4, 6)
    check_scan(x._replace(mask=x.mask.to(dtype)), states(4, 1, 4, 6))


def test_the_bits_of_a_row_depend_neither_on_its_place_nor_on_the_other_rows():
    alone, others, pool = tokens(1, 1, 2, 7, 20, missing=0.0), tokens(5, 1, 2, 7, 20, seed=1), states(6, 2, 7, 20)
    first = pool.clone()
    o = step(first, torch.tensor([2]), *alone.at(0), scale=SCALE)
    for place in (0, 3, 4):
        mixed = Tokens(*(torch.cat([b[:place], a, b[place + 1 :]]) for a, b in zip(alone, others, strict=True)))
        second = pool.roll(1, 0)
        slots = torch.tensor([[0, 1, 2, 4, 5][(row - place - 1) % 5] for row in range(5)])
        slots[place] = 3
        read = step(second, slots, *mixed.at(0), scale=SCALE)
        assert torch.equal(bits(read[place]), bits(o[0]))
        assert torch.equal(bits(second[3]), bits(first[2]))


def test_inputs_and_pools_need_not_be_contiguous():
    x, state = tokens(3, 2, 2, 5, 6), states(3, 2, 5, 6)
    apart = Tokens(*(x_.transpose(0, 1).contiguous().transpose(0, 1) for x_ in x))
    turned = state.transpose(2, 3).contiguous().transpose(2, 3)
    check_scan(apart, turned)
    slots = torch.tensor([2, 0, 1])
    expected = state.clone()
    read = step(expected, slots, *x.at(0), scale=SCALE)
    slab = states(3, 4, 2, 5, 6)
    slab[:, 1] = state
    before = slab.clone()
    for pool in (slab[:, 1], turned):
        assert torch.equal(step(pool, slots, *apart.at(0), scale=SCALE), read)
        assert torch.equal(pool, expected)
    assert torch.equal(slab[:, [0, 2, 3]], before[:, [0, 2, 3]])


def test_a_call_without_rows_returns_no_reads():
    x, pool = tokens(0, 1, 2, 5, 6), states(3, 2, 5, 6)
    before = pool.clone()
    assert step(pool, torch.tensor([], dtype=torch.int64), *x.at(0), scale=SCALE).shape == (0, 2, 6)
    assert torch.equal(pool, before)


def test_a_pool_may_hold_more_than_2_to_the_31_elements(tmp_path: Path):
    K = V = 256
    rows = 2**31 // (K * V) + 2
    pool = torch.from_file(str(tmp_path / "pool"), shared=True, size=rows * K * V).view(rows, 1, K, V)
    x, slots = tokens(2, 1, 1, K, V, missing=0.0), torch.tensor([rows - 1, 1])
    pool[slots] = states(2, 1, K, V)
    _, expected = x.reference(pool[slots])
    step(pool, slots, *x.at(0), scale=SCALE)
    assert error(pool[slots], expected) <= STATE_TOLERANCE
    assert not pool[[0, 2, rows - 2]].any()


def test_both_operators_keep_the_rules_of_torch():
    x, pool = tokens(2, 3, 2, 4, 6), states(5, 2, 4, 6)
    for mask in (x.mask, None):
        torch.library.opcheck(recurrent_step, (pool, torch.tensor([3, 1]), *x._replace(mask=mask).at(0), SCALE))
        for w, m in ((x.w, mask), (None, None)):
            torch.library.opcheck(recurrent_scan, (x.q, x.k, x.b, x.v, w, x.g, m, SCALE, pool[:2], None))
    packed = [y[:1] for y in (x.q, x.k, x.b, x.v, x.w, x.g, x.mask)]
    torch.library.opcheck(recurrent_scan, (*packed, SCALE, pool[:3], torch.tensor([0, 2, 2, 3])))


def test_both_operators_compile_into_one_graph():
    def both(pool, slots, x):
        read = recurrent_step(pool, slots, *x.at(0), SCALE)
        o, final = recurrent_scan(x.q, x.k, x.b, x.v, x.w, x.g, x.mask, SCALE, pool[slots], None)
        return 2 * read, o + 1, final

    x, slots = tokens(2, 3, 2, 4, 6), torch.tensor([3, 1])
    eager, compiled = states(5, 2, 4, 6), states(5, 2, 4, 6)
    expected = both(eager, slots, x)
    results = torch.compile(both, fullgraph=True, backend="aot_eager")(compiled, slots, x)
    assert torch.equal(compiled, eager)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
