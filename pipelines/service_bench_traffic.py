"""The rows that every contender of the service's benchmark is sent, by their number, and their forms on the wire.

    row n is of stream n mod N in sweep n div N;   time = BEGIN + (sweep - began) hours,   sequence = sweep

aligned: every stream began with sweep 0, so all of them close a patch in the same sweep. spread: stream i began with
sweep i mod P, so a P-th of the streams closes one in every sweep, and in every request. Values are daily waves with
noise of nine sensors, rounded as sensors do it; no cell is missing. N streams, P steps of a patch, C channels.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHANNELS: Final = (
    "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
)  # fmt: skip
"""Of the quickstart's weather."""
HOUR_NS: Final = 3_600_000_000_000
BEGIN: Final = 1_700_000_000 // 3600 * HOUR_NS
SOURCE: Final = "bench"
WARM: Final = 3
"""Patches of time before the first measured row."""
_DAY: Final = 24


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """All rows there will ever be; the same in every process that is told the same four numbers."""

    streams: int
    patch: int
    spread: bool
    seed: int
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(f"stream-{number:06d}" for number in range(self.streams)))

    @property
    def first(self) -> int:
        """The number of the first measured row."""
        return WARM * self.patch * self.streams

    @property
    def whole(self) -> int:
        """Rows after which everything has come round: a patch of all streams, where they close it together."""
        return 1 if self.spread else self.streams * self.patch

    @cached_property
    def began(self) -> Ints:
        """The sweep with which each stream began [N]."""
        return np.arange(self.streams) % self.patch if self.spread else np.zeros(self.streams, np.int64)

    @cached_property
    def _values(self) -> Floats:
        """A day of values [24, N, C]."""
        dice = np.random.default_rng(self.seed)
        phase = dice.uniform(0, 2 * np.pi, (self.streams, len(CHANNELS)))
        wave = 3 * np.sin(2 * np.pi * np.arange(_DAY)[:, None, None] / _DAY + phase)
        return np.round(10 + wave + 0.5 * dice.normal(size=wave.shape), 2)

    def ready(self) -> None:
        """Make what all rows share, so that the first of them takes no longer than others."""
        self.columns(self.first, 1)

    def numbers(self, first: int, count: int) -> Ints:
        """Numbers of the rows from `first` on that there are: before the first measured one, some streams are not."""
        rows = np.arange(first, first + count)
        return rows if first >= self.first else rows[rows // self.streams >= self.began[rows % self.streams]]

    def columns(self, first: int, count: int) -> Columns:
        """Rows from `first` on."""
        rows = self.numbers(first, count)
        sweep, stream = rows // self.streams, rows % self.streams
        return Columns(
            streams=[self.names[number] for number in stream.tolist()],
            times=BEGIN + (sweep - self.began[stream]) * HOUR_NS,
            values=self._values[sweep % _DAY, stream],
            sequences=sweep,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """Rows in columns: streams [N], times [N] in ns, values [N, C], sequences [N]."""

    streams: list[str]
    times: Ints
    values: Floats
    sequences: Ints

    def __len__(self) -> int:
        return len(self.streams)

    def body(self, form: str) -> tuple[bytes, str]:
        """The body of a request and its Content-Type; form: http-json, http-json-rows or http-arrow."""
        if form == "http-arrow":
            return self._arrow(), "application/vnd.apache.arrow.stream"
        text = self._json_rows() if form == "http-json-rows" else self._json_columns()
        return text.encode(), "application/json"

    def messages(self) -> list[tuple[bytes, bytes]]:
        """Topic and payload of each row, as the default mapping reads them."""
        rows = zip(self.streams, self.times.tolist(), self.sequences.tolist(), self.values.tolist(), strict=True)
        return [
            (name.encode(), json.dumps({"time": time, "sequence": number, **dict(zip(CHANNELS, cells, strict=True))})
             .encode())
            for name, time, number, cells in rows
        ]  # fmt: skip

    def _json_columns(self) -> str:
        return json.dumps({
            "streams": self.streams, "times": self.times.tolist(), "sources": [SOURCE] * len(self),
            "sequences": self.sequences.tolist(),
            "values": {name: self.values[:, channel].tolist() for channel, name in enumerate(CHANNELS)},
        })  # fmt: skip

    def _json_rows(self) -> str:
        rows = zip(self.streams, self.times.tolist(), self.sequences.tolist(), self.values.tolist(), strict=True)
        return json.dumps({"rows": [
            {"stream": name, "time": time, "values": cells, "source": SOURCE, "sequence": number}
            for name, time, number, cells in rows
        ]})  # fmt: skip

    def _arrow(self) -> bytes:
        table = pa.table({
            "stream": self.streams, "time": self.times, "source": [SOURCE] * len(self), "sequence": self.sequences,
            **{name: self.values[:, channel] for channel, name in enumerate(CHANNELS)},
        })  # fmt: skip
        target = io.BytesIO()
        with pa.ipc.new_stream(target, table.schema) as writer:
            writer.write_table(table)
        return target.getvalue()
