"""Trains a forecaster on a file or a named set: a predictor folder and an MLflow run.

    <output>/predictor/   what GluonTS, `backtest`, `replay` and MLflow load
    <output>/history.parquet   <output>/settings.json

The last `hold_out` steps are cut before anything is fitted, the scaler's priors included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import polars as pl

from tsgdn2.errors import SchemaError
from tsgdn2.pipelines.event_source import events_of, open_data
from tsgdn2.pipelines.jobs import Train
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.training import (
    estimator,
    history,
    record_model,
    record_options,
    record_training,
    write_settings,
)


def run(job: Train) -> None:
    """Run the job. Errors: those of the data and of the estimator; SchemaError where hold_out leaves nothing."""
    screen = Screen(job.quiet)
    with screen.phase("reading"):
        source = open_data(job.data, job.columns)
        entries = _held_out(source.entries(job.targets), job.hold_out)
        kinds = events_of(source, entries, job.model)
    folder = job.folder("train")
    with Run.start(job.experiment, f"train {source.name}", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "train"}) as record:  # fmt: skip
        write_settings(job, folder)
        record_options(record, job)
        source.log(record)
        names = source.channels if job.targets == "multivariate" and kinds is None else []
        with screen.phase("training", total=job.model.epochs * job.model.batches) as phase:
            fit = estimator(job.model, source.freq, job.prediction_length, phase, names=names, events=kinds)
            predictor = fit.train(entries)
        with screen.phase("saving"):
            home = folder / "predictor"
            home.mkdir(exist_ok=True)
            predictor.serialize(home)
            pl.DataFrame(history(predictor)).write_parquet(folder / "history.parquet")
            record_training(record, predictor)
            record_model(record, home, predictor, entries, name=job.register_as)
            record.metrics({f"seconds/{name}": value for name, value in screen.seconds.items()})
    losses = [row["val_loss"] for row in history(predictor) if "val_loss" in row]
    best = f"best validation loss {min(losses):.4f}" if losses else "not validated"
    if kinds is not None:
        screen.say(f"{len(kinds.types):,} types of events, marks: {', '.join(kinds.marks) or 'none'}")
    screen.say(f"{len(entries)} series of {source.name}, step {source.freq}: {best}")
    screen.say(f"predictor: {home}")


def _held_out(entries: Sequence[Mapping[str, object]], steps: int) -> list[Mapping[str, object]]:
    """Entries without their last steps."""
    if not steps:
        return list(entries)
    out: list[Mapping[str, object]] = []
    for entry in entries:
        target = cast(np.ndarray, entry["target"])
        if target.shape[-1] <= steps:
            raise SchemaError(
                f"hold_out: must be below the {target.shape[-1]} steps of {entry['item_id']}, got {steps}"
            )
        out.append({**entry, "target": target[..., :-steps]})
    return out
