"""The chunkwise path against the reference: outputs, states, every gradient, causality, and extreme decays."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.kernels import chunked
from tsgdn2.kernels.ops import delta_scan, gdn2_scan

LENGTHS = (1, 2, 63, 64, 65, 257)
NAMES = ("o", "final", "dq", "dk", "dv", "dg", "db", "dw", "dmask", "dinitial")
# Largest |chunked - float64 reference| / (1 + largest |reference|): outputs and states, then gradients.
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (2e-6, 3e-6), torch.bfloat16: (4e-3, 2e-2)}


def random_inputs(B, T, H, K, V, *, missing=0.3, strength=1.0, dtype=torch.float64, seed=0):
    r = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=r, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=r, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(normal(B, T, H, K), dim=-1) for _ in range(2))
    g = -strength * uniform(B, T, H, K)
    mask = uniform(B, T) * (uniform(B, T) >= missing)
    tokens = [q, k, normal(B, T, H, V), g, uniform(B, T, H, K), uniform(B, T, H, V), mask]
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return [x.to(dtype) for x in tokens] + [normal(B, H, K, V).to(state_dtype)]


def run(inputs, backend, *, cu_seqlens=None):
    """Outputs, final state and all gradients of a loss that weighs both."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    q, k, v, g, b, w, mask, state = leaves
    o, final = gdn2_scan(
        q, k, v, g, b, w, mask=mask, initial_state=state, cu_seqlens=cu_seqlens, backend=backend
    )  # fmt: skip
    r = torch.Generator().manual_seed(9)
    weights = [torch.randn(x.shape, generator=r, dtype=torch.float64) for x in (o, final)]
    loss = sum((x.double() * weight).sum() for x, weight in zip((o, final), weights, strict=True))
    return [o.detach(), final.detach(), *torch.autograd.grad(loss, leaves)]


def assert_close(expected, actual, tolerance):
    for number, (name, a, b) in enumerate(zip(NAMES, expected, actual, strict=True)):
        error = float((a.double() - b.double()).abs().max() / (1 + a.double().abs().max()))
        assert error <= tolerance[number > 1], f"{name}: {error}"


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("strength", [0.0, 1.0, 1e4])
def test_chunked_equals_the_reference_in_float64(length, strength):
    for missing in (0.0, 0.5, 1.0):
        inputs = random_inputs(2, length, 2, 5, 7, missing=missing, strength=strength)
        assert_close(run(inputs, "reference"), run(inputs, "chunked"), TOLERANCE[torch.float64])


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 80),
    sizes=st.tuples(*(st.integers(1, 9) for _ in range(2))),
    heads=st.integers(1, 3),
    missing=st.floats(0, 1),
    exponent=st.floats(-3, 4),
    seed=st.integers(0, 1000),
)
def test_chunked_equals_the_reference_for_any_length_size_mask_and_decay(length, sizes, heads, missing, exponent, seed):
    inputs = random_inputs(1, length, heads, *sizes, missing=missing, strength=10**exponent, seed=seed)
    assert_close(run(inputs, "reference"), run(inputs, "chunked"), TOLERANCE[torch.float64])


@pytest.mark.parametrize("chunk", [1, 2, 8, 32, 64])
def test_the_chunk_length_changes_nothing(chunk):
    q, k, v, g, b, w, _, state = random_inputs(2, 67, 2, 4, 6)
    expected = delta_scan(q, k, b * k, w * v, g, scale=0.5, initial_state=state, backend="reference")
    actual = chunked.delta_scan(q, k, b * k, w * v, g, scale=0.5, initial_state=state, chunk=chunk)
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.0, 1.0, 1e4, 1e6])
def test_lower_precision_stays_within_its_tolerance_of_float64(dtype, strength):
    inputs = random_inputs(2, 257, 2, 16, 8, strength=strength, dtype=dtype)
    for backend in ("chunked", "reference"):
        actual = run(inputs, backend)
        assert actual[0].dtype == dtype
        assert actual[1].dtype == torch.float32
        assert_close(run([x.double() for x in inputs], "reference"), actual, TOLERANCE[dtype])


def test_a_hard_reset_in_a_slow_stream_costs_no_digits_in_float32():
    inputs = random_inputs(1, 96, 1, 8, 8, strength=0.01, dtype=torch.float32)
    inputs[3][:, 5::7] = -1e4
    expected = run([x.double() for x in inputs], "reference")
    assert_close(expected, run(inputs, "chunked"), (2e-6, 2e-6))


