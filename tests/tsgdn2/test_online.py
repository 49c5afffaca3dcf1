"""The stream against the batch: the same forecast after every observation, whoever else is in the call."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.audit import AuditConfig
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
START = pd.Timestamp("2024-03-01 05:00")
SERIES = {"prediction_length": 6, "period_ns": HOUR, "channels": 3, "half_life": 40.0, "calendar": ("day", "week")}
SIZES = {"patch_length": 4, "width": 16, "layers": 2, "heads": 2, "key_dim": 4, "value_dim": 8, "mlp": 16}


def hour(number):
    return START + pd.Timedelta(hours=number)


def random_model(seed=0, dtype=torch.float64, **changes):
    """A small forecaster with weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    forecaster = Forecaster(ForecasterConfig(**{**SERIES, **SIZES, **changes})).to(dtype)
    with torch.no_grad():
        for name, parameter in forecaster.named_parameters():
            if name.startswith("head"):
                parameter.normal_(std=0.3)
            if name.endswith("A_log"):
                parameter.uniform_(-4.0, 0.5)
    return forecaster


def standards(channels=3, known=0):
    return Standards(default=(2.0,) * channels, known_mean=(0.5,) * known, known_scale=(2.0,) * known)


def batch_predictor(forecaster, scales):
    config = forecaster.config
    predictor = GDN2Predictor(
        config_json=config.to_json(),
        standards_json=scales.to_json(),
        freq="h",
        channels=[f"c{i}" for i in range(config.channels)],
    )
    predictor.prediction_net.to(forecaster.dtype).load_state_dict(forecaster.state_dict())
    return predictor


def online_predictor(forecaster, scales, **options):
    names = [f"c{i}" for i in range(forecaster.config.channels)]
    return OnlinePredictor(forecaster, scales, channels=names, freq="h", **options)


def broken_stream(rng, steps, channels):
    """30 % of the cells missing, whole outages, and rows that never arrive (irregular gaps)."""
    values = (
        np.cumsum(rng.normal(size=(steps, channels)), 0) * [1.0, 30.0, 0.01][:channels] + [0.0, 1e5, -3.0][:channels]
    )
    values[rng.random(values.shape) < 0.3] = np.nan
    for begin in rng.integers(20, steps - 40, 4):
        values[begin : begin + int(rng.integers(3, 30))] = np.nan
    arrives = rng.random(steps) < 0.8
    for begin in rng.integers(20, steps - 60, 2):
        arrives[begin : begin + int(rng.integers(5, 50))] = False
    arrives[0] = True
    values[~arrives] = np.nan
    return values, arrives


