"""What the service asks of a durable store, and the records that go in and come out.

    journal     rows in the order in which they were taken, each with a number `seq` that only grows
    snapshots   the two newest of each stream; the newer one plus the rows behind it is the stream's state
    ledger      what became of streams, in order; readers keep their place in named cursors
    keys        hashed API keys

Every call that changes something is one transaction, and durable when it returns; when it raises, nothing of it is
there. Order is always that of `seq`, never that of a clock. The rows of a corrupt snapshot are still in the journal:
it reaches back to the older of a stream's two snapshots, so damage to one costs time and not data.

`append`, `snapshot`, `claim`, `release`, `forget`, `prune` and what reads journal and snapshots belong to one thread;
ledger, cursors, keys and `meta` may be called from any.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from tsgdn2.service.batch import Batch, Ints
from tsgdn2.service.marks import Marks

Fact: TypeAlias = str | int | float | bool | None


class Model(NamedTuple):
    """The model that a store belongs to: its states fit no other one."""

    fingerprint: str
    channels: tuple[str, ...]


class Meta(NamedTuple):
    """What a store says of itself: its schema number, and its model once it has one."""

    schema: int
    model: Model | None


class Rows(NamedTuple):
    """Journal rows of one stream, oldest first, and their numbers seqs [N]."""

    seqs: Ints
    batch: Batch


@dataclass(frozen=True, kw_only=True, repr=False)
class Snapshot:
    """The whole state of one stream after the row `seq` of the journal; make one with `of`."""

    stream: str
    seq: int
    """Every row of the stream up to this one is in the state."""
    blob: bytes
    """What `OnlinePredictor.take_out` gave."""
    schema: int
    """Schema number of the blob."""
    fingerprint: str
    """Fingerprint of the model's config."""
    marks: bytes
    """`Marks.to_bytes` of the same moment."""
    written: int
    """Nanoseconds since 1970, UTC; for people, nothing is decided by it."""
    sha256: str
    """Of everything above."""
    imported: bool = False
    """The journal alone can not lead to this state: older snapshots and rows of the stream count no more."""

    @classmethod
    def of(
        cls,
        stream: str,
        seq: int,
        blob: bytes,
        *,
        schema: int,
        fingerprint: str,
        marks: Marks | None = None,
        written: int | None = None,
        imported: bool = False,
    ) -> Snapshot:
        """A snapshot with its checksum; `written` is now unless given."""
        now = time.time_ns() if written is None else written
        seen = b"" if marks is None else marks.to_bytes()
        digest = digest_of(stream, seq, schema, fingerprint, now, seen, blob)
        return cls(
            stream=stream, seq=seq, blob=blob, schema=schema, fingerprint=fingerprint, marks=seen, written=now,
            sha256=digest, imported=imported,
        )  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether it is what was written."""
        facts = self.stream, self.seq, self.schema, self.fingerprint, self.written, self.marks, self.blob
        return digest_of(*facts) == self.sha256


def digest_of(stream: str, seq: int, schema: int, fingerprint: str, written: int, marks: bytes, blob: bytes) -> str:
    """sha256 of a snapshot, in hex."""
    digest = hashlib.sha256(repr((stream, seq, schema, fingerprint, written, len(marks))).encode())
    digest.update(marks)
    digest.update(blob)
    return digest.hexdigest()


class Recovered(NamedTuple):
    """What there is of one stream: its newest good snapshot, the rows behind it, and what could not be had.

    rows may be read once, and only until the next stream is asked for. damage is "" where nothing is lost; otherwise
    it says what is, and snapshot and rows are what is left.
    """

    stream: str
    snapshot: Snapshot | None
    rows: Iterator[Rows]
    damage: str


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """Something that happened to a stream, or to the service (stream "")."""

    kind: str
    """evicted, reloaded, expired, deleted, poisoned, recovered, corrupt, alert, .."""
    stream: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """What there is to know; a number that is not finite is kept as text."""
    time: int = field(default_factory=time.time_ns)
    """Nanoseconds since 1970, UTC, given once, so that sending it again is harmless."""
    id: int = 0
    """Given by the store; grows in the order in which rows can be read, so a reader never misses one."""


@dataclass(frozen=True, kw_only=True)
class KeyRow:
    """An API key: only its hash is kept."""

    id: str
    hash: bytes
    role: str
    tenant: str
    expires: int | None = None
    """Nanoseconds since 1970, UTC; None is never."""
    withdrawn: int | None = None
    """When it was withdrawn; None is not."""


class Pruned(NamedTuple):
    """What a pruning took out of the journal, and how many rows it still holds."""

    removed: int
    held: int


class Store(Protocol):
    """Both stores keep it. Every call may raise StoreError; CorruptError where what is read is not what was written."""

    def open(self, model: Model | None = None) -> None:
        """Open, making what is not there. StoreError: another model's, a newer schema, another process has it.

        Without a model, only ledger, cursors, keys and `meta` may be used.
        """

    def close(self) -> None:
        """Leave it in order; harmless when it is not open."""

    @property
    def last(self) -> int:
        """The highest `seq` that this process gave out or found; 0 before the first."""

    def claim(self, streams: Sequence[str]) -> dict[str, str]:
        """Become the one process that appends to these streams; gives those that another one holds, and its label."""

    def release(self, streams: Sequence[str]) -> None:
        """Let other processes have these streams; snapshot them first, or the next one must replay."""

    def renew(self) -> None:
        """Say that this process lives; call it at least three times in a lease, idle or not. StoreError: too late."""

    def append(
        self, batch: Batch, *, ledger: Sequence[LedgerRow] = (), cursors: Mapping[str, int] | None = None
    ) -> int:
        """Keep a batch, and ledger rows and cursors with it; row i gets the number returned + i."""

    def snapshot(
        self,
        snapshots: Sequence[Snapshot],
        *,
        ledger: Sequence[LedgerRow] = (),
        cursors: Mapping[str, int] | None = None,
    ) -> None:
        """Keep snapshots; of each stream the two of the highest `seq` stay."""

    def rows_after(self, stream: str, seq: int) -> Iterator[Rows]:
        """Rows of a stream behind `seq`, in the order of the journal, block by block."""

    def newest_rows(self, stream: str, limit: int) -> list[Rows]:
        """The last rows of a stream, oldest first, as far as they are found in a bounded look; for people, any thread.

        There may be fewer than the journal holds, or none; nothing is to be recovered from them.
        """

    def restore(self, stream: str) -> Recovered | None:
        """One stream; None for one that is not known. Quick for a stream without rows behind its snapshot."""

    def recover(self, streams: Sequence[str] | None = None) -> Iterator[Recovered]:
        """Many streams in few passes over the journal, in the order in which they first came; None is all it holds."""

    def marks(self, stream: str) -> Marks:
        """Marks of a stream as of its last row."""

    def streams(self, after: str = "", limit: int = 1000) -> list[str]:
        """Names of the streams kept, sorted by their bytes, from behind `after` on."""

    def forget(self, streams: Sequence[str], *, ledger: Sequence[LedgerRow] = ()) -> None:
        """Delete streams with their snapshots, and keep ledger rows with that, in one transaction.

        Their rows are never read again, and leave with the next `prune`.
        """

    def prune(self) -> Pruned:
        """Take out the rows that the older of their stream's two snapshots holds, and those of forgotten streams."""

    def repair(self) -> list[str]:
        """Take out what is damaged, after a CorruptError and a copy of the store; says what was lost."""

    def record(self, rows: Iterable[LedgerRow]) -> int:
        """Write ledger rows; gives the id of the last one, 0 for none."""

    def read_ledger(self, after: int = 0, limit: int = 1000, *, stream: str | None = None) -> list[LedgerRow]:
        """Ledger rows behind the id `after`, oldest first, all or those of one stream; at most 10,000 at a time."""

    def newest_ledger(self, before: int, limit: int = 1000, *, stream: str | None = None) -> list[LedgerRow]:
        """Ledger rows in front of the id `before`, all or those of one stream, newest first; at most 10,000 a time."""

    def trim_ledger(self, keep: int) -> int:
        """Delete ledger rows but the newest `keep` and those that a cursor called ledger.* has not passed."""

    def cursor(self, name: str) -> int:
        """Where a reader is; 0 before it moved."""

    def move(self, cursors: Mapping[str, int]) -> None:
        """Put readers where they are now, all in one transaction."""

    def put_key(self, key: KeyRow) -> None:
        """Keep a key, in the place of one with the same id."""

    def keys(self) -> list[KeyRow]:
        """Every key, by id."""

    def meta(self) -> Meta:
        """Schema and model of the store."""
