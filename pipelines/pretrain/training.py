"""The training of a language model: what one step does, whatever the micro-batches, devices and ranks.

    loss     = sum over ranks and micro-batches of nats / C               C = counted tokens of the whole step
    rate(t)  = peak t / w                             t <= w              t = tokens read with this step
               floor + (peak - floor) (1 + cos(pi (t - w) / (T - w))) / 2
    g        = grad loss, times min(1, clip / |g|);   |g| not finite: the step is left out, on every rank

A step is one batch of Lightning's, which holds all micro-batches of this rank, so C is known before the first backward
and the mean is exact. The schedule is a function of tokens alone, so a resumed training needs no scheduler's state.
The price: the step's tokens are all on the device, 12 MB at half a million.

T tokens of the training, w of the warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tsgdn2.errors import ConfigError, TsgdnError
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.loader import TokenBatch, TokenLoader
from tsgdn2.pipelines.pretrain.options import TrainingOptions
from tsgdn2.pipelines.pretrain.strategy import ranks, summed, whole


class DivergedError(TsgdnError):
    """Too many gradients in a row were not finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What one rank reads in one step."""

    number: int
    """From 1."""
    micro: list[TokenBatch]
    """Micro-batches."""
    counted: int
    """Tokens of this rank whose target counts."""
    loader: dict[str, int]
    """State of the loader behind this step."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training is; what a checkpoint keeps beside tensors."""

    step: int = 0
    """Steps, with those left out."""
    tokens: int = 0
    """Tokens read by all ranks."""
    counted: int = 0
    """Tokens whose target counted."""
    skipped: int = 0
    """Steps left out."""
    in_a_row: int = 0
    """Steps left out just now, one after the other."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step gave, over all ranks."""

    loss: float
    """Mean nats per counted token."""
    gradient_norm: float
    """Before clipping."""
    rate: float
    """Learning rate."""
    skipped: bool
    """Left out, because the gradient was not finite."""


class Steps:
    """The steps that are left, for Lightning: an iterable with a length."""

    def __init__(self, loader: TokenLoader, options: TrainingOptions, done: int) -> None:
        """loader: windows of a micro-batch of this rank, at the state behind step `done`."""
        self.loader, self.options, self.done = loader, options, done
        self.accumulate = options.step_windows // (loader.windows * loader.ranks)

    def __len__(self) -> int:
        """Steps left."""
        return self.options.steps - self.done

    def __iter__(self) -> Iterator[Step]:
        """Read step after step."""
        batches = iter(self.loader)
        for number in range(self.done + 1, self.options.steps + 1):
            micro = [next(batches) for _ in range(self.accumulate)]
            counted = sum(int(batch.counted.sum()) for batch in micro)
            yield Step(number=number, micro=micro, counted=counted, loader=self.loader.state_dict())


def rate(tokens: int, options: TrainingOptions) -> float:
    """Learning rate of the step with which `tokens` are read."""
    warm, total = options.warmup_tokens, options.steps * options.step_tokens
    if tokens < warm:
        return options.peak * tokens / warm
    share = min(1.0, (tokens - warm) / max(1, total - warm))
    return options.floor + (options.peak - options.floor) * (1 + math.cos(math.pi * share)) / 2


def groups(model: nn.Module, options: TrainingOptions) -> list[dict[str, Any]]:
    """Parameters that decay, the weights of linear layers and the embedding, and those that do not: norms, biases,
    convolutions, rates and steps of the decays. `decay_all` lets all of them decay."""
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    parameters = list(model.parameters())
    decayed = [p for p in parameters if options.decay_all or id(p) in matrices]
    plain = [p for p in parameters if not (options.decay_all or id(p) in matrices)]
    found = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in found if group["params"]]


