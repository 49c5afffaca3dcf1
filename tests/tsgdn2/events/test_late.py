"""Events out of order: within the watermark to the bit, twice is once, and what is too late is told."""

import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.audit import AuditConfig
from tsgdn2.errors import ConfigError, LateDataError, StreamError
from tsgdn2.events.held import identities
from tsgdn2.events.online import OnlineEvents
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
START = pd.Timestamp("2024-03-01 06:00").value
CONFIG = {
    "prediction_length": 4, "period_ns": HOUR, "channels": 3, "mode": "joint", "half_life": 30.0, "patch_length": 3,
    "width": 16, "layers": 1, "heads": 2, "key_dim": 4, "value_dim": 8, "mlp": 16, "lag_skip": 4, "known": 1,
    "event_types": ("a", "b"), "event_targets": ("count", "mean(delay)", "min(load)"),
    "event_marks": ("delay", "load"), "event_mark_low": (-1e3, -1e6), "event_mark_high": (1e3, 1e6),
    "event_unknown": "other",
}  # fmt: skip
UNITS = Standards(
    default=(3.0, 2.0, 40.0), mark_mean=(5.0, 10.0), mark_scale=(20.0, 30.0), known_mean=(0.5,), known_scale=(2.0,)
)
COLUMNS = ("time", "type", "delay", "load", "known", "event_id")


def online_of(number=0, **options):
    torch.manual_seed(0)
    forecaster = Forecaster(ForecasterConfig(**CONFIG, event_window=number))
    with torch.no_grad():
        for name, parameter in forecaster.named_parameters():
            if name.startswith(("head", "wait")):
                parameter.normal_(std=0.3)
    return OnlineEvents(forecaster, UNITS, freq="h", **options)


