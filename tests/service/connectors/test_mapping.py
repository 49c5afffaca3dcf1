"""Mapping files: what they say, what is wrong with them and where; patterns, moments, the limit of streams."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgdn2.service.connectors.decoded import Refusal, Rejections, UnmappedError
from tsgdn2.service.connectors.instant import nanoseconds
from tsgdn2.service.connectors.patterns import MissingError, Template, pattern
from tsgdn2.service.connectors.payload import Message, decode
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.mapping import MappingError, MappingFile, parse_mapping, read_mapping

NOW = 1_700_000_000 * 10**9


def one(router, topic, payload, kind="mqtt", **own):
    return decode([Message(topic, payload, NOW, **own)], kind, router, NOW)


def refused(router, topic, payload, kind="mqtt", **own):
    decoded = one(router, topic, payload, kind, **own)
    assert decoded.rows is None
    (sample,) = decoded.rejected.samples
    return sample.reason, sample.detail


@pytest.mark.parametrize(
    ("style", "text", "name", "captures"),
    [
        ("topic", "plant/+/temp", "plant/7/temp", ("7",)),
        ("topic", "plant/+/temp", "plant/7/8/temp", None),
        ("topic", "plant/#", "plant", ("",)),
        ("topic", "plant/#", "plant/a/b", ("a/b",)),
        ("topic", "+/+", "/x", ("", "x")),
        ("topic", "#", "$SYS/broker", None),
        ("topic", "a", "a/", None),
        ("subject", "plant.*.temp", "plant.7.temp", ("7",)),
        ("subject", "plant.>", "plant", None),
        ("subject", "plant.>", "plant.a.b", ("a.b",)),
        ("glob", "node_*_total", "node_cpu_seconds_total", ("cpu_seconds",)),
        ("glob", "*a*a", "aaa", ("", "a")),
        ("glob", "a*a", "a", None),
        ("glob", "up", "up", ()),
    ],
)
def test_patterns_match_as_their_protocol_says_and_capture_what_stands_for_a_wildcard(style, text, name, captures):
    assert pattern(text, style).match(name) == captures


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=4), st.text("ab", max_size=12))
def test_a_glob_matches_exactly_the_texts_that_its_captures_rebuild(pieces, name):
    pieces = [pieces[0], *(piece or "a" for piece in pieces[1:-1]), *(pieces[1:] and pieces[-1:])]
    if pieces == [""]:
        return
    captures = pattern("*".join(pieces), "glob").match(name)
    assert (captures is not None) == _somehow(pieces, name)
    if captures is not None:
        rebuilt = pieces[0] + "".join(c + p for c, p in zip(captures, pieces[1:], strict=True))
        assert rebuilt == name


def _somehow(pieces, name):
    """Whether any split matches, by trying them all."""
    if len(pieces) == 1:
        return name == pieces[0]
    if not name.startswith(pieces[0]):
        return False
    rest = name[len(pieces[0]) :]
    return any(_somehow(pieces[1:], rest[at:]) for at in range(len(rest) + 1))


@pytest.mark.parametrize(
    ("style", "text"),
    [("topic", "a/b#"), ("topic", "a+/b"), ("topic", "#/a"), ("subject", "a..b"), ("subject", ">.a"), ("glob", "a**b")],
)
def test_patterns_that_make_no_sense_are_refused(style, text):
    with pytest.raises(ValueError, match=r"stands for|must not be empty|no more than|token"):
        pattern(text, style)


def test_templates_fill_in_captures_and_keep_doubled_braces():
    template = Template("{{{1}}}-{host}")
    assert template.fill({"1": "a", "host": "b"}.get) == "{a}-b"
    with pytest.raises(MissingError):
        template.fill({"1": "a"}.get)
    for wrong in ("", "{", "}", "{}", "{a{b}}"):
        with pytest.raises(ValueError, match=r"brace|empty"):
            Template(wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mqtt:\n  - topic: a/+\n    stream: x-{2}\n    channel: temp", r"line 2, mqtt\[0\]: .*capture 2"),
        ("mqtt:\n  - topic: a\n    stream: x", r"line 2, mqtt\[0\]: .*either channel"),
        ("mqtt:\n  - topic: a\n    stream: x\n    chanel: t\n    channel: temp", r"line 4, mqtt\[0\]\.chanel: Extra"),
        ("mqtt:\n  - stream: x\n    channel: t", r"mqtt\[0\]\.topic: Field required"),
        ("nats:\n  - {subject: a, stream: x, channel: t, time: {field: t, unit: h}}", r"line 2, nats\[0\]\.time.*'h'"),
        ("limits: {streams: 0}", r"line 1, limits\.streams: .*got '0'"),
        ("unmapped: perhaps", r"line 1, unmapped: .*'perhaps'"),
        ("prometheus:\n  - {metric: a, stream: 'x{', channel: t}", r"line 2, prometheus\[0\]\.stream: .*brace"),
        ("a: 1\na: 2", "line 2: the key 'a' stands twice"),
        ("mqtt: [", "can not be read"),
        ("- 1", "valid dictionary"),
        ("version: 2", r"line 1, version"),
        ("mqtt:\n - {topic: a, stream: x, channel: temp, scale: .inf}", r"mqtt\[0\]\.scale.*finite"),
        ("!!python/object/apply:os.system ['true']", "can not be read"),
        ("[" * 500, "can not be read"),
    ],
)
def test_what_is_wrong_with_a_mapping_names_the_key_and_the_line(text, message):
    with pytest.raises(MappingError, match=f"(?s){message}"):
        parse_mapping(text)


def test_a_mapping_is_read_from_yaml_and_toml_and_an_empty_one_is_the_default(tmp_path):
    toml, yaml, empty = tmp_path / "a.toml", tmp_path / "a.yaml", tmp_path / "b.yml"
    toml.write_text('[[mqtt]]\ntopic = "a/+"\nstream = "x-{1}"\nchannel = "temp"\n')
    yaml.write_text("mqtt:\n  - {topic: a/+, stream: 'x-{1}', channel: temp}\n")
    empty.write_text("")
    assert read_mapping(toml) == read_mapping(yaml)
    assert read_mapping(empty) == MappingFile()
    with pytest.raises(MappingError, match="can not be opened"):
        read_mapping(tmp_path / "none.yaml")
    with pytest.raises(MappingError, match=r"must end in \.yaml"):
        read_mapping(toml.rename(tmp_path / "a.ini"))
    yaml.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(MappingError, match="not UTF-8"):
        read_mapping(yaml)


def test_a_rule_that_names_a_channel_the_model_lacks_is_refused_when_it_is_bound(tools):
    for text in ("mqtt: [{topic: a, stream: x, channel: hum}]", "influx: [{stream: x, channel: hum}]",
                 "kafka: [{topic: a, stream: x, channels: {hum: v}}]"):  # fmt: skip
        with pytest.raises(MappingError, match=r"\[0\]\.channels?: 'hum' is no channel.*temp, load"):
            Router(parse_mapping(text), ("temp", "load"))


def test_the_default_rule_takes_objects_whose_fields_are_channels(tools):
    rows = one(tools.router(), "dev/1", b'{"time": "2023-11-14T22:13:19.123456789Z", "temp": 1, "other": 9}').rows
    assert rows.streams == ("dev/1",)
    assert rows.times.tolist() == [NOW - 10**9 + 123_456_789]
    assert rows.values[0, 0] == 1
    assert rows.sequences.tolist() == [-1]
    assert one(tools.router(), "dev/1", b'{"load": true, "sequence": 4}').rows.sequences.tolist() == [4]
    assert refused(tools.router(), "dev/1", b'{"x": 1}')[0] == "unmapped"


def test_arrays_give_a_row_for_each_record_and_share_what_stands_at_the_root(tools):
    router = tools.router("""
