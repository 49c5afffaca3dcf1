"""Calibrated streams: coverage that telescopes, whatever comes; nothing new for missing cells; restarts to the bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2 import archive, checkpoint
from tsgdn2.conformal import CAP, ETA, EVEN, FAST, LEAN, LIMIT, SLOW, Calibrated
from tsgdn2.errors import CheckpointError, ConfigError, UnknownStreamError
from tsgdn2.online import OnlinePredictor

HOUR = 3_600_000_000_000
NAMES = ("s", "t")
MOVED = ("s", "recent", "judged", "last")


def frame(rows, channels):
    """Rows (stream, step, values) as a polars frame."""
    stamps = pl.Series("time", [step * HOUR for _, step, _ in rows]).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
    values = {name: [float(own[c]) for *_, own in rows] for c, name in enumerate(channels)}
    return pl.DataFrame({"stream": [name for name, *_ in rows], "time": stamps, **values})


def stream(rng, count, name="s", start=0):
    """Rows of one stream without gaps: a level that moves, a spread that changes, values that repeat."""
    level = np.cumsum(rng.normal(size=(count, 3)), 0) + np.where(np.arange(count)[:, None] > count // 2, 50.0, 0.0)
    spread = np.where(np.arange(count)[:, None] % 80 < 40, 0.2, 6.0)
    values = np.round(level + spread * rng.normal(size=(count, 3)), 1)
    values[:, 2] = np.where(rng.random(count) < 0.9, 0.0, values[:, 2])
    return [(name, start + i, values[i]) for i in range(count)]


def calibration(online):
    return online._calibration


def test_the_share_missed_is_the_wanted_one_and_what_the_tracker_moved_exactly(disorder):
    online = Calibrated.of(disorder.predictor(prediction_length=10, layers=1))
    rows = stream(np.random.default_rng(0), 640)
    online.observe_many(frame(rows, online.channels))
    own = calibration(online)
    judged, missed = own.counts(0)
    assert judged.shape == (3, 3, 4)
    assert (np.abs(own.s[0]) < LIMIT).all()
    assert judged[0].min() > 600
    np.testing.assert_allclose(missed / judged - own.alpha, own.s[0] / (ETA * judged), atol=1e-12)
    assert np.abs(missed / judged - own.alpha)[0, :, 0].max() < 0.05
    told = online.coverage("s")
    assert [round(one.wanted, 9) for one in told] == [0.8, 0.6, 0.4, 0.2] == [round(one, 9) for one in online.coverages]
    assert told[0].judged == judged[0, :, 0].sum()
    assert told[0].found == pytest.approx(1 - missed[0, :, 0].sum() / judged[0, :, 0].sum())
    assert online.coverage("s", "b", block=2)[0].judged == judged[2, 1, 0]


def test_what_counts_is_what_was_given_out_when_the_patch_closed(disorder):
    online = Calibrated.of(disorder.predictor(prediction_length=10))
    rows = stream(np.random.default_rng(1), 160)
    ends, outside, seen = {}, np.zeros((3, 3, 4)), np.zeros((3, 3, 4))
    for name, step, values in rows:
        if step and step % 4 == 0:
            given_out = online.forecast(name).quantiles
            ends[step - 1] = given_out[..., :4], given_out[..., :4:-1]
        for clock, (low, high) in ends.items():
            if step - clock <= 10:
                block = (step - clock - 1) // 4
                at = low[step - clock - 1], high[step - clock - 1]
                outside[block] += (values[:, None] < at[0]) | (values[:, None] > at[1])
                seen[block] += 1
        online.observe(name, step * HOUR, values)
    judged, missed = calibration(online).counts(0)
    np.testing.assert_array_equal(judged, seen)
    np.testing.assert_array_equal(missed, outside)


def test_quantiles_rise_and_surprise_and_median_stay_the_models_own(disorder):
    plain, online = (disorder.predictor(prediction_length=10, layers=1) for _ in range(2))
    online = Calibrated.of(online)
    for name, step, values in stream(np.random.default_rng(2), 200):
        mine, theirs = (one.observe(name, step * HOUR, values) for one in (online, plain))
        np.testing.assert_array_equal(mine.surprise, theirs.surprise)
        assert mine.status == theirs.status
    mine, theirs = online.forecast("s"), plain.forecast("s")
    assert (np.diff(mine.quantiles, axis=-1) >= 0).all()
    np.testing.assert_array_equal(mine.median, theirs.median)
    assert not np.allclose(mine.quantiles, theirs.quantiles)
    assert online.state_nbytes > plain.state_nbytes
    np.testing.assert_array_equal(online.forecast("s", 3).quantiles, mine.quantiles[:3])


def test_a_new_calibration_hands_on_the_models_quantiles(disorder):
    plain, online = disorder.predictor(), Calibrated.of(disorder.predictor())
    for one in (plain, online):
        one.observe("s", 0, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(online.forecast("s").quantiles, plain.forecast("s").quantiles, rtol=1e-14)
    assert np.isnan(online.coverage("s")[0].found)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40))
def test_a_frame_is_its_rows_one_by_one_bit_for_bit_and_gaps_change_nothing(disorder, seed, count):
    rng = np.random.default_rng(seed)
    one, many = (Calibrated.of(disorder.predictor(options={"late": "drop"})) for _ in range(2))
    rows = []
    for name in NAMES:
        step = int(rng.integers(-30, 30))
        for _ in range(count):
            step += int(rng.choice((1, 1, 1, 2, 5, 30)))
            values = np.where(rng.random(3) < 0.2, np.nan, rng.normal(size=3) * 3)
            rows.append((name, step, values))
    rng.shuffle(rows)
    rows.sort(key=lambda row: row[1] + 3 * rng.random())
    for name, step, values in rows:
        before = [getattr(calibration(one), key).copy() for key in MOVED]
        one.observe(name, step * HOUR, values)
        if not np.isfinite(values).any():
            after = [getattr(calibration(one), key)[: len(old)] for key, old in zip(MOVED, before, strict=True)]
            assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    many.observe_many(frame(rows, ("a", "b", "c")))
    left, right = (calibration(online).tensors(len(online.streams)) for online in (one, many))
    order = [many.streams.index(name) for name in one.streams]
    for key in (key for key in left if key.startswith("conformal.")):
        np.testing.assert_array_equal(left[key].numpy(), right[key].numpy()[order])
    found = one.forecast_many(NAMES)
    assert found.equals(many.forecast_many(NAMES))
    for name in NAMES:
        own = found.filter(pl.col("stream") == name).select(str(level) for level in one.config.quantiles).to_numpy()
        np.testing.assert_array_equal(own, one.forecast(name).quantiles.reshape(own.shape))


def test_repeats_replacements_and_late_values_are_not_judged_again(disorder):
    online = Calibrated.of(disorder.predictor(options={"late": "tag"}))
    for name, step, values in stream(np.random.default_rng(3), 42):
        online.observe(name, step * HOUR, values)
    before = {key: t.clone() for key, t in calibration(online).tensors(1).items() if key.startswith("conformal.")}
    last = values
    assert online.observe("s", 41 * HOUR, last).status == "duplicate"
    assert online.observe("s", 41 * HOUR, last + 90).status == "replaced"
    assert online.observe("s", 2 * HOUR, last).status == "late"
    assert online.observe("s", 60 * HOUR, [None] * 3).status == "missing"
    after = calibration(online).tensors(1)
    assert all(t.equal(after[key]) for key, t in before.items())


def test_a_new_process_goes_on_bit_for_bit(disorder, tmp_path: Path):
    online = Calibrated.of(disorder.predictor(prediction_length=10, layers=1, options={"late": "replay"}))
    rows = stream(np.random.default_rng(4), 90) + stream(np.random.default_rng(5), 50, "t", 7)
    first, rest = rows[:70] + rows[90:120], rows[70:90] + rows[120:]
    online.observe_many(frame(first, ("a", "b", "c")))
    online.save(tmp_path / "half.safetensors")
    online.observe_many(frame(rest, ("a", "b", "c")))
    online.save(tmp_path / "whole.safetensors")
    frame(rest, ("a", "b", "c")).write_parquet(tmp_path / "rest.parquet")
    program = (
        "import sys, polars as pl; from tsgdn2 import Calibrated\n"
        "online = Calibrated.load('half.safetensors'); online.observe_many(pl.read_parquet('rest.parquet'))\n"
        "online.save('again.safetensors'); online.forecast_many(['s', 't']).write_parquet('told.parquet')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120)
    again, whole = (
        checkpoint.read(tmp_path / f"{name}.safetensors", kind=archive.KIND, schema=archive.SCHEMA)
        for name in ("again", "whole")
    )
    assert again[1] == whole[1]
    assert again[0].keys() == whole[0].keys()
    assert all(t.numpy().tobytes() == whole[0][name].numpy().tobytes() for name, t in again[0].items())
    assert pl.read_parquet(tmp_path / "told.parquet").equals(online.forecast_many(["s", "t"]))


def test_a_plain_file_begins_uncalibrated_and_a_calibrated_one_is_read_without(disorder, tmp_path: Path):
    plain, path = disorder.predictor(), tmp_path / "state.safetensors"
    rows = stream(np.random.default_rng(6), 60)
    for name, step, values in rows[:40]:
        plain.observe(name, step * HOUR, values)
    plain.save(path)
    online = Calibrated.load(path)
    assert not calibration(online).s.any()
    for name, step, values in rows[40:]:
        online.observe(name, step * HOUR, values)
        plain.observe(name, step * HOUR, values)
    assert calibration(online).s.any()
    online.save(path)
    without = OnlinePredictor.load(path)
    np.testing.assert_array_equal(without.forecast("s").quantiles, plain.forecast("s").quantiles)


def test_widths_follow_the_equations_in_the_module_docstring(disorder):
    online = Calibrated.of(disorder.predictor(prediction_length=10, layers=1))
    plain = disorder.predictor(prediction_length=10, layers=1)
    levels = np.array(plain.config.quantiles)[:4]
    normal = [-NormalDist(0, (np.pi / 2) ** 0.5).inv_cdf(float(level)) for level in levels]
    s, usual, recent = (np.zeros((3, 3, 4)) for _ in range(3))
    told = []
    for name, step, values in stream(np.random.default_rng(8), 121):
        own = plain.forecast(name).quantiles if step and step % 4 == 0 else None
        if own is not None:
            middle, low, high = own[..., 4], own[..., 4:5] - own[..., :4], own[..., :4:-1] - own[..., 4:5]
            block = np.arange(10) // 4
            half, factor = (low + high) / 2, 1.0
            if told:
                low, high = ((1 - EVEN) * arm + EVEN * usual[block] for arm in (low, high))
                factor = np.exp(s[block]) * (recent[block] / ((low + high) / 2)) ** LEAN
            below, above = (np.maximum.accumulate((factor * arm)[..., ::-1], -1)[..., ::-1] for arm in (low, high))
            told = [*told[-2:], (step - 1, middle, middle[..., None] - below, middle[..., None] + above)]
            for k in range(3):
                mean = half[4 * k : 4 * k + 4].mean(0)
                usual[k], recent[k] = (
                    (usual[k] + SLOW * (mean - usual[k]), recent[k]) if len(told) > 1 else (mean, mean)
                )
        for clock, middle, low, high in told:
            k, at = divmod(step - clock - 1, 4)
            if k < 3 and 4 * k + at < 10:
                y, at = values[:, None], 4 * k + at
                s[k] += ETA * (((y < low[at]) | (y > high[at])) - 2 * levels)
                error = np.minimum(normal * np.abs(y - middle[at][:, None]), CAP * np.maximum(recent[k], usual[k]))
                recent[k] += FAST * (error - recent[k])
        for one in (online, plain):
            one.observe(name, step * HOUR, values)
    found = calibration(online)
    for key, wanted in (("s", s), ("usual", usual), ("recent", recent)):
        np.testing.assert_allclose(getattr(found, key)[0], wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.ends[0, (told[-1][0] // 4) % 3, ..., 0], told[-1][2], rtol=1e-9)
    np.testing.assert_allclose(found.ends[0, (told[-1][0] // 4) % 3, ..., 1], told[-1][3], rtol=1e-9)


def test_widths_grow_with_the_spread_and_come_back_within_a_few_patches(disorder):
    online, rng, widths = Calibrated.of(disorder.predictor(layers=1)), np.random.default_rng(9), []
    for step in range(720):
        spread = 30.0 if 400 <= step < 480 else 1.0
        online.observe("s", step * HOUR, spread * rng.normal(size=3))
        widths.append(np.ptp(online.forecast("s", 4).quantiles, axis=-1).mean())
    calm, wild, after = (np.mean(widths[a:b]) for a, b in ((360, 400), (440, 480), (640, 720)))
    assert wild > 5 * calm
    assert after < wild / 5


def test_a_calibration_of_the_earlier_form_is_refused_and_read_without(disorder, tmp_path: Path):
    online, path = Calibrated.of(disorder.predictor()), tmp_path / "state.safetensors"
    for name, step, values in stream(np.random.default_rng(10), 30):
        online.observe(name, step * HOUR, values)
    online.save(path)
    tensors, _ = checkpoint.read(path, kind=archive.KIND, schema=archive.SCHEMA)
    old = {
        name: t for name, t in tensors.items() if name.removeprefix("conformal.") not in ("usual", "recent", "middle")
    }
    assert len(old) == len(tensors) - 3
    own = calibration(Calibrated.of(disorder.predictor()))
    with pytest.raises(CheckpointError, match=r"lacks \['usual', 'recent', 'middle'\], an earlier version"):
        own.restore(old, 1)
    assert not own.judged.any()
    again = Calibrated.of(OnlinePredictor.load(path))
    assert list(again.streams) == ["s"]
    assert not calibration(again).s.any()


def test_constant_values_are_covered_as_often_as_is_said(disorder):
    online = Calibrated.of(disorder.predictor(layers=1))
    online.observe_many(frame([("s", step, [5.0, 0.0, -2.0]) for step in range(640)], online.channels))
    assert online.coverage("s")[0].found == pytest.approx(0.8, abs=0.06)
    width = np.ptp(online.forecast("s", 1).quantiles[0], axis=-1)
    assert np.isfinite(width).all()


def test_what_does_not_fit_is_refused_by_name(disorder, tmp_path: Path):
    with pytest.raises(ConfigError, match="watermark: must be 0"):
        Calibrated.of(disorder.predictor(options={"watermark": 3 * HOUR}))
    with pytest.raises(ConfigError, match="two levels a and 1 - a"):
        Calibrated.of(disorder.predictor(quantiles=(0.2, 0.5, 0.7)))
    online = Calibrated.of(disorder.predictor())
    with pytest.raises(UnknownStreamError, match="has not been observed"):
        online.coverage("s")
    online.observe("s", 0, [1.0, None, 2.0])
    with pytest.raises(ConfigError, match="block: must be 0 to 1"):
        online.coverage("s", block=2)
    with pytest.raises(ConfigError, match="channel: must be one of"):
        online.coverage("s", "d")
    online.save(tmp_path / "state.safetensors")
    content = bytearray((tmp_path / "state.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="altered"):
        Calibrated.load(tmp_path / "state.safetensors")


@pytest.mark.parametrize("levels", [(0.1, 0.9), (0.05, 0.1, 0.5, 0.9), (0.1, 0.2, 0.7, 0.8, 0.9)])
def test_levels_without_a_partner_or_a_median_keep_their_order(disorder, levels):
    online = Calibrated.of(disorder.predictor(quantiles=levels, layers=1))
    for name, step, values in stream(np.random.default_rng(7), 120):
        online.observe(name, step * HOUR, values)
    assert (np.diff(online.forecast("s").quantiles, axis=-1) >= 0).all()
