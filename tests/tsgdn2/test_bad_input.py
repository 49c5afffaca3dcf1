"""Every kind of bad input names the argument and the remedy, and leaves the state as it was."""

import json
import re
import struct
from datetime import timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from tsgdn2 import checkpoint
from tsgdn2.archive import KIND
from tsgdn2.audit import AuditConfig
from tsgdn2.errors import (
    CheckpointError,
    ConfigError,
    LateDataError,
    SchemaError,
    StreamError,
    TsgdnError,
    UnknownChannelError,
    UnknownStreamError,
)
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.online import OnlinePredictor
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
START = pd.Timestamp("2024-03-01")


@pytest.fixture
def online():
    torch.manual_seed(0)
    config = ForecasterConfig(
        prediction_length=4,
        period_ns=HOUR,
        channels=2,
        patch_length=4,
        width=8,
        layers=1,
        heads=1,
        key_dim=4,
        value_dim=4,
        mlp=8,
    )
    made = OnlinePredictor(Forecaster(config), Standards(), channels=["a", "b"], freq="h")
    for t in range(11):
        made.observe("s", START + pd.Timedelta(hours=t), [t, -t])
    return made


def snapshot(online):
    return {name: t.clone() for name, t in online._slab.tensors(np.arange(len(online.streams))).items()}


def at(hours):
    return START + pd.Timedelta(hours=hours)


def frame(**columns):
    base = {"stream": ["s", "s"], "time": [at(11), at(12)], "a": [1.0, 2.0]}
    return pl.DataFrame({**base, **columns})