nats:
  - {subject: "g.>", stream: "{.dev}", channels: {temp: [v, "a.b"]}, rows: data, scale: 0.1, offset: 1,
     time: {field: ts, unit: s}}
""")
    payload = b"""{"ts": 1700000000, "data": [{"dev": "a", "v": {"a.b": "10"}}, {"dev": "a", "v": {"a.b": 20},
                    "ts": 1699999999},               {"dev": 5, "v": {"a.b": null}}, {"v": {"a.b": 1}}, 7]}"""
    decoded = one(router, "g.x", payload, "nats", sequence=9, source="nats:S")
    rows = decoded.rows
    assert rows.streams == ("a", "a", "5")
    assert rows.values[:2, 0].tolist() == [2.0, 3.0]
    assert rows.values[2].tolist() != rows.values[2].tolist()  # a null is missing, and moves the clock
    assert rows.sources == ("nats:S", "nats:S#1", "nats:S")
    assert rows.sequences.tolist() == [9, 9, 9]
    assert dict(decoded.rejected.counts) == {"malformed": 2}


def test_cells_of_one_stream_and_moment_become_one_row(tools):
    router = tools.router(
        "mqtt: [{topic: 'p/+/+', stream: '{1}', channel: '{2}', value: v, time: {field: t, unit: ms}}]"
    )
    messages = [
        Message(f"p/a/{name}", b'{"t": 1700000000000, "v": %d}' % n, NOW) for n, name in enumerate(("temp", "load"))
    ]
    rows = decode(messages, "mqtt", router, NOW).rows
    assert rows.values.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"), (b"{", "malformed"), (b'{"t": "x"}', "value"), (b'{"t": [1]}', "value"),
        (b'{"t": 1e400}', "value"),
        (b'{"t": 1, "ts": "yesterday"}', "time"), (b'{"t": 1, "ts": true}', "time"),
        (b'{"t": 1, "ts": 1700000000}', "time"),
        (b'{"t": 1, "ts": 99999999999999999999999}', "time"), (b'{"t": 1, "ts": NaN}', "time"),
        (b'{"t": 1, "n": -1}', "sequence"), (b'{"t": 1, "n": 1.5}', "sequence"),
        (b'{"t": 1, "n": 9223372036854775808}', "sequence"),
        (b'{"t": "\\ud800"}', "value"), (b"1" * 5_000, "malformed"),
    ],
)  # fmt: skip
def test_what_can_not_be_taken_is_refused_with_its_reason(tools, payload, reason):
    router = tools.router("""
