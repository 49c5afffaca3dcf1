"""How much work irregular batches are, counted in programs: nothing is launched, only what would have been.

Run by test_triton_interpreted.py, because the Triton path takes tensors of the CPU in the interpreter's process alone.
A sequence of n tokens is ceil(n / 64) chunks, so one of 205 alone is 1.25 times the work per token of a long one.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from tsgdn2.kernels.gpu.launches import Call, record
from tsgdn2.kernels.ops import gdn2_scan

BATCHES = {
    "masked": ((2048,) * 5, True),
    "irregular": ((700, 1900, 64, 3000, 205, 1024, 333, 2222), True),
    "packed 10:1": ((2048, 205) * 5, False),
}


def calls(lengths: tuple[int, ...], *, packed: bool, masked: bool) -> list[Call]:
    """The launches of a forward and a backward."""
    shape = (1, sum(lengths)) if packed else (len(lengths), lengths[0])
    inputs = [torch.zeros(*shape, 2, 64, requires_grad=True) for _ in range(6)]
    options: dict[str, Tensor] = {"mask": (torch.arange(shape[1]) % 2).float().expand(shape)} if masked else {}
    if packed:
        options["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0)
    with record() as found:
        o, _ = gdn2_scan(*inputs, backend="triton", **options)
        torch.autograd.grad(o, inputs, torch.zeros_like(o))
    return found


def work(call: Call) -> tuple[str, float, float]:
    """A kernel's name, the chunks that its programs were started for, and those that hold a token.

    A program that passes the state along is as much work as the chunks of its sequence; one without a token ends.
    """
    arguments: Mapping[str, object] = call.arguments
    spans, first, per_sequence = (arguments.get(name) for name in ("spans", "first_chunk", "per_sequence"))
    name = call.kernel.__name__
    if name.startswith("states"):
        steps = per_sequence if first is None else first[-1].item() / (len(first) - 1)
        return name, call.programs * steps, call.programs * steps
    return name, call.programs, call.programs * (1.0 if spans is None else float((spans[:, 1] > 0).float().mean()))


def per_token(lengths: tuple[int, ...], **options: bool) -> dict[str, list[float]]:
    """Chunks started and worked on, per token and kernel."""
    totals: dict[str, list[float]] = {}
    for name, started, worked in map(work, calls(lengths, **options)):
        sums = totals.setdefault(name, [0.0, 0.0])
        sums[0] += started / sum(lengths)
        sums[1] += worked / sum(lengths)
    return totals


@pytest.mark.parametrize("batch", BATCHES)
def test_an_irregular_batch_is_at_most_a_tenth_more_work_per_token(batch: str) -> None:
    lengths, masked = BATCHES[batch]
    dense = per_token((2048,) * 5, packed=False, masked=False)
    found = per_token(lengths, packed=batch != "masked", masked=masked)
    assert found.keys() == dense.keys()
    assert len(found) == 8
    over = {name: [a / b for a, b in zip(found[name], dense[name], strict=True)] for name in dense}
    assert all(max(started, worked) <= 1.10 for started, worked in over.values()), over
