"""How a memory stands, for readiness, metrics and the dashboard."""

from __future__ import annotations

from typing import NamedTuple


class Status(NamedTuple):
    """How it stands; read without waiting for anything."""

    ready: bool
    """Whether rows are being taken."""
    reason: str
    """Why it is not ready, or what the store said when it failed last; "" when all is well."""
    hot: int
    most: int
    """Streams in memory, and how many may be."""
    dirty: int
    """Streams with rows behind their snapshot."""
    aside: int
    """Streams that are set aside."""
    queued_rows: int
    queued_bytes: int
    rate: float
    """Rows a second that the worker does while it has some."""
    last: int
    """The last row of the journal."""
