"""How much the memory may hold and how long things may wait; every bound of the service's inside is in one place.

They are limits, no promises: what is refused because of one is told so, with what to do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from tsgdn2.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Checked when it is made; ConfigError names the field."""

    group_rows: int = 2_048
    """Rows of one group commit; a single request may be longer. More: higher throughput, longer waits at full load."""
    slice_s: float = 0.02
    """Seconds for which rows that are on the disk are applied between two group commits, more or less: what is shorter
    than the price of a call to the model wastes it."""
    queue_rows: int = 65_536
    """Rows that may wait to be applied; beyond them a request is refused with BusyError."""
    queue_bytes: int = 256 << 20
    """Bytes of rows that may wait."""
    queue_reads: int = 4_096
    """Readings that may wait."""
    tenant_share: float = 0.5
    """Part of the queue that one tenant may fill; callers without a tenant (connectors) may fill all of it."""
    memory_bytes: int = 1 << 30
    """Bytes of hot streams, at their largest; the model's own are apart. The coldest beyond it go to the store."""
    ttl_s: float | None = None
    """Seconds without observation or reading after which a stream is deleted; None is never. A restart begins anew."""
    journal_rows: int = 1_000_000
    """Rows that a recovery may have to replay; snapshots keep pace with it."""
    snapshot_after_s: float = 60.0
    """Seconds after which an idle service snapshots a stream that has changed."""
    renew_s: float = 5.0
    """Seconds between two renewals of the store's lease; at most a third of it."""
    most_ahead_s: float | None = None
    """Seconds that a row's time may be ahead of this machine's clock: one stray year makes all that follows late. None
    takes any time, as a replay needs."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "snapshot_after_s" else 1e-9
            if value is None and field.name in ("ttl_s", "most_ahead_s"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
                raise ConfigError(f"{field.name}: must be a number above 0, got {value!r}")
            if field.type == "int" and not isinstance(value, int):
                raise ConfigError(f"{field.name}: must be a whole number, got {value!r}")
        if self.tenant_share > 1:
            raise ConfigError(f"tenant_share: must be a part from above 0 to 1, got {self.tenant_share}")
