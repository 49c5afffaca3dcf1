"""One run of a probe: train a model at length T for a budget, test it at 1 to 16 T, with gaps and with missing tokens.

Every mixer gets the same streams of a seed, the same optimiser and the same steps; nothing is tuned per mixer. A slow
loop is no weak memory, so time is not what is equal: a row says what a step took. A budget of processor seconds is the
other way; a slow mixer then makes fewer steps, and its row says how many.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.probes.contract import Drawn, Probe, packed
from tsgdn2.evaluation.probes.model import ProbeModel
from tsgdn2.evaluation.probes.suite import config_of, probe_of
from tsgdn2.evaluation.rows import Row, row
from tsgdn2.mixers.registry import cost
from tsgdn2.parameters import decay_groups

FACTORS: Final = (1, 2, 4, 8, 16)
"""Lengths of the test, in lengths of the training."""
GAPS: Final = (0.1, 0.3)
MISSING: Final = (0.3, 0.6)
TRAINED_GAP, TRAINED_MISSING = 0.1, 0.3
"""Axes of every second batch of training."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a model trains, and on how much it is judged."""

    steps: int = 900
    """Steps of training, the same for every mixer and on every machine."""
    seconds: float | None = None
    """Processor seconds of training instead: as many steps as fit."""
    streams: int = 16
    """Streams of a training batch."""
    tested: int = 128
    """Streams of the test at 16 T; those of up to 4 T have four times as many, which costs no more."""
    lr: float = 6e-3
    """Peak learning rate; it rises for 5 % of the budget and falls along a cosine."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        if (self.seconds is not None and not self.seconds > 0) or self.steps < 1:
            raise ConfigError(f"steps, seconds: must be above 0, got {self.steps} and {self.seconds}")
        if min(self.streams, self.tested) < 1 or not self.lr > 0:
            raise ConfigError(f"streams, tested, lr: must be above 0, got {self.streams}, {self.tested}, {self.lr}")

    @property
    def key(self) -> dict[str, str | int | float | bool | None]:
        """What a row says of its budget; steps are None where seconds count."""
        return {"steps": self.steps if self.seconds is None else None, "seconds": self.seconds}


@dataclass(frozen=True, order=True)
class Trial:
    """One probe at one level, one mixer, one seed."""

    probe: str
    level: int
    mixer: str
    seed: int

    @property
    def what(self) -> str:
        """Name of its rows."""
        return f"{self.probe}: {self.mixer}"


def run(trial: Trial, budget: Budget) -> Row:
    """Train and test; the row holds `x1` .. `x16`, `gap ..`, `missing ..`, sizes, steps and processor seconds."""
    began = time.process_time()
    probe, config = probe_of(trial.probe, trial.level), config_of(trial.mixer)
    torch.manual_seed(trial.seed)
    model = ProbeModel(config, probe.features, probe.outputs)
    steps, loss = _train(model, probe, budget, np.random.default_rng([trial.seed, 0]))
    trained = time.process_time() - began
    scores = dict(_tested(model, probe, budget.tested))
    size = cost(config)
    made = row(
        trial.what,
        {"probe": trial.probe, "level": trial.level, "mixer": trial.mixer, "tokens": probe.length, **budget.key},
        seed=trial.seed,
        cpu_seconds=time.process_time() - began,
    )  # fmt: skip
    facts = {"parameters": sum(p.numel() for p in model.parameters()), "memory_floats": size.memory_floats,
             "state_bytes": size.state_bytes, "steps": steps, "loss": loss, "train_seconds": trained,
             "step_seconds": trained / steps}  # fmt: skip
    return replace(made, values=scores | facts)


def _train(model: nn.Module, probe: Probe, budget: Budget, rng: np.random.Generator) -> tuple[int, float]:
    """Steps made and the mean loss of the last tenth of them."""
    optimiser = torch.optim.AdamW(decay_groups(model, 0.01), lr=budget.lr, betas=(0.9, 0.95), fused=True)
    began, step, losses = time.process_time(), 0, []
    while True:
        spent = (time.process_time() - began) / budget.seconds if budget.seconds else step / budget.steps
        if spent >= 1:
            break
        rate = budget.lr * min(1.0, spent / 0.05 + 1e-3) * 0.5 * (1 + math.cos(math.pi * spent))
        for group in optimiser.param_groups:
            group["lr"] = rate
        axes = {"gap": TRAINED_GAP, "missing": TRAINED_MISSING} if step % 2 else {}
        drawn = packed(probe.draw(rng, budget.streams, probe.length), rng, **axes)
        loss = _loss(probe, model(drawn.commits, drawn.queries), drawn)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        step += 1
        if step == 1:
            began = time.process_time()  # the first step of a process also loads what torch loads late
    return step, float(np.mean(losses[-max(1, step // 10) :]))


def _loss(probe: Probe, y: Tensor, drawn: Drawn) -> Tensor:
    if probe.classes:
        return cross_entropy(y, drawn.answer[:, 0].long())
    return (y - drawn.answer[:, : probe.outputs].float()).square().mean()


@torch.no_grad()
def _tested(model: nn.Module, probe: Probe, streams: int) -> Iterator[tuple[str, float]]:
    """Every test point; its streams are the same for every mixer and seed of the weights."""
    points: list[tuple[str, int, dict[str, float]]] = [(f"x{factor}", factor, {}) for factor in FACTORS]
    points += [(f"gap {share}", 1, {"gap": share}) for share in GAPS]
    points += [(f"missing {share}", 1, {"missing": share}) for share in MISSING]
    for number, (name, factor, axes) in enumerate(points):
        rng = np.random.default_rng([10_000, number])
        drawn = packed(
            probe.draw(rng, streams * max(1, FACTORS[-1] // max(4, factor)), factor * probe.length), rng, **axes
        )
        y = model(drawn.commits, drawn.queries)
        found = probe.score(y.double().numpy(), drawn.answer.numpy(), drawn.part.numpy())
        yield name, found["score"]
        if factor == 1 and not axes:
            yield from ((part, value) for part, value in found.items() if part != "score")


def run_alone(trial: Trial, budget: Budget) -> Row:
    """`run` on one thread of this process, so that processor seconds mean the same for all."""
    torch.set_num_threads(1)
    return run(trial, budget)
