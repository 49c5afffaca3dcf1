"""Rows as JSON brought them, in columns: what is wrong with one row is its own affair, the others go on.

    {"rows": [{"stream", "time", "values", ..}, ..]}       {"streams": [..], "times": [..], "values": {channel: [..]}}

The body is parsed once, by pydantic's parser, and never by one that runs what it reads. What does not fit as a whole
(no JSON, columns of different lengths, unknown channels of columns) is an error of the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from tsgdn2.errors import SchemaError, StreamError, TsgdnError, UnknownChannelError
from tsgdn2.service.admission import Admission, Admitted
from tsgdn2.service.batch import Floats, Ints
from tsgdn2.service.bodies import Columns, Row
from tsgdn2.service.connectors.decoded import DecodeError, Refusal
from tsgdn2.service.connectors.instant import nanoseconds
from tsgdn2.service.faults import TooLargeError, explained
from tsgdn2.service.tenants import whole

_ROWS: Final = TypeAdapter(list[Row])


class Raw(NamedTuple):
    """M of N rows that can be read: streams as the caller calls them, places [M] among the N; why others can not."""

    streams: Sequence[str]
    times: Ints
    values: Floats
    """[M, C], NaN is missing."""
    sources: Sequence[str] | None
    sequences: Ints | None
    places: Ints
    total: int
    refused: dict[int, str]

    def admitted(self, admission: Admission, tenant: str) -> Admitted:
        """The rows under the tenant's names, those that may be journalled apart from those that may not."""
        refused, names = dict(self.refused), dict[str, str]()
        bad: dict[str, str] = {}
        for stream in set(self.streams):
            try:
                names[stream] = whole(tenant, stream)
            except StreamError as error:
                bad[stream] = str(error)
        places, raw = self.places, self
        if bad:
            for row, stream in enumerate(self.streams):
                if stream in bad:
                    refused[int(places[row])] = bad[stream]
            raw = self.taken(np.array([row for row, stream in enumerate(self.streams) if stream in names], np.int64))
            places = raw.places
        found = admission.columns(
            [names[stream] for stream in raw.streams], raw.times, raw.values, sources=raw.sources,
            sequences=raw.sequences,
        )  # fmt: skip
        refused |= {int(places[row]): reason for row, reason in found.refused.items()}
        return Admitted(found.batch, places[found.rows], self.total, refused)

    def taken(self, rows: Sequence[int] | Ints) -> Raw:
        """The rows with these numbers of the M."""
        rows = np.asarray(rows, np.int64)
        return self._replace(
            streams=[self.streams[row] for row in rows], times=self.times[rows], values=self.values[rows],
            sources=None if self.sources is None else [self.sources[row] for row in rows],
            sequences=None if self.sequences is None else self.sequences[rows], places=self.places[rows],
        )  # fmt: skip


def from_body(body: bytes, channels: tuple[str, ...], most: int) -> Raw:
    """Rows of a JSON body. DecodeError: no JSON; SchemaError, TooLargeError: it does not fit as a whole."""
    try:
        content = from_json(body)
    except ValueError as error:
        raise DecodeError(f'body: no JSON ({str(error)[:200]}); send {{"rows": [..]}}') from None
    if isinstance(content, dict) and isinstance(content.get("rows"), list):
        if len(content) > 1:
            raise SchemaError("body: beside rows nothing else may stand; see Rows in /openapi.json")
        return from_rows(content["rows"], channels, most)
    try:
        given = Columns.model_validate(content)
    except ValidationError as error:
        problems = explained(error.errors(include_url=False, include_input=False, include_context=False))
        raise SchemaError(f'body: is neither {{"rows": [..]}} nor columns: {problems}; mend it') from None
    return from_columns(given, channels, most)


