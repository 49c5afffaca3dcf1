"""Messages of a broker with JSON payloads into rows, by the rules of the mapping.

A pure function of the messages, so that one which is delivered again gives the same rows: a time or a sequence that
the payload lacks is the message's own, which the connector takes from the broker. Only MQTT has neither; there a row
without a time gets that of its arrival, and one without a sequence is applied once per delivery.

Records of one message are told apart in the broker's numbering by their place among those of the same stream
(`source#1` is the second), because a store knows a row by (stream, source, sequence).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tsgdn2.errors import StreamError
from tsgdn2.service.batch import check_name
from tsgdn2.service.connectors.decoded import Decoded, Refusal, Rejections, Rows, UnmappedError, clip
from tsgdn2.service.connectors.instant import nanoseconds
from tsgdn2.service.connectors.patterns import MissingError
from tsgdn2.service.connectors.router import Router, Subject
from tsgdn2.service.mapping import Messages

MOST_RECORDS: Final = 10_000
"""Records of one message."""
MOST_NUMBERED: Final = 128
"""Records of one stream in one message, when they have no sequence of their own."""
_NUMBER: Final = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_ABSENT: Final = object()


class Message(NamedTuple):
    """What a broker delivered. time: its own, ns; sequence: its own number in `source`, -1 where it has none."""

    topic: str
    payload: bytes
    time: int
    sequence: int = -1
    source: str = ""


class Record(NamedTuple):
    """One row before it is one: cells are pairs of channel and value."""

    stream: str
    time: int
    source: str
    sequence: int
    cells: list[tuple[int, float]]


def decode(messages: Sequence[Message], kind: Messages, router: Router, now: int) -> Decoded:
    """Rows of all messages, in order. What is wrong with a message, or one record of it, is counted, never raised."""
    rows, rejected = Rows(len(router.channels)), Rejections()
    for message in messages:
        fresh = Rejections()
        try:
            records = list(_records(message, kind, router, now, fresh))
        except UnmappedError as error:
            rejected.add("unmapped", message.topic, str(error))
            continue
        except Refusal as refusal:
            rejected.add(refusal.reason, message.topic, refusal.detail,
                         sample=refusal.reason != "unmapped" or router.mapping.unmapped != "count")  # fmt: skip
            continue
        rejected.absorb(fresh)
        for record in records:
            row = rows.open(record.stream, record.time, record.source, record.sequence)
            for channel, value in record.cells:
                rows.cell(row, channel, value)
    return Decoded(rows.batch(), rejected)


def _records(message: Message, kind: Messages, router: Router, now: int, rejected: Rejections) -> list[Record]:
    """The good records of a message; Refusal when none of it can be read."""
    if len(message.payload) > router.limits.payload_bytes:
        raise Refusal(
            "oversize", f"{len(message.payload)} bytes; limits.payload_bytes is {router.limits.payload_bytes}"
        )
    subject = router.subject(kind, message.topic)
    try:
        root = json.loads(message.payload)
    except (ValueError, RecursionError) as error:
        raise Refusal("malformed", f"no JSON ({clip(str(error))}): {clip(repr(message.payload[:60]))}") from None
    parts: Sequence[Any] = [root]
    if subject.rule.rows is not None:
        parts = _at(root, subject.rule.rows)
        if not isinstance(parts, list) or len(parts) > MOST_RECORDS:
            raise Refusal("malformed", f"rows: must be an array of at most {MOST_RECORDS} records")
    found, places = [], Counter[str]()
    for n, part in enumerate(parts):
        try:
            found.append(_record(part, root, message, subject, router, now, places))
        except Refusal as refusal:
            router.count(rejected, refusal, message.topic if len(parts) == 1 else f"{message.topic}, record {n}")
    return found


def _record(
    part: Any, root: Any, message: Message, subject: Subject, router: Router, now: int, places: Counter[str]
) -> Record:
    rule = subject.rule

    def field(path: tuple[str, ...]) -> Any:
        found = _at(part, path)
        return _at(root, path) if found is _ABSENT and part is not root else found

    def look_up(name: str) -> str | None:
        if name.isdecimal():
            return subject.captures[int(name) - 1]
        if name == "topic":
            return subject.topic
        found = field(tuple(name[1:].split("."))) if name.startswith(".") else None
        return str(found) if isinstance(found, str | int) and not isinstance(found, bool) else None

    try:
        stream = subject.stream.fill(look_up)
        source = subject.source.fill(look_up) if subject.source is not None else None
        channel = subject.channel.fill(look_up) if subject.channel is not None else None
    except MissingError as error:
        raise Refusal("malformed", f"the rule asks for {error.args[0]!r}, which is not there") from None
    cells = _cells(part, channel, router, subject)
    time = message.time
    if rule.time != "own":
        given = field(rule.time.field)
        if given is not _ABSENT:
            time = nanoseconds(given, rule.time.unit)
        elif rule.time.absent == "refuse":
            raise Refusal("time", f"no field {'.'.join(rule.time.field)}")
    time = router.time(time, now)
    own, sequence = True, message.sequence if rule.sequence != "none" else -1
    if not isinstance(rule.sequence, str):
        given = field(rule.sequence.field)
        if given is not _ABSENT:
            if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < 1 << 63:
                raise Refusal("sequence", f"must be a whole number from 0 on, got {clip(repr(given))}")
            own, sequence = _at(part, rule.sequence.field) is _ABSENT, given
            source = source or f"topic:{message.topic}"
        elif rule.sequence.absent == "refuse":
            raise Refusal("sequence", f"no field {'.'.join(rule.sequence.field)}")
    source = "" if sequence < 0 else source or message.source
    if own and sequence >= 0:
        place = places[stream]
        if place >= MOST_NUMBERED:
            raise Refusal("sequence", f"more than {MOST_NUMBERED} records of a stream need a sequence of their own")
        places[stream] += 1
        source = f"{source}#{place}" if place else source
    try:
        check_name("source", source, empty=True)
    except StreamError as error:
        raise Refusal("sequence", str(error)) from None
    return Record(router.admit(stream), time, source, sequence, cells)


def _cells(part: Any, channel: str | None, router: Router, subject: Subject) -> list[tuple[int, float]]:
    """The values of a record; a null is no cell. Refusal when it has none of the channels."""
    rule, cells, present = subject.rule, [], False
    wanted: dict[str, tuple[str, ...]] = {}
    if channel is not None:
        wanted = {channel: rule.value}
    elif isinstance(rule.channels, dict):
        wanted = rule.channels
    elif isinstance(part, dict):
        wanted = {name: (name,) for name in router.channels if name in part}
    for name, path in wanted.items():
        index, given = router.index(name), _at(part, path)
        if index is None:
            raise Refusal("unmapped", f"{clip(name)!r} is no channel of the model")
        if given is _ABSENT:
            continue
        present = True
        value = _number(given, name)
        if value is not None:
            cells.append((index, router.value(value, rule.scale, rule.offset)))
    if not present:
        raise Refusal("unmapped", f"none of the fields is one of the channels {', '.join(router.channels)[:120]}")
    return cells


def _number(given: Any, name: str) -> float | None:
    """A finite or infinite float; None for a null or NaN, which are no observation."""
    if given is None:
        return None
    try:
        if isinstance(given, int | float) or (isinstance(given, str) and len(given) <= 64 and _NUMBER.fullmatch(given)):
            value = float(given)
            return None if math.isnan(value) else value
    except OverflowError:
        pass
    raise Refusal("value", f"{clip(name)}: {clip(repr(given))[:60]} is no number")


def _at(value: Any, path: tuple[str, ...]) -> Any:
    """What a path leads to, by keys of objects and places in arrays; _ABSENT where it leads nowhere."""
    for step in path:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and len(step) < 7 and int(step) < len(value):
            value = value[int(step)]
        else:
            return _ABSENT
    return value
