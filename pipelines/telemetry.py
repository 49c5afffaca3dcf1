"""Models for the benchmark streams of telemetry: trained on the probationary parts, streamed over everything.

No label is read here. One model serves all streams of one period, which the rules of the anomaly benchmark would not
let into its own table: there every file is alone.

    training part of a stream: its first 15 % of rows, 750 at most; the last third of it picks the weights alone
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import polars as pl

from tsgdn2.datasets.frame import STREAM, TIME, normalise
from tsgdn2.datasets.gluon import entries
from tsgdn2.datasets.grid import pandas_freq
from tsgdn2.datasets.nab import NAB_STREAMS, VALUE, LabelledStream, nab
from tsgdn2.evaluation.nab import Labels
from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.predictor import GDN2Predictor

DAY_NS: Final = 86_400_000_000_000
HELD_OUT: Final = 1 / 3
QUICK: Final = ("realAWSCloudwatch/iio_us-east-1_i-a2eb1cd9_NetworkIn", "realKnownCause/rogue_agent_key_hold")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How large the models are and how long they train."""

    horizon: int = 24
    """Steps of a forecast."""
    patch_length: int = 8
    """Steps of a patch, and so of the lead times that an observation is scored at."""
    epochs: int = 8
    """Epochs of 30 batches."""
    names: tuple[str, ...] = field(default=NAB_STREAMS)
    """Streams."""


SMALL: Final = Budget(epochs=1, names=QUICK)
"""Seconds instead of minutes; its figures mean nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Streams of one period, and the model that was trained on their beginnings."""

    predictor: GDN2Predictor
    streams: tuple[LabelledStream, ...]
    cpu_seconds: float
    """Processor seconds of the training."""


def labels_of(stream: LabelledStream) -> Labels:
    """The labels of a stream in rows."""
    return Labels.of(stream.stamps, stream.windows)


def frame_of(stream: LabelledStream, first: int = 0, stop: int | None = None) -> pl.DataFrame:
    """Rows of a stream in the file's own order: stream, time, value."""
    stamps = pl.Series(TIME, stream.stamps[first:stop]).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
    return pl.DataFrame({STREAM: [stream.name] * len(stamps), TIME: stamps, VALUE: stream.values[first:stop]})


def groups(budget: Budget, seed: int) -> Iterator[Group]:
    """Train one model for each period among the streams; every part of training is cut at the probationary row."""
    by_step: dict[int, list[LabelledStream]] = {}
    for name in budget.names:
        one = nab(name)
        by_step.setdefault(one.step, []).append(one)
    for step, own in by_step.items():
        began = time.process_time()
        data = []
        for one in own:
            head = frame_of(one, stop=labels_of(one).probation)
            data += entries(normalise(head, duplicates="last"), step, collisions="last")
        estimator: GDN2Estimator = GDN2Estimator(
            pandas_freq(step), budget.horizon, patch_length=budget.patch_length, context_length=256,
            half_life=float(max(64, DAY_NS // step)), batch_size=32, num_batches_per_epoch=30,
            validation_share=HELD_OUT, seed=seed, trainer_kwargs={"max_epochs": budget.epochs},
        )  # fmt: skip
        predictor = estimator.train(data)
        yield Group(predictor=predictor, streams=tuple(own), cpu_seconds=time.process_time() - began)


def by_patch(streams: Sequence[LabelledStream], step: int, patch: int) -> Iterator[list[tuple[LabelledStream, slice]]]:
    """All rows of all streams in their order, a patch of each stream at a time; each row is in one slice."""
    cuts = []
    for one in streams:
        turn = np.flatnonzero(np.diff(one.stamps // step // patch)) + 1
        cuts.append([0, *turn.tolist(), len(one.stamps)])
    for number in range(max(len(cut) for cut in cuts) - 1):
        yield [
            (one, slice(cut[number], cut[number + 1]))
            for one, cut in zip(streams, cuts, strict=True)
            if number + 1 < len(cut)
        ]
