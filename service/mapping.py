"""The mapping file: which topic, subject, metric or measurement is which stream and channel of the model.

    limits: {streams: 20000}
    unmapped: list
    mqtt:
      - topic: plant/+/temp          # payload {"ts": 1700000000123, "n": 17, "v": 21.5}
        stream: plant-{1}
        channel: temp
        value: v
        time: {field: ts, unit: ms}
        sequence: {field: n}
    prometheus:
      - {metric: node_load1, labels: {job: node}, stream: "{instance}", channel: load}

YAML or TOML, of one format version. The first rule that fits a name wins. A section that is left out has the default
rule of its kind (DEFAULTS); one that is empty takes nothing. This file only checks and holds what was written;
connectors/router.py applies it. An error names the key and, in YAML, the line.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import yaml
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tsgdn2.errors import ConfigError
from tsgdn2.service.connectors.patterns import Style, Template, pattern

LARGEST_FILE: Final = 1 << 20
UNITS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
Unit = Literal["ns", "us", "ms", "s"]
Messages = Literal["mqtt", "nats", "kafka"]
Series = Literal["prometheus", "otlp", "influx"]
BROKERS: Final[tuple[Messages, ...]] = ("mqtt", "nats", "kafka")


class MappingError(ConfigError):
    """The mapping file is not one; the message names the key."""


def _template(text: str) -> str:
    Template(text)
    return text


def _glob(text: str) -> str:
    pattern(text, "glob")
    return text


def _path(given: object) -> object:
    """A path is written a.b.0, or as a list where a name holds a dot."""
    return tuple(given.split(".")) if isinstance(given, str) and given else given


TemplateText = Annotated[str, BeforeValidator(lambda given: _template(given) if isinstance(given, str) else given)]
GlobText = Annotated[str, BeforeValidator(lambda given: _glob(given) if isinstance(given, str) else given)]
FieldPath = Annotated[tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...], BeforeValidator(_path)]


class Strict(BaseModel):
    """Knows its keys, and nothing else; never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class Limits(Strict):
    """What a sender can make this process hold or believe."""

    streams: int = Field(default=10_000, ge=1)
    """Streams that the mapping may open; a sample of one more is refused and counted."""
    name_length: int = Field(default=256, ge=1)
    """Characters of a stream's name."""
    payload_bytes: int = Field(default=1 << 20, ge=1)
    """Bytes of one message."""
    body_bytes: int = Field(default=4 << 20, ge=1)
    """Bytes of one HTTP body, unpacked; in memory it may take forty times as much for a moment."""
    samples: int = Field(default=100_000, ge=1)
    """Samples of one body."""
    labels: int = Field(default=64, ge=1)
    """Labels, tags or attributes of one series."""
    label_bytes: int = Field(default=4_096, ge=1)
    """Characters of the labels of one series, names and values."""
    earliest: datetime | None = datetime(1990, 1, 1, tzinfo=UTC)
    """An earlier time is refused: it is a wrong unit more often than history. null takes any."""
    ahead_seconds: float | None = Field(default=86_400.0, ge=0)
    """A time that lies further ahead of this clock is refused: it would make all that follows late. null takes any."""


class TimeField(Strict):
    """A field that holds the time: a number of `unit` since 1970, or ISO 8601 text."""

    field: FieldPath
    unit: Unit = "ns"
    absent: Literal["own", "refuse"] = "refuse"
    """What a message without the field means: its own time (the broker's, or of its arrival), or a refusal."""


class SequenceField(Strict):
    """A field that holds a number that grows with every message of one source."""

    field: FieldPath
    absent: Literal["own", "refuse"] = "refuse"


class MessageRule(Strict):
    """Messages with a JSON payload (a bare number is JSON, too); for Kafka as it is, the others have their own."""

    style: ClassVar[Style] = "glob"
    topic: str = Field(validation_alias=AliasChoices("topic", "subject"))
    """Pattern: of MQTT (+ and #), of NATS (* and >) or, for Kafka, with * for any text."""
    stream: TemplateText
    """Template; {1} is the first wildcard, {topic} the whole, {.a.b} a field of the payload."""
    channel: TemplateText | None = None
    """The one channel of the message, with `value`; or else `channels`."""
    value: FieldPath = ()
    """Where the number is; by default the payload is it."""
    channels: dict[str, FieldPath] | Literal["*"] | None = None
    """{channel: field}, or "*": every field of the object that is named like a channel of the model."""
    rows: FieldPath | None = None
    """Where an array of records is, each a row of its own; () by [] for an array at the root."""
    time: TimeField | Literal["own"] = TimeField(field=("time",), absent="own")
    sequence: SequenceField | Literal["own", "none"] = SequenceField(field=("sequence",), absent="own")
    source: TemplateText | None = None
    """Who counts the sequence; by default the topic, or the broker's stream when it is the broker's number. A sender
    that begins to count anew needs a new name, or its rows pass for repeats: {.boot}, say."""
    scale: float = 1.0
    """A value is stored as value x scale + offset."""
    offset: float = 0.0

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.channel is None) == (self.channels is None):
            raise ValueError("give either channel (one number per message) or channels (a field for each)")
        if self.value and self.channels is not None:
            raise ValueError("value goes with channel; with channels each has its own field")
        wildcards = pattern(self.topic, self.style).wildcards
        for text in (self.stream, self.channel, self.source):
            if text is not None:
                Template(text).check(wildcards)
        return self


class TopicRule(MessageRule):
    """A rule for MQTT, whose patterns have + and #."""

    style: ClassVar[Style] = "topic"


class SubjectRule(MessageRule):
    """A rule for NATS, whose patterns have * and >."""

    style: ClassVar[Style] = "subject"