FAR = frame().with_columns(time=pl.datetime(9999, 12, 31))
END = pd.Timestamp("2262-04-11 21:00")
BEGIN = pd.Timestamp("1677-09-21 02:00")
BAD = {
    "an end of time without room for a horizon": (StreamError, "time", lambda o: o.observe("s", END, [1, 2])),
    "a beginning of time without a patch before": (StreamError, "time", lambda o: o.observe("n", BEGIN, [1, 2])),
    "a frame at the end of time": (StreamError, "time", lambda o: o.observe_many(frame(time=[at(11), END]))),
    "a forecast from the end of time": (StreamError, "at", lambda o: o.forecast("s", at=END)),
    "a forecast from beyond time": (StreamError, "at", lambda o: o.forecast("s", at=2**70)),
    "a frame of pandas": (SchemaError, "frame", lambda o: o.observe_many(frame().to_pandas())),
    "a frame that is not collected": (SchemaError, "frame", lambda o: o.observe_many(frame().lazy())),
    "values of the wrong shape": (SchemaError, "values", lambda o: o.observe("s", at(11), [1.0, 2.0, 3.0])),
    "values of rank two": (SchemaError, "values", lambda o: o.observe("s", at(11), np.zeros((2, 2)))),
    "values that are text": (SchemaError, "values", lambda o: o.observe("s", at(11), ["1", "x"])),
    "values that are complex": (SchemaError, "values", lambda o: o.observe("s", at(11), np.zeros(2, complex))),
    "an infinite value": (SchemaError, "values", lambda o: o.observe("s", at(11), [1.0, np.inf])),
    "an absurd value": (SchemaError, "values", lambda o: o.observe("s", at(11), [1.0, -1e200])),
    "NaT as a time": (StreamError, "time", lambda o: o.observe("s", pd.NaT, [1, 2])),
    "numpy NaT": (StreamError, "time", lambda o: o.observe("s", np.datetime64("NaT"), [1, 2])),
    "NaN as a time": (StreamError, "time", lambda o: o.observe("s", float("nan"), [1, 2])),
    "a time beyond int64": (StreamError, "time", lambda o: o.observe("s", 2**70, [1, 2])),
    "time going backwards": (LateDataError, "time", lambda o: o.observe("s", at(2), [1, 2])),
    "an unknown stream": (UnknownStreamError, "stream", lambda o: o.forecast("nobody")),
    "a stream without a name": (StreamError, "stream", lambda o: o.observe("", at(11), [1, 2])),
    "an unknown channel": (UnknownChannelError, "values", lambda o: o.observe("s", at(11), {"a": 1.0, "zz": 2.0})),
    "a late row in a frame": (LateDataError, "time", lambda o: o.observe_many(frame(time=[at(11), at(2)]))),
    "an empty frame": (SchemaError, "frame", lambda o: o.observe_many(frame().clear())),
    "a frame without time": (SchemaError, "frame", lambda o: o.observe_many(frame().drop("time"))),
    "a frame with a null time": (StreamError, "frame", lambda o: o.observe_many(frame(time=[at(11), None]))),
    "a frame far in the future": (StreamError, "time", lambda o: o.observe_many(FAR)),
    "ragged values": (SchemaError, "values", lambda o: o.observe("s", at(11), [[1, 2], [3]])),
    "known that is text": (SchemaError, "known", lambda o: o.observe("s", at(11), [1, 2], known="x")),
    "future of another count": (SchemaError, "future", lambda o: o.forecast_many(["s"], future=np.zeros((2, 4, 0)))),
    "a frame with text": (SchemaError, "frame", lambda o: o.observe_many(frame(a=["x", "y"]))),
    "a frame with text as time": (StreamError, "frame", lambda o: o.observe_many(frame(time=["x", "y"]))),
    "a frame with an unknown channel": (UnknownChannelError, "frame", lambda o: o.observe_many(frame(zz=[1.0, 2.0]))),
    "a frame with infinity": (SchemaError, "values", lambda o: o.observe_many(frame(a=[1.0, float("inf")]))),
    "a frame that is a dict": (SchemaError, "frame", lambda o: o.observe_many({"stream": []})),
    "a flush of nobody": (UnknownStreamError, "stream", lambda o: o.flush("nobody")),
    "a horizon beyond the model's": (ConfigError, "horizon", lambda o: o.forecast("s", 5)),
    "a horizon of nothing": (ConfigError, "horizon", lambda o: o.forecast("s", 0)),
    "a read in the past": (StreamError, "at", lambda o: o.forecast("s", at=at(2))),
    "covariates that the model has not": (SchemaError, "known", lambda o: o.observe("s", at(11), [1, 2], known=[3.0])),
    "statics that the model has not": (SchemaError, "static", lambda o: o.observe("n", at(11), [1, 2], static=[3.0])),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_the_state_as_it_was(online, case):
    kind, argument, call = BAD[case]
    before, streams = snapshot(online), online.streams
    with pytest.raises(kind) as caught:
        call(online)
    assert isinstance(caught.value, TsgdnError)
    assert str(caught.value).startswith(f"{argument}:"), str(caught.value)
    assert len(str(caught.value)) > 40, "a message says what is allowed, what came and what to do"
    assert online.streams == streams
    after = snapshot(online)
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prediction_length", 0),
        ("quantiles", (0.5, 0.1)),
        ("quantiles", ()),
        ("mode", "both"),
        ("mixer", "rnn"),
        ("dropout", 1.0),
        ("norm_max", 0.0),
        ("half_life", -1.0),
        ("calendar", ("year",)),
        ("decay_from", "x"),
    ],
)
def test_a_wrong_config_names_its_field(field, value):
    with pytest.raises(ConfigError, match=f"^{field}: must be"):
        ForecasterConfig(**{"prediction_length": 4, "period_ns": HOUR, field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ["a"]}, "channels"),
        ({"channels": ["a", "a"]}, "channels"),
        ({"channels": ["a", "time"]}, "channels"),
        ({"audit": AuditConfig(cohorts=("all",))}, "audit.cohorts"),
        ({"late": "maybe"}, "late"),
        ({"watermark": timedelta(hours=-1)}, "watermark"),
        ({"watermark": timedelta(days=3 * 365)}, "watermark"),
        ({"watermark": timedelta.max}, "watermark"),
        ({"watermark": 2**80}, "watermark"),
        ({"watermark": 1.5}, "watermark"),
        ({"watermark": True}, "watermark"),
        ({"watermark": "1h"}, "watermark"),
        ({"watermark": None}, "watermark"),
        ({"watermark": pd.NaT}, "watermark"),
        ({"watermark": np.timedelta64("NaT")}, "watermark"),
        ({"watermark": np.timedelta64(1, "M")}, "watermark"),
        ({"watermark": np.timedelta64(1)}, "watermark"),
        ({"checkpoints": 4}, "checkpoints"),
        ({"late": "tag", "checkpoint_every": 4}, "checkpoint_every"),
        ({"late": "replay", "checkpoints": 0}, "checkpoints"),
        ({"late": "replay", "checkpoints": True}, "checkpoints"),
        ({"late": "replay", "checkpoint_every": 10**9}, "checkpoint_every"),
        ({"late": "replay", "checkpoint_every": 2.0}, "checkpoint_every"),
    ],
)
def test_a_wrong_predictor_option_names_itself(online, options, message):
    wanted = {"channels": ["a", "b"], "freq": "h", **options}
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        OnlinePredictor(online.forecaster, Standards(), **wanted)
    assert "\n" not in str(caught.value)


