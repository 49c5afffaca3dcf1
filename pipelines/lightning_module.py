"""How a forecaster is trained: quantile (or likelihood) loss on queries, AdamW, cosine, an average of the weights.

    loss = mean over observed targets of 2 (y - y_q)(q - 1{y < y_q}), in the query's standard units
    average <- d average + (1 - d) weights, d = min(decay, (1 + n) / (10 + n)); validation scores the average and the
    best average is what `best` returns

The network never sees the trainer. Carried state: a batch that follows another takes its state, cut from the graph.
"""

from __future__ import annotations

import copy
import math
from typing import Protocol

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from tsgdn2.forecaster import Forecaster
from tsgdn2.head import quantile_loss
from tsgdn2.parameters import decay_groups
from tsgdn2.pipelines.loader import Batch
from tsgdn2.scale import Floats
from tsgdn2.state import ForecasterState

WAIT_SHARE = 0.1
"""Weight of the time to the next event beside the horizon."""


class Likelihood(Protocol):
    """A distribution head's loss: parameters [.., n] and targets [..] to the negative log-likelihood [..]."""

    def loss(self, parameters: Tensor, target: Tensor) -> Tensor: ...  # noqa: D102


class ForecastTraining(LightningModule):
    """One forecaster under training."""

    levels: Tensor

    def __init__(
        self,
        forecaster: Forecaster,
        *,
        learning_rate: float,
        weight_decay: float,
        steps: int,
        average: float = 0.99,
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        self.forecaster = forecaster
        self.averaged = copy.deepcopy(forecaster).requires_grad_(requires_grad=False)
        self.learning_rate, self.weight_decay, self.steps, self.average = learning_rate, weight_decay, steps, average
        self.likelihood = likelihood
        self.best_loss = math.inf
        self.best_state: dict[str, Tensor] | None = None
        self.history: list[dict[str, float]] = []
        self._carried: ForecasterState | None = None
        self._losses: list[tuple[float, int]] = []
        self._train_loss: list[Tensor] = []
        self._updates = 0
        levels = torch.tensor(forecaster.config.quantiles, dtype=forecaster.dtype)
        self.register_buffer("levels", levels, persistent=False)

    def loss(self, model: Forecaster, batch: Batch, state: ForecasterState | None) -> tuple[Tensor, ForecasterState]:
        """Mean loss over the observed targets of a batch, and the state after it."""
        static = model.static(batch.static_real, batch.static_categories)
        read, after = model(
            batch.commits, batch.elapsed, batch.layout, batch.queries, batch.query_elapsed, static, state
        )
        out = read.horizon
        target = torch.from_numpy(batch.target).to(out.dtype)
        weight = torch.from_numpy(batch.weight).to(out.dtype)
        if self.likelihood is not None:
            each = self.likelihood.loss(out, target)
        else:
            each = quantile_loss(out, target, self.levels.to(out.dtype))
        loss = (each * weight).sum() / weight.sum().clamp_min(1.0)
        if read.wait is not None and batch.wait is not None:
            loss = loss + WAIT_SHARE * _wait_loss(read.wait, batch.wait, self.levels)
        return loss, after

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """One batch; logs nothing by itself, `history` holds the epochs."""
        state = None if batch.fresh else self._carried
        loss, after = self.loss(self.forecaster, batch, state)
        self._carried = after.detach()
        self._train_loss.append(loss.detach())
        return loss

    def optimizer_step(self, *args: object, **kwargs: object) -> None:
        """A step, then the moving average."""
        super().optimizer_step(*args, **kwargs)  # type: ignore[arg-type]
        self._updates += 1
        decay = min(self.average, (1 + self._updates) / (10 + self._updates))
        with torch.no_grad():
            for mean, new in zip(self.averaged.parameters(), self.forecaster.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Score the averaged weights."""
        loss, _state = self.loss(self.averaged.eval(), batch, None)
        self._losses.append((float(loss), int(batch.weight.sum())))

    def on_validation_epoch_end(self) -> None:
        """Keep the best average; `val_loss` is what early stopping and checkpoints monitor."""
        total = sum(n for _, n in self._losses)
        loss = sum(x * n for x, n in self._losses) / total if total else math.nan  # nothing observed picks nothing
        self._losses.clear()
        self.log("val_loss", loss)
        if self.trainer.sanity_checking:
            return
        if loss < self.best_loss:
            self.best_loss, self.best_state = loss, copy.deepcopy(self.averaged.state_dict())
        self.history.append({"step": float(self._updates), "val_loss": loss})

    def on_train_epoch_end(self) -> None:
        """Close the epoch's row of the history."""
        mean = float(torch.stack(self._train_loss).mean()) if self._train_loss else math.nan
        self._train_loss.clear()
        self.log("train_loss", mean)
        if self.history and "train_loss" not in self.history[-1]:
            self.history[-1]["train_loss"] = mean
        else:
            self.history.append({"step": float(self._updates), "train_loss": mean})

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """AdamW with two groups, linear warm-up over a twentieth of the steps, cosine to a twentieth of the rate."""
        groups = decay_groups(self.forecaster, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98))
        warm = max(1, self.steps // 20)

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            progress = min(1.0, (step - warm) / max(1, self.steps - warm))
            return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def best(self) -> Forecaster:
        """The best average by validation, or the last one where nothing was validated."""
        self.averaged.load_state_dict(self.best_state if self.best_state is not None else self.averaged.state_dict())
        return self.averaged.eval()


def _wait_loss(out: Tensor, wait: Floats, levels: Tensor) -> Tensor:
    """Quantile loss [] of log1p(periods to the next event); out [M,Q], wait [M], NaN weighs nothing."""
    known = torch.from_numpy(np.isfinite(wait))
    target = torch.from_numpy(np.log1p(np.nan_to_num(wait))).to(out.dtype)
    each = quantile_loss(out, target, levels.to(out.dtype))
    return torch.where(known, each, 0.0).sum() / known.sum().clamp_min(1)
