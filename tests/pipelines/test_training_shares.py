"""The shares of a training step: they sum to it, every part is found, and nothing stays wrapped."""

from dataclasses import replace

import pytest

from tsgdn2.mixers import delta
from tsgdn2.norm import RMSNorm
from tsgdn2.pipelines.jobs import QUICKSTART_MODEL
from tsgdn2.pipelines.loader import WindowSampler
from tsgdn2.pipelines.training_shares import SPANS, Share, Shares, measure, wrapped

TINY = replace(
    QUICKSTART_MODEL, epochs=2, batches=14, batch_size=2, context_length=20, width=8, heads=2, key_dim=4, value_dim=6,
    mlp=8,
)  # fmt: skip


def test_shares_sum_to_the_step_and_name_every_part():
    before = [getattr(owner, name, None) for owner, name, _ in SPANS]
    shares, loss = measure(TINY)
    assert loss > 0
    assert shares.steps == 2 * 7
    found = shares.seconds(skip=0)
    middle = sorted(shares.plain)
    assert middle[0] <= sum(found.values()) <= middle[-1]
    parts = {share for _, _, share in SPANS} | {"data loading", "projections", "optimiser"}
    assert {share.name for share in found} == parts
    for name in ("scan", "convolution", "projections", "norms", "SwiGLU", "head", "loss"):
        assert Share(name, "forward") in found, name
        assert Share(name, "backward") in found, name
    assert [getattr(owner, name, None) for owner, name, _ in SPANS] == before
    assert "spanned" not in delta.gdn2_scan.__qualname__
    assert WindowSampler.__iter__.__qualname__ == "WindowSampler.__iter__"


def test_a_training_that_fails_leaves_nothing_wrapped():
    before = RMSNorm.forward

    def training():
        with wrapped(Shares(conv=8)):
            assert RMSNorm.forward is not before
            raise KeyError

    with pytest.raises(KeyError):
        training()
    assert RMSNorm.forward is before
