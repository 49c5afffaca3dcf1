"""The robustness benchmark: trains our forecaster and its rival, damages the histories, and draws the curves.

    tsgdn2                            trained with hidden copies of every series; gaps reach it as gaps
    tsgdn2 fed by forward-fill        the same weights; every gap holds the last value and counts as observed
    tsgdn2, complete training         trained without hidden copies, and fed either way
    GRU-D                             windows, batches, loss, scaler and hidden copies of the first, or no copies
    SeasonalNaive                     normal quantiles

Everything of one seed happens in one run: weights, windows, hidden cells and the damage of the histories. All kinds of
damage and all sets are done for the first seed; the others repeat what a claim rests on, ETTh1 at random.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import polars as pl

from tsgdn2.datasets.gluon import entries
from tsgdn2.datasets.grid import pandas_freq, period_ns
from tsgdn2.evaluation.baselines import SeasonalNaive
from tsgdn2.evaluation.gru_d import GRUDConfig
from tsgdn2.evaluation.recovery import AFTER, HISTORY, LENGTHS, positions, recovery
from tsgdn2.evaluation.robustness import KINDS, SETTINGS, SHARES, Contender, Kind, Setting, curves, rows
from tsgdn2.evaluation.rows import Row
from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.gru_d_training import train
from tsgdn2.pipelines.robustness_figures import Line, damage_curves, recovery_curves

OURS: Final = "tsgdn2"
FILLED: Final = "tsgdn2 fed by forward-fill"
PLAIN: Final = "tsgdn2, complete training"
PLAIN_FILLED: Final = "tsgdn2, complete training, fed by forward-fill"
RIVAL: Final = "GRU-D"
PLAIN_RIVAL: Final = "GRU-D, complete training"
NAIVE: Final = "SeasonalNaive"
HIDDEN_SHARES: Final = (0.5, 0.9)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is trained and judged."""

    settings: tuple[Setting, ...] = tuple(SETTINGS.values())
    """Sets; the first one is that of the claim, of the recovery and of the further seeds."""
    kinds: tuple[Kind, ...] = KINDS
    """Damage of the first seed; the further seeds have the first kind alone."""
    shares: tuple[float, ...] = SHARES
    """Shares of the cells."""
    epochs: int = 20
    """Epochs of our model and of the rival."""
    hidden_shares: tuple[float, ...] = HIDDEN_SHARES
    """Hidden copies of every training series."""
    rival_width: int = 64
    """State of the rival."""
    lengths: tuple[int, ...] = LENGTHS
    """Steps of the outages."""
    after: tuple[int, ...] = AFTER
    """Observed steps after an outage."""
    history: int = HISTORY
    """Steps that a forecast reads in the study of recovery."""
    outages: int = 20
    """Positions of an outage."""


QUICK: Final = Plan(
    settings=(
        replace(SETTINGS["UCI"], load=lambda: SETTINGS["UCI"].load().select("stream", "time", "T", "RH")),
    ),
    kinds=("at random", "jittered clock"), shares=(0.0, 0.5), epochs=1, lengths=(6,), after=(0, 1, 2), history=200,
    outages=2,
)  # fmt: skip
"""Seconds instead of minutes; its figures mean nothing."""


def study(plan: Plan, seeds: Sequence[int], model: Mapping[str, object], output: Path) -> Iterator[Row]:
    """Run the benchmark; `model`: arguments of GDN2Estimator. Figures go into `output`, rows come as they are made."""
    for number, seed in enumerate(seeds):
        for setting in plan.settings if number == 0 else plan.settings[:1]:
            claim, whole = setting is plan.settings[0], number == 0
            frame = setting.frame()
            models = contenders(plan, setting, frame, seed, model, rival=whole)
            plain = contenders(plan, setting, frame, seed, model, rival=whole, complete=True) if claim else []
            # what complete training costs is shown at random; the other kinds would only repeat it
            points = curves([*models, *plain], setting, frame, kinds=plan.kinds[:1], shares=plan.shares, seed=seed)
            if whole:
                points += curves(models, setting, frame, kinds=plan.kinds[1:], shares=plan.shares, seed=seed)
            yield from rows(points, setting, seed=seed)
            if not whole:
                continue
            lines = [
                Line(point.kind, point.contender.name, point.lost, point.score.crps if claim else point.relative)
                for point in points
            ]
            unit = "CRPS" if claim else "CRPS / SeasonalNaive's on complete histories"
            _write(output / f"robustness-{setting.name}.png", damage_curves(setting.name, lines, unit))
            if claim:
                found = _recovery(plan, setting, frame, models, seed)
                yield from found
                _write(output / f"recovery-{setting.name}.png", recovery_curves(found, plan.after))


def contenders(
    plan: Plan,
    setting: Setting,
    frame: pl.DataFrame,
    seed: int,
    model: Mapping[str, object],
    *,
    rival: bool,
    complete: bool = False,
) -> list[Contender]:
    """Ours, fed with gaps and by forward-fill; GRU-D if asked for; SeasonalNaive beside those with hidden copies.

    complete: train on complete series alone.
    """
    protocol = setting.protocol
    data = protocol.train(entries(frame, setting.period))
    hidden = () if complete else plan.hidden_shares
    began = time.process_time()
    estimator: GDN2Estimator = GDN2Estimator(
        pandas_freq(setting.period),
        protocol.prediction_length,
        seed=seed,
        hidden_shares=hidden,
        trainer_kwargs={"max_epochs": plan.epochs},
        **model,
    )
    ours = estimator.train(data)
    used = time.process_time() - began
    made = [
        Contender(name=PLAIN if complete else OURS, predictor=ours, cpu_seconds=used),
        Contender(name=PLAIN_FILLED if complete else FILLED, predictor=ours, fill=True, cpu_seconds=used),
    ]
    if rival:
        began = time.process_time()
        config = GRUDConfig(
            prediction_length=protocol.prediction_length,
            period_ns=period_ns(setting.period),
            width=plan.rival_width,
            lag_skip=estimator.config.lag_skip,
            half_life=estimator.config.half_life,
            context_length=estimator.tokens * estimator.config.patch_length,
        )
        gru_d = train(
            data,
            config,
            hidden_shares=hidden,
            epochs=plan.epochs,
            batches=estimator.num_batches_per_epoch,
            batch_size=estimator.batch_size,
            stride=estimator.config.patch_length,
            seed=seed,
        )
        spent = time.process_time() - began
        made.append(Contender(name=PLAIN_RIVAL if complete else RIVAL, predictor=gru_d, cpu_seconds=spent))
    if not complete:
        naive = SeasonalNaive(protocol.prediction_length, protocol.season, spread="normal")
        made.append(Contender(name=NAIVE, predictor=naive))
    return made


def _recovery(plan: Plan, setting: Setting, frame: pl.DataFrame, models: Sequence[Contender], seed: int) -> list[Row]:
    """Outages anywhere after the training range."""
    data = entries(frame, setting.period)
    horizon, first = setting.protocol.prediction_length, setting.protocol.train_end
    assert isinstance(first, int)
    ends = positions(first + max(plan.lengths), frame.height, plan.outages, horizon=horizon, after=max(plan.after))
    return recovery(
        models,
        data,
        name=setting.name,
        horizon=horizon,
        ends=ends,
        lengths=plan.lengths,
        after=plan.after,
        history=plan.history,
        seed=seed,
    )


def _write(path: Path, png: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)
