"""What became of each row of a request: the predictor's status, or that it was seen before, or why it was refused.

A receipt is given when the rows that it speaks of are on the disk; a row that was refused is in no journal, or its
stream was put aside by it. Sending a refused row again changes nothing, so a connector acknowledges it as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from tsgdn2.ingest import STATUS as OBSERVED
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.batch import Batch, Floats

SEEN: Final = "seen"
"""Its sequence was taken before; the row was left out."""
BEHIND: Final = "behind"
"""Its sequence is so far behind its source's highest that nobody knows; it was left out."""
REFUSED: Final = "refused"
"""It can not be taken; the receipt has the reason."""
ELSEWHERE: Final = "elsewhere"
"""Another process of the same store holds its stream; the receipt says which. Nothing of the row was kept."""
KEPT: Final = "kept"
"""It is on the disk and not yet in the state: the receipt did not wait for that, or nobody knows what it did."""
STATUS: Final = (*OBSERVED, SEEN, BEHIND, REFUSED, ELSEWHERE, KEPT)


class Outcome(NamedTuple):
    """Status [N] and surprise [N, C] in bits of rows that were observed."""

    status: Sequence[str]
    surprise: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Receipt:
    """What became of N rows, in the order in which they were sent."""

    status: tuple[str, ...]
    """One of STATUS for each row."""
    surprise: Floats
    """Bits of each cell [N, C]; NaN where there was no value, no forecast yet, or the row was left out."""
    reasons: Mapping[int, str]
    """Why, for each row that was refused, by its place."""

    def __len__(self) -> int:
        return len(self.status)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have each status that there is."""
        return dict(Counter(self.status))


def applied(online: OnlinePredictor, batch: Batch) -> Outcome:
    """Observe the rows of a batch; those of one stream in their order."""
    columns = {name: batch.values[:, channel] for channel, name in enumerate(online.channels)}
    frame = pl.DataFrame({"stream": list(batch.streams), "time": batch.times, **columns})
    found = online.observe_many(frame)
    surprise = np.stack([found.get_column(f"surprise.{name}").to_numpy() for name in online.channels], 1)
    return Outcome(found.get_column("status").to_list(), surprise)