def from_rows(content: list[Any], channels: tuple[str, ...], most: int) -> Raw:
    """Rows [N] that are objects; each one that is none, or no Row, is refused."""
    check_rows(len(content), most)
    refused: dict[int, str] = {}
    places = list(range(len(content)))
    try:
        rows = _ROWS.validate_python(content)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False, include_context=False):
            row_at, *inner = problem["loc"]
            refused.setdefault(int(row_at), f"row: {explained([{**problem, 'loc': inner}])}; mend it")
        places = [row for row in places if row not in refused]
        rows = _ROWS.validate_python([content[row] for row in places])
    times, values, kept = np.zeros(len(rows), np.int64), np.full((len(rows), len(channels)), np.nan), list[int]()
    index = {name: column for column, name in enumerate(channels)}
    for at, row in enumerate(rows):
        try:
            times[at] = moment_of(row.time)
            values[at] = _cells(row.values, channels, index)
            kept.append(at)
        except TsgdnError as error:
            refused[places[at]] = str(error)
    good = np.array(kept, np.int64)
    picked = rows if len(kept) == len(rows) else [rows[row] for row in kept]
    return Raw(
        [row.stream for row in picked], times[good], values[good], [row.source for row in picked],
        np.array([row.sequence for row in picked], np.int64), np.array(places, np.int64)[good], len(content), refused,
    )  # fmt: skip


def from_columns(given: Columns, channels: tuple[str, ...], most: int) -> Raw:
    """Rows [N] in columns. SchemaError: other lengths; UnknownChannelError."""
    rows = len(given.streams)
    check_rows(rows, most)
    columns: dict[str, Sequence[object] | None] = {
        "times": given.times, "sources": given.sources, "sequences": given.sequences,
        **{f"values.{name}": column for name, column in given.values.items()},
    }  # fmt: skip
    for name, column in columns.items():
        if column is not None and len(column) != rows:
            raise SchemaError(f"{name}: must be one for each of {rows} streams, got {len(column)}; send equal columns")
    check_channels(given.values, channels)
    times, refused = np.zeros(rows, np.int64), dict[int, str]()
    for row, given_time in enumerate(given.times):
        try:
            times[row] = moment_of(given_time)
        except StreamError as error:
            refused[row] = str(error)
    values = np.full((rows, len(channels)), np.nan)
    for name, cells in given.values.items():
        values[:, channels.index(name)] = [np.nan if cell is None else cell for cell in cells]
    sequences = None if given.sequences is None else np.array(given.sequences, np.int64)
    raw = Raw(given.streams, times, values, given.sources, sequences, np.arange(rows), rows, refused)
    return raw.taken(np.array([row for row in range(rows) if row not in refused], np.int64)) if refused else raw


def moment_of(given: int | str, argument: str = "time") -> int:
    """A moment of a body or a query in nanoseconds. StreamError for what is none."""
    try:
        return nanoseconds(
            int(given) if isinstance(given, str) and given.removeprefix("-").isdecimal() else given, "ns"
        )
    except (Refusal, ValueError) as error:
        raise StreamError(f"{argument}: {error}; send nanoseconds or ISO 8601 text") from None


def check_rows(rows: int, most: int) -> None:
    """TooLargeError for more rows than one request may have."""
    if rows > most:
        raise TooLargeError(f"rows: at most {most} are taken at once, got {rows}; send them in parts")


def check_channels(given: Mapping[str, object] | Sequence[str], channels: tuple[str, ...]) -> None:
    """UnknownChannelError for a name that is no channel of the model."""
    unknown = [name for name in given if name not in channels]
    if unknown:
        raise UnknownChannelError(
            f"values: {str(unknown[:5])[:200]} are no channels; the model has {list(channels)}, drop or rename them"
        )


def _cells(given: Any, channels: tuple[str, ...], index: Mapping[str, int]) -> Floats:
    if isinstance(given, dict):
        check_channels(given, channels)
        row = np.full(len(channels), np.nan)
        for name, value in given.items():
            if value is not None:
                row[index[name]] = value
        return row
    if len(given) != len(channels):
        raise SchemaError(
            f"values: must be {len(channels)} for the channels {list(channels)}, got {len(given)}; mend it"
        )
    return np.array([np.nan if value is None else value for value in given])
