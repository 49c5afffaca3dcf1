"""The reference against a float64 loop of its own: nothing here calls torch to advance a state."""

import math

import numpy as np
import pytest
import torch

from tsgdn2.kernels.ops import delta_scan, gdn2_scan


def numpy_scan(q, k, v, g, b, w, m, scale, state):
    B, T, H, _ = q.shape
    state, o = state.copy(), np.zeros_like(v)
    for i in range(B):
        for h in range(H):
            S = state[i, h]
            for t in range(T):
                e, z = m[i, t] * b[i, t, h] * k[i, t, h], m[i, t] * w[i, t, h] * v[i, t, h]
                identity = np.eye(len(e))
                S = (identity - np.outer(k[i, t, h], e)) @ np.diag(np.exp(g[i, t, h])) @ S + np.outer(k[i, t, h], z)
                o[i, t, h] = scale * S.T @ q[i, t, h]
            state[i, h] = S
    return o, state


def random_inputs(B, T, H, K, V, seed=0):
    rng = np.random.default_rng(seed)
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(2, B, T, H, K)))
    v = rng.normal(size=(B, T, H, V))
    g = -rng.exponential(size=(B, T, H, K))
    b, w = rng.random((B, T, H, K)), rng.random((B, T, H, V))
    m = rng.random((B, T)) * (rng.random((B, T)) > 0.3)
    return q, k, v, g, b, w, m, rng.normal(size=(B, H, K, V))


@pytest.mark.parametrize("shape", [(2, 9, 3, 5, 7), (1, 1, 1, 1, 1), (3, 20, 2, 8, 3)])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_the_reference_equals_a_float64_loop(shape, scale):
    *inputs, state = random_inputs(*shape)
    expected_o, expected_state = numpy_scan(*inputs, scale or shape[3] ** -0.5, state)
    q, k, v, g, b, w, m, S = (torch.tensor(x) for x in (*inputs, state))
    o, final = gdn2_scan(q, k, v, g, b, w, mask=m, scale=scale, initial_state=S, backend="reference")
    assert o.dtype == final.dtype == torch.float64
    np.testing.assert_allclose(o.numpy(), expected_o, rtol=0, atol=1e-12)
    np.testing.assert_allclose(final.numpy(), expected_state, rtol=0, atol=1e-12)


def test_without_an_initial_state_the_scan_starts_at_zero():
    q, k, v, g, b, w, m, S = (torch.tensor(x) for x in random_inputs(2, 5, 2, 3, 4))
    one = gdn2_scan(q, k, v, g, b, w, mask=m, backend="reference")
    two = gdn2_scan(q, k, v, g, b, w, mask=m, initial_state=torch.zeros_like(S), backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_an_empty_sequence_reads_nothing_and_keeps_its_state():
    q = torch.zeros(2, 0, 3, 4)
    state = torch.randn(2, 3, 4, 5)
    for backend in ("reference", "chunked", "auto"):
        o, final = delta_scan(q, q, q, torch.zeros(2, 0, 3, 5), q, initial_state=state, backend=backend)
        assert o.shape == (2, 0, 3, 5)
        assert torch.equal(final, state)


def test_two_orthonormal_keys_are_stored_erased_and_read_exactly():
    k = torch.eye(2, dtype=torch.float64)[[0, 1, 0]].view(1, 3, 1, 2)
    v = torch.tensor([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], dtype=torch.float64).view(1, 3, 1, 2)
    one, nothing = torch.ones_like(k), torch.zeros_like(k)
    o, state = gdn2_scan(k, k, v, nothing, one, one, scale=1.0, backend="reference")
    assert torch.equal(o, v)
    assert torch.equal(state.view(2, 2), torch.tensor([[7.0, 8.0], [5.0, 6.0]], dtype=torch.float64))


def test_the_erase_step_expands_by_two_over_root_three_at_most_and_reaches_it():
    angles = np.linspace(0, np.pi / 2, 4001)
    k = np.stack([np.cos(angles), np.sin(angles)], -1)
    norms = [
        np.linalg.norm(np.eye(2) - k[:, :, None] * (np.array(b) * k)[:, None, :], ord=2, axis=(1, 2)).max()
        for b in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5), (1.0, 0.5))
    ]
    supremum = 2 / math.sqrt(3)
    assert max(norms) == pytest.approx(supremum, abs=1e-6)
    rng = np.random.default_rng(0)
    k = rng.normal(size=(20000, 3))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    random = np.eye(3) - k[:, :, None] * (rng.random((20000, 3)) * k)[:, None, :]
    assert np.linalg.norm(random, ord=2, axis=(1, 2)).max() <= supremum


def test_an_adversarial_stream_without_decay_grows_by_1_118_per_token():
    best = 0.0
    angles = np.linspace(0, np.pi, 181)
    for one_axis, other_axis in ((0, 1), (0, 0)):
        for first in angles:
            k1 = np.array([np.cos(first), np.sin(first)])
            k2 = np.stack([np.cos(angles), np.sin(angles)], -1)
            b1, b2 = np.eye(2)[one_axis], np.eye(2)[other_axis]
            P1 = np.eye(2) - np.outer(k1, b1 * k1)
            P2 = np.eye(2) - k2[:, :, None] * (b2 * k2)[:, None, :]
            best = max(best, float(np.abs(np.linalg.eigvals(P2 @ P1)).max()) ** 0.5)
    assert best == pytest.approx(1.118, abs=1e-3)
