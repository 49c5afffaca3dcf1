"""What becomes of an event that comes out of order, and the list of those that came too late: the twin of late.py.

    newest - watermark <= time      held back and applied in the order of time                           (reorder.py)
    older, in the open patch        applied at once
    older, in a closed patch        late: an error ("raise"), counted ("drop"), or counted and listed ("tag")

There is no replay: a stream keeps no events. The list is bounded; its oldest entries go, and are counted.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, Self, cast, get_args

import numpy as np
import torch
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.events.schema import EventArrays, EventSchema, Ints
from tsgdn2.late import LISTED, MOST_HELD, Span, nanoseconds
from tsgdn2.scale import Bools
from tsgdn2.slab import fit

Row = tuple[int, int, int, int, list[float]]
Late = Literal["raise", "drop", "tag"]
RECENT = 1_024
_LONGEST = 2**62
_MOST = 2**24


class LateEvent(NamedTuple):
    """An event that came too late to be used, and how far behind the stream's newest.

    type: None is missing, "other" one that training did not know. marks: NaN where missing.
    """

    stream: str
    time: np.datetime64
    type: str | None
    marks: dict[str, float]
    lag: np.timedelta64


@dataclass(frozen=True, kw_only=True)
class EventPolicy:
    """What a predictor of events does with disorder; `of` makes it from what a caller gives."""

    late: Late = "raise"
    """For a closed patch: "raise" an error, "drop" and count, "tag" (drop, count and list)."""
    watermark: int = 0
    """Nanoseconds that events wait for others; 0 applies every event at once."""
    most_held: int = MOST_HELD
    """Events of one stream that wait at most; a full buffer applies its oldest ones early."""
    recent_ids: int = RECENT
    """Identities of applied events that a stream remembers, of 16 bytes each."""

    @classmethod
    def of(cls, late: str, watermark: Span, most_held: int, recent_ids: int) -> Self:
        """Check and convert. ConfigError names the argument."""
        if late not in get_args(Late):
            mend = "; events are not logged, so they can not be replayed: take a longer watermark" * (late == "replay")
            raise ConfigError(f"late: must be one of {get_args(Late)}, got {late!r}{mend}")
        span = nanoseconds(watermark)
        if not 0 <= span <= _LONGEST:
            raise ConfigError(f"watermark: must be from 0 to {_LONGEST} ns, got {watermark!r}; choose the usual delay")
        for name, value in (("most_held", most_held), ("recent_ids", recent_ids)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= _MOST:
                raise ConfigError(f"{name}: must be an integer from 1 to {_MOST}, got {value!r}")
        return cls(late=cast(Late, late), watermark=span, most_held=int(most_held), recent_ids=int(recent_ids))

    @property
    def tags(self) -> bool:
        """Whether what comes too late is listed."""
        return self.late == "tag"

    def to_json(self) -> str:
        """JSON text; `from_json` is its inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


class LateEvents:
    """The newest `most` events that came too late."""

    def __init__(self, schema: EventSchema, most: int = LISTED) -> None:
        self.schema = schema
        self._rows: deque[Row] = deque(maxlen=most)
        self.dropped = 0
        """Events that went unread, because the list was full."""

    def add(self, slots: Ints, events: EventArrays, late: Bools, lag: Ints) -> None:
        """Those of R events that are late [R]; slots and lag [R]."""
        for row in np.flatnonzero(late).tolist():
            self.dropped += len(self._rows) == self._rows.maxlen
            time, kind, marks = (part[row].tolist() for part in events)
            self._rows.append((int(slots[row]), time, kind, int(lag[row]), marks))

    def arrivals(self, streams: Mapping[int, str]) -> list[LateEvent]:
        """What is listed of these streams, by slot; oldest first."""
        names: tuple[str | None, ...] = (*self.schema.types, "other", None)
        return [
            LateEvent(
                streams[slot],
                np.datetime64(time, "ns"),
                names[kind],
                dict(zip(self.schema.marks, marks, strict=True)),
                np.timedelta64(lag, "ns"),
            )
            for slot, time, kind, lag, marks in self._rows
            if slot in streams
        ]

    def clear(self) -> None:
        """Forget what is listed; the count of the dropped goes on."""
        self._rows.clear()

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """What is listed of these streams, and the count of the dropped; nothing where there is nothing.

        Slot n of these tensors is slots[n].
        """
        place = {slot: n for n, slot in enumerate(slots.tolist())}
        rows = [(place[row[0]], *row[1:]) for row in self._rows if row[0] in place]
        if not rows and not self.dropped:
            return {}
        return {
            "rows": torch.tensor([row[:4] for row in rows], dtype=torch.int64).reshape(-1, 4),
            "marks": torch.tensor([row[4] for row in rows], dtype=torch.float64).reshape(
                len(rows), len(self.schema.marks)
            ),
            "dropped": torch.tensor(self.dropped),
        }

    def read(self, tensors: dict[str, Tensor], slots: Ints) -> list[Row]:
        """The rows that `tensors` gave, for `put`; KeyError or ValueError where they do not fit."""
        if not tensors:
            return []
        fit("rows", tensors, torch.zeros(1, 4, dtype=torch.int64), len(tensors["rows"]))
        fit("marks", tensors, torch.zeros(1, len(self.schema.marks), dtype=torch.float64), len(tensors["rows"]))
        kinds = len(self.schema.types) + 2
        found = zip(tensors["rows"].tolist(), tensors["marks"].tolist(), strict=True)
        rows = [(*whole, marks) for whole, marks in found]
        if any(not (0 <= row[0] < len(slots) and 0 <= row[2] < kinds and row[3] >= 0) for row in rows):
            raise ValueError("events that came late name a stream or a type that is not there")
        return [(int(slots[row[0]]), *row[1:]) for row in rows]

    def put(self, rows: Sequence[Row], instead: Iterable[int] = ()) -> None:
        """List events behind the others, in place of all that is listed of the streams in slots `instead`."""
        gone = set(instead)
        if gone and self._rows:
            self._rows = deque((row for row in self._rows if row[0] not in gone), self._rows.maxlen)
        self.dropped += max(0, len(self._rows) + len(rows) - (self._rows.maxlen or 0))
        self._rows.extend(rows)