class Pretraining(pl.LightningModule):
    """Lightning's side of the training; `progress` and `result` are those behind the last step."""

    def __init__(self, model: LanguageModel, options: TrainingOptions, steps: Steps, progress: Progress) -> None:
        """model: on the CPU, before it is sharded; steps: what is left behind `progress`."""
        super().__init__()
        self.automatic_optimization = False
        self.model, self.options, self.steps, self.progress = model, options, steps, progress
        self.loader_state = steps.loader.state_dict()
        self.result: StepResult | None = None

    def on_fit_start(self) -> None:
        """ConfigError where the ranks that will share gradients are not those that share the windows."""
        own, shared = self.steps.loader.ranks, (self.trainer.world_size, ranks())
        if shared != (own, own):
            raise ConfigError(f"cluster.strategy: {own} rank(s) share a step, the trainer has {shared[0]}, "
                              f"and {shared[1]} have met; take auto, and start the job with torchrun")  # fmt: skip

    def train_dataloader(self) -> Steps:
        """The steps that are left."""
        return self.steps

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:  # noqa: ARG002
        """Move the tensors."""
        micro = [
            one._replace(
                tokens=one.tokens.to(device, non_blocking=True), targets=one.targets.to(device, non_blocking=True),
                counted=one.counted.to(device, non_blocking=True),
            )
            for one in batch.micro
        ]  # fmt: skip
        return Step(number=batch.number, micro=micro, counted=batch.counted, loader=batch.loader)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the rate is set in each step."""
        options = self.options
        return torch.optim.AdamW(groups(self.model, options), lr=options.peak, betas=(options.beta1, options.beta2))

    def training_step(self, batch: Step, _: int) -> None:
        """One step on all micro-batches; DivergedError where too many steps in a row had to be left out."""
        counted = int(summed(torch.tensor(float(batch.counted), dtype=torch.float64, device=self.device)))
        nats = self._accumulate(batch, ranks() / max(1, counted))
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters]))
        loss, bad = self._agree(nats, norm, counted)
        tokens = self.progress.tokens + self.options.step_tokens
        now = rate(tokens, self.options)
        optimizer = cast(Any, self.optimizers())
        if not bad:
            for group in optimizer.param_groups:
                group["lr"] = now
            if self.options.clip:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.options.clip, norm)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._count(batch, tokens, counted, bad)
        self.result = StepResult(loss=loss, gradient_norm=float(norm), rate=now, skipped=bad)

    def _accumulate(self, batch: Step, scale: float) -> Tensor:
        """Add the gradients of all micro-batches; the nats of this rank."""
        nats = torch.zeros((), dtype=torch.float64 if self.device.type == "cpu" else torch.float32, device=self.device)
        wrapped = self.trainer.strategy.model
        for number, one in enumerate(batch.micro, 1):
            if isinstance(wrapped, DistributedDataParallel):  # ranks speak once, with the last micro-batch
                wrapped.require_backward_grad_sync = number == len(batch.micro)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bfloat16"):
                loss = self.model.loss(one.tokens, one.targets, one.counted, self.model.documents(one.lengths))
            self.manual_backward(loss * scale)
            nats += loss.detach()
        return nats

    def _agree(self, nats: Tensor, norm: Tensor, counted: int) -> tuple[float, bool]:
        """Mean loss of the step, and whether any rank found something that is not finite."""
        own = torch.isfinite(nats) & torch.isfinite(norm)
        both = summed(torch.stack([torch.where(torch.isfinite(nats), nats, 0.0), (~own).to(nats.dtype)]))
        total, bad = both.tolist()
        return (math.nan if bad else total / max(1, counted)), bool(bad)

    def _count(self, batch: Step, tokens: int, counted: int, bad: bool) -> None:
        old = self.progress
        in_a_row = old.in_a_row + 1 if bad else 0
        if in_a_row > self.options.skips:
            raise DivergedError(
                f"training: the gradient of {in_a_row} steps in a row was not finite, the last is step {batch.number}; "
                f"{self.options.skips} are allowed (training.skips). Go on from an older checkpoint with a lower "
                "training.peak, or look at the data of these steps"
            )
        self.progress = Progress(
            step=batch.number, tokens=tokens, counted=old.counted + counted, skipped=old.skipped + bad,
            in_a_row=in_a_row,
        )  # fmt: skip
        self.loader_state = batch.loader
