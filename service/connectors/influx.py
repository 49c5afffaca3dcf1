r"""InfluxDB line protocol into rows, by its public format.

    measurement[,tag=value ...] field=value[,field=value ...] [timestamp]

    escapes    \, \space \= in names and tags; \" \\ in quoted text; a backslash before anything else is itself
    values     1.0 -1e3 float    3i integer    3u unsigned    t T true True TRUE f F false ..  1 and 0    "text"
    precision  ns (default), us or u or µs, ms, s, m, h; a line without a timestamp has that of its arrival

Text is no observation: a text field is passed over, and a line of nothing else is refused. A line that is wrong is
refused alone; the others are taken (InfluxDB calls that a partial write and answers 400 after it). By default a stream
is the series, `measurement,tag=value,..` with tags in order, and a channel is a field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from tsgdn2.service.connectors.decoded import Decoded, DecodeError, OversizeError, Refusal, Rejections, Rows, clip
from tsgdn2.service.connectors.router import Labels, Router
from tsgdn2.service.connectors.wire import header, unpacked

PRECISIONS: Final = {
    "": 1, "n": 1, "ns": 1, "u": 10**3, "us": 10**3, "µs": 10**3, "ms": 10**6,
    "s": 10**9, "m": 60 * 10**9, "h": 3_600 * 10**9,
}  # fmt: skip
_FLOAT: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE: Final = re.compile(r"-?\d{1,20}", re.ASCII)
_TRUTH: Final = {**dict.fromkeys(("t", "T", "true", "True", "TRUE"), 1.0),
                 **dict.fromkeys(("f", "F", "false", "False", "FALSE"), 0.0)}  # fmt: skip
_MOST_FIELDS: Final = 1_000


class Line(NamedTuple):
    """One line: tags in their order, fields with their raw text, time in units of the precision or None."""

    measurement: str
    tags: Labels
    fields: tuple[tuple[str, str], ...]
    time: int | None


def decode(body: bytes, headers: Mapping[str, str], router: Router, now: int, *, precision: str = "ns") -> Decoded:
    """Rows of a body of lines. now: this clock, ns. Errors as in prometheus.decode."""
    factor = PRECISIONS.get(precision)
    if factor is None:
        raise DecodeError(f"precision: must be ns, us, ms, s, m or h, got {clip(precision)!r}")
    content = unpacked(body, header(headers, "content-encoding"), router.limits.body_bytes)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"body: not UTF-8 ({error})") from None
    rows, rejected, samples = Rows(len(router.channels)), Rejections(), 0
    for number, raw in _lines(text):
        try:
            line = parse_line(raw)
            time = router.time(now if line.time is None else line.time * factor, now)
        except Refusal as refusal:
            rejected.add(refusal.reason, f"line {number}", refusal.detail)
            samples = _counted(samples + 1, router)
            continue
        samples = _counted(samples + len(line.fields), router)
        numbers = False
        for field, given in line.fields:
            try:
                value = field_value(given)
                if value is None:
                    continue
                numbers = True
                target = router.target("influx", line.measurement, line.tags, field)
                cell = router.value(value, target.scale, target.offset)
                rows.cell(rows.open(target.stream, time), target.channel, cell)
            except Refusal as refusal:
                numbers = True
                router.count(rejected, refusal, f"line {number}, {field}")
        if not numbers:
            rejected.add("value", f"line {number}", "no field is a number; text can not be observed")
    return Decoded(rows.batch(router.sequence("influx")), rejected)


def _counted(samples: int, router: Router) -> int:
    if samples > router.limits.samples:
        raise OversizeError(f"body: at most {router.limits.samples} fields are taken at once; send fewer lines")
    return samples


def parse_line(text: str) -> Line:
    """One line without its end; Refusal says where it stops being one."""
    head, at = _until(text, 0, " ")
    parts = _split(head, ",")
    measurement = _plain(parts[0])
    if not measurement:
        raise Refusal("malformed", "no measurement at the start of the line")
    tags: dict[str, str] = {}
    for part in parts[1:]:
        key, value = _pair(part, "tag")
        if not value or _plain(key) in tags:
            raise Refusal("malformed", f"the tag {clip(key)!r} has no value, or stands twice")
        tags[_plain(key)] = _plain(value)
    while text[at : at + 1] == " ":
        at += 1
    body, at = _until(text, at, " ", quotes=True)
    fields: dict[str, str] = {}
    for part in _split(body, ",", quotes=True):
        key, value = _pair(part, "field")
        fields[_plain(key)] = value
    if len(fields) > _MOST_FIELDS:
        raise Refusal("oversize", f"at most {_MOST_FIELDS} fields to a line, got {len(fields)}")
    stamp = text[at:].strip(" ")
    if stamp and not _WHOLE.fullmatch(stamp):
        raise Refusal("malformed", f"behind the fields stands {clip(stamp)!r}, a whole number of time was expected")
    return Line(measurement, tuple(sorted(tags.items())), tuple(fields.items()), int(stamp) if stamp else None)


def field_value(text: str) -> float | None:
    """A field as a number, None for quoted text; Refusal for anything else."""
    if text[:1] == '"':
        if len(text) >= 2 and text[-1] == '"':
            return None
        raise Refusal("malformed", "a quote is not closed")
    if text in _TRUTH:
        return _TRUTH[text]
    if text[-1:] in ("i", "u"):
        if _WHOLE.fullmatch(text[:-1]):
            whole = int(text[:-1])
            if (-(1 << 63) <= whole < 1 << 63) if text[-1] == "i" else (0 <= whole < 1 << 64):
                return float(whole)
        raise Refusal("value", f"{clip(text)!r} is no integer of 64 bits")
    if len(text) <= 400 and _FLOAT.fullmatch(text):
        return float(text)
    raise Refusal("value", f"{clip(text)!r} is no float, integer (3i), unsigned (3u), truth value or quoted text")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that say something, numbered from 1; an end of line inside of quotes is part of the text."""
    at = number = 0
    while at < len(text):
        number += 1
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        line = text[at:end]
        if '"' in line and not line.lstrip().startswith("#"):
            end = _closing(text, at)
            line = text[at:end]
        at = end + 1
        stripped = line.strip(" \t\r")
        if stripped and not stripped.startswith("#"):
            yield number, stripped
        number += line.count("\n")


