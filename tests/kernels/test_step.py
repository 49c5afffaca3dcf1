"""One token on a pool: stepping equals the scan, no-ops change no bit, and rows do not feel each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.kernels.ops import gdn2_scan, gdn2_step


def random_tokens(N, H, K, V, *, dtype=torch.float32, seed=0):
    r = torch.Generator().manual_seed(seed)
    q, k = (torch.nn.functional.normalize(torch.randn(N, H, K, generator=r, dtype=dtype), dim=-1) for _ in range(2))
    v = torch.randn(N, H, V, generator=r, dtype=dtype)
    g = -3 * torch.rand(N, H, K, generator=r, dtype=dtype)
    b = torch.rand(N, H, K, generator=r, dtype=dtype)
    return q, k, v, g, b, torch.rand(N, H, V, generator=r, dtype=dtype)


def random_pool(S, H, K, V, *, dtype=torch.float32):
    return torch.randn(S, H, K, V, generator=torch.Generator().manual_seed(7), dtype=dtype)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_stepping_equals_the_scan(backend):
    B, T, H, K, V = 3, 37, 2, 5, 4
    flat = random_tokens(B * T, H, K, V, dtype=torch.float64)
    q, k, v, g, b, w = (x.unflatten(0, (B, T)) for x in flat)
    mask = (torch.arange(B * T).view(B, T) % 5).double() / 4
    pool = random_pool(6, H, K, V, dtype=torch.float64)
    slots = torch.tensor([4, 0, 3])
    o, final = gdn2_scan(q, k, v, g, b, w, mask=mask, scale=0.6, initial_state=pool[slots], backend=backend)
    for t in range(T):
        read = gdn2_step(pool, slots, *(x[:, t] for x in (q, k, v, g, b, w)), mask=mask[:, t], scale=0.6)
        torch.testing.assert_close(read, o[:, t], rtol=0, atol=1e-12)
    torch.testing.assert_close(pool[slots], final, rtol=0, atol=1e-12)


def test_slots_of_32_bits_name_the_same_rows_in_torch():
    tokens = random_tokens(2, 1, 2, 3)
    pools = [random_pool(3, 1, 2, 3) for _ in range(2)]
    for pool, dtype in zip(pools, (torch.int32, torch.int64), strict=True):
        gdn2_step(pool, torch.tensor([2, 0], dtype=dtype), *tokens, backend="reference")
    assert torch.equal(*pools)


def test_only_the_chosen_slots_change():
    pool = random_pool(5, 2, 3, 4)
    before = pool.clone()
    gdn2_step(pool, torch.tensor([3, 1]), *random_tokens(2, 2, 3, 4))
    assert torch.equal(pool[[0, 2, 4]], before[[0, 2, 4]])
    assert not torch.equal(pool[[1, 3]], before[[1, 3]])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mask_zero_without_decay_keeps_the_state_bit_for_bit(poison, dtype):
    pool = random_pool(4, 2, 5, 3, dtype=dtype)
    before = pool.clone()
    q, k, v, g, b, w = random_tokens(4, 2, 5, 3, dtype=dtype)
    mask = torch.tensor([0, 1, 0, 0], dtype=dtype)
    g[mask == 0] = 0
    for x in (q, k, v, b, w):
        x[mask == 0] = poison
    o = gdn2_step(pool, torch.arange(4), q, k, v, g, b, w, mask=mask)
    assert torch.equal(pool[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(pool[1], before[1])
    assert torch.isfinite(o).all()


def test_half_precision_inputs_step_a_float32_state():
    pool = random_pool(2, 1, 4, 3)
    q, k, v, g, b, w = random_tokens(2, 1, 4, 3)
    half = [x.bfloat16() for x in (q, k, v, g, b, w)]
    expected_pool = pool.clone()
    expected = gdn2_step(expected_pool, torch.arange(2), *(x.float() for x in half))
    o = gdn2_step(pool, torch.arange(2), *half[:3], half[3].float(), *half[4:])
    assert o.dtype == torch.bfloat16
    assert torch.equal(pool, expected_pool)
    assert torch.equal(o, expected.bfloat16())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    place=st.integers(0, 15),
    seed=st.integers(0, 1000),
)
def test_the_bits_of_a_row_depend_neither_on_its_place_nor_on_the_other_rows(sizes, place, seed):
    alone = random_tokens(16, *sizes, seed=seed)
    others = random_tokens(16, *sizes, seed=seed + 1)
    pool = random_pool(16, *sizes)
    mask = torch.full((16,), 0.5)
    first, second = pool.clone(), pool.flip(0).clone()
    o = gdn2_step(first, torch.arange(16), *alone, mask=mask)
    moved = [x.clone() for x in others]
    for x, row in zip(moved, alone, strict=True):
        x[place] = row[0]
    other_mask = (torch.arange(16) % 3).float() / 2
    other_mask[place] = 0.5
    moved[2][other_mask == 0] = torch.nan
    slots = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    second[slots[place]] = pool[0]
    moved_o = gdn2_step(second, slots, *moved, mask=other_mask)
    assert torch.equal(moved_o[place], o[0])
    assert torch.equal(second[slots[place]], first[0])