mqtt: [{topic: "#", stream: "{1}", channels: {temp: t}, time: {field: ts, unit: ns, absent: own},
        sequence: {field: n, absent: own}}]
""")
    assert refused(router, "a", payload)[0] == reason


def test_a_stream_name_that_no_store_can_hold_is_refused(tools):
    router = tools.router("mqtt: [{topic: '#', stream: '{.id}', channels: {temp: t}}]")
    for name in ("\\ud800", "\\u0000", "", "x" * 300):
        assert refused(router, "a", b'{"id": "%s", "t": 1}' % name.encode())[0] in ("streams", "malformed")


def test_the_limit_of_streams_is_one_for_all_and_says_what_to_do(tools):
    router = tools.router("limits: {streams: 2}")
    for name in ("a", "b", "a"):
        assert one(router, name, b'{"temp": 1}').rows is not None
    reason, detail = refused(router, "c", b'{"temp": 1}')
    assert reason == "streams"
    assert "2 streams are open" in detail
    assert "limits.streams" in detail
    router.forget("a")
    assert one(router, "c", b'{"temp": 1}').rows is not None
    router.known(["x", "y", "z"])
    assert refused(router, "d", b'{"temp": 1}')[0] == "streams"


@pytest.mark.parametrize(("policy", "samples"), [("count", 0), ("list", 1), ("error", 1)])
def test_what_is_unmapped_is_counted_listed_or_an_error(tools, policy, samples):
    router = tools.router(f"unmapped: {policy}\nmqtt: []")
    decoded = one(router, "a", b"1")
    assert dict(decoded.rejected.counts) == {"unmapped": 1}
    assert len(decoded.rejected.samples) == samples
    counted = Rejections()
    if policy == "error":
        with pytest.raises(UnmappedError, match="unmapped: error"):
            router.count(counted, Refusal("unmapped", "no rule"), "a")


@pytest.mark.parametrize(
    ("given", "unit", "expected"),
    [
        (1, "s", 10**9), (1.5, "ms", 1_500_000), (-0.25, "s", -250_000_000), (7, "ns", 7), (3, "us", 3_000),
        ("1970-01-01T00:00:00Z", "s", 0), ("1970-01-01 00:00:01.5", "s", 1_500_000_000), 
        ("1970-01-01T01:00+01:00", "s", 0),
        ("1969-12-31T23:59:59.000000001Z", "s", -999_999_999), 
        ("2023-11-14T22:13:20,1234567891Z", "s", NOW + 123_456_789),
    ],
)  # fmt: skip
def test_a_moment_is_exact_in_every_unit_and_in_text(given, unit, expected):
    assert nanoseconds(given, unit) == expected


@given(st.one_of(st.text(max_size=40), st.floats(), st.none(), st.booleans(), st.lists(st.integers(), max_size=2)))
def test_any_other_moment_is_refused_and_nothing_else_is_raised(given):
    refusals = []
    try:
        assert isinstance(nanoseconds(given, "s"), int)
    except Refusal as refusal:
        refusals.append(refusal.reason)
    assert set(refusals) <= {"time"}


@given(st.binary(max_size=200))
def test_no_payload_raises_anything(payload):
    router = Router(parse_mapping("mqtt: [{topic: '#', stream: '{.a}', channels: {temp: b.c}, rows: r}]"), ("temp",))
    decoded = one(router, "x", payload)
    assert decoded.rows is not None or decoded.rejected.total


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abrt"), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_no_json_raises_anything(value):
    rule = "{topic: '#', stream: 's{.a}', channels: {temp: b}, time: {field: t, absent: own}, rows: r, source: '{.a}'}"
    router = Router(parse_mapping(f"mqtt: [{rule}]"), ("temp",))
    payload = json.dumps(value).encode()
    assert one(router, "x", payload, sequence=1, source="y") is not None
    assert one(router, "x", b'{"r": [%s]}' % payload) is not None