def _closing(text: str, start: int) -> int:
    """Where the line from `start` ends, its quoted texts passed over; a quote never closed ends with its own line."""
    first = text.find("\n", start)
    first = len(text) if first < 0 else first
    at, quoted = start, False
    while at < len(text):
        found = _SPECIAL.search(text, at)
        if found is None:
            return first if quoted else len(text)
        at = found.end()
        if found[0] == '"' and (quoted or text[found.start() - 1 : found.start()] == "="):
            quoted = not quoted
        elif found[0] == "\n" and not quoted:
            return found.start()
    return first if quoted else len(text)


_SPECIAL: Final = re.compile(r'\\.|["\n]', re.DOTALL)


def _until(text: str, at: int, stop: str, *, quotes: bool = False) -> tuple[str, int]:
    """The text up to an unescaped `stop`, which a quoted value may hold, and where that stands."""
    if "\\" not in text and not (quotes and '"' in text):
        end = text.find(stop, at)
        return (text[at:], len(text)) if end < 0 else (text[at:end], end)
    start, quoted = at, False
    while at < len(text):
        c = text[at]
        if c == "\\":
            at += 2
            continue
        if quotes and c == '"' and (quoted or text[at - 1] == "="):
            quoted = not quoted
        elif c == stop and not quoted:
            return text[start:at], at
        at += 1
    return text[start:], len(text)


def _split(text: str, separator: str, *, quotes: bool = False) -> list[str]:
    if "\\" not in text and not (quotes and '"' in text):
        return text.split(separator)
    parts, at = [], 0
    while True:
        part, at = _until(text, at, separator, quotes=quotes)
        parts.append(part)
        if at >= len(text):
            return parts
        at += 1


def _pair(text: str, what: str) -> tuple[str, str]:
    key, at = _until(text, 0, "=")
    if not key or at >= len(text):
        raise Refusal("malformed", f"{clip(text)!r} is no {what}, which is name=value")
    value = text[at + 1 :]
    if not value:
        raise Refusal("malformed", f"the {what} {clip(key)!r} has no value")
    return key, value


def _plain(text: str) -> str:
    """A name without its escapes."""
    return _ESCAPE.sub(r"\1", text) if "\\" in text else text


_ESCAPE: Final = re.compile(r"\\([,= ])")
