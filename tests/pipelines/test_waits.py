"""The time to the next event in a batch is the stream's answer; its benchmark judges both sides by the same moments."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch

from tsgdn2.datasets.gluon import event_entries
from tsgdn2.errors import ConfigError
from tsgdn2.events.online import OnlineEvents
from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.wait_bench import WaitTest
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
START = 474_000 * HOUR
TARGETS = ("count", "mean(ms)")
SIZES = {"prediction_length": 3, "period_ns": HOUR, "channels": 2, "patch_length": 3, "width": 16, "layers": 1,
         "heads": 2, "key_dim": 4, "value_dim": 8, "mlp": 16, "half_life": 30.0, "event_types": ("x", "y"),
         "event_targets": TARGETS, "event_marks": ("ms",), "event_mark_low": (-1e9,),
         "event_mark_high": (1e9,)}  # fmt: skip


def predictor_of(dtype: torch.dtype, **changes: object) -> GDN2Predictor:
    """Random weights, so that every part of the model matters."""
    torch.manual_seed(1)
    config = ForecasterConfig(**{**SIZES, **changes})
    units = Standards(default=(3.0, 2.0), mark_mean=(5.0,), mark_scale=(2.0,))
    found = GDN2Predictor(config.to_json(), units.to_json(), "h", list(TARGETS), batch_size=2)
    with torch.no_grad():
        for name, parameter in found.forecaster.named_parameters():
            if name.startswith(("head", "wait")):
                parameter.normal_(std=0.3)
    found.forecaster.to(dtype)
    return found


def table(count: int, pace: float = 0.4, streams: tuple[str, ...] = ("a", "b", "c")) -> pl.DataFrame:
    rng = np.random.default_rng(2)
    parts = []
    for n, stream in enumerate(streams):
        own = count // (n + 1)
        time = START + np.cumsum(rng.exponential(pace * HOUR, own)).astype(np.int64)
        kinds = [("x", "y", None)[k] for k in rng.integers(0, 3, own)]
        parts.append(pl.DataFrame({"stream": [stream] * own, "time": time, "type": kinds, "ms": rng.normal(5, 2, own)}))
    return pl.concat(parts).with_columns(pl.col("time").cast(pl.Datetime("ns", "UTC")))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("changes", [{"mode": "joint"}, {"mode": "independent", "event_window": 4},
                                     {"mode": "attention"}])  # fmt: skip
def test_next_events_of_a_data_set_are_the_streams_answers(
    dtype: torch.dtype, tolerance: float, changes: dict[str, object]
) -> None:
    predictor, frame = predictor_of(dtype, **changes), table(60)
    data = event_entries(frame, "1h", targets={t: t for t in TARGETS}, marks=["ms"])
    data[1]["target"] = data[1]["target"][:, :7]
    found = list(predictor.next_events(data))
    assert [one.stream for one in found] == ["a", "b", "c"]
    online = OnlineEvents.from_predictor(predictor)
    for one, entry in zip(found, data, strict=True):
        end = entry["start"].start_time.value + HOUR * entry["target"].shape[1]
        stamp = pl.col("time").to_physical()
        online.observe_many(frame.filter(pl.col("stream") == one.stream, stamp < end))
        streamed = online.next_event(one.stream, at=end)
        assert (one.after, one.levels) == (streamed.after, streamed.levels)
        mine, theirs = one.waits.astype(np.int64), streamed.waits.astype(np.int64)
        assert (np.abs(mine - theirs) <= tolerance * (HOUR + theirs)).all()
        (row,) = online.next_event_many([one.stream], at=end).select(pl.exclude("stream", "time").to_physical()).rows()
        assert list(row) == theirs.tolist()


def test_a_predictor_of_sensors_knows_no_next_event_and_no_streams_have_no_answers() -> None:
    config = ForecasterConfig(prediction_length=2, period_ns=HOUR)
    sensors = GDN2Predictor(config.to_json(), Standards().to_json(), "h", ["y"])
    with pytest.raises(ConfigError, match="event_types"):
        next(sensors.next_events([]))
    predictor = predictor_of(torch.float32)
    assert list(predictor.next_events([])) == []
    assert OnlineEvents.from_predictor(predictor).next_event_many([]).is_empty()


def test_the_benchmark_asks_every_stream_at_the_same_moments_and_sees_nothing_of_what_follows() -> None:
    frame, since = table(6000, 0.05), START + 80 * HOUR
    test = WaitTest.of("made", frame, since, since + 8 * HOUR)
    predictor = predictor_of(torch.float32)
    bars = test.baselines()
    assert [row.what for row in bars] == [f"made: wait, {name}" for name in (
        "exponential of the last hour", "waits of the training part", "waits of its hour of the day")]  # fmt: skip
    ours = test.ours(predictor, 5, bars)
    assert (ours.seed, ours.shape["moments"], ours.shape["censored"]) == (5, 24, 0)
    best = min(row.values["CRPS wait"] for row in bars)
    assert ours.values["CRPS wait / best baseline"] == pytest.approx(ours.values["CRPS wait"] / best)
    assert json.dumps(ours.values)
    whole = test.streamed(predictor)
    stop = int(test.asked.clock[11])
    cut = WaitTest.of("made", frame.filter(pl.col("time").to_physical() < stop), since, since + 4 * HOUR)
    np.testing.assert_array_equal(cut.streamed(predictor), whole[:12])
