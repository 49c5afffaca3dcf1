"""The rings: covariates of an open patch, and the cost of many streams at once."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.online import OnlinePredictor
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000


def online_with(known, patch=8, **changes):
    torch.manual_seed(0)
    config = ForecasterConfig(
        **{
            "prediction_length": 4, "period_ns": HOUR, "patch_length": patch, "width": 8, "layers": 1, "heads": 1,
            "key_dim": 4, "value_dim": 4, "mlp": 8, "known": known, **changes,
        }
    )  # fmt: skip
    scales = Standards(known_mean=(0.0,) * known, known_scale=(1.0,) * known)
    names = [f"c{i}" for i in range(config.channels)]
    return OnlinePredictor(Forecaster(config), scales, channels=names, freq="h")


def test_a_patch_that_opens_behind_the_clock_takes_no_covariates_of_later_steps():
    online = online_with(1)
    online.observe("s", 900 * HOUR, [1.0], known=[900.0])
    for step in range(901, 921):
        online.observe("s", step * HOUR, None, known=[float(step)])
    online.observe("s", 906 * HOUR, [1.0], known=[906.0])
    held = online._slab.open_known[0, :, 0]
    own = np.arange(904, 912)
    assert set(held.tolist()) <= {0.0, *own.astype(float).tolist()}
    assert held[906 % 8] == 906.0


def test_closing_many_streams_copies_no_more_than_their_own_rows(monkeypatch):
    online = online_with(0, channels=3)
    copied = []
    rows = type(online._slab.state).rows
    monkeypatch.setattr(type(online._slab.state), "rows", lambda s, i: copied.append(len(i)) or rows(s, i))
    for streams in (64, 32, 96):  # in the first, it is tried which passes may be wide: once, on rows of its own
        names = [f"{streams}-{i}" for i in range(streams)]
        for step in (0, 8):
            frame = pl.DataFrame({
                "stream": names, "time": np.full(streams, step * HOUR), "c0": np.ones(streams), "c1": np.ones(streams),
                "c2": np.ones(streams),
            })  # fmt: skip
            copied.clear()
            online.observe_many(frame)
        assert streams == 64 or sum(copied) <= 8 * 3 * streams + 300, (
            "linear in the streams, whatever the number of tiles"
        )


def test_weekly_forecasts_start_where_the_batch_says():
    online = online_with(0, patch=2, period_ns=7 * 24 * HOUR)
    online.freq = "W"
    for week in range(5):
        online.observe("s", pd.Timestamp("2024-01-01") + pd.Timedelta(weeks=week), [1.0])
    expected = pd.Period("2024-01-01", freq="W") + 5
    assert online.forecast("s").to_gluonts().start_date == expected


def test_an_interrupt_between_two_passes_of_a_closing_leaves_every_stream_as_it_was(monkeypatch):
    online, twin = online_with(0, channels=3), online_with(0, channels=3)

    def frame(step):
        values = np.random.default_rng(step).normal(size=(12, 3))
        columns = {f"c{n}": values[:, n] for n in range(3)}
        return pl.DataFrame({"stream": [f"s{n}" for n in range(12)], "time": np.full(12, step * HOUR), **columns})

    for step in range(8):
        online.observe_many(frame(step))
        twin.observe_many(frame(step))
    before = [online.take_out(name) for name in online.streams]
    commit, calls = type(online.forecaster).commit, []

    def torn(forecaster, *given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return commit(forecaster, *given)

    monkeypatch.setattr(type(online.forecaster), "commit", torn)
    with pytest.raises(KeyboardInterrupt):
        online.observe_many(frame(8))
    assert [online.take_out(name) for name in online.streams] == before
    online.observe_many(frame(8))
    twin.observe_many(frame(8))
    assert [online.take_out(name) for name in online.streams] == [twin.take_out(name) for name in twin.streams]
