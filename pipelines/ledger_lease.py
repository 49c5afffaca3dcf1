"""Which of several processes with one store sends its ledger: the one that holds a lock of the database.

A SQLite store has one process, and that one sends. PostgreSQL lets go of the lock when the connection ends, in any way;
a connection that is lost is made anew, and the lock asked for again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import psycopg

_LOCK: Final = 0x6C65_6467


class Lease:
    """The right to send, for one process at a time."""

    def __init__(self, place: str) -> None:
        """place: a postgresql:// address, or anything else for a store of one process."""
        self._place = place if place.startswith(("postgresql://", "postgres://")) else ""
        self._connection: psycopg.Connection[Any] | None = None

    def held(self) -> bool:
        """Whether this process may send now; never waits for another one."""
        if not self._place:
            return True
        import psycopg

        try:
            if self._connection is not None:
                self._connection.execute("SELECT 1")
                return True
            connection = psycopg.connect(self._place, autocommit=True, connect_timeout=5)
            found = connection.execute(
                "SELECT pg_try_advisory_lock(%s, hashtext(current_schema()))", (_LOCK,)
            ).fetchone()
        except psycopg.Error:
            self.close()
            return False
        if found is None or not found[0]:
            connection.close()
            return False
        self._connection = connection
        return True

    def close(self) -> None:
        """Let another process have it; harmless a second time."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