def test_a_watermark_may_be_a_span_of_any_kind(online):
    spans = [timedelta(hours=2), pd.Timedelta("2h"), np.timedelta64(120, "m"), np.timedelta64(5, "25m"), 2 * HOUR]
    made = [
        OnlinePredictor(online.forecaster, Standards(), channels=["a", "b"], freq="h", watermark=span).policy.steps
        for span in (*spans, 2 * HOUR - 1, HOUR + 1, 1, 0)
    ]
    assert made == [2, 2, 2, 3, 2, 2, 2, 1, 0]


@pytest.fixture
def saved(online, tmp_path):
    path = tmp_path / "state.safetensors"
    online.save(path)
    return path


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(saved, keep):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(CheckpointError, match=r"^path: .*truncated.*restore"):
        OnlinePredictor.load(saved)


def test_one_altered_byte_anywhere_is_refused(saved):
    whole = bytearray(saved.read_bytes())
    rng = np.random.default_rng(0)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for place in [header, len(whole) - 1, *rng.integers(header, len(whole), 10).tolist()]:
        altered = bytearray(whole)
        altered[place] ^= 1
        saved.write_bytes(altered)
        with pytest.raises(CheckpointError, match=r"^path: .*altered"):
            OnlinePredictor.load(saved)


def test_an_altered_string_is_refused(saved):
    whole = saved.read_bytes()
    saved.write_bytes(whole.replace(b'\\"half_life\\": 336.0', b'\\"half_life\\": 337.0'))
    assert saved.read_bytes() != whole
    with pytest.raises(CheckpointError, match=r"^path: .*altered"):
        OnlinePredictor.load(saved)


def test_a_newer_schema_is_refused_with_its_number(online, tmp_path):
    path = tmp_path / "newer.safetensors"
    checkpoint.write(path, {"x": torch.zeros(1)}, {}, kind=KIND, schema=99)
    with pytest.raises(CheckpointError, match=r"schema 99.*upgrade"):
        OnlinePredictor.load(path)


def test_another_kind_of_file_and_no_file_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    checkpoint.write(path, {"x": torch.zeros(1)}, {}, kind="something", schema=1)
    with pytest.raises(CheckpointError, match="something"):
        OnlinePredictor.load(path)
    with pytest.raises(CheckpointError, match="no file"):
        OnlinePredictor.load(tmp_path / "nothing")


def test_a_full_disk_leaves_the_old_checkpoint(online, saved, monkeypatch):
    before = saved.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        online.save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_messages_are_one_line_of_plain_numbers(online):
    for _, _, call in BAD.values():
        with pytest.raises(TsgdnError) as caught:
            call(online)
        assert not re.search(r"\n|np\.float", str(caught.value))


def test_the_config_survives_json_and_an_unknown_field_is_named():
    config = ForecasterConfig(prediction_length=4, period_ns=HOUR, calendar=("day",))
    assert ForecasterConfig.from_json(config.to_json()) == config
    raw = {**json.loads(config.to_json()), "sparkle": 1}
    with pytest.raises(ConfigError, match="sparkle"):
        ForecasterConfig.from_json(json.dumps(raw))
