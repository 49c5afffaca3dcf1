"""Where the worker's time went: seconds by what was done, and what was handled, since the start."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Spent:
    """Counts of one worker; any thread may read them."""

    groups: int = 0
    """Group commits."""
    slices: int = 0
    """Parts in which their rows were applied."""
    rows: int = 0
    hot: float = 0.0
    """Bringing cold streams back, and evicting others."""
    sift: float = 0.0
    """Telling duplicates from new rows."""
    append: float = 0.0
    """The store's group commit."""
    apply: float = 0.0
    """The predictor, and the look at the states behind it."""
    check: float = 0.0
    """That look alone; it is in `apply`."""
    answer: float = 0.0
    """All of it, from requests to receipts."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Rows by their status."""
