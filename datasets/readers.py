"""Files into frames: CSV (also gzip), Parquet and Arrow, each through `normalise`.

A file is read whole into memory; for what does not fit, read parts with polars and `normalise` each.
Every reader takes the same options, so a set can change its file format without changing its caller. What is read with
an EventLayout is a frame of events, one per row; with a Layout it is a wide frame.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from tsgdn2.datasets.errors import DataError, FrameError
from tsgdn2.datasets.events import TYPE, normalise_events
from tsgdn2.datasets.frame import STREAM, TIME, Duplicates, normalise
from tsgdn2.datasets.instants import Unit

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What both layouts say of a file's table: where the instant, the stream and the missing values are."""

    time: str | tuple[str, ...] = TIME
    """Column of the instant, or several text columns (date, clock) that make it when joined by one space."""
    time_format: str | None = None
    """strftime format of a text instant; None expects ISO 8601. An instant without a zone is taken as UTC."""
    unit: Unit | None = None
    """Unit of a numeric instant since 1970: ns, us, ms or s. In CSV its decimals are read exactly, not as a float."""
    stream: str = STREAM
    """Column of the stream's name; not read when `name` is given."""
    name: str | None = None
    """The stream's name, for a file that holds one stream."""
    rename: tuple[tuple[str, str], ...] = ()
    """Pairs (column in the file, name of the channel or mark)."""
    missing: tuple[float | str, ...] = ()
    """What stands for a missing value: numbers such as -9999.0 or -200.0 in any file, words such as "NA" in CSV."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file."""
        if self.unit not in (None, "ns", "us", "ms", "s"):
            raise DataError(f"unit must be 'ns', 'us', 'ms' or 's', got {self.unit!r}")
        if not self.time:
            raise DataError("time must name at least one column, got none")

    def words(self) -> list[str]:
        """List the missing markers that are text."""
        return [m for m in self.missing if isinstance(m, str)]

    def numbers(self) -> list[float]:
        """List the missing markers that are numbers."""
        return [float(m) for m in self.missing if not isinstance(m, str)]

    def text(self) -> list[str]:
        """List the columns that a CSV must not turn into numbers: that of a numeric instant."""
        return [self.time] if self.unit is not None and isinstance(self.time, str) else []


@dataclass(frozen=True, kw_only=True)
class Layout(Columns):
    """How a file's table maps onto the wide frame schema; checked against the file when it is read."""

    channels: tuple[str, ...] | None = None
    """Columns to keep, in this order, named as after `rename`; None keeps every other column."""
    duplicates: Duplicates = "error"
    """Rows of one stream with the same instant: "error", or keep the "first" or "last" in file order."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file."""
        super().__post_init__()
        if self.duplicates not in ("error", "first", "last"):
            raise DataError(f"duplicates must be 'error', 'first' or 'last', got {self.duplicates!r}")


@dataclass(frozen=True, kw_only=True)
class EventLayout(Columns):
    """How a file's table of one row per event maps onto the event schema; checked against the file when it is read."""

    type: str | None = TYPE
    """Column of the event's type, named as after `rename`; None where there is none."""
    marks: tuple[str, ...] | None = None
    """Columns to keep as marks, in this order, named as after `rename`; None keeps every other column."""


def read_csv(
    path: str | Path,
    layout: Layout | EventLayout | None = None,
    *,
    separator: str = ",",
    decimal_comma: bool = False,
    encoding: str = "utf-8",
) -> pl.DataFrame:
    """Read a CSV file, plain or gzip (told by its first bytes), into a frame of the layout's schema.

    Types are taken from all rows, not from the first hundred; a column with a word in it is text, and then an error
    unless `layout` leaves it out or names the word as missing. Raises DataError, FrameError.
    """
    layout = layout or Layout()
    table = csv_table(
        _bytes(path),
        separator=separator,
        decimal_comma=decimal_comma,
        encoding=encoding,
        words=layout.words(),
        text=layout.text(),
        origin=str(path),
    )
    return table_frame(table, layout, origin=str(path))


