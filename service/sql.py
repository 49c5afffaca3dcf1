"""What the tables of a store need of a database: transactions, reads, and which errors mean what.

The statements of both stores are the same text, in the part of SQL that SQLite and PostgreSQL share, with "?" for a
value; so what one store promises, the other one promises too. What differs is in their own modules: opening, the
numbers of rows, leases, locks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeAlias

from tsgdn2.service.errors import StoreError
from tsgdn2.service.store import Model

Row: TypeAlias = tuple[Any, ...]
_LIST: Final = 500
"""Values in one list of a statement; both databases take more."""


class Transaction(Protocol):
    """Statements that are kept together, or not at all."""

    def run(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run one statement; gives how many rows it changed."""

    def many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement with each of these values."""

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """What a statement gives."""


class Sql(ABC):
    """A database that may be open."""

    _model: Model | None = None

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[Transaction]:
        """One transaction, durable at its end; an error inside takes all of it back, and comes out as a StoreError."""

    @abstractmethod
    def _read(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """What a statement outside a transaction gives."""

    def _hold(self, transaction: Transaction, what: str) -> None:  # noqa: B027
        """Be the only one that writes the "ledger", or that does "prune", until the end of the transaction."""

    def _needs_model(self) -> Model:
        if self._model is None:
            raise StoreError("store: it was opened without a model; open it with one to read or write states")
        return self._model


def lists(values: Sequence[object]) -> Iterator[tuple[str, Sequence[object]]]:
    """Values in lists that a statement can take, each with its "(?, ?, ..)"."""
    for start in range(0, len(values), _LIST):
        part = values[start : start + _LIST]
        yield f"({', '.join('?' * len(part))})", part