class SeriesRule(Strict):
    """Samples that have a name and labels: Prometheus, OTLP, line protocol."""

    metric: GlobText = Field(default="*", validation_alias=AliasChoices("metric", "measurement"))
    """Name of the metric or measurement, * for any text."""
    labels: dict[str, GlobText] = {}
    """Labels, tags or attributes that must be there, and what they look like."""
    field: GlobText = "*"
    """Field of a measurement; the others have one, called value."""
    stream: TemplateText
    """Template; {1} is the first wildcard of metric, {host} a label, {__name__} the name, {labels} all labels in
    order, as k=v,k=v, {field} the field."""
    channel: TemplateText
    scale: float = 1.0
    offset: float = 0.0

    @model_validator(mode="after")
    def _captures(self) -> Self:
        for text in (self.stream, self.channel):
            Template(text).check(pattern(self.metric, "glob").wildcards)
        return self


class HostRule(Strict):
    """The machine itself."""

    stream: TemplateText = "{host}"
    channels: dict[str, str] | None = None
    """{channel of the model: reading}; by default each is called as the reading is."""


class MappingFile(Strict):
    """A whole mapping; `MappingFile()` is the default one."""

    version: Literal[1] = 1
    limits: Limits = Limits()
    unmapped: Literal["count", "list", "error"] = "list"
    """What has no rule: count: a number; list: samples of it, too; error: the request or message is refused whole."""
    mqtt: tuple[TopicRule, ...] | None = None
    nats: tuple[SubjectRule, ...] | None = None
    kafka: tuple[MessageRule, ...] | None = None
    prometheus: tuple[SeriesRule, ...] | None = None
    otlp: tuple[SeriesRule, ...] | None = None
    influx: tuple[SeriesRule, ...] | None = None
    host: HostRule = HostRule()
    sequence_is_time: tuple[Series, ...] = ()
    """Kinds whose rows take their time as sequence, per set of channels: a request sent twice is then known as one, but
    a row older than the newest of its channels is taken for a repeat. By default repeats are told by equal values."""

    def messages(self, kind: Messages) -> tuple[MessageRule, ...]:
        """The rules of a kind of broker, or its default."""
        given: tuple[MessageRule, ...] | None = getattr(self, kind)
        return (_EVERY_MESSAGE[kind],) if given is None else given

    def series(self, kind: Series) -> tuple[SeriesRule, ...]:
        """The rules of a kind of samples, or its default."""
        given: tuple[SeriesRule, ...] | None = getattr(self, kind)
        return (_EVERY_SERIES[kind],) if given is None else given


_EVERY_MESSAGE: Final[dict[Messages, MessageRule]] = {
    "mqtt": TopicRule(topic="#", stream="{topic}", channels="*"),
    "nats": SubjectRule(topic=">", stream="{topic}", channels="*"),
    "kafka": MessageRule(topic="*", stream="{topic}", channels="*"),
}
_EVERY_SERIES: Final[dict[Series, SeriesRule]] = {
    "prometheus": SeriesRule(stream="{labels}", channel="{__name__}"),
    "otlp": SeriesRule(stream="{labels}", channel="{__name__}"),
    "influx": SeriesRule(stream="{__name__},{labels}", channel="{field}"),
}


def read_mapping(path: str | Path) -> MappingFile:
    """Read .yaml, .yml or .toml. MappingError names the key, and in YAML the line."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MappingError(f"mapping: {path} can not be opened ({error.strerror}); give an existing file") from None
    if len(content) > LARGEST_FILE:
        raise MappingError(f"mapping: {path} has {len(content)} bytes, at most {LARGEST_FILE} are read")
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise MappingError(f"mapping: {path} must end in .yaml, .yml or .toml, its format is told by that")
    try:
        text = content.decode()
        return parse_mapping(text, toml=path.suffix == ".toml", origin=str(path))
    except UnicodeDecodeError as error:
        raise MappingError(f"mapping: {path} is not UTF-8 ({error})") from None


def parse_mapping(text: str, *, toml: bool = False, origin: str = "text") -> MappingFile:
    """Check a mapping's text; MappingError as `read_mapping`."""
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        if toml:
            content: Any = tomllib.loads(text)
        else:
            _lines(yaml.compose(text, Loader=yaml.SafeLoader), (), lines)
            content = yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise MappingError(f"mapping: {origin} can not be read: {' '.join(str(error).split())}") from None
    try:
        return MappingFile.model_validate({} if content is None else content)
    except ValidationError as error:
        raise MappingError(_explained(error, origin, lines.get)) from None


def _lines(node: yaml.Node | None, at: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]) -> None:
    """The line of every key, from 1; ValueError for a key that stands twice, of which YAML would take the last."""
    if node is None or at in lines:
        return
    lines[at] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for n, item in enumerate(node.value):
            _lines(item, (*at, n), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if (*at, key.value) in lines:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} stands twice")
            _lines(value, (*at, key.value), lines)
            lines[(*at, key.value)] = key.start_mark.line + 1


def _explained(error: ValidationError, origin: str, line_of: Callable[[tuple[str | int, ...]], int | None]) -> str:
    """One sentence for each of the first errors: line, key, what is wrong, what came."""
    found = []
    for problem in error.errors(include_url=False)[:5]:
        key: tuple[str | int, ...] = ()
        line = None
        for part in problem["loc"]:
            inner = line_of((*key, part))
            if inner is not None or line is None:
                line = inner
            key = (*key, part)
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".") or "the file"
        came = "" if problem["type"] == "missing" else f", got {str(problem['input'])[:80]!r}"
        place = f"line {line}, " if line is not None else ""
        found.append(f"{place}{name}: {problem['msg']}{came}")
    return f"mapping: {origin}: " + "; ".join(found)
