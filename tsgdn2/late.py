"""What becomes of a value that comes out of order: the policy, checked where it is made, and the list of the too late.

    newest - watermark <= step            held back and applied in the order of time          (reorder.py)
    its patch is closed, within the ring  the stream is taken back to a checkpoint, replayed  (rewind.py)
    its patch is closed, beyond the ring  late: an error ("raise"), counted ("drop"), or counted and listed

The list is bounded, so a source that is always late can not fill the memory: the oldest entries go, and are counted.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.slab import Ints, fit

if TYPE_CHECKING:
    import pandas as pd

    Span = timedelta | np.timedelta64 | pd.Timedelta | int
else:
    Span = object

Row = tuple[int, int, int, int, float]
Late = Literal["raise", "drop", "replay", "tag"]
MOST_HELD = 16_384
MOST_KEPT = 4_096
LISTED = 1_024
_CHECKPOINTS = _EVERY = 8
_LARGEST = 2**63 - 1


class LateArrival(NamedTuple):
    """A value that came too late to be used: the start of its step (UTC), and how far behind the stream's newest."""

    stream: str
    time: np.datetime64
    channel: str
    value: float
    lag: np.timedelta64


@dataclass(frozen=True, kw_only=True)
class LatePolicy:
    """What a predictor does with data out of order; `of` makes it from what a caller gives."""

    late: Late = "raise"
    """For a closed patch: "raise" an error, "drop" and count, "tag" (drop, count and list), or "replay" what came since
    (and tag what lies beyond the checkpoints)."""
    steps: int = 0
    """Watermark in steps, rounded up; 0 applies every row at once."""
    checkpoints: int = 0
    """Copies of a stream's row that "replay" can go back to; each costs the memory of one more stream."""
    every: int = 0
    """Patches from one copy to the next; the reach is at least (checkpoints - 1) * every patches."""

    @classmethod
    def of(
        cls, late: Late, watermark: Span, checkpoints: int | None, checkpoint_every: int | None, *, period_ns: int
    ) -> LatePolicy:
        """Check and convert. ConfigError names the argument."""
        if late not in get_args(Late):
            raise ConfigError(f"late: must be one of {get_args(Late)}, got {late!r}")
        span = nanoseconds(watermark)
        steps = -(-span // period_ns)
        if span < 0 or steps > MOST_HELD:
            longest = timedelta(microseconds=min(MOST_HELD * period_ns // 1000, 10**17))
            raise ConfigError(
                f"watermark: must be from 0 to {MOST_HELD} steps ({longest}), got {watermark!r}; rows wait for its "
                'length, so choose the usual delay, and late="replay" for the rest'
            )
        for name, value in (("checkpoints", checkpoints), ("checkpoint_every", checkpoint_every)):
            if value is None:
                continue
            if late != "replay":
                raise ConfigError(
                    f'{name}: only late="replay" goes back to checkpoints, late is {late!r}; leave it out'
                )
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= MOST_KEPT:
                raise ConfigError(f"{name}: must be an integer from 1 to {MOST_KEPT}, got {value!r}")
        if late != "replay":
            return cls(late=late, steps=steps)
        kept = _CHECKPOINTS if checkpoints is None else int(checkpoints)
        every = _EVERY if checkpoint_every is None else int(checkpoint_every)
        return cls(late=late, steps=steps, checkpoints=kept, every=every)

    @property
    def tags(self) -> bool:
        """Whether what comes too late is listed."""
        return self.late in ("tag", "replay")

    def to_json(self) -> str:
        """JSON text; `from_json` is its inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LatePolicy:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


class LateList:
    """Rows (slot, step, channel, lag in steps) and values that came too late; the newest `most` of them."""

    def __init__(self, channels: int, most: int = LISTED) -> None:
        self._channels = channels
        self._rows: deque[Row] = deque(maxlen=most)
        self.dropped = 0
        """Values that went unread, because the list was full."""

    def add(self, slot: int, step: int, values: np.ndarray, lag: int) -> None:
        """Every value of one row; values [C], NaN where there is none."""
        for channel in np.flatnonzero(np.isfinite(values)).tolist():
            self.dropped += len(self._rows) == self._rows.maxlen
            self._rows.append((slot, step, channel, lag, float(values[channel])))

    def arrivals(self, names: Mapping[int, str], channels: tuple[str, ...], period_ns: int) -> list[LateArrival]:
        """What is listed of these streams, by slot; oldest first."""
        return [
            LateArrival(
                names[slot],
                np.datetime64(max(step * period_ns, -_LARGEST), "ns"),
                channels[channel],
                value,
                np.timedelta64(min(lag * period_ns, _LARGEST), "ns"),
            )
            for slot, step, channel, lag, value in self._rows
            if slot in names
        ]

    def clear(self) -> None:
        """Forget what is listed; the count of the dropped goes on."""
        self._rows.clear()

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """What is listed of these streams, and the count of the dropped; slot n of these tensors is slots[n]."""
        place = {slot: n for n, slot in enumerate(slots.tolist())}
        rows = [(place[row[0]], *row[1:]) for row in self._rows if row[0] in place]
        return {
            "rows": torch.tensor([row[:4] for row in rows], dtype=torch.int64).reshape(-1, 4),
            "values": torch.tensor([row[4] for row in rows], dtype=torch.float64),
            "dropped": torch.tensor(self.dropped),
        }

    def read(self, tensors: dict[str, Tensor], slots: Ints) -> list[Row]:
        """The rows that `tensors` gave, for `put`; KeyError or ValueError where they do not fit."""
        fit("rows", tensors, torch.zeros(1, 4, dtype=torch.int64), len(tensors["rows"]))
        fit("values", tensors, torch.zeros(1, dtype=torch.float64), len(tensors["rows"]))
        found = zip(tensors["rows"].tolist(), tensors["values"].tolist(), strict=True)
        rows = [(*whole, value) for whole, value in found]
        if any(not (0 <= row[0] < len(slots) and 0 <= row[2] < self._channels and row[3] >= 0) for row in rows):
            raise ValueError("rows that came late name a stream or a channel that is not there")
        return [(int(slots[row[0]]), *row[1:]) for row in rows]

    def put(self, rows: Sequence[Row], instead: Iterable[int] = ()) -> None:
        """List rows behind the others, in place of all that is listed of the streams in slots `instead`."""
        gone = set(instead)
        if gone and self._rows:
            self._rows = deque((row for row in self._rows if row[0] not in gone), self._rows.maxlen)
        self.dropped += max(0, len(self._rows) + len(rows) - (self._rows.maxlen or 0))
        self._rows.extend(rows)


def nanoseconds(watermark: Span) -> int:
    """A watermark in nanoseconds. ConfigError where it is none."""
    convert = getattr(watermark, "to_timedelta64", None)
    span = convert() if convert is not None else watermark  # pandas.Timedelta keeps nanoseconds that timedelta has not
    if isinstance(span, timedelta):
        return ((span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds) * 1_000
    if isinstance(span, np.timedelta64):  # to numpy that is an integer, too
        unit, count = np.datetime_data(span.dtype)
        size = {"W": 604_800 * 10**9, "D": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9}
        size |= {"ms": 10**6, "us": 10**3, "ns": 1}
        if unit in size and not np.isnat(span):
            return int(span.astype(np.int64)) * size[unit] * count
    elif isinstance(span, int | np.integer) and not isinstance(span, bool):
        return int(span)
    raise ConfigError(
        f"watermark: must be a timedelta or int64 nanoseconds, got {type(watermark).__name__} {watermark!r}; "
        "convert it (months and years have no fixed length)"
    )
