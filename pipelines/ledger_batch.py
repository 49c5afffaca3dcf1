"""What a batch of a service's ledger becomes in MLflow: curves, counters that go on, a table of all rows.

    ledger/<kind>             rows of a kind since the store was made
    late/rows                 rows that came too late
    forgotten/<cause>         tracked writes of states that fell, by what took them: decay, erase
    forgotten/retention       mean share that was left of those of the batch
    alert/<channel>           surprises;  alert/bits: the largest of the batch
    ledger/<first>-<last>.parquet   id, time, kind, stream, facts (JSON) of every row

Everything is told by the rows and by the counters before them, with the time and the id of the last row: the same batch
gives the same points, bytes and names, however often it is made. That is what makes sending it again harmless.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from tsgdn2.errors import SchemaError
from tsgdn2.pipelines.events import clean_name

if TYPE_CHECKING:
    from tsgdn2.service.store import LedgerRow

COUNT: Final = "mlflow.count."
"""Cursors of a store whose position is a count."""
_MOST_CHANNELS: Final = 1_000
"""Curves of channels; the alerts of others are counted together."""
_POISONED: Final = "poisoned"


@dataclass(frozen=True, kw_only=True)
class LedgerBatch:
    """Rows of a ledger, ready to be recorded."""

    rows: Sequence[LedgerRow]
    metrics: dict[str, float]
    counts: dict[str, int]
    """Counters after these rows, by the name of their cursor."""
    poisoned: tuple[str, ...]
    """Why states were set aside, at most a few."""

    @property
    def last(self) -> int:
        """Id of the last row."""
        return self.rows[-1].id

    @property
    def time_ms(self) -> int:
        """When the last row was written, milliseconds since 1970."""
        return self.rows[-1].time // 1_000_000

    @property
    def name(self) -> str:
        """The table's file."""
        return f"{self.rows[0].id:012d}-{self.last:012d}.parquet"

    def write(self, folder: Path) -> Path:
        """Write the table into a folder; gives its path."""
        table = pl.DataFrame(
            {
                "id": [row.id for row in self.rows],
                "time": pl.Series([row.time for row in self.rows], dtype=pl.Int64).cast(pl.Datetime("ns", "UTC")),
                "kind": [row.kind for row in self.rows],
                "stream": [row.stream for row in self.rows],
                "facts": [json.dumps(dict(row.facts), sort_keys=True) for row in self.rows],
            }
        )
        path = folder / self.name
        table.write_parquet(path, compression="zstd")
        return path


def batch_of(rows: Sequence[LedgerRow], count: Callable[[str], int]) -> LedgerBatch:
    """The batch of these rows, at least one. count: where a counter stands before them, by its cursor's name."""
    added, largest, left = Counter[str](), 0.0, list[float]()
    poisoned: list[str] = []
    channels = set[str]()
    for row in rows:
        added[_key(f"ledger/{row.kind}")] += 1
        if row.kind == "late":
            added["late/rows"] += int(_number(row, "rows", 1.0))
        elif row.kind == "forgotten":
            added[_key(f"forgotten/{row.facts.get('cause', 'unknown')}")] += 1
            if math.isfinite(share := _number(row, "retention", math.nan)):
                left.append(share)
        elif row.kind == "alert":
            channel = str(row.facts.get("channel", "unknown"))
            if channel in channels or len(channels) < _MOST_CHANNELS:
                channels.add(channel)
                added[_key(f"alert/{channel}")] += 1
            largest = max(largest, _number(row, "bits", 0.0))
        elif row.kind == _POISONED and len(poisoned) < 5:
            poisoned.append(f"{row.facts.get('what', 'a state')} is not finite (ledger row {row.id})")
    counts = {f"{COUNT}{name}": count(f"{COUNT}{name}") + more for name, more in added.items()}
    metrics = {name.removeprefix(COUNT): float(value) for name, value in counts.items()}
    if left:
        metrics["forgotten/retention"] = math.fsum(left) / len(left)
    if largest:
        metrics["alert/bits"] = largest
    return LedgerBatch(rows=rows, metrics=metrics, counts=counts, poisoned=tuple(poisoned))


def _number(row: LedgerRow, name: str, default: float) -> float:
    """A fact as a number; what is not finite stands there as text."""
    try:
        return float(row.facts.get(name, default) or 0.0)
    except (TypeError, ValueError):
        return default


def _key(name: str) -> str:
    """A name that MLflow takes; the same for the same name."""
    try:
        return clean_name("metrics", name)
    except SchemaError:
        return clean_name("metrics", f"{name.partition('/')[0]}/other")