def events_of(rng, count, *, ids=True):
    """Rows (time, type, delay, load, known, event_id) in canonical order: bursts, silence, many equal moments."""
    time = START + np.cumsum(rng.choice([0, 0, 0, 1, HOUR // 5, HOUR, 8 * HOUR], count))
    rows = []
    for n, t in enumerate(time.tolist()):
        marks = rng.choice([np.nan, 0.0, -0.0, 3.0, -7.25], 2).tolist()
        name = (None, n, f"e{n}")[int(rng.integers(3))] if ids else None
        rows.append((t, ("a", "b", "z", None)[int(rng.integers(4))], *marks, float(rng.integers(2)), name))
    return canonical(rows)


def canonical(rows):
    """Sorted by the definition: time, type, marks with NaN first, covariates, identity."""

    def key(row):
        numbers = [(not np.isnan(x), x, not np.signbit(x)) if x == x else (False,) for x in row[2:5]]
        return (row[0], ("a", "b", "z", None).index(row[1]), numbers, identities([row[5]])[0].tolist())

    return sorted(rows, key=key)


def shuffled(rng, rows, watermark):
    """An order in which none comes more than `watermark` behind the newest."""
    delay = rng.integers(0, watermark + 1, len(rows))
    order = np.lexsort((rng.random(len(rows)), [row[0] + int(d) for row, d in zip(rows, delay, strict=True)]))
    return [rows[n] for n in order]


def tell(online, rows, stream="s"):
    for time, kind, delay, load, known, name in rows:
        yield online.observe(stream, time, kind, [delay, load], known=[known], event_id=name)


def tell_all(online, rows, stream="s"):
    return [seen.status for seen in tell(online, rows, stream)]


def frame_of(rows, names):
    frame = pl.DataFrame({"stream": names, **{c: [row[n] for row in rows] for n, c in enumerate(COLUMNS[:4])}})
    return frame.with_columns(event_id=pl.Series([row[5] for row in rows], dtype=pl.Object))


def everything(online, *, counters=True):
    """All of a predictor that is saved, but for what tells how events came."""
    rows = np.arange(len(online.streams))
    tensors = online._slab.tensors(rows) | {f"w.{n}": t for n, t in online._reorder.waiting(rows).items()}
    tensors |= {} if online.audit is None else {f"a.{n}": t for n, t in online.audit.state_tensors().items()}
    if not counters:
        tensors.pop("w.counts", None)
    return {name: t.nan_to_num() if t.is_floating_point() else t for name, t in tensors.items()}


def same(one, other, **options):
    mine, theirs = everything(one, **options), everything(other, **options)
    assert mine.keys() == theirs.keys()
    return [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


FUTURE = np.zeros((4, 1))


@pytest.mark.parametrize("number", [0, 4])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), watermark=st.sampled_from([1, HOUR // 2, 2 * HOUR, 30 * HOUR]))
def test_any_order_within_the_watermark_leaves_the_state_of_the_ordered_events_to_the_bit(number, seed, watermark):
    rng = np.random.default_rng(seed)
    rows = events_of(rng, 50)
    mixed = shuffled(rng, rows, watermark)
    straight = online_of(number)
    tell_all(straight, rows)
    waiting = online_of(number, watermark=watermark)
    for n, status in enumerate(tell(waiting, mixed)):
        assert status.status == "held"
        if n % 9 == 0:  # what is read on the way leaves nothing behind
            waiting.forecast("s", future=FUTURE)
    np.testing.assert_array_equal(
        waiting.forecast("s", future=FUTURE).quantiles, straight.forecast("s", future=FUTURE).quantiles
    )
    np.testing.assert_array_equal(waiting.next_event("s").waits, straight.next_event("s").waits)
    ordered = online_of(number, watermark=watermark)
    tell_all(ordered, rows)
    assert same(waiting, ordered)
    many = online_of(number, watermark=watermark)
    cut = int(rng.integers(1, 50))
    for part in (mixed[:cut], mixed[cut:]):
        many.observe_many(frame_of(part, ["s"] * len(part)), known=[[row[4]] for row in part])
    assert same(waiting, many)
    waiting.flush()
    own = everything(waiting)
    assert all(torch.equal(t, own[name]) for name, t in everything(straight).items())


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), number=st.sampled_from([0, 3]), watermark=st.sampled_from([0, HOUR, 9 * HOUR]))
def test_observe_many_equals_observe_bit_for_bit_with_duplicates_late_events_and_a_full_buffer(seed, number, watermark):
    rng = np.random.default_rng(seed)
    options = {"watermark": watermark, "late": "tag", "most_held": 7, "recent_ids": 9}
    one, many = online_of(number, **options), online_of(number, **options)
    rows = shuffled(rng, events_of(rng, 60), 12 * HOUR)
    rows = [rows[max(0, n - int(rng.choice([0, 0, 0, 5, 30])))] for n in range(len(rows))]
    names = rng.choice(["s", "t", "u"], len(rows)).tolist()
    said = [next(tell(one, [row], name)) for row, name in zip(rows, names, strict=True)]
    cut, parts = int(rng.integers(1, 60)), []
    for part in (slice(0, cut), slice(cut, None)):
        known = [[row[4]] for row in rows[part]]
        parts.append(many.observe_many(frame_of(rows[part], names[part]), known=known))
    out = pl.concat(parts)
    assert out["status"].to_list() == [seen.status for seen in said]
    surprise = out.select(pl.selectors.starts_with("surprise")).to_numpy()
    np.testing.assert_array_equal(surprise, [seen.surprise for seen in said])
    assert same(one, many)
    assert repr(one.late_arrivals()) == repr(many.late_arrivals())
    assert all(one.counters(name) == many.counters(name) for name in set(names))
    whole = pl.exclude("stream").to_physical()
    together = one.next_event_many(["u", "s"]).with_columns(whole).to_dicts() if {"u", "s"} <= set(names) else []
    for row in together:
        alone = many.next_event(row.pop("stream"))
        assert [alone.after.astype(np.int64), *alone.waits.astype(np.int64)] == list(row.values())


@pytest.mark.parametrize("watermark", [0, 3 * HOUR])
def test_an_event_id_that_is_known_is_a_duplicate_and_changes_nothing(watermark):
    online = online_of(watermark=watermark, recent_ids=2)
    held = "held" if watermark else "new"
    assert online.observe("s", START, "a", known=[0], event_id="x").status == held
    before = everything(online, counters=False)
    for time, kind in ((START, "a"), (START + 99 * HOUR, "b"), (START - 99 * HOUR, None)):
        assert online.observe("s", time, kind, known=[0], event_id="x").status == "duplicate"
    assert all(torch.equal(t, before[n]) for n, t in everything(online, counters=False).items())
    assert online.counters("s")["duplicates"] == 3
    assert online.observe("s", START, "a", known=[0]).status == held, "without an id it is an event of its own"
    assert online.observe("t", START, "a", known=[0], event_id="x").status == held, "ids belong to a stream"
    assert online.observe("s", START + 1, "a", known=[0], event_id=7).status == held
    assert online.observe("s", START + 2, "a", known=[0], event_id="7").status == held, "a text is no number"
    assert online.observe("s", START, "a", known=[0], event_id=np.int64(7)).status == "duplicate"
    online.flush()
    assert online.counters("s") == {"events": 4, "late": 0, "unknown": 0, "duplicates": 4, "overflowed": 0}
    assert online.observe("s", START, "a", known=[0], event_id="7").status == "duplicate"
    assert online.observe("s", START + 2, "a", known=[0], event_id="x").status == "new", "the window holds two ids"


def test_what_comes_too_late_is_refused_or_counted_or_listed():
    for late in ("raise", "drop", "tag"):
        for watermark in (0, HOUR):
            online = online_of(late=late, watermark=timedelta(microseconds=watermark // 1000))
            online.observe("s", START, "a", known=[0])
            online.observe("s", START + 5 * HOUR, "b", known=[0])
            online.observe("s", START + 7 * HOUR, "b", known=[0])
            assert online.observe("s", START + 6 * HOUR, "b", known=[0]).status == ("earlier", "held")[watermark > 0]
            before = everything(online)
            if late == "raise":
                with pytest.raises(LateDataError, match="closed"):
                    online.observe("s", START + HOUR, "a", known=[0])
                rows = {"stream": ["t", "s", "s"], "time": [START, START + 8 * HOUR, START + HOUR]}
                with pytest.raises(LateDataError, match="'s' lies in a patch"):
                    online.observe_many(pl.DataFrame(rows), known=np.zeros((3, 1)))
                assert all(torch.equal(t, before[n]) for n, t in everything(online).items())
                assert online.streams == ("s",)
                continue
            assert online.observe("s", START + HOUR, "z", [np.nan, 2.0], known=[0]).status == "late"
            assert all(torch.equal(t, before[n]) for n, t in everything(online).items() if "counters" not in n)
            assert online.counters("s")["late"] == 1
            found = online.late_arrivals(drain=True)
            assert len(found) == (late == "tag")
            for one in found:
                assert (one.stream, one.type, one.marks["load"]) == ("s", "other", 2.0)
                assert one.time == np.datetime64(START + HOUR, "ns")
                assert one.lag == np.timedelta64(6, "h")
            assert online.late_arrivals() == []


def test_a_full_buffer_applies_its_oldest_events_early_and_counts_them():
    online = online_of(watermark=100 * HOUR, most_held=3)
    for n in (5, 1, 3):
        assert online.observe("s", START + n * HOUR, "a", known=[0]).status == "held"
    assert online.counters("s") == {"events": 0, "late": 0, "unknown": 0, "duplicates": 0, "overflowed": 0}
    size = online.state_nbytes
    online.observe("s", START + 4 * HOUR, "a", known=[0])
    assert online.counters("s")["events"] == online.counters("s")["overflowed"] == 1
    assert online.observe("s", START + HOUR, "a", known=[0]).status == "new", "no longer held: applied at once"
    for n in range(200):
        online.observe("s", START + 6 * HOUR, "ab"[n % 2], known=[0])
    assert online.state_nbytes == size
    assert len(online._reorder._held[0]) <= 3
    assert online._reorder._held[0]._rows.nbytes <= online._reorder._held[0].most_nbytes


def test_a_leap_is_measured_from_the_newest_event_that_waits_and_a_far_stamp_closes_nothing():
    online = online_of(watermark=4 * HOUR, longest_gap=10 * HOUR)
    online.observe("s", START + 12 * HOUR, "a", known=[0])
    assert online.observe("s", START + 22 * HOUR, "a", known=[0]).status == "held"
    before = everything(online)
    for row in (START + 33 * HOUR, 2**62):
        with pytest.raises(StreamError, match="longest_gap"):
            online.observe("s", row, "a", known=[0])
        with pytest.raises(StreamError, match="row 1"):
            online.observe_many(pl.DataFrame({"stream": ["s"] * 2, "time": [START + 20 * HOUR, row]}), known=[[0], [0]])
    assert all(torch.equal(t, before[n]) for n, t in everything(online).items())
    trusting = online_of(watermark=HOUR)
    trusting.observe("s", START, "a", known=[0])
    trusting.observe("s", 2**61, "a", known=[0])
    assert trusting.observe("s", START + HOUR // 2, "b", known=[0]).status == "new"
    assert trusting.observe("s", START + 9 * HOUR, "b", known=[0]).status == "new"
    assert trusting.counters("s")["events"] == 3
    with pytest.raises(StreamError, match="exclusive"):
        trusting.forecast("s", at=START + 99 * HOUR, future=FUTURE)


CONTINUE = """
import sys, pickle, numpy as np
sys.path.insert(0, sys.argv[1])
from test_late import FUTURE, everything, tell
from tsgdn2.events.online import OnlineEvents
online = OnlineEvents.load(sys.argv[2])
rows = pickle.load(open(sys.argv[3], "rb"))
said = [seen.surprise for seen in tell(online, rows)]
said.append(online.forecast("s", future=FUTURE).quantiles.reshape(-1))
np.savez(sys.argv[4], *said, **{"T." + n: t.numpy() for n, t in everything(online).items()})
print(len(online.late_arrivals()), online.counters("s"))
"""


@pytest.mark.parametrize("number", [0, 4])
def test_a_new_process_goes_on_with_what_is_held_as_if_nothing_had_happened(tmp_path: Path, number):
    rng = np.random.default_rng(3)
    rows = shuffled(rng, events_of(rng, 60), 6 * HOUR)
    rows[40:40] = rows[10:20]
    online = online_of(number, watermark=5 * HOUR, late="tag", recent_ids=40, audit=AuditConfig())
    tell_all(online, rows[:35])
    assert len(online._reorder._held[0])
    online.save(tmp_path / "state.safetensors")
    (tmp_path / "rows").write_bytes(pickle.dumps(rows[35:]))
    files = [tmp_path / "state.safetensors", tmp_path / "rows", tmp_path / "out.npz"]
    script = [sys.executable, "-c", CONTINUE, str(Path(__file__).parent), *files]
    told = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    expected = [seen.surprise for seen in tell(online, rows[35:])]
    expected.append(online.forecast("s", future=FUTURE).quantiles.reshape(-1))
    with np.load(tmp_path / "out.npz") as got:
        for n, value in enumerate(expected):
            np.testing.assert_array_equal(got[f"arr_{n}"], value)
        for name, tensor in everything(online).items():
            np.testing.assert_array_equal(got[f"T.{name}"], tensor.numpy())
    assert told == f"{len(online.late_arrivals())} {online.counters('s')}\n"


def test_without_a_watermark_and_ids_nothing_is_kept_and_the_state_has_the_bytes_of_its_row():
    online = online_of()
    tell_all(online, events_of(np.random.default_rng(0), 20, ids=False))
    assert online.state_nbytes == online._slab.row_nbytes()
    assert online._reorder.waiting(np.arange(1)) == {}
    online.observe("s", START + 10**6 * HOUR, "a", known=[0], event_id="x")
    assert online.state_nbytes == online._slab.row_nbytes() + 16 * 1024


def test_what_makes_no_policy_is_named():
    wrong = [
        ({"late": "replay"}, "late.*not logged"),
        ({"late": "keep"}, "late"),
        ({"watermark": -1}, "watermark"),
        ({"watermark": "1h"}, "watermark"),
        ({"watermark": 2**63}, "watermark"),
        ({"most_held": 0}, "most_held"),
        ({"recent_ids": True}, "recent_ids"),
    ]
    for options, said in wrong:
        with pytest.raises(ConfigError, match=said):
            online_of(**options)
    online = online_of()
    for name in (1.5, True, b"x", ["x"]):
        with pytest.raises(StreamError, match="event_id"):
            online.observe("s", START, "a", known=[0], event_id=name)
    assert online.streams == ()
