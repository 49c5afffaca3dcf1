"""Streams of events that travel: held events, identities and the audit go with them, to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2 import checkpoint
from tsgdn2.audit import AuditConfig
from tsgdn2.errors import CheckpointError
from tsgdn2.events.online import OnlineEvents
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000


def online_of(number=0, **options):
    torch.manual_seed(0)
    config = ForecasterConfig(
        prediction_length=4, period_ns=HOUR, channels=2, event_types=("a", "b"), event_marks=("load",),
        event_mark_low=(-1e3,), event_mark_high=(1e3,), event_targets=("count", "min(load)"), event_window=number,
        mode="joint", patch_length=4, width=16, layers=2, heads=2, key_dim=4, value_dim=8, mlp=16,
    )  # fmt: skip
    options = {"late": "tag", "audit": AuditConfig(layers="all", ring=3, reservoir=3, threshold=0.5), **options}
    return OnlineEvents(
        Forecaster(config), Standards(default=(1.0, 1.0), mark_mean=(0.0,), mark_scale=(1.0,)), freq="h", **options
    )


def whole(online, stream):
    tensors = online._tensors(np.array([online._slots[stream]]))
    tensors.pop("late.dropped", None)
    late = [tuple(map(str, one[1:])) for one in online.late_arrivals() if one.stream == stream]
    bits = {name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in tensors.items() if not name.startswith("late")}
    return bits, late, online.counters(stream), online.forecast(stream).quantiles.tobytes()


def events(rng, count):
    time = 0
    for n in range(count):
        time += int(rng.integers(0, 3 * HOUR))
        late = int(rng.integers(0, 8 * HOUR)) if rng.random() < 0.3 else 0
        yield time - late, ("a", "b", None)[int(rng.integers(3))], [float(rng.normal())], int(rng.integers(n + 1))


@pytest.mark.parametrize(("number", "watermark"), [(0, 0), (0, 5 * HOUR), (3, 5 * HOUR)])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_streams_of_events_that_travel_are_those_that_never_moved(number, watermark, seed):
    rng = np.random.default_rng(seed)
    one, other = (online_of(number, watermark=watermark) for _ in range(2))
    alone = {name: online_of(number, watermark=watermark) for name in "st"}
    rows = {name: list(events(rng, 40)) for name in "st"}
    for name in rng.permutation(["s", "t"] * 40).tolist():
        time, kind, marks, own = rows[name].pop(0)
        told = {"event_id": own} if watermark else {}
        found, expected = (
            online.observe(stream, time, kind, marks, **told) for online, stream in ((one, name), (alone[name], "x"))
        )
        assert found.status == expected.status
        np.testing.assert_array_equal(found.surprise, expected.surprise)
        if rng.random() < 0.1:
            blobs = one.take_out_many(one.streams)
            other.remove_many(other.streams)
            other.put_in_many(blobs)
            if rng.random() < 0.5:
                one, other = other, one
            else:
                one.remove(name)
                one.put_in(name, blobs[name])
    for name in "st":
        assert whole(one, name) == whole(alone[name], "x")


def test_a_free_slot_is_empty_and_an_event_of_no_type_is_refused():
    online, fresh = (online_of(watermark=5 * HOUR) for _ in range(2))
    for time, kind, marks, own in events(np.random.default_rng(1), 40):
        online.observe("s", time, kind, marks, event_id=own)
    blob, before = online.take_out("s"), whole(online, "s")
    tensors, facts = checkpoint.decode(blob, checkpoint.Source("x"), kind=OnlineEvents.PASSAGE, schema=1)
    tensors["waiting.rows"][:, 1] = 9
    facts = {name: text for name, text in facts.items() if name not in ("kind", "schema")}
    bad = checkpoint.encode(tensors, facts, kind=OnlineEvents.PASSAGE, schema=1)
    for name in ("s", "new"):
        with pytest.raises(CheckpointError, match="blob: it does not fit"):
            online.put_in(name, bad, replace=True)
    assert whole(online, "s") == before
    online.remove("s")
    mine, blank = (one._tensors(np.array([0])) for one in (online, fresh))
    assert mine.keys() == blank.keys()
    assert all(np.array_equal(t.numpy(), blank[n].numpy(), equal_nan=t.is_floating_point()) for n, t in mine.items())
