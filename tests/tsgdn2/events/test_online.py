"""The stream of events against the batch: the same forecast after every event, whoever else is in the call."""

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
from tsgdn2.covariates import Covariates
from tsgdn2.events import ingest
from tsgdn2.events.history import EventSeries
from tsgdn2.events.online import OnlineEvents
from tsgdn2.events.patch import waits
from tsgdn2.events.timeline import EventTimelines
from tsgdn2.forecaster import Forecaster, ForecasterConfig, Layout, QueryInputs
from tsgdn2.pipelines.packing import NONE, pack, run_of, streams_of
from tsgdn2.sequence import Peers
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
START = pd.Timestamp("2024-03-01 05:00").value
TARGETS = ("count", "mean(delay)", "count[b]", "sum(load)")
SHAPE = {"prediction_length": 5, "period_ns": HOUR, "channels": 4, "half_life": 30.0, "calendar": ("day", "week")}
SIZES = {"patch_length": 3, "width": 16, "layers": 2, "heads": 2, "key_dim": 4, "value_dim": 8, "mlp": 16}
EVENTS = {
    "event_types": ("a", "b"),
    "event_targets": TARGETS,
    "event_marks": ("delay", "load"),
    "event_mark_low": (-1e3, 0.0),
    "event_mark_high": (1e3, 1e6),
    "event_unknown": "other",
}


