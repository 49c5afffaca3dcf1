"""A mapping bound to a model: which stream and channel a message or a sample is, in constant time when seen before.

One router serves all connectors of a process, so that its limit of streams is one for all. What it has found for a
name and its labels it keeps, up to a bound in characters, and then forgets all of it: a sender of ever new labels costs
time, not memory. Threads may share it: a body of many samples is better decoded in one than in the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Final, NamedTuple

from tsgdn2.errors import StreamError
from tsgdn2.intake import LARGEST
from tsgdn2.service.batch import LONGEST_NAME, check_name
from tsgdn2.service.connectors.decoded import Refusal, Rejections, UnmappedError, clip
from tsgdn2.service.connectors.patterns import MissingError, Pattern, Template, pattern
from tsgdn2.service.mapping import BROKERS, MappingError, MappingFile, MessageRule, Messages, Series, SeriesRule

Labels = tuple[tuple[str, str], ...]
_CACHE_CHARACTERS: Final = 1 << 24
_ENTRY: Final = 300


class Target(NamedTuple):
    """Where a sample goes, and what its value becomes: value x scale + offset."""

    stream: str
    channel: int
    scale: float
    offset: float


class Subject(NamedTuple):
    """A message's rule and what its topic says; captures are of the rule's wildcards."""

    rule: MessageRule
    topic: str
    captures: tuple[str, ...]
    stream: Template
    channel: Template | None
    source: Template | None


class _Message(NamedTuple):
    pattern: Pattern
    rule: MessageRule
    stream: Template
    channel: Template | None
    source: Template | None


class _Sample(NamedTuple):
    metric: Pattern
    labels: tuple[tuple[str, Pattern], ...]
    field: Pattern
    stream: Template
    channel: Template
    rule: SeriesRule


class Router:
    """Applies a mapping to the channels of one model."""

    def __init__(self, mapping: MappingFile, channels: Sequence[str]) -> None:
        """MappingError for a rule that names a channel which the model does not have."""
        self.mapping, self.limits = mapping, mapping.limits
        self.channels = tuple(channels)
        self._index = {name: n for n, name in enumerate(self.channels)}
        self._streams: set[str] = set()
        self._known: dict[tuple[object, ...], Target | Subject] = {}
        self._weight, self._lock = 0, Lock()
        self._messages = {kind: [self._message(kind, n, rule) for n, rule in enumerate(mapping.messages(kind))]
                          for kind in BROKERS}  # fmt: skip
        kinds: tuple[Series, ...] = ("prometheus", "otlp", "influx")
        self._samples = {
            kind: [self._sample(kind, n, rule) for n, rule in enumerate(mapping.series(kind))] for kind in kinds
        }

    def index(self, channel: str) -> int | None:
        """A channel's place in a row."""
        return self._index.get(channel)

    def topics(self, kind: Messages) -> list[str]:
        """The patterns to subscribe to, each once."""
        return list(dict.fromkeys(rule.topic for rule in self.mapping.messages(kind)))

    def known(self, streams: Iterable[str]) -> None:
        """Streams that the store already holds; they count towards the limit, and may be more."""
        with self._lock:
            self._streams.update(streams)

    def forget(self, stream: str) -> None:
        """A stream was deleted or has expired: its place is free."""
        with self._lock:
            self._streams.discard(stream)

    def admit(self, stream: str) -> str:
        """The stream's name, if it may be opened. Refusal: too long, no text, or one more than the limit."""
        if stream in self._streams:
            return stream
        if len(stream) > self.limits.name_length:
            raise Refusal(
                "streams", f"a stream's name may have {self.limits.name_length} characters, got {len(stream)}; "
                "raise limits.name_length, or map fewer labels into it",
            )  # fmt: skip
        try:
            check_name("stream", stream)
        except StreamError as error:
            raise Refusal("streams", str(error)) from None
        with self._lock:
            if len(self._streams) < self.limits.streams:
                self._streams.add(stream)
                return stream
        raise Refusal(
            "streams", f"{len(self._streams)} streams are open and {clip(stream)!r} would be one more; "
            "raise limits.streams in the mapping, or map fewer labels into the stream's name",
        )  # fmt: skip

    def subject(self, kind: Messages, topic: str) -> Subject:
        """The rule of a topic. Refusal when there is none."""
        found = self._known.get((kind, topic))
        if isinstance(found, Subject):
            return found
        for rule in self._messages[kind]:
            captures = rule.pattern.match(topic)
            if captures is not None:
                subject = Subject(rule.rule, topic, captures, rule.stream, rule.channel, rule.source)
                self._keep((kind, topic), subject, 2 * len(topic))
                return subject
        raise Refusal("unmapped", f"no rule of {kind} fits this topic; add one to the mapping")

    def target(self, kind: Series, name: str, labels: Labels, field: str = "value", *, identity: Labels = ()) -> Target:
        """Where a sample of a series goes. Refusal when nowhere.

        labels: each name once; identity: what {labels} writes out instead of all of them, when not empty.
        """
        key = (kind, name, labels, field)
        found = self._known.get(key)
        if isinstance(found, Target):
            self.admit(found.stream)  # it may have been forgotten since
            return found
        values = dict(labels)
        if len(labels) > self.limits.labels or (size := sum(map(len, values)) + sum(map(len, values.values()))) > (
            self.limits.label_bytes
        ):
            raise Refusal("oversize", "more or longer labels than limits.labels and limits.label_bytes allow")
        for rule in self._samples[kind]:
            captures = rule.metric.match(name)
            if captures is None or rule.field.match(field) is None:
                continue
            if all(label in values and glob.match(values[label]) is not None for label, glob in rule.labels):
                target = self._resolved(kind, rule, captures, name, values, field, dict(identity) or values)
                self._keep(key, target, len(name) + size + len(field) + len(target.stream))
                return target
        raise Refusal("unmapped", f"no rule of {kind} fits this name and these labels; add one to the mapping")

    def value(self, given: float, scale: float, offset: float) -> float:
        """A finite value, scaled; NaN stays. Refusal for what no model can take."""
        value = given * scale + offset
        if abs(value) > LARGEST:
            raise Refusal("value", f"{given!r} is not a finite number of at most {LARGEST:g} (scale {scale:g})")
        return value

    def time(self, given: int, now: int) -> int:
        """A moment in int64 ns that the limits allow, `now` being this clock. Refusal says what is wrong."""
        earliest, ahead = self.limits.earliest, self.limits.ahead_seconds
        if not -(1 << 63) < given < 1 << 63:
            raise Refusal("time", f"{given} does not fit 64 bits in nanoseconds; is the unit right?")
        if earliest is not None and given < int(earliest.timestamp()) * 10**9:
            raise Refusal("time", f"{given} ns is before limits.earliest ({earliest:%Y-%m-%d}); is the unit right?")
        if ahead is not None and given > now + int(ahead * 1e9):
            raise Refusal("time", f"{given} ns is more than limits.ahead_seconds ({ahead:g}) ahead of this clock")
        return given

    def sequence(self, kind: Series) -> Callable[[int, int], tuple[str, int]] | None:
        """What `Rows.batch` takes where the mapping says that the time is the sequence."""
        if kind not in self.mapping.sequence_is_time:
            return None
        return lambda time, channels: (f"{kind}:{channels:x}"[:LONGEST_NAME], max(time, 0))

    def count(self, rejected: Rejections, refusal: Refusal, where: str, count: int = 1) -> None:
        """Count a refusal as the mapping says; UnmappedError where it makes an error of what has no rule."""
        unmapped = refusal.reason == "unmapped"
        if unmapped and self.mapping.unmapped == "error":
            raise UnmappedError(f"{clip(where)}: {refusal.detail} (unmapped: error)")
        sample = not unmapped or self.mapping.unmapped == "list"
        rejected.add(refusal.reason, where, refusal.detail, count=count, sample=sample)

    def _resolved(
        self, kind: Series, rule: _Sample, captures: Sequence[str], name: str, labels: dict[str, str], field: str,
        identity: dict[str, str],
    ) -> Target:  # fmt: skip
        def look_up(key: str) -> str | None:
            if key.isdecimal():
                return captures[int(key) - 1]
            if key == "labels":
                return ",".join(f"{label}={identity[label]}" for label in sorted(identity)) or kind
            return {"__name__": name, "field": field}.get(key) or labels.get(key)

        try:
            channel, stream = rule.channel.fill(look_up), rule.stream.fill(look_up)
        except MissingError as error:
            raise Refusal(
                "unmapped", f"the rule asks for the label {error.args[0]!r}, which it does not have"
            ) from None
        index = self._index.get(channel)
        if index is None:
            raise Refusal("unmapped", f"{clip(channel)!r} is no channel of the model ({self._listed()})")
        return Target(self.admit(stream), index, rule.rule.scale, rule.rule.offset)

    def _keep(self, key: tuple[object, ...], found: Target | Subject, characters: int) -> None:
        with self._lock:
            if self._weight > _CACHE_CHARACTERS:
                self._known.clear()
                self._weight = 0
            self._known[key] = found
            self._weight += characters + _ENTRY

    def _message(self, kind: Messages, number: int, rule: MessageRule) -> _Message:
        where = f"mapping: {kind}[{number}]"
        if isinstance(rule.channels, dict):
            for name in rule.channels:
                self._check(name, f"{where}.channels")
        channel = Template(rule.channel) if rule.channel is not None else None
        if channel is not None and not channel.names:
            self._check(channel.fill(lambda _: None), f"{where}.channel")
        source = Template(rule.source) if rule.source is not None else None
        return _Message(pattern(rule.topic, rule.style), rule, Template(rule.stream), channel, source)

    def _sample(self, kind: Series, number: int, rule: SeriesRule) -> _Sample:
        channel = Template(rule.channel)
        if not channel.names:
            self._check(channel.fill(lambda _: None), f"mapping: {kind}[{number}].channel")
        labels = tuple((label, pattern(text, "glob")) for label, text in rule.labels.items())
        return _Sample(
            pattern(rule.metric, "glob"), labels, pattern(rule.field, "glob"), Template(rule.stream), channel, rule
        )

    def _check(self, channel: str, where: str) -> None:
        if channel not in self._index:
            raise MappingError(f"{where}: {channel!r} is no channel of the model; it has {self._listed()}")

    def _listed(self) -> str:
        shown = ", ".join(self.channels[:20])
        return shown if len(self.channels) <= 20 else f"{shown} and {len(self.channels) - 20} more"