@pytest.mark.parametrize("mode", ["independent", "joint"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("extras", [{}, {"lag_skip": 13, "known": 2}, {"decay_from": "own"}, {"identity": True}])
def test_the_stream_equals_the_batch_after_every_observation(mode, dtype, tolerance, extras):
    if extras.get("identity"):  # only independent channels can be told who they are
        extras = {"channel_identity": mode == "independent", "lag_skip": 5}
    forecaster = random_model(dtype=dtype, mode=mode, **extras)
    known = forecaster.config.known
    scales = standards(known=known)
    online, predictor = online_predictor(forecaster, scales), batch_predictor(forecaster, scales)
    rng = np.random.default_rng(3)
    steps = 560
    values, arrives = broken_stream(rng, steps, 3)
    covariates = rng.normal(size=(steps + 6, known))
    entries, streamed, observed = [], [], 0
    for t in range(steps):
        if not arrives[t] and not known:  # with covariates every step is sent, its values missing
            continue
        online.observe("s", hour(t), values[t], known=covariates[t] if known else None)
        observed += 1
        streamed.append(online.forecast("s", future=covariates[t + 1 : t + 7] if known else None).quantiles)
        entries.append(
            {
                "start": pd.Period(START, freq="h"),
                "target": values[: t + 1].T,
                "item_id": "s",
                "feat_dynamic_real": covariates[: t + 7].T,
            }
        )
    assert observed >= 400
    batch = np.stack([np.moveaxis(f.forecast_array, 0, -1) for f in predictor.predict(entries)])
    stream = np.stack(streamed)
    deviation = np.nanstd(values, 0)[None, None, :, None]
    assert (np.abs(stream - batch) <= tolerance * (deviation + np.abs(batch))).all()


def frame_of(rng, streams, rows, channels=3):
    """Interleaved rows of many streams with repeats, corrections, gaps and missing cells."""
    clocks = dict.fromkeys(streams, 0)
    records = []
    for _ in range(rows):
        stream = streams[int(rng.integers(len(streams)))]
        clocks[stream] += int(rng.choice([0, 1, 1, 1, 1, 2, 9]))
        cells = np.where(rng.random(channels) < 0.3, np.nan, rng.normal(size=channels) * 5 + 10)
        records.append((stream, START.value + clocks[stream] * HOUR, *cells))
    schema = ["stream", "time", *[f"c{i}" for i in range(channels)]]
    return pl.DataFrame(records, schema=schema, orient="row").with_columns(
        pl.col("time").cast(pl.Datetime("ns", "UTC"))
    )


@pytest.mark.parametrize("mode", ["independent", "joint"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), streams=st.integers(1, 23))
def test_observe_many_equals_observe_bit_for_bit_whatever_else_is_in_the_frame(mode, seed, streams):
    forecaster = random_model(dtype=torch.float32, mode=mode)
    rng = np.random.default_rng(seed)
    names = [f"s{i}" for i in range(streams)]
    frame = frame_of(rng, names, 40 * streams)
    audit = AuditConfig()
    many = online_predictor(forecaster, standards(), audit=audit)
    out = pl.concat([many.observe_many(part) for part in frame.iter_slices(111)])
    chosen = names[int(rng.integers(streams))]
    one = online_predictor(forecaster, standards(), audit=audit)
    mine = frame.with_row_index().filter(pl.col("stream") == chosen)
    for row in mine.iter_rows(named=True):
        got = one.observe(chosen, row["time"], {f"c{i}": row[f"c{i}"] for i in range(3)})
        expected = out.row(row["index"], named=True)
        assert got.status == expected["status"]
        np.testing.assert_array_equal(got.surprise, [expected[f"surprise.c{i}"] for i in range(3)])
    np.testing.assert_array_equal(one.forecast(chosen).quantiles, many.forecast(chosen).quantiles)
    together = many.forecast_many(list(many.streams))
    for name in many.streams:
        own = together.filter(pl.col("stream") == name)
        quantiles = own.select([str(q) for q in forecaster.config.quantiles]).to_numpy().reshape(6, 3, 9)
        np.testing.assert_array_equal(quantiles, many.forecast(name).quantiles)


def everything(online, stream):
    """Every array and tensor of one stream but the clock and the count of rows heard of."""
    slab, slot = online._slab, online._slots[stream]
    lanes = slice(slot * slab.config.lanes, (slot + 1) * slab.config.lanes)
    tensors = slab.tensors(np.arange(len(online.streams)))
    return {
        name: (t[lanes] if name.startswith("state") else t[slot])
        for name, t in tensors.items()
        if name not in ("stream.clock", "stream.counters")
    }


def test_missing_data_alone_moves_the_clock_and_nothing_else():
    online = online_predictor(random_model(dtype=torch.float32), standards())
    rng = np.random.default_rng(0)
    for t in range(37):
        online.observe("s", hour(t), rng.normal(size=3))
    before = {name: t.clone() for name, t in everything(online, "s").items()}
    clock = int(online._slab.clock[0])
    for t in range(37, 500, 5):
        assert online.observe("s", hour(t), [np.nan, None, np.nan]).status == "missing"
    for name, tensor in everything(online, "s").items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name
    assert int(online._slab.clock[0]) == clock + 461


def test_a_forecast_leaves_nothing_behind():
    online = online_predictor(random_model(dtype=torch.float32), standards())
    rng = np.random.default_rng(0)
    for t in range(30):
        online.observe("s", hour(t), rng.normal(size=3))
    before = {name: t.clone() for name, t in everything(online, "s").items()}
    first = online.forecast("s").quantiles
    online.forecast("s", at=START + pd.Timedelta(days=9))
    online.forecast_many(["s", "s"])
    assert all(torch.equal(t.nan_to_num(), before[n].nan_to_num()) for n, t in everything(online, "s").items())
    np.testing.assert_array_equal(online.forecast("s").quantiles, first)


def test_cutting_a_gap_in_two_changes_nothing():
    forecaster = random_model()
    block = forecaster.blocks[0].mixer
    rng = torch.Generator().manual_seed(0)
    state = block.initial_state(3)
    x = torch.randn(5, 3, 16, generator=rng, dtype=torch.float64)
    for n in range(5):
        _, state = block.step(x[n], torch.ones(3), torch.ones(3), torch.full((3,), n), state)
    whole = block.read(x[0], torch.full((3,), 7.25, dtype=torch.float64), state)
    halved = {**state, "memory": state["memory"] * torch.exp(3.0 * state["rate"])[..., None]}
    cut = block.read(x[0], torch.full((3,), 4.25, dtype=torch.float64), halved)
    assert (whole - cut).abs().max() <= 1e-6 * whole.abs().max()


def test_a_row_without_values_inside_a_gap_changes_no_later_forecast():
    with_rows, without = (online_predictor(random_model(), standards()) for _ in range(2))
    rng = np.random.default_rng(2)
    for t in [*range(30), *range(75, 120)]:
        values = rng.normal(size=3)
        for online in (with_rows, without):
            online.observe("s", hour(t), values)
        if t == 29:
            for gap in (31, 50, 74):
                with_rows.observe("s", hour(gap), None)
    np.testing.assert_allclose(with_rows.forecast("s").quantiles, without.forecast("s").quantiles, rtol=1e-6)


def test_the_state_has_the_same_bytes_however_long_the_stream_is():
    online = online_predictor(random_model(dtype=torch.float32), standards())
    online.observe("s", START, [1.0, 2.0, 3.0])
    before = online.state_nbytes
    for t in range(1, 300):
        online.observe("s", hour(t), [1.0, 2.0, float(t % 7)])
    assert online.state_nbytes == before


CONTINUE = """
import sys, numpy as np, pandas as pd
from tsgdn2 import OnlinePredictor
online = OnlinePredictor.load(sys.argv[1])
rng = np.random.default_rng(9)
rows = []
for t in range(41, 90):
    for name in ("a", "b"):
        seen = online.observe(name, pd.Timestamp(sys.argv[3]) + pd.Timedelta(hours=t), rng.normal(size=3))
        rows.append(seen.surprise)
    rows.append(online.forecast("a").quantiles.reshape(-1))
readings = online.audit.readings(0)
np.savez(sys.argv[2], *rows, np.array(readings.ledger.residual) if hasattr(readings, "ledger") else np.zeros(1))
"""


def test_a_new_process_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    online = online_predictor(random_model(dtype=torch.float32), standards(), audit=AuditConfig())
    rng = np.random.default_rng(5)
    for t in range(41):
        for name in ("a", "b"):
            online.observe(name, hour(t), np.where(rng.random(3) < 0.2, np.nan, rng.normal(size=3)))
    online.save(tmp_path / "state.safetensors")
    subprocess.run(
        [sys.executable, "-c", CONTINUE, tmp_path / "state.safetensors", tmp_path / "out.npz", str(START)], check=True
    )
    again = np.random.default_rng(9)
    expected = []
    for t in range(41, 90):
        for name in ("a", "b"):
            seen = online.observe(name, hour(t), again.normal(size=3))
            expected.append(seen.surprise)
        expected.append(online.forecast("a").quantiles.reshape(-1))
    with np.load(tmp_path / "out.npz") as got:
        for i, value in enumerate(expected):
            np.testing.assert_array_equal(got[f"arr_{i}"], value)


def test_statuses_follow_the_documented_policy():
    online = online_predictor(random_model(dtype=torch.float32), standards(), late="drop")
    at = [pd.Timestamp("2024-03-02") + pd.Timedelta(hours=h) for h in range(40)]
    assert online.observe("s", at[0], [1, 2, 3]).status == "new"
    assert online.observe("s", at[0], [1, 2, 3]).status == "duplicate"
    assert online.observe("s", at[0], {"c1": 2.5}).status == "replaced"
    assert online.observe("s", at[2], {"c0": 1.0}).status == "new"
    assert online.observe("s", at[1], [9, 9, 9]).status == "filled"
    assert online.observe("s", at[5], None).status == "missing"
    assert online.observe("s", at[9], [4, 4, 4]).status == "new"
    before = everything(online, "s")
    assert online.observe("s", at[1], [7, 7, 7]).status == "late"
    assert all(torch.equal(t.nan_to_num(), before[n].nan_to_num()) for n, t in everything(online, "s").items())
    assert online.counters("s") == {"observations": 8, "duplicates": 1, "replaced": 1, "late": 1, "replays": 0}


def test_the_order_inside_the_open_patch_does_not_matter():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 3))
    results = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        online = online_predictor(random_model(dtype=torch.float32), standards())
        for patch in range(3):
            for t in order:
                online.observe(
                    "s", pd.Timestamp("2024-03-02") + pd.Timedelta(hours=4 * patch + t), values[4 * patch + t]
                )
        online.observe("s", pd.Timestamp("2024-03-02") + pd.Timedelta(hours=12), [0, 0, 0])
        results.append(online.forecast("s").quantiles)
    np.testing.assert_array_equal(results[0], results[1])


def test_surprise_is_small_at_the_median_and_grows_in_the_tails():
    online = online_predictor(random_model(dtype=torch.float32), standards())
    rng = np.random.default_rng(0)
    for t in range(33):
        assert np.isnan(online.observe("s", hour(t), rng.normal(size=3)).surprise).all() == (t < 3)
    slab = online._slab
    lead = int((hour(33)).value // HOUR - slab.origin[0])
    median, top = slab.reference[0, lead - 1, :, 4], slab.reference[0, lead - 1, :, 8]
    spread = top - median
    near = online.observe("s", hour(33), median).surprise
    far = online.observe("s", hour(33), top + 3 * spread).surprise
    assert (near < 0.01).all()
    assert (far > 3).all()