def random_model(seed=0, dtype=torch.float64, **changes):
    """A small forecaster with weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    forecaster = Forecaster(ForecasterConfig(**{**SHAPE, **SIZES, **EVENTS, **changes})).to(dtype)
    with torch.no_grad():
        for name, parameter in forecaster.named_parameters():
            if name.startswith(("head", "wait")) or name.endswith("across.out.weight"):
                parameter.normal_(std=0.3)
            if name.endswith("A_log"):
                parameter.uniform_(-4.0, 0.5)
    return forecaster


def standards(known=0, past=0):
    return Standards(
        default=(3.0, 2.0, 1.0, 40.0), mark_mean=(5.0, 10.0), mark_scale=(20.0, 30.0), known_mean=(0.5,) * known,
        known_scale=(2.0,) * known, past_mean=(0.5,) * past, past_scale=(2.0,) * past,
    )  # fmt: skip


def random_events(rng, count, *, start=START):
    """Bursts, silence of many patches, equal moments, unknown and missing types, missing marks."""
    gaps = rng.exponential(0.4, count) * HOUR
    gaps[rng.random(count) < 0.25] = 0
    gaps[rng.random(count) < 0.05] *= 60
    time = start + np.cumsum(gaps).astype(np.int64)
    whole = rng.random(count) < 0.1
    time[whole] = time[whole] // HOUR * HOUR
    types = [["a", "b", "z", None][i] for i in rng.integers(0, 4, count)]
    marks = np.where(rng.random((count, 2)) < 0.3, np.nan, np.abs(rng.normal(size=(count, 2))) * [30.0, 1e3])
    return np.sort(time), types, marks


def online_of(forecaster, **options):
    return OnlineEvents(forecaster, standards(forecaster.config.known, forecaster.config.past), freq="h", **options)


@torch.inference_mode()
def batch(forecaster, time, types, marks, tau, known, past):
    """Quantiles [H, C, Q] and waits [Q] after a whole history: one chunkwise pass, then one query at tau."""
    config, units = forecaster.config, standards(forecaster.config.known, forecaster.config.past)
    schema = config.event_schema(units.mark_mean, units.mark_scale)
    series = EventSeries(
        events=schema.arrays(time, types, marks), prior_scale=units.prior_scale("s", TARGETS), end=tau,
        known=Covariates(config, units).columns(known, past),
    )  # fmt: skip
    lines = EventTimelines([series], config, schema, number=config.event_window)
    clocks = lines.commit_clocks(0, config.patch_length)
    clocks, span = clocks[clocks < tau], lines.span(config.patch_length)
    runs = [run_of(own, clocks, 0, len(clocks), span) for own in streams_of(lines)]
    packed = pack(lines, runs, config.patch_length, np.concatenate([run.clocks for run in runs]))
    commits, lane = packed.commits, np.arange(len(lines))
    clock, newest = np.full(len(lane), tau), np.concatenate(packed.last)
    waited = np.where(newest == NONE, 0, clock - np.where(newest == NONE, clock, newest))
    layout, peers = Layout(packed.length), None
    asked = lines.windows(lane, clock, config.patch_length, waited)
    if config.across:
        layout = layout._replace(commit_peers=commits.peers(packed.moments, np.ones(len(commits.lane), np.bool_)))
        peers = Peers(np.zeros_like(lane), lane, asked.heard(), groups=1, width=len(lane))
    static = forecaster.static(lines.static_real, lines.static_categories)
    windows = lines.windows(commits.lane, commits.clock, config.patch_length, commits.waited)
    state = forecaster.prefill(windows, commits.waited / span, layout, static)
    inputs = QueryInputs(asked, lines.future(lane, clock), lines.lags(lane, clock, config.lag_skip))
    reading = forecaster.read(inputs, waited / span, static, state, peers)
    mean, scale = lines.statistics(lane, clock)
    z = np.sort(reading.horizon.double().numpy(), -1)
    quantiles = mean[:, None, :, None] + scale[:, None, :, None] * z
    outputs = np.sort(reading.wait.double().numpy(), -1).mean(0)
    return np.concatenate(list(quantiles), 1), waits(outputs, HOUR)


def agree(got, expected, spread, tolerance):
    return (np.abs(got - expected) <= tolerance * (spread + np.abs(expected))).all()


@pytest.mark.parametrize("mode", ["joint", "independent", "attention"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("number", [0, 4])
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_stream_equals_the_batch_after_every_event(mode, dtype, tolerance, number, seed):
    rng = np.random.default_rng(seed)
    given = bool(rng.integers(0, 2))
    extras = {"lag_skip": int(rng.choice([0, 7])), "bridge": float(rng.choice([0.0, 2.5]))}
    extras |= {"known": 2, "past": 1, "known_cardinalities": (3,)} if given else {}
    forecaster = random_model(dtype=dtype, mode=mode, event_window=number, **extras)
    online = online_of(forecaster)
    time, types, marks = random_events(rng, 40)
    first = time[0] // HOUR
    rows = int(time[-1] // HOUR - first) + 80
    known = np.concatenate([rng.normal(size=(rows, 2)), rng.integers(0, 3, (rows, 1))], 1)[:, : 3 if given else 0]
    past_known = np.where(rng.random((rows, 1)) < 0.3, np.nan, rng.normal(size=(rows, 1)))[:, : int(given)]
    spread = np.array([3.0, 2.0, 1.0, 40.0])[None, :, None]
    for e in range(len(time)):
        row = time[e] // HOUR - first
        online.observe("s", int(time[e]), types[e], marks[e], known=known[row], past=past_known[row])
        past, tau = slice(0, e + 1), int(time[e]) + int(rng.choice([1, 1, HOUR // 3, 5 * HOUR, 40 * HOUR]))
        tau = tau // HOUR * HOUR if rng.random() < 0.3 and tau // HOUR * HOUR > time[e] else tau
        c = (tau - 1) // HOUR - first
        got = online.forecast("s", at=tau, future=known[c + 1 : c + 6]).quantiles
        expected, then = batch(forecaster, time[past], types[past], marks[past], tau, known, past_known)
        assert agree(got, expected, spread, tolerance)
        assert agree(online.next_event("s", at=tau).waits.astype(np.int64), then, HOUR, tolerance)


def frame_of(rng, streams, rows):
    """Interleaved events of many streams: bursts, silence, disorder inside a patch now and then."""
    clocks = dict.fromkeys(streams, START)
    records = []
    for _ in range(rows):
        stream = streams[int(rng.integers(len(streams)))]
        clocks[stream] += int(rng.choice([0, HOUR // 7, HOUR // 7, HOUR // 2, HOUR, 9 * HOUR]))
        types = ["a", "b", "z", None][int(rng.integers(4))]
        marks = np.where(rng.random(2) < 0.3, np.nan, rng.random(2) * 50)
        records.append((stream, clocks[stream] - int(rng.choice([0, 0, 0, HOUR // 3])), types, *marks))
    schema = ["stream", "time", "type", "delay", "load"]
    return pl.DataFrame(records, schema=schema, orient="row").with_columns(
        pl.col("time").cast(pl.Datetime("ns", "UTC"))
    )


@pytest.mark.parametrize("mode", ["independent", "joint", "attention"])
@pytest.mark.parametrize("number", [0, 5])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), streams=st.integers(1, 21))
def test_observe_many_equals_observe_bit_for_bit_whatever_else_is_in_the_frame(mode, number, seed, streams):
    forecaster = random_model(dtype=torch.float32, mode=mode, event_window=number, lag_skip=6)
    rng = np.random.default_rng(seed)
    names = [f"s{i}" for i in range(streams)]
    frame = frame_of(rng, names, 25 * streams)
    many = online_of(forecaster, late="drop", audit=AuditConfig())
    with pytest.MonkeyPatch.context() as patch:  # how many reference forecasts are made together changes nothing
        patch.setattr(ingest, "TOGETHER", int(rng.choice([1, 7, 256])))
        out = pl.concat([many.observe_many(part) for part in frame.iter_slices(int(rng.choice([83, 1000])))])
    chosen = names[int(rng.integers(streams))]
    one = online_of(forecaster, late="drop", audit=AuditConfig())
    whole = pl.col("time").to_physical()  # a datetime of Python has no nanoseconds
    mine = frame.with_row_index().with_columns(whole).filter(pl.col("stream") == chosen)
    for row in mine.iter_rows(named=True):
        got = one.observe(chosen, row["time"], row["type"], {"delay": row["delay"], "load": row["load"]})
        expected = out.row(row["index"], named=True)
        assert got.status == expected["status"]
        np.testing.assert_array_equal(got.surprise, [expected[f"surprise.{name}"] for name in TARGETS])
    if not len(mine):
        return
    assert one.counters(chosen) == many.counters(chosen)
    for name, tensor in everything(one, chosen).items():
        assert torch.equal(tensor.nan_to_num(), everything(many, chosen)[name].nan_to_num()), name
    np.testing.assert_array_equal(one.forecast(chosen).quantiles, many.forecast(chosen).quantiles)
    np.testing.assert_array_equal(one.next_event(chosen).waits, many.next_event(chosen).waits)
    together = many.forecast_many(list(many.streams))
    for name in many.streams:
        own = together.filter(pl.col("stream") == name)
        quantiles = own.select([str(q) for q in forecaster.config.quantiles]).to_numpy().reshape(5, 4, 9)
        np.testing.assert_array_equal(quantiles, many.forecast(name).quantiles)


def everything(online, stream):
    """Every array and tensor of one stream."""
    slab, slot = online._slab, online._slots[stream]
    lanes = slice(slot * slab.config.lanes, (slot + 1) * slab.config.lanes)
    tensors = slab.tensors(np.arange(len(online.streams)))
    return {name: (t[lanes] if name.startswith("state") else t[slot]).clone() for name, t in tensors.items()}


CONTINUE = """
import sys, numpy as np
from tsgdn2.events.online import OnlineEvents
online = OnlineEvents.load(sys.argv[1])
rng = np.random.default_rng(9)
rows = []
time = int(sys.argv[3])
for e in range(40):
    time += int(rng.choice([0, 1, 2, 9])) * 1_700_000_000_000
    for name in ("a", "b"):
        rows.append(online.observe(name, time, "ab"[e % 2], rng.random(2)).surprise)
    rows.append(online.forecast("a").quantiles.reshape(-1))
    rows.append(online.next_event("b").waits.astype(np.int64).astype(float))