def csv_table(
    content: bytes,
    *,
    separator: str = ",",
    decimal_comma: bool = False,
    encoding: str = "utf-8",
    words: Sequence[str] = (),
    text: Sequence[str] = (),
    schema: Mapping[str, type[pl.DataType]] | None = None,
    origin: str = "content",
) -> pl.DataFrame:
    """Read the bytes of a CSV table, plain or gzip, as it stands.

    `words` become null, the columns `text` stay text whatever they hold, and `origin` names the table in errors. With a
    `schema` its columns alone are read, as these types; else all are, and types are found by a look at every row, which
    takes ten times as long. Raises DataError.
    """
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{origin} is a damaged gzip file ({error}); fetch it again") from error
    try:
        table = pl.read_csv(
            io.BytesIO(content.decode(encoding).encode() if encoding != "utf-8" else content),
            columns=list(schema) if schema else None,
            schema_overrides={**(schema or {}), **dict.fromkeys(text, pl.String)},
            separator=separator,
            decimal_comma=decimal_comma,
            infer_schema_length=0 if schema else None,
            null_values=list(words) or None,
        )
        # Text keeps its decimal comma, which numbers have lost by now.
        kept = [name for name in text if decimal_comma and name in table.columns]
        return table.with_columns(pl.col(kept).str.replace(",", ".", literal=True)) if kept else table
    except (PolarsError, UnicodeError) as error:
        raise DataError(f"{origin} can not be read as CSV with separator {separator!r}: {error}") from error


def read_parquet(path: str | Path, layout: Layout | EventLayout | None = None) -> pl.DataFrame:
    """Read a Parquet file into a frame of the layout's schema. Raises DataError, FrameError."""
    return table_frame(_parquet_table(path), layout or Layout(), origin=str(path))


def read_arrow(path: str | Path, layout: Layout | EventLayout | None = None) -> pl.DataFrame:
    """Read an Arrow IPC file (Feather) or stream into a frame of the layout's schema. Raises DataError, FrameError."""
    return table_frame(_arrow_table(path), layout or Layout(), origin=str(path))


def read(path: str | Path, layout: Layout | EventLayout | None = None) -> pl.DataFrame:
    """Read a file by its ending: .csv, .csv.gz, .parquet, .arrow, .feather or .ipc."""
    layout = layout or Layout()
    table = file_table(path, words=layout.words(), text=layout.text())
    return table_frame(table, layout, origin=str(path))


def file_table(path: str | Path, *, words: Sequence[str] = (), text: Sequence[str] = ()) -> pl.DataFrame:
    """Read a file's table as it stands, by its ending as `read` does; `words` and `text` as in `csv_table`."""
    name = str(path).lower()
    if name.endswith((".csv", ".csv.gz")):
        return csv_table(_bytes(path), words=words, text=text, origin=str(path))
    if name.endswith(".parquet"):
        return _parquet_table(path)
    if name.endswith((".arrow", ".feather", ".ipc")):
        return _arrow_table(path)
    raise DataError(f"{path} must end in .csv, .csv.gz, .parquet, .arrow, .feather or .ipc; else call its reader")


def table_frame(table: pl.DataFrame, layout: Layout | EventLayout, *, origin: str = "table") -> pl.DataFrame:
    """Map a table as a file holds it onto the layout's schema; `origin` names the file in errors."""
    parts = (layout.time,) if isinstance(layout.time, str) else layout.time
    _present(table, parts, origin)
    if layout.rename:
        _present(table, [old for old, _ in layout.rename], origin)
        table = table.rename(dict(layout.rename))
    time = parts[0]
    if len(parts) > 1:
        time = "\0time"
        joined = pl.concat_str([pl.col(part).cast(pl.String) for part in parts], separator=" ")
        table = table.with_columns(joined.alias(time)).drop(parts)
    name, form, unit, missing = layout.name, layout.time_format, layout.unit, layout.numbers()
    try:
        if isinstance(layout, EventLayout):
            return normalise_events(
                table,
                stream=layout.stream,
                time=time,
                type=layout.type,
                marks=layout.marks,
                name=name,
                time_format=form,
                unit=unit,
                missing=missing,
            )
        return normalise(
            table,
            stream=layout.stream,
            time=time,
            name=name,
            channels=layout.channels,
            time_format=form,
            unit=unit,
            missing=missing,
            duplicates=layout.duplicates,
        )
    except FrameError as error:
        raise FrameError(f"{origin}: {error}") from error


def _parquet_table(path: str | Path) -> pl.DataFrame:
    content = _bytes(path)
    try:
        return pl.read_parquet(io.BytesIO(content))
    except PolarsError as error:
        raise DataError(f"{path} can not be read as Parquet: {error}; fetch it again") from error


def _arrow_table(path: str | Path) -> pl.DataFrame:
    content = _bytes(path)
    reader = pl.read_ipc if content.startswith(b"ARROW1") else pl.read_ipc_stream
    try:
        return reader(io.BytesIO(content))
    except PolarsError as error:
        raise DataError(f"{path} can not be read as Arrow IPC: {error}; fetch it again") from error


def _present(table: pl.DataFrame, columns: Sequence[str], origin: str) -> None:
    for column in columns:
        if column not in table.columns:
            raise FrameError(f"{origin} has no column {column!r}, only {table.columns}; name the right one in Layout")


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} can not be opened: {error.strerror or error}") from error
