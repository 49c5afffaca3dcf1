"""What is differentiated by hand equals what autograd makes of the plain expression, at odd shapes too."""

import pytest
import torch

from tsgdn2.adjoints import rms_norm, short_conv, unit

EPS = 1e-6


def plain_unit(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def plain_rms_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def plain_conv(inputs, conv, last=None):
    if last is not None:
        return plain_conv(inputs, conv[:-1]) + conv[-1] * last
    tokens = inputs.shape[1] + 1 - len(conv)
    return sum(conv[i] * inputs[:, i : i + tokens] for i in range(len(conv)))


PAIRS = {
    "unit": (lambda x: unit(x, EPS), plain_unit, [(2, 3, 5)]),
    "unit of nothing": (lambda x: unit(x, EPS), plain_unit, [(0, 4)]),
    "rms_norm": (lambda x, w: rms_norm(x, w, EPS), plain_rms_norm, [(3, 1, 7), (7,)]),
    "rms_norm of one row": (lambda x, w: rms_norm(x, w, EPS), plain_rms_norm, [(6,), (6,)]),
    "short_conv": (short_conv, plain_conv, [(2, 8, 5), (4, 5)]),
    "short_conv of one token": (short_conv, plain_conv, [(3, 4, 1), (4, 1)]),
    "short_conv with tokens beside": (lambda x, w, y: short_conv(x, w, y), plain_conv, [(2, 7, 3), (4, 3), (2, 5, 3)]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_equal_those_of_the_plain_expression(name):
    ours, plain, shapes = PAIRS[name]
    torch.manual_seed(0)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    y, expected = ours(*leaves), plain(*leaves)
    assert torch.equal(y, expected), "the bits are those of the plain expression"
    with torch.no_grad():
        assert torch.equal(ours(*leaves), expected), "without autograd, too"
    sent = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(y, leaves, sent), torch.autograd.grad(expected, leaves, sent), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-12)


def test_vectors_of_zeros_have_finite_gradients():
    x = torch.zeros(2, 4, requires_grad=True)
    for y in (unit(x, EPS), rms_norm(x, torch.ones(4), EPS)):
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(y, torch.zeros(2, 4))
        assert torch.isfinite(dx).all()
