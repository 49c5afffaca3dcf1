"""What picks the weights: targets that were never trained on, or nothing at all."""

import numpy as np
import pandas as pd

import tsgdn2.pipelines.estimator as module
from tsgdn2 import GDN2Estimator
from tsgdn2.pipelines.loader import validation_batches

SMALL = {
    "width": 16,
    "heads": 2,
    "key_dim": 4,
    "value_dim": 4,
    "mlp": 16,
    "context_length": 64,
    "batch_size": 8,
    "num_batches_per_epoch": 4,
}


def waves(steps=400):
    rng = np.random.default_rng(0)
    start = pd.Period("2024-01-01", freq="h")
    values = np.sin(2 * np.pi * np.arange(steps) / 24) + 0.3 * rng.normal(size=(3, steps))
    return [{"item_id": f"item{i}", "start": start, "target": row} for i, row in enumerate(values)]


def test_where_nothing_can_be_validated_the_last_average_is_taken():
    data = [{**e, "target": np.concatenate([e["target"][:352], np.full(48, np.nan)])} for e in waves()]
    estimator = GDN2Estimator("h", 12, trainer_kwargs={"max_epochs": 3}, **SMALL)
    fitted = estimator.fit(data)
    assert fitted.best_loss == float("inf")
    assert all("val_loss" not in row for row in fitted.history)
    assert len(fitted.history) == 3


def test_validation_data_that_holds_the_training_part_scores_only_what_follows_it(monkeypatch):
    seen = []
    estimator = GDN2Estimator("h", 12, trainer_kwargs={"max_epochs": 1}, **SMALL)

    def spy(*args, **kwargs):
        batches = validation_batches(*args, **kwargs)
        for batch in batches:
            steps = batch.queries.windows.clock[..., None] + np.arange(1, 13)
            seen.extend(steps[batch.weight[..., 0]].tolist())
        return batches

    monkeypatch.setattr(module, "validation_batches", spy)
    data, longer = waves(), waves(412)
    estimator.fit(data, longer)
    end = int(data[0]["start"].start_time.value // 3_600_000_000_000) + 400
    assert seen
    assert min(seen) >= end
