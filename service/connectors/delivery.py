"""What a connector hands to the service, what it counts, and how long it waits between two attempts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tsgdn2.errors import ConfigError
from tsgdn2.service.batch import Batch
from tsgdn2.service.connectors.decoded import Rejections


class Delivery(NamedTuple):
    """Rows, and the name of the connector that they came by."""

    rows: Batch
    connector: str


class Sink(Protocol):
    """Where deliveries go.

    Returns when the rows are durable, and not before: only then does the connector acknowledge them. Raises BusyError
    or StoreError when it could not: the same delivery comes again, and no later one overtakes it. Any other TsgdnError
    means that these rows will never be taken: they are tried message by message, and what is refused again is
    acknowledged, counted and reported. A row that it has seen before is no error.
    """

    async def __call__(self, delivery: Delivery, /) -> object:
        """Make the rows durable."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Waiting times that double from `first` to `longest` seconds; each is cut by up to half, by chance."""

    first: float = 0.2
    longest: float = 30.0

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not 0 < self.first <= self.longest:
            raise ConfigError(f"backoff: needs 0 < first <= longest, got {self.first} and {self.longest}")

    def waits(self) -> Iterator[float]:
        """Seconds to wait after the first failure, the second, and so on, for ever."""
        wait = self.first
        while True:
            yield wait * random.uniform(0.5, 1.0)
            wait = min(2 * wait, self.longest)


@dataclass
class Counts:
    """What a connector has done since it was made."""

    received: int = 0
    """Messages, samples or rows that came, whatever became of them."""
    rows: int = 0
    """Rows that were made durable, those that were known already included."""
    acknowledged: int = 0
    """Messages acknowledged, poisoned ones included."""
    connects: int = 0
    """Connections that were made."""
    failures: int = 0
    """Connections that broke or could not be made."""
    retries: int = 0
    """Deliveries that the service could not take at once."""
    skipped: int = 0
    """Readings left out because the service was too slow for the interval."""
    waiting: int = 0
    """Deliveries received and not yet durable, now."""
    connected: bool = False
    last_error: str = ""
    rejected: Rejections = field(default_factory=lambda: Rejections(64, newest=True))
    """What was not taken: counts by reason and the newest samples."""

    def facts(self) -> dict[str, int]:
        """The numbers, for metrics; rejections as rejected_<reason>."""
        numbers = {name: int(value) for name, value in vars(self).items() if isinstance(value, int)}
        return numbers | {f"rejected_{reason}": count for reason, count in self.rejected.counts.items()}
