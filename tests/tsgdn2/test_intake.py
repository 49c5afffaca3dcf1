"""What the intake says: the remedy in the message, the room at both ends of time, and models that are no sensors'."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from tsgdn2.errors import ConfigError, SchemaError, StreamError, TsgdnError
from tsgdn2.events.online import OnlineEvents
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.online import OnlinePredictor
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
NOW = pd.Timestamp("2024-03-01")
SIZES = {
    "prediction_length": 4, "period_ns": HOUR, "patch_length": 4, "width": 8, "heads": 1, "key_dim": 4, "value_dim": 4,
    "mlp": 8,
}  # fmt: skip


@pytest.fixture
def online():
    torch.manual_seed(0)
    forecaster = Forecaster(ForecasterConfig(channels=2, **SIZES))
    made = OnlinePredictor(forecaster, Standards(), channels=["a", "b"], freq="h")
    made.observe("s", NOW, [1, 2])
    return made


def frame():
    return pl.DataFrame({"stream": ["s"], "time": [NOW], "a": [1.0]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda o: o.observe("s", NOW, [1, 2], known=[3.0]), "without known covariates; leave it out"),
        (lambda o: o.observe("s", NOW, [1, 2], past=[3.0]), "without past covariates; leave it out"),
        (lambda o: o.forecast("s", future=[[3.0]] * 4), "without known covariates; leave it out"),
        (lambda o: o.observe_many(frame().to_pandas()), r"got pandas\S*\.DataFrame; .*pl\.from_pandas\(frame\)"),
        (lambda o: o.observe_many(frame().lazy()), r"got polars\S*\.LazyFrame; .*\.collect\(\)"),
    ],
)
def test_a_message_says_what_to_do(online, given, said):
    with pytest.raises(SchemaError, match=said):
        given(online)


def test_the_last_moment_with_room_is_taken_and_its_forecast_lies_after_it(online):
    last = 2**63 - 1 - 10 * HOUR  # a patch of 4, a horizon of 4 and 2
    online.observe("far", last, [1, 2])
    times = online.forecast("far").times.astype(np.int64)
    assert (np.diff(times) == HOUR).all()
    assert last < times[0]
    assert online.forecast("s", at=last).times[-1] == online.forecast("far").times[-1]
    with pytest.raises(StreamError, match=r"^time: .*no room"):
        online.observe("further", last + 1, [1, 2])
    assert "further" not in online.streams
    online.observe("early", -last, [1, 2])
    assert (online.forecast("early").times.astype(np.int64) > -last).all()


def test_a_model_of_events_is_refused_before_it_is_streamed(tmp_path):
    config = ForecasterConfig(channels=1, event_types=("x",), event_targets=("count",), **SIZES)
    trained = OnlineEvents(Forecaster(config), Standards(), freq="h")
    trained.channels = ("count",)
    for begin in (
        lambda: OnlinePredictor.from_predictor(trained),
        lambda: OnlinePredictor(trained.forecaster, Standards(), channels=["count"], freq="h"),
    ):
        with pytest.raises(ConfigError, match=r"^forecaster: this model reads events; use OnlineEvents"):
            begin()
    trained.save(tmp_path / "events.safetensors")
    with pytest.raises(TsgdnError, match="this model reads events; use OnlineEvents"):
        OnlinePredictor.load(tmp_path / "events.safetensors")
