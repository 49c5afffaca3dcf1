"""What is refused at the door of a predictor: blobs that are broken, of another predictor, or hold what can not be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2 import checkpoint
from tsgdn2.errors import CheckpointError, ConfigError, StreamError
from tsgdn2.online import OnlinePredictor


def damaged(blob, change):
    """The blob with other content and a checksum that fits it."""
    tensors, facts = checkpoint.decode(blob, checkpoint.Source("x"), kind=OnlinePredictor.PASSAGE, schema=1)
    change(tensors, facts)
    kind, schema = facts.pop("kind"), int(facts.pop("schema"))
    return checkpoint.encode(tensors, facts, kind=kind, schema=schema)


def _without(name):
    return lambda tensors, facts: tensors.pop(name)


def _other(name, change):
    return lambda tensors, facts: tensors.update({name: change(tensors[name].clone())})


def _filled(value):
    return lambda t: t.fill_(value)


WRONG = [
    _without("stream.values"), _without("rewind.places"), _without("audit.shadow"), _without("late.rows"),
    _without("rewind.ring.state.0"), _without("held.counts"), _without("audit.event_ints"),
    _other("stream.values", lambda t: t[:, :1]), _other("stream.last", lambda t: t.double()),
    _other("state.0", lambda t: t[:1]), _other("audit.shadow", lambda t: t[..., :1]),
    _other("stream.static_categories", _filled(7)), _other("stream.static_categories", _filled(-1)),
    _other("rewind.places", _filled(0)), _other("rewind.places", _filled(3)), _other("held.counts", _filled(-1)),
    _other("rewind.log.counts", _filled(2**62)), _other("rewind.log.steps", _filled(5)),
    _other("late.rows", _filled(1)), _other("audit.event_ints", _filled(99)), _other("audit.clock", _filled(2**60)),
    _other("audit.schema", _filled(9)), _other("rewind.audit.clock", _filled(-5)),
    _other("audit.event_ints", lambda t: t.repeat(2, 1)), _other("late.values", lambda t: t[None]),
]  # fmt: skip


def test_a_blob_that_holds_what_no_stream_does_is_refused_and_nothing_has_changed(disorder):
    online = disorder.made("replay", static_real=1, static_cardinalities=(3, 2))
    rng = np.random.default_rng(1)
    for stream in ("s", "t"):
        for row in disorder.delayed(rng, disorder.rows(rng, 80, 1, 1), 40):
            disorder.seen(online, row, stream, static=[0.5, 2, 1])
    assert online.late_arrivals()
    blob, before = online.take_out("s"), disorder.all(online)
    for change in WRONG:
        bad = damaged(blob, change)
        with pytest.raises(CheckpointError, match=r"^blob|audit|event_ints"):
            online.put_in("new", bad)
        with pytest.raises(CheckpointError):
            online.put_in_many({"new": blob, "t": bad}, replace=True)
        assert online.streams == ("s", "t")
        assert disorder.all(online) == before
    online.put_in("new", damaged(blob, lambda tensors, facts: None))
    assert disorder.whole(online, "new") == before["s"]


@pytest.fixture(scope="module")
def plain(disorder):
    return disorder.filled("plain", ("s",))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_blob_that_was_cut_or_altered_anywhere_is_refused(disorder, plain, data):
    online = plain
    blob, before = online.take_out("s"), disorder.all(online)
    at = data.draw(st.integers(0, len(blob) - 1))
    bad = data.draw(st.sampled_from(["cut", "flip", "more"]))
    altered = bytearray(blob)
    altered[at] ^= 1 << data.draw(st.integers(0, 7))
    payload = {"cut": blob[:at], "flip": bytes(altered), "more": blob + b"x"}[bad]
    with pytest.raises(CheckpointError, match=r"^blob: it"):
        online.put_in("t", payload)
    assert disorder.all(online) == before


def test_each_difference_between_predictors_is_an_error_that_names_it(disorder):
    blob = disorder.filled("replay", ("s",)).take_out("s")
    model, options = disorder.kinds["replay"]
    options = options | {"watermark": 3 * disorder.hour, "audit": disorder.audit}
    others = {
        "fingerprint": disorder.predictor(0, options, **model | {"half_life": 41.0}),
        "model": disorder.predictor(1, options, **model),
        "late": disorder.predictor(0, options | {"checkpoints": 4}, **model),
        "audit": disorder.predictor(0, options | {"audit": None}, **model),
    }
    others["channels"] = OnlinePredictor(
        (like := disorder.predictor(0, options, **model)).forecaster, like.standards, channels=("a", "c", "b"),
        freq="h", **options,
    )  # fmt: skip
    for name, other in others.items():
        with pytest.raises(ConfigError, match=f"^blob: it left a predictor with another {name}"):
            other.put_in("s", blob)
        assert other.streams == ()
    like.put_in("s", blob)
    newer = damaged(blob, lambda tensors, facts: facts.update(schema="2"))
    kind = damaged(blob, lambda tensors, facts: facts.update(kind="tsgdn2-event-stream"))
    for bad, said in ((newer, "upgrade"), (kind, "expected 'tsgdn2-online-stream'"), ("text", "must be bytes")):
        with pytest.raises(CheckpointError, match=said):
            like.put_in("t", bad)
    for name in ("", 3):
        with pytest.raises(StreamError, match=r"^stream"):
            like.put_in(name, blob)
    assert like.streams == ("s",)