def test_a_decay_of_minus_infinity_forgets_everything():
    inputs = random_inputs(1, 40, 1, 4, 4)
    inputs[3][:, 20] = -torch.inf
    assert_close(run(inputs, "reference"), run(inputs, "chunked"), TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strength", [0.1, 30.0, 1e6])
@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_changing_a_later_token_leaves_earlier_outputs_bit_identical(dtype, strength, backend):
    inputs = random_inputs(2, 70, 2, 16, 5, strength=strength, dtype=dtype)
    *tokens, mask, state = inputs
    before, _ = gdn2_scan(*tokens, mask=mask, initial_state=state, backend=backend)
    other = random_inputs(2, 70, 2, 16, 5, strength=100 * strength, dtype=dtype, seed=1)
    for cut in (1, 8, 15, 16, 31, 37, 69):
        changed = [torch.cat([a[:, :cut], b[:, cut:]], 1) for a, b in zip(inputs[:7], other[:7], strict=True)]
        after, _ = gdn2_scan(*changed[:6], mask=changed[6], initial_state=state, backend=backend)
        assert torch.equal(before[:, :cut], after[:, :cut]), cut
        assert not torch.equal(before[:, cut:], after[:, cut:])


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda x: sum(x) > 0))
def test_packed_sequences_equal_separate_ones(backend, lengths):
    total = sum(lengths)
    inputs = random_inputs(1, total, 2, 4, 3)
    inputs[-1] = random_inputs(len(lengths), 1, 2, 4, 3, seed=5)[-1]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    packed = run(inputs, backend, cu_seqlens=cu_seqlens)
    assert_close(run(inputs, "reference", cu_seqlens=cu_seqlens), packed, TOLERANCE[torch.float64])
    for n, length in enumerate(lengths):
        begin = int(cu_seqlens[n])
        *tokens, mask = (x[:, begin : begin + length] for x in inputs[:7])
        o, final = gdn2_scan(*tokens, mask=mask, initial_state=inputs[-1][n : n + 1], backend=backend)
        torch.testing.assert_close(packed[0][:, begin : begin + length], o, rtol=0, atol=1e-12)
        torch.testing.assert_close(packed[1][n : n + 1], final, rtol=0, atol=1e-12)


def test_analytic_gradients_pass_gradcheck():
    q, k, v, g, b, w, _, state = random_inputs(1, 7, 1, 3, 2)
    leaves = [x.requires_grad_() for x in (q, k, (b * k).detach(), (w * v).detach(), g - 0.05, state)]

    def scan(q, k, e, z, g, state):
        return chunked.delta_scan(q, k, e, z, g, scale=0.7, initial_state=state, chunk=4)

    assert torch.autograd.gradcheck(scan, leaves)


def test_a_second_derivative_is_refused_and_not_silently_wrong():
    q, k, v, g, b, w, _, _ = random_inputs(1, 4, 1, 3, 2)
    q.requires_grad_()
    o, _ = gdn2_scan(q, k, v, g, b, w, backend="chunked")
    (dq,) = torch.autograd.grad(o.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


@pytest.mark.parametrize("used", [0, 1])
def test_a_loss_on_only_one_of_the_two_results_has_the_right_gradients(used):
    gradients = []
    for backend in ("reference", "chunked"):
        leaves = [x.requires_grad_() for x in random_inputs(1, 20, 2, 3, 4)]
        *tokens, mask, state = leaves
        result = gdn2_scan(*tokens, mask=mask, initial_state=state, backend=backend)[used]
        grads = torch.autograd.grad(result.square().sum(), leaves, allow_unused=True)
        gradients.append([torch.zeros_like(x) if d is None else d for x, d in zip(leaves, grads, strict=True)])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_a_masked_token_reads_and_never_writes_whatever_it_holds():
    for length in (8, 40):
        inputs = random_inputs(2, length, 2, 5, 3, missing=0.0)
        inputs[6][:, 3::4] = 0
        clean = {backend: run(inputs, backend) for backend in ("reference", "chunked")}
        for i in (1, 2, 4, 5):
            inputs[i][:, 3::4] = torch.nan
        for backend, (o, final, *gradients) in clean.items():
            spoiled_o, spoiled_final, *spoiled_gradients = run(inputs, backend)
            torch.testing.assert_close(spoiled_o, o, rtol=0, atol=1e-14)
            torch.testing.assert_close(spoiled_final, final, rtol=0, atol=1e-14)
            for number, (a, b) in enumerate(zip(gradients, spoiled_gradients, strict=True)):
                if number != 6:  # a mask of 0 has a slope of its own, and what it would let in is not known
                    torch.testing.assert_close(b, a, rtol=0, atol=1e-12)
                assert torch.isfinite(b).all()


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_padding_with_no_op_tokens_keeps_the_state_bit_for_bit(backend):
    inputs = random_inputs(2, 50, 2, 5, 3, dtype=torch.float32, missing=1.0, strength=0.0)
    *tokens, mask, state = inputs
    for x in (tokens[0], tokens[1], tokens[2], tokens[4], tokens[5]):
        x[:, ::2] = torch.nan
        x[:, 1::2] = torch.inf
    o, final = gdn2_scan(*tokens, mask=mask, initial_state=state, backend=backend)
    assert torch.equal(final, state)
    assert torch.isfinite(o).all()


def test_autocast_does_not_lower_the_arithmetic_of_the_state():
    inputs = random_inputs(1, 40, 1, 8, 8, dtype=torch.float32)
    *tokens, mask, state = inputs
    expected = gdn2_scan(*tokens, mask=mask, initial_state=state, backend="chunked")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gdn2_scan(*tokens, mask=mask, initial_state=state, backend="chunked")
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