np.savez(sys.argv[2], *rows)
"""


@pytest.mark.parametrize("number", [0, 6])
def test_a_new_process_goes_on_as_if_nothing_had_happened(tmp_path: Path, number):
    forecaster = random_model(dtype=torch.float32, mode="independent", event_window=number)
    online = online_of(forecaster, audit=AuditConfig(), longest_gap=10**6 * HOUR)
    time, types, marks = random_events(np.random.default_rng(5), 70)
    for t, name, row in zip(time.tolist(), types, marks, strict=True):
        online.observe("a", t, name, row)
        online.observe("b", t, name, None)
    online.save(tmp_path / "state.safetensors")
    script = [sys.executable, "-c", CONTINUE, tmp_path / "state.safetensors", tmp_path / "out.npz", str(time[-1])]
    subprocess.run(script, check=True)
    rng, now, expected = np.random.default_rng(9), int(time[-1]), []
    for e in range(40):
        now += int(rng.choice([0, 1, 2, 9])) * 1_700_000_000_000
        expected += [online.observe(name, now, "ab"[e % 2], rng.random(2)).surprise for name in ("a", "b")]
        expected.append(online.forecast("a").quantiles.reshape(-1))
        expected.append(online.next_event("b").waits.astype(np.int64))
    with np.load(tmp_path / "out.npz") as got:
        for i, value in enumerate(expected):
            np.testing.assert_array_equal(got[f"arr_{i}"], value)
