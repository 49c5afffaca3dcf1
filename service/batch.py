"""Rows of many streams in columns: what connectors hand in, what the journal keeps, what the predictor is given.

A batch is checked once, when it is made, and is never changed; whether its rows fit the model is the business of
whoever knows the model. Names are plain text, so that every store can hold them: no NUL, no half of a character.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsgdn2.errors import SchemaError, StreamError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

LONGEST_NAME = 512
"""Bytes of UTF-8 that the name of a stream or of a source may have."""
UNNUMBERED = -1
"""The sequence of a row whose source does not number its rows: such a row is never a duplicate."""
_NO_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """N rows of C channels, in the order in which they are to be observed.

    Raises:
        SchemaError: Columns of different lengths, a dtype that is no number, an infinite value, a missing time.
        StreamError: A name that is empty, too long or no plain text; a sequence below -1.
    """

    streams: tuple[str, ...]
    """Name of the stream of each row [N]."""
    times: Ints
    """Moment of each row [N], int64 nanoseconds since 1970, UTC."""
    values: Floats
    """Values [N, C], float64; NaN is missing."""
    sources: tuple[str, ...]
    """Who sent each row [N]; "" is nobody in particular."""
    sequences: Ints
    """The source's own number of each row [N]; -1 is none. Two rows with the same one are the same row."""

    def __post_init__(self) -> None:
        """Check everything; the arrays are then read-only."""
        rows = len(self.streams)
        object.__setattr__(self, "streams", tuple(self.streams))
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "times", _whole_numbers("times", self.times, rows))
        object.__setattr__(self, "sequences", _whole_numbers("sequences", self.sequences, rows))
        object.__setattr__(self, "values", _values(self.values, rows))
        if len(self.sources) != rows:
            raise SchemaError(f"sources: must be one for each of {rows} rows, got {len(self.sources)}")
        for name in set(self.streams):
            check_name("stream", name)
        for name in set(self.sources):
            check_name("source", name, empty=True)
        if rows and int(self.times.min()) == _NO_TIME:
            raise SchemaError("times: a row has no time (NaT); drop it")
        if rows and int(self.sequences.min()) < UNNUMBERED:
            raise StreamError(
                f"sequences: must be at least 0, or -1 for none, got {int(self.sequences.min())}; count from 0"
            )

    @classmethod
    def of(
        cls,
        streams: Sequence[str],
        times: ArrayLike,
        values: ArrayLike,
        *,
        sources: Sequence[str] | None = None,
        sequences: ArrayLike | None = None,
    ) -> Batch:
        """A batch of rows whose source and sequence may be left out; a `values` of [N] is one channel."""
        rows = len(streams)
        cells = np.asarray(values)
        return cls(
            streams=tuple(streams),
            times=np.asarray(times),
            values=cells[:, None] if cells.ndim == 1 and len(cells) == rows else cells,
            sources=("",) * rows if sources is None else tuple(sources),
            sequences=np.full(rows, UNNUMBERED, np.int64) if sequences is None else np.asarray(sequences),
        )

    @classmethod
    def concat(cls, batches: Sequence[Batch]) -> Batch:
        """Batches of the same channels behind one another; SchemaError where there is none, or channels differ."""
        channels = sorted({batch.channels for batch in batches})
        if len(channels) != 1:
            raise SchemaError(f"batches: must be at least one, all of the same channels, got channels {channels}")
        if len(batches) == 1:
            return batches[0]
        return cls(
            streams=tuple(name for batch in batches for name in batch.streams),
            times=np.concatenate([batch.times for batch in batches]),
            values=np.concatenate([batch.values for batch in batches]),
            sources=tuple(name for batch in batches for name in batch.sources),
            sequences=np.concatenate([batch.sequences for batch in batches]),
        )

    def __len__(self) -> int:
        return len(self.streams)

    @property
    def channels(self) -> int:
        """Channels of every row, C."""
        return int(self.values.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take in memory, each name counted once: what a bounded queue counts."""
        names = sum(len(name) for name in {*self.streams, *self.sources})
        return self.times.nbytes + self.values.nbytes + self.sequences.nbytes + 16 * len(self) + names

    def take(self, rows: ArrayLike) -> Batch:
        """The rows with these numbers, or where this mask [N] is true, in the order given."""
        at = np.asarray(rows)
        at = np.flatnonzero(at) if at.dtype == np.bool_ else at.astype(np.int64)
        if len(at) == len(self) and np.array_equal(at, np.arange(len(self))):
            return self
        picked = at.tolist()
        return Batch(
            streams=tuple(self.streams[row] for row in picked),
            times=self.times[at],
            values=self.values[at],
            sources=tuple(self.sources[row] for row in picked),
            sequences=self.sequences[at],
        )

    def parts(self, most: int) -> Iterator[Batch]:
        """The batch in parts of at most `most` rows, in order; nothing for a batch without rows."""
        if most < 1:
            raise SchemaError(f"most: must be at least 1 row, got {most}")
        if 0 < len(self) <= most:
            yield self
            return
        for start in range(0, len(self), most):
            yield self.take(np.arange(start, min(start + most, len(self))))


def check_name(argument: str, name: str, *, empty: bool = False) -> None:
    """StreamError unless `name` is text that every store can hold."""
    if not isinstance(name, str) or (not name and not empty):
        raise StreamError(f"{argument}: must be a string that is not empty, got {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise StreamError(f"{argument}: {name!r} holds half of a character; send it as UTF-8") from None
    if size > LONGEST_NAME:
        raise StreamError(
            f"{argument}: may have {LONGEST_NAME} bytes at most, got {size} ({name[:40]!r}..); shorten it"
        )
    if "\x00" in name:
        raise StreamError(f"{argument}: {name!r} holds a NUL character; remove it")


def _whole_numbers(argument: str, given: ArrayLike, rows: int) -> Ints:
    """A column of int64 [N], read-only."""
    column = np.asarray(given)
    if column.dtype.kind == "M":
        column = column.astype("datetime64[ns]").astype(np.int64)
    if not column.size:
        column = column.astype(np.int64)
    if column.dtype.kind not in "iu" or column.shape != (rows,):
        raise SchemaError(
            f"{argument}: must be one integer for each of {rows} rows, got {column.dtype} of shape {column.shape}"
        )
    if column.dtype == np.uint64 and rows and int(column.max()) > np.iinfo(np.int64).max:
        raise SchemaError(f"{argument}: must fit 63 bits, got {int(column.max())}")
    whole = column.astype(np.int64)
    whole.setflags(write=False)
    return whole


def _values(given: ArrayLike, rows: int) -> Floats:
    """Values as float64 [N, C], read-only; no infinity among them."""
    raw = np.asarray(given)
    if raw.dtype.kind not in "iufb" or raw.ndim != 2 or len(raw) != rows or not raw.shape[1]:
        raise SchemaError(
            f"values: must be numbers or NaN of shape [{rows}, channels], got {raw.dtype} of shape {raw.shape}"
        )
    values = raw.astype(np.float64)
    if np.isinf(values).any():
        row, channel = np.argwhere(np.isinf(values))[0]
        raise SchemaError(
            f"values: row {row}, channel {channel} is infinite; only finite numbers and NaN (missing) are allowed"
        )
    values.setflags(write=False)
    return values
