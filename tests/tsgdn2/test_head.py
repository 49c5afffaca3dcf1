"""The loss of the quantile head equals its definition, and so does its gradient."""

import torch

from tsgdn2.head import quantile_loss

LEVELS = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)


def plain_loss(prediction, target):
    error = target[..., None] - prediction
    return (2 * torch.maximum(LEVELS * error, (LEVELS - 1) * error)).mean(-1)


def test_the_quantile_loss_is_the_pinball_loss_and_splits_the_slope_where_it_is_hit():
    torch.manual_seed(0)
    prediction = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    target = torch.randn(3, 5, 2, dtype=torch.float64)
    prediction[0, 0] = target[0, 0, :, None]
    prediction.requires_grad_()
    ours, plain = quantile_loss(prediction, target, LEVELS), plain_loss(prediction, target)
    assert torch.allclose(ours, plain, rtol=1e-12, atol=1e-14)
    sent = torch.randn_like(plain)
    mine, theirs = (torch.autograd.grad(loss, prediction, sent)[0] for loss in (ours, plain))
    assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-14)
