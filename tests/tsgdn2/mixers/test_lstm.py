"""The LSTM is its cell, token by token: in windows, steps and reads, and in the gradients of a loop written by hand."""

import numpy as np
import pytest
import torch
from torch.nn import LSTM

from tsgdn2.mixers.contract import Commits
from tsgdn2.mixers.lstm import LSTMMixer
from tsgdn2.sequence import Sequences

D, HIDDEN = 12, 5
TIGHT = {"rtol": 1e-9, "atol": 1e-10}


def lstm():
    torch.manual_seed(0)
    return LSTMMixer(D, HIDDEN).double()


def carried(mixer, rows):
    return {name: torch.randn_like(t) for name, t in mixer.initial_state(rows).items()}


@pytest.mark.parametrize("places", ["one", "any"])
@pytest.mark.parametrize("lengths", [(9, 0, 3), (4, 4, 4), (0, 0, 0), (1, 40, 2)])
def test_a_window_and_its_gradients_are_those_of_its_steps_and_reads(window, places, lengths):
    mixer = lstm()
    commits, queries = window.streams(np.random.default_rng(1), list(lengths), [0, 0, 0], places)
    start = {name: t.requires_grad_() for name, t in carried(mixer, 3).items()}
    gradients, found = [], []
    for run in (
        lambda: mixer(commits, queries, start, commit_output=True),
        lambda: window.stepped(mixer, commits, queries, start, [0, 0, 0]),
    ):
        y, read, after = run()
        found.append([y, read, *(after[name] for name in start)])
        loss = sum((p * torch.linspace(0.5, 1.5, p.shape[-1], dtype=p.dtype)).square().sum() for p in found[-1])
        weights = [*mixer.parameters(), *start.values()]
        gradients.append(torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True))
    for one, other in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(one, other, **TIGHT)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


def test_its_states_are_those_of_torch():
    mixer = lstm()
    theirs = LSTM(D + 2, HIDDEN, batch_first=True).double()
    own = dict(mixer.cell.named_parameters())
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.copy_(own[name.removesuffix("_l0")])
    x, ones = torch.randn(2, 7, D).double(), torch.ones(2, 7).double()
    inputs = torch.cat([x, ones[..., None], torch.log(1 + 2 * ones)[..., None]], -1)
    start = carried(mixer, 2)
    at = Sequences([7, 7], [0, 0])
    commits = Commits(x.flatten(0, 1), ones.flatten(), 2 * ones.flatten(), at)
    with torch.no_grad():
        y, _, after = mixer(commits, None, start, commit_output=True)
        expected, (h, c) = theirs(inputs, (start["hidden"][None], start["cell"][None]))
    torch.testing.assert_close(y, mixer.output(expected).flatten(0, 1), **TIGHT)
    torch.testing.assert_close(after["hidden"], h[0], **TIGHT)
    torch.testing.assert_close(after["cell"], c[0], **TIGHT)
