"""What the predictor of events promises its callers: its policy, its errors, and a state that errors leave alone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from tsgdn2.errors import CheckpointError, ConfigError, LateDataError, SchemaError, StreamError, UnknownStreamError
from tsgdn2.events.online import OnlineEvents
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
START = pd.Timestamp("2024-03-01 05:00").value
SHAPE = {"prediction_length": 5, "period_ns": HOUR, "channels": 3, "mode": "joint", "half_life": 30.0}
SIZES = {"patch_length": 3, "width": 16, "layers": 2, "heads": 2, "key_dim": 4, "value_dim": 8, "mlp": 16}
EVENTS = {
    "event_types": ("a", "b"),
    "event_targets": ("count", "mean(delay)", "sum(load)"),
    "event_marks": ("delay", "load"),
    "event_mark_low": (-1e3, 0.0),
    "event_mark_high": (1e3, 1e6),
    "event_unknown": "other",
}
UNITS = Standards(default=(3.0, 2.0, 40.0), mark_mean=(5.0, 10.0), mark_scale=(20.0, 30.0))


def random_model(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    return Forecaster(ForecasterConfig(**{**SHAPE, **SIZES, **EVENTS, **changes})).to(dtype)


def online_of(forecaster, **options):
    return OnlineEvents(forecaster, UNITS, freq="h", **options)


def everything(online, stream):
    """Every array and tensor of one stream."""
    slab, slot = online._slab, online._slots[stream]
    tensors = slab.tensors(np.arange(len(online.streams)))
    return {name: t[slot].nan_to_num().clone() for name, t in tensors.items()}


def filled(count=60, **options):
    """A predictor that has seen a stream, and the moment of its newest event."""
    changes = {name: options.pop(name) for name in ("event_window", "event_unknown") if name in options}
    online, rng = online_of(random_model(**changes), **options), np.random.default_rng(0)
    time = START + np.cumsum(rng.choice([0, HOUR // 7, HOUR // 2, 20 * HOUR], count, p=[0.3, 0.4, 0.25, 0.05]))
    for t in time.tolist():
        online.observe("s", t, ["a", "b", None][int(rng.integers(3))], np.where(rng.random(2) < 0.3, np.nan, 9.0))
    return online, int(time[-1])


@pytest.mark.parametrize("number", [0, 5])
def test_a_forecast_leaves_nothing_behind(number):
    online, newest = filled(event_window=number)
    before = everything(online, "s")
    first = online.forecast("s").quantiles
    online.forecast("s", at=newest + 90 * HOUR)
    online.next_event("s", at=newest + HOUR // 7)
    online.forecast_many(["s", "s"], 2, at=newest + 5)
    assert all(torch.equal(t, before[n]) for n, t in everything(online, "s").items())
    np.testing.assert_array_equal(online.forecast("s").quantiles, first)


def test_the_state_has_the_same_bytes_however_many_events_and_steps_there_are():
    online = online_of(random_model())
    online.observe("s", START, "a", [1.0, 2.0])
    before = online.state_nbytes
    for burst in range(20):
        rows = {"stream": ["s"] * 50, "time": START + burst * 2000 * HOUR + np.arange(50) * 10**9, "type": ["b"] * 50}
        online.observe_many(pl.DataFrame(rows))
    assert online.state_nbytes == before
    assert online.counters("s")["events"] == 1001


def test_a_silence_of_two_centuries_is_passed_without_a_loop_and_leaves_a_finite_forecast():
    online, _ = filled()
    far = pd.Timestamp("2260-01-01").value
    assert np.isfinite(online.forecast("s", at=far).quantiles).all()
    assert online.observe("s", far, "a").status == "new"
    found = online.forecast("s")
    assert np.isfinite(found.quantiles).all()
    assert found.times[0] == np.datetime64(far // HOUR * HOUR + HOUR, "ns")
    with pytest.raises(LateDataError):
        online.observe("s", START, "a")


def test_one_bad_stamp_can_be_refused_before_it_closes_everything():
    for gap in (timedelta(days=30), np.timedelta64(30, "D"), 30 * 24 * HOUR):
        online, newest = filled(longest_gap=gap)
        before = everything(online, "s")
        with pytest.raises(StreamError, match="longest_gap"):
            online.observe("s", newest + 31 * 24 * HOUR, "a")
        rows = {"stream": ["t", "s", "s"], "time": [5, newest + HOUR, newest + 40 * 24 * HOUR]}
        with pytest.raises(StreamError, match="row 2"):
            online.observe_many(pl.DataFrame(rows))
        assert all(torch.equal(t, before[n]) for n, t in everything(online, "s").items())
        assert online.streams == ("s",)
        assert online.observe("s", newest + 29 * 24 * HOUR, "a").status == "new"


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path):
    online, _ = filled(3)
    online.save(tmp_path / "state.safetensors")
    (tmp_path / "cut").write_bytes((tmp_path / "state.safetensors").read_bytes()[:-40])
    for path in (tmp_path / "cut", tmp_path / "nothing"):
        with pytest.raises(CheckpointError):
            OnlineEvents.load(path)


def test_statuses_follow_the_documented_policy():
    at = START // (3 * HOUR) * 3 * HOUR
    online = online_of(random_model(), late="drop")
    assert online.observe("s", at + 2 * HOUR, "a").status == "new"
    assert online.observe("s", at + 2 * HOUR, "a").status == "new"
    assert online.observe("s", at, "z").status == "earlier"
    assert online.observe("s", at + 3 * HOUR, None).status == "new"
    before = everything(online, "s")
    assert online.observe("s", at + 3 * HOUR - 1, "a").status == "late"
    after = everything(online, "s")
    assert all(torch.equal(t, before[n]) for n, t in after.items() if "counters" not in n)
    assert online.counters("s") == {"events": 4, "late": 1, "unknown": 1, "duplicates": 0, "overflowed": 0}
    ordered = online_of(random_model(event_window=3))
    ordered.observe("s", at + 2 * HOUR, "a")
    with pytest.raises(LateDataError, match="before its newest"):
        ordered.observe("s", at + 2 * HOUR - 1, "a")


def test_events_of_one_patch_in_another_order_give_the_same_forecast_but_for_the_last_bits():
    rng, at, found = np.random.default_rng(0), START // (3 * HOUR) * 3 * HOUR, []
    events = [(at + int(rng.integers(3 * HOUR)), "ab"[e % 2], rng.random(2) * 9) for e in range(12)]
    for order in (range(12), rng.permutation(12)):
        online = online_of(random_model(torch.float64))
        for e in order:
            online.observe("s", *events[e])
        online.observe("s", at + 4 * HOUR, "a")
        found.append(online.forecast("s").quantiles)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)


def test_surprise_comes_with_the_event_that_closes_a_patch_and_grows_with_an_outbreak():
    online = online_of(random_model())
    bits = []
    for patch in range(12):
        begin = START // (3 * HOUR) * 3 * HOUR + patch * 3 * HOUR
        count = 400 if patch == 10 else 6
        rows = {"stream": ["s"] * count, "time": begin + np.arange(count) * 10**9, "type": ["a"] * count}
        out = online.observe_many(pl.DataFrame(rows))
        assert out["surprise.count"].is_nan().to_list() == [patch < 2, *[True] * (count - 1)]
        bits.append(out["surprise.count"][0])
    assert bits[11] > max(bits[2:11])


def test_wrong_input_is_an_error_that_names_it_and_changes_nothing():
    online, newest = filled(event_unknown="raise")
    later, before = newest + 1, everything(online, "s")
    wrong = [
        (("s", later, "zeppelin"), StreamError, "zeppelin"),
        (("s", later, 7), StreamError, "type"),
        (("s", later, "a", [2000.0, 1.0]), StreamError, "delay"),
        (("s", later, "a", [1.0, -0.5]), StreamError, "load"),
        (("s", later, "a", [np.inf, 1.0]), StreamError, "delay"),
        (("s", later, "a", [1.0]), SchemaError, "marks"),
        (("s", later, "a", {"fuel": 1.0}), SchemaError, "fuel"),
        (("s", later, "a", "high"), SchemaError, "marks"),
        (("s", pd.NaT, "a"), StreamError, "NaT"),
        (("s", float(later), "a"), StreamError, "time"),
        (("s", 2**63 - 1, "a"), StreamError, "no room"),
        (("s", -(2**63) + 1, "a"), StreamError, "no room"),
        (("", later, "a"), StreamError, "stream"),
        ((None, later, "a"), StreamError, "stream"),
        (("new", later, "zeppelin"), StreamError, "zeppelin"),
    ]
    for arguments, error, word in wrong:
        with pytest.raises(error, match=word):
            online.observe(*arguments)
    good = {"stream": ["s", "n"], "time": [later, later], "type": ["a", None], "delay": [1.0, None]}
    frames = [
        ({"type": ["a", "zeppelin"]}, StreamError, "zeppelin"),
        ({"delay": [1.0, 1e9]}, StreamError, "event 1"),
        ({"delay": ["x", "y"]}, SchemaError, "delay"),
        ({"time": [later, None]}, StreamError, "nulls"),
        ({"time": [1.0, 2.0]}, StreamError, "cast"),
        ({"time": [later, START]}, LateDataError, "closed")
        if False
        else ({"stream": ["s", ""]}, StreamError, "stream"),
        ({"stream": ["s", "s"], "time": [later, START]}, LateDataError, "closed"),
        ({"fuel": [1.0, 2.0]}, SchemaError, "fuel"),
    ]
    for changes, error, word in frames:
        with pytest.raises(error, match=word):
            online.observe_many(pl.DataFrame({**good, **changes}, strict=False))
    with pytest.raises(SchemaError, match="empty"):
        online.observe_many(pl.DataFrame(good).clear())
    with pytest.raises(SchemaError, match="stream and time"):
        online.observe_many(pl.DataFrame({"stream": ["s"]}))
    with pytest.raises(SchemaError, match="DataFrame"):
        online.observe_many({"stream": ["s"]})
    for asked, error, word in [
        ({"at": newest}, StreamError, "exclusive"),
        ({"at": 2**63 - 2}, StreamError, "no room"),
        ({"horizon": 6}, ConfigError, "horizon"),
        ({"future": np.zeros((5, 1))}, SchemaError, "future"),
    ]:
        with pytest.raises(error, match=word):
            online.forecast("s", **asked)
    with pytest.raises(UnknownStreamError):
        online.next_event("t")
    assert online.streams == ("s",)
    assert all(torch.equal(t, before[n]) for n, t in everything(online, "s").items())


def test_what_can_not_be_streamed_is_refused_when_the_predictor_is_built():
    model = random_model()
    with pytest.raises(ConfigError, match="late"):
        online_of(model, late="keep")
    for gap in (0, -5, True, 1.5, "1d"):
        with pytest.raises(ConfigError, match="longest_gap"):
            online_of(model, longest_gap=gap)
    sensors = Forecaster(ForecasterConfig(prediction_length=2, period_ns=HOUR))
    with pytest.raises(ConfigError, match="event_types"):
        OnlineEvents(sensors, Standards(), freq="h")


def test_any_kind_of_moment_is_taken_and_a_naive_one_is_utc():
    stamps = [
        datetime(2024, 3, 1, 5, 30),
        datetime(2024, 3, 1, 5, 30, tzinfo=UTC),
        pd.Timestamp("2024-03-01 05:30"),
        np.datetime64("2024-03-01T05:30"),
        START + HOUR // 2,
    ]
    found = []
    for stamp in stamps:
        online = online_of(random_model())
        online.observe("s", stamp, "a", {"load": 5.0})
        found.append(online.forecast("s"))
    assert len({one.times[0] for one in found}) == 1
    assert all((one.quantiles == found[0].quantiles).all() for one in found)


def test_static_features_are_given_with_the_first_event_and_reach_the_forecast():
    forecaster = random_model(static_real=1, static_cardinalities=(3,))
    scales = replace(UNITS, static_mean=(0.0,), static_scale=(1.0,))
    online = OnlineEvents(forecaster, scales, freq="h")
    with pytest.raises(SchemaError, match="static"):
        online.observe("s", START, "a")
    online.observe("s", START, "a", static=[0.5, 2])
    online.observe("t", START, "a", static=[0.5, 1])
    assert (online.forecast("s").quantiles != online.forecast("t").quantiles).any()
