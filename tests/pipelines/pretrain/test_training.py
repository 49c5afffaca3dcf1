"""A step against the plain mean over all counted tokens; the schedule; gradients that are not finite; torch.compile."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tsgdn2.datasets.tokens import TokenShards
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.cost import footprint
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain import strategy
from tsgdn2.pipelines.pretrain.jobs import Pretrain
from tsgdn2.pipelines.pretrain.loader import TokenBatch, TokenLoader
from tsgdn2.pipelines.pretrain.options import ClusterOptions, TrainingOptions
from tsgdn2.pipelines.pretrain.run import run
from tsgdn2.pipelines.pretrain.strategy import World
from tsgdn2.pipelines.pretrain.telemetry import read_curve
from tsgdn2.pipelines.pretrain.training import DivergedError, Pretraining, Progress, Steps, groups, rate

ONE = ClusterOptions(accelerator="cpu")


class Poisoned(LanguageModel):
    """A model whose loss is not finite in chosen passes."""

    bad: Sequence[int] = ()
    passes = 0

    def loss(self, tokens: Tensor, targets: Tensor, counted: Tensor, at: object) -> Tensor:
        """The true loss, or NaN times it."""
        self.passes += 1
        found = super().loss(tokens, targets, counted, at)  # type: ignore[arg-type]
        return found * math.nan if self.passes in self.bad else found


def module(job: Pretrain, model: LanguageModel | None = None, **options: object) -> Pretraining:
    """A training at its beginning."""
    training = replace(job.training, **options)  # type: ignore[arg-type]
    torch.manual_seed(training.seed)
    model = LanguageModel(job.model) if model is None else model
    loader = TokenLoader(TokenShards(job.data / "train"), length=training.length, windows=training.micro_windows,
                         seed=training.seed)  # fmt: skip
    return Pretraining(model, training, Steps(loader, training, 0), Progress())


def batches(job: Pretrain, step: int) -> TokenBatch:
    """All windows of a step as one batch."""
    training = job.training
    loader = TokenLoader(TokenShards(job.data / "train"), length=training.length, windows=training.step_windows,
                         seed=training.seed)  # fmt: skip
    loader.load_state_dict({"epoch": 0, "position": training.step_windows * step})
    return next(iter(loader))


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_loss_and_gradient_norm_are_those_of_the_mean_over_the_whole_step(job: Pretrain, micro: int) -> None:
    got = module(job, micro_windows=micro, tokens=1)
    strategy.fit(strategy.trainer(ONE, World()), got)
    torch.manual_seed(job.training.seed)
    model = LanguageModel(job.model).double()
    batch = batches(job, 0)
    loss = model.loss(batch.tokens, batch.targets, batch.counted, model.documents(batch.lengths)) / batch.counted.sum()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert got.result is not None
    assert got.result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert got.result.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    assert got.progress.counted == int(batch.counted.sum())


def test_one_by_four_and_four_by_one_give_the_same_weights(job: Pretrain) -> None:
    results, weights = [], []
    for micro in (2, 8):
        got = module(job, micro_windows=micro)
        strategy.fit(strategy.trainer(ONE, World()), got)
        assert got.result is not None
        results.append((got.result.loss, got.result.gradient_norm))
        weights.append([p.detach().clone() for p in got.model.parameters()])
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)  # steps are 1e-2


def test_a_gradient_that_is_not_finite_leaves_the_step_out_and_the_training_goes_on(job: Pretrain) -> None:
    torch.manual_seed(0)
    model = Poisoned(job.model)
    model.bad = (6,)  # a micro-batch in the middle of the second of six steps
    got = module(job, model)
    strategy.fit(strategy.trainer(ONE, World()), got)
    assert (got.progress.step, got.progress.skipped, got.progress.in_a_row) == (6, 1, 0)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_too_many_in_a_row_end_the_training_with_their_number(job: Pretrain) -> None:
    torch.manual_seed(0)
    model = Poisoned(job.model)
    model.bad = range(5, 100)
    got = module(job, model, skips=2)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(DivergedError, match="of 3 steps in a row was not finite, the last is step 4"):
        strategy.fit(strategy.trainer(ONE, World()), got)
    assert got.progress.step == 3
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_activation_checkpointing_changes_nothing(job: Pretrain, finished: Pretrain) -> None:
    run(replace(job, training=replace(job.training, checkpointing=True)))
    assert job.output is not None
    assert finished.output is not None
    assert read_curve(job.output) == read_curve(finished.output)


@pytest.mark.filterwarnings("default")  # the compiler warns of itself: of jit, of gradients and functions that it makes
@pytest.mark.parametrize("mixer", ["gdn2", "attention"])
def test_compiled_norms_mlp_and_head_give_equal_losses(job: Pretrain, mixer: str) -> None:
    batch, losses = batches(job, 0), []
    for compile_parts in (False, True):
        torch.manual_seed(1)
        model = LanguageModel(replace(job.model, mixer=mixer))
        names = list(model.state_dict())
        if compile_parts:
            strategy.compiled(model)
            assert list(model.state_dict()) == names
        loss = model.loss(batch.tokens, batch.targets, batch.counted, model.documents(batch.lengths))
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        losses.append((loss.item(), norm.item()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("mixer", ["gdn2", "kda", "gdn", "mamba2", "mamba3", "rwkv7", "attention"])
def test_bfloat16_is_the_products_alone_and_states_stay_in_float32(job: Pretrain, mixer: str) -> None:
    batch = batches(job, 0)
    torch.manual_seed(1)
    model = LanguageModel(replace(job.model, mixer=mixer))
    at = model.documents(batch.lengths)
    exact = model.loss(batch.tokens, batch.targets, batch.counted, at)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.loss(batch.tokens, batch.targets, batch.counted, at)
        _, state = model.hidden(batch.tokens, at)
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)
    assert rounded.item() != exact.item()
    for p in model.parameters():
        assert p.grad is not None
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()
    remembered = [t for layer in state.layers for t in layer.values()]
    assert remembered
    assert all(t.dtype == torch.float32 for t in remembered)


@pytest.mark.parametrize("teraflops", [1e-5, None])
def test_mfu_is_operations_over_the_peak_and_left_out_where_nobody_knows_it(
    job: Pretrain, capsys: pytest.CaptureFixture[str], teraflops: float | None
) -> None:
    job = replace(job, training=replace(job.training, tokens=2 * 192))
    run(replace(job, cluster=replace(job.cluster, teraflops=teraflops)))
    said = capsys.readouterr().out
    speed = re.search(r"([\d,]+) tokens/s(?:, MFU ([\d.]+)%)?", said)
    assert speed is not None
    if teraflops is None:
        assert speed[2] is None
        return
    operations = footprint(job.model, context=job.training.length).operations
    assert float(speed[2]) == pytest.approx(100 * operations * float(speed[1].replace(",", "")) / 1e7, rel=0.01)


@given(st.integers(1, 40), st.integers(0, 3_000), st.floats(0, 1))
def test_the_rate_rises_to_the_peak_in_tokens_and_falls_to_the_floor(steps: int, warm: int, share: float) -> None:
    options = TrainingOptions(tokens=100 * steps, step_tokens=100, length=50, peak=2.0, floor=2.0 * share,
                              warmup_tokens=warm)  # fmt: skip
    rates = [rate(100 * step, options) for step in range(1, steps + 1)]
    assert all(0 < r <= 2.0 or share == 0 for r in rates)
    rising = [r for step, r in enumerate(rates, 1) if 100 * step <= warm]
    falling = rates[len(rising) :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if warm < 100 * steps:
        assert rates[-1] == pytest.approx(options.floor, abs=1e-12)


@pytest.mark.parametrize("mixer", ["gdn2", "kda", "gdn", "mamba2", "mamba3", "rwkv7", "attention"])
def test_matrices_and_the_embedding_decay_and_nothing_else_does(mixer: str) -> None:
    model = LanguageModel(LanguageConfig(vocabulary=11, width=8, layers=1, heads=2, key_dim=4, value_dim=4, mlp=8,
                                         mixer=mixer))  # fmt: skip
    decayed, plain = groups(model, TrainingOptions())
    names = {id(p): name for name, p in model.named_parameters()}
    inside = {names[id(p)] for p in decayed["params"]}
    assert {"embedding.weight", "head.weight", "blocks.0.mlp.down.weight"} <= inside
    assert not any(word in name for name in inside for word in ("norm", "A_log", "dt_bias", "conv", "bias"))
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    whole = groups(model, TrainingOptions(decay_all=True))
    assert len(whole) == 1
    assert len(whole[0]["params"]) == len(names)


def test_a_tied_head_trains_and_is_stored_once(job: Pretrain, home: Path) -> None:
    assert job.output is not None
    tied = replace(job, model=replace(job.model, tied=True), training=replace(job.training, tokens=2 * 192))
    run(tied)
    longer = replace(tied, training=replace(tied.training, keep=5))
    run(longer)
    assert isinstance(LanguageModel(tied.model).head, nn.Linear)
    assert [row["step"] for row in read_curve(job.output) if "loss" in row] == [1, 2]
