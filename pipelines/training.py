"""Options into an estimator, and what a training leaves in a run: the part that quickstart and train share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.event_source import Kinds
from tsgdn2.pipelines.event_table import event_example
from tsgdn2.pipelines.jobs import Job, ModelOptions
from tsgdn2.pipelines.predictor import GDN2Predictor, facts
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Phase, training_callback

EXAMPLE_STEPS = 96


def estimator(
    model: ModelOptions, freq: str, prediction_length: int, phase: Phase, *, names: Sequence[str] = (),
    events: Kinds | None = None,
) -> GDN2Estimator:  # fmt: skip
    """Build the estimator that the options describe; names: of a multivariate target. events: what events hold."""
    options = asdict(model)
    if events is not None:
        options |= {"event_types": events.types, "event_targets": events.targets, "event_marks": events.marks}
    epochs, batches, seconds = (options.pop(name) for name in ("epochs", "batches", "seconds"))
    trainer: dict[str, object] = {"max_epochs": epochs, "callbacks": [training_callback(phase)]}
    if seconds is not None:
        trainer["max_time"] = {"seconds": seconds}
    made: GDN2Estimator = GDN2Estimator(
        freq, prediction_length, num_batches_per_epoch=batches, trainer_kwargs=trainer,
        target_channels=max(1, len(names)), channel_names=list(names) or None, **options,
    )  # fmt: skip
    return made


def record_options(run: Run, job: Job) -> None:
    """Log every option of a job, nested ones as group.name."""
    run.params(_flat(job))


def record_training(run: Run, predictor: GDN2Predictor) -> None:
    """Log the configuration and the losses of a training."""
    run.params({f"config.{name}": value for name, value in facts(predictor).items()})
    run.params({"parameters": sum(p.numel() for p in predictor.forecaster.parameters())})
    for row in history(predictor):
        run.metrics({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))


def record_model(
    run: Run,
    folder: Path,
    predictor: GDN2Predictor,
    entries: Sequence[Mapping[str, object]],
    *,
    name: str | None = None,
) -> None:
    """Log the serialized predictor as a pyfunc model; its example is the first steps of the first entry."""
    entry = entries[0]
    if predictor.config.event_types:
        example = event_example(entry, predictor.config.event_marks, EXAMPLE_STEPS)
        run.model(folder, example, freq=predictor.freq, registered_name=name)
        return
    values = np.atleast_2d(np.asarray(entry["target"], np.float64))[:, :EXAMPLE_STEPS]
    target = pd.DataFrame(dict(zip(predictor.channels, values, strict=True)))
    start = cast(pd.Period, entry["start"])
    times = pd.period_range(start, periods=len(target), freq=start.freq).to_timestamp()
    keys = pd.DataFrame({"item_id": str(entry.get("item_id", "0")), "timestamp": times})
    run.model(folder, pd.concat([keys, target], axis=1), freq=predictor.freq, registered_name=name)


def history(predictor: GDN2Predictor) -> list[dict[str, float]]:
    """Losses by step; empty for a predictor that was read from disk."""
    return list(getattr(predictor, "history", []))


def write_settings(job: Job, folder: Path) -> None:
    """Keep the options beside the results."""
    (folder / "settings.json").write_text(json.dumps(asdict(job), indent=2, default=str) + "\n", encoding="utf-8")


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    assert is_dataclass(value)
    for name in value.__dataclass_fields__:
        own = getattr(value, name)
        out |= _flat(own, f"{prefix}{name}.") if is_dataclass(own) else {f"{prefix}{name}": own}
    return out
