"""What came of a body or of messages: rows for a batch, and what could not be taken, counted and sampled.

One bad line, point or message never costs the others. How much is said about what was refused is bounded: counts by
reason for all of it, a few samples in clipped text.

    ServiceError
    +-- DecodeError          the body is not what it says it is                       400
        +-- OversizeError    it is larger, or would unpack to more, than is allowed   413
        +-- UnsupportedError its encoding, version or type is not one of ours         415
        +-- UnmappedError    the mapping says `unmapped: error`, and something was    400
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import ClassVar, Final, Literal, NamedTuple

import numpy as np

from tsgdn2.service.batch import Batch
from tsgdn2.service.errors import ServiceError

Reason = Literal["malformed", "unmapped", "value", "time", "sequence", "oversize", "streams", "unsupported", "refused"]
REASONS: Final[tuple[Reason, ...]] = (
    "malformed", "unmapped", "value", "time", "sequence", "oversize", "streams", "unsupported", "refused",
)  # fmt: skip
_CLIP = 200


class DecodeError(ServiceError):
    """The body is not what it says it is; nothing of it was taken."""

    status: ClassVar[int] = 400


class OversizeError(DecodeError):
    """The body is larger, or would unpack to more, than the mapping's limits allow."""

    status = 413


class UnsupportedError(DecodeError):
    """The encoding, version or type of the body is not one that is read here."""

    status = 415


class UnmappedError(DecodeError):
    """Something has no rule, and the mapping makes an error of that."""


class Refusal(Exception):  # noqa: N818  it ends one sample, not a request, and is never seen by a caller
    """Why one sample, point or message is not taken; caught where it is counted."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Rejection(NamedTuple):
    """One thing that was not taken: why, which one, and what about it."""

    reason: Reason
    where: str
    detail: str


class Rejections:
    """Counts of all that was refused, and the first, or the newest, few of them."""

    def __init__(self, most: int = 16, *, newest: bool = False) -> None:
        self.counts: Counter[Reason] = Counter()
        self.samples: deque[Rejection] = deque(maxlen=most)
        self._newest = newest

    @property
    def total(self) -> int:
        """How many were refused."""
        return self.counts.total()

    def add(self, reason: Reason, where: str, detail: str, *, count: int = 1, sample: bool = True) -> None:
        """Count `count` of them; `where` and `detail` are clipped."""
        self.counts[reason] += count
        if sample and (self._newest or len(self.samples) < (self.samples.maxlen or 0)):
            self.samples.append(Rejection(reason, clip(where), clip(detail)))

    def absorb(self, others: Rejections) -> None:
        """Take over what another one counted."""
        self.counts.update(others.counts)
        for sample in others.samples:
            if self._newest or len(self.samples) < (self.samples.maxlen or 0):
                self.samples.append(sample)

    def text(self) -> str:
        """One line for a log or an answer; empty when nothing was refused."""
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))
        return "; ".join([counts, *(f"{s.where}: {s.detail}" for s in self.samples)]) if counts else ""


class Decoded(NamedTuple):
    """rows: what goes to the sink, None when there is nothing; rejected: what was not taken."""

    rows: Batch | None
    rejected: Rejections


class Rows:
    """Cells put together into rows: the same stream, moment, source and sequence is one row.

    A cell that comes twice keeps its last value, as the predictor would. Memory grows with what is put in, which the
    caller bounds. values come in the order of the model's channels.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._at: dict[tuple[str, int, str, int], int] = {}
        self._cells: tuple[list[int], list[int], list[float]] = ([], [], [])

    def __len__(self) -> int:
        return len(self._at)

    def open(self, stream: str, time: int, source: str = "", sequence: int = -1) -> int:
        """The row's number; a row that gets no cell moves the stream's clock and nothing else. time: int64 ns."""
        return self._at.setdefault((stream, time, source, sequence), len(self._at))

    def cell(self, row: int, channel: int, value: float) -> None:
        """One finite value of a row that `open` gave."""
        rows, columns, values = self._cells
        rows.append(row)
        columns.append(channel)
        values.append(value)

    def batch(self, sequence: Callable[[int, int], tuple[str, int]] | None = None) -> Batch | None:
        """The rows in the order of their opening, None when there are none.

        sequence: source and sequence of rows that have none, of (time ns, bit set of the channels that came).
        """
        if not self._at:
            return None
        streams, times, sources, sequences = zip(*self._at, strict=True)
        values = np.full((len(self._at), self._channels), np.nan)
        rows, columns, cells = self._cells
        values[rows, columns] = cells
        if sequence is not None:
            seen = [sum(1 << c for c in np.flatnonzero(row).tolist()) for row in np.isfinite(values)]
            given = [sequence(time, mask) for time, mask in zip(times, seen, strict=True)]
            sources, sequences = tuple(s for s, _ in given), tuple(n for _, n in given)
        return Batch(
            streams=streams,
            times=np.array(times, np.int64),
            values=values,
            sources=sources,
            sequences=np.array(sequences, np.int64),
        )


def clip(text: str) -> str:
    """At most 200 characters, printable ones: what a hostile sender wrote goes to a log."""
    shown = text if len(text) <= _CLIP else f"{text[: _CLIP - 1]}…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
