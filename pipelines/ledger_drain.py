"""Sends the ledger of a service to MLflow, in the background, each row once, whatever dies when.

    fix the batch     cursor ledger.mlflow.until <- its last id         one transaction of the store
    record            spool: points, table, all with the rows' own times
    send              by a process of its own (ledger_sender.py)
    move on           cursor ledger.mlflow <- last id, and the counters  one transaction

A death anywhere leaves a batch that is fixed and not passed: it is made again, the same to the byte, and sent again,
and MLflow keeps equal points once and a file of the same name once. All rows of a store are one run, which its id, kept
in the store, finds again.

While MLflow is down the rows wait where they are, in the store: nothing is copied, and nothing waits for it. They take
disk until it is back: `trim_ledger` never deletes a row that the cursor has not passed; the log says how many wait.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import structlog
from filelock import FileLock

from tsgdn2.errors import TsgdnError
from tsgdn2.pipelines.events import AUDIT_REASONS, AUDIT_STATUS, FAILED, Artifact, End, Metrics, Tags, VersionTags
from tsgdn2.pipelines.ledger_batch import LedgerBatch, batch_of
from tsgdn2.pipelines.ledger_lease import Lease
from tsgdn2.pipelines.ledger_sender import Sender
from tsgdn2.pipelines.runs import user_name
from tsgdn2.pipelines.spool import Header, ServerDownError, Spool
from tsgdn2.pipelines.tracking import probe, shown

if TYPE_CHECKING:
    from tsgdn2.service.store import Store

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tsgdn2.ledger")
PASSED: Final = "ledger.mlflow"
FIXED: Final = "ledger.mlflow.until"
RUN: Final = "mlflow.run"
"""A number for the store's run, made once."""
ROWS: Final = 5_000
"""Rows of one batch."""
_MOST: Final = 10_000
_BUDGET: Final = 300.0


class Trimmer:
    """Keeps the ledger of an open store short; a thread of its own, that ends with the `with` statement."""

    def __init__(self, store: Store, *, keep: int, every_s: float) -> None:
        """keep: newest rows that stay; every_s: seconds between two looks."""
        self.store, self.keep, self.every_s = store, keep, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._said = ""

    def turn(self) -> None:
        """Do what is due. The store's errors."""
        self.store.trim_ledger(self.keep)

    def __enter__(self) -> Self:
        """Begin; the first turn comes after a while."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; what was not done is done after the next start."""
        self._stopping.set()
        while self._thread.is_alive():  # a turn may be about to begin what is to be interrupted
            self._interrupt()
            self._thread.join(0.2)
        self._close()

    def _interrupt(self) -> None:
        """Have a turn that is under way end soon."""

    def _close(self) -> None:
        """Let go of what is held between turns."""

    def _work(self) -> None:
        while not self._stopping.wait(self.every_s):
            try:
                self.turn()
                self._said = ""
            except (TsgdnError, OSError) as error:
                self._tell(error)
            except Exception:  # a fault of ours, or of a library: the service goes on, and the rows wait
                log.exception("ledger.turn_failed")

    def _tell(self, error: TsgdnError | OSError) -> None:
        """Log a cause once, as long as it is the same."""
        if str(error) != self._said and not self._stopping.is_set():
            log.warning("ledger.not_sent", error=str(error))
        self._said = str(error)


class LedgerDrain(Trimmer):
    """Sends what is new every `every_s` seconds, and keeps the ledger short behind it.

    Args:
        store: Open; its ledger and cursors alone are used.
        runs: Folder of the batch under way, and of the sender's log.
        tracking_uri: MLflow store or server.
        experiment: MLflow experiment of the run.
        every_s: Seconds between two sendings.
        keep: Newest rows that stay in the store once they are sent.
        subject: What is served, for the run's tags.
        version: Name and version of the registered model that is served, whose audit.status fails with a state.
        place: Address of a store that several processes share, so that one of them sends.
        timeout: Seconds that a server may take to answer.
        most: Rows of one batch, at most 10,000.
    """

    def __init__(
        self, store: Store, runs: Path, tracking_uri: str, *, experiment: str = "service", every_s: float = 60.0,
        keep: int = 100_000, subject: str = "", version: tuple[str, str] | None = None, place: str = "",
        timeout: float = 10.0, most: int = ROWS,
    ) -> None:  # fmt: skip
        """Touch nothing yet."""
        super().__init__(store, keep=keep, every_s=every_s)
        self.home, self.tracking_uri, self.experiment, self.timeout = (
            runs / "service",
            tracking_uri,
            experiment,
            timeout,
        )
        self.subject, self.version, self._lease, self._most = subject, version, Lease(place), min(most, _MOST)
        self._sender: Sender | None = None
        self.sent = 0
        """Rows that MLflow has got from this process."""

    def turn(self) -> None:
        """Send all that waits, then trim. ServerDownError, TrackingError: the rest waits on."""
        if self.send():
            super().turn()

    def send(self) -> bool:
        """Send all that waits; False where another process of this store does. Errors as `turn`."""
        if not self._lease.held():
            return False
        if self.store.read_ledger(self.store.cursor(PASSED), 1):
            probe(self.tracking_uri, self.timeout)
            self.home.mkdir(parents=True, exist_ok=True)
            with Sender(self.home / "sender.log") as self._sender:
                while not self._stopping.is_set() and (batch := self.batch()) is not None:
                    path = self.record(batch)
                    self._sender.send(path, self.tracking_uri, timeout=self.timeout, budget=_BUDGET)
                    self.passed(batch)
            log.info("ledger.sent", rows=self.sent, until=self.store.cursor(PASSED))
        return True

    def batch(self) -> LedgerBatch | None:
        """The batch that is fixed and not passed, or a new one, fixed now; None where nothing waits."""
        passed, fixed = self.store.cursor(PASSED), self.store.cursor(FIXED)
        if fixed > passed:
            rows = [row for row in self.store.read_ledger(passed, _MOST) if row.id <= fixed]
        else:
            rows = self.store.read_ledger(passed, self._most)
            if rows:
                self.store.move({FIXED: rows[-1].id})
        return batch_of(rows, self.store.cursor) if rows else None

    def record(self, batch: LedgerBatch) -> Path:
        """Put a batch into a spool; gives its folder."""
        tags = {
            "mlflow.user": user_name(), "mlflow.source.name": "tsgdn2 serve", "mlflow.source.type": "LOCAL",
            "tsgdn2.job": "serve", "tsgdn2.model": self.subject or "unknown",
        }  # fmt: skip
        model = self.store.meta().model
        if model is not None:
            tags["tsgdn2.store_model"] = model.fingerprint
        header = Header(
            spool_id=f"service-{self._run():016x}", experiment=self.experiment, name=f"service {self.subject}".strip(),
            tracking_uri=self.tracking_uri, started_ms=batch.rows[0].time // 1_000_000, tags=tags,
        )  # fmt: skip
        path = self.home / "spool" / header.spool_id
        path.parent.mkdir(parents=True, exist_ok=True)
        # A sender may have outlived the service that began it; what is there is this same batch, not sent whole.
        with FileLock(path.with_name(f"{path.name}.lock")).acquire(timeout=self.timeout):
            shutil.rmtree(path, ignore_errors=True)
        spool = Spool.create(self.home, header)
        spool.append(Metrics(values=batch.metrics, step=batch.last), time_ms=batch.time_ms)
        with TemporaryDirectory() as draft:
            file = batch.write(Path(draft))
            spool.append(Artifact(file=file.name, folder="ledger"), source=file, time_ms=batch.time_ms)
        spool.append(Tags(values={"tsgdn2.ledger_until": str(batch.last)}), time_ms=batch.time_ms)
        if batch.poisoned and self.version is not None:
            reasons = "a service set states aside: " + "; ".join(batch.poisoned)
            name, version = self.version
            values = {AUDIT_STATUS: FAILED, AUDIT_REASONS: reasons[:2_000]}
            spool.append(VersionTags(name=name, version=version, values=values), time_ms=batch.time_ms)
        spool.append(End(status="RUNNING"), time_ms=batch.time_ms)
        return path

    def passed(self, batch: LedgerBatch) -> None:
        """MLflow has a batch."""
        self.store.move({PASSED: batch.last, **batch.counts})
        self.sent += len(batch.rows)

    def waiting(self) -> int:
        """Rows that MLflow has not got, at most 10,000."""
        return len(self.store.read_ledger(self.store.cursor(PASSED), _MOST))

    def _interrupt(self) -> None:
        sender = self._sender
        if sender is not None:
            sender.kill()

    def _close(self) -> None:
        self._lease.close()

    def _run(self) -> int:
        number = self.store.cursor(RUN)
        if number == 0:
            number = secrets.randbits(62) | 1
            self.store.move({RUN: number})
        return number

    def _tell(self, error: TsgdnError | OSError) -> None:
        if isinstance(error, ServerDownError):
            if self._said != "down" and not self._stopping.is_set():
                waiting = self.waiting()
                log.warning(
                    "ledger.mlflow_down", uri=shown(self.tracking_uri), waiting=waiting,
                    more=waiting == _MOST, said="rows stay in the store until it is back; nothing waits for it",
                )  # fmt: skip
            self._said = "down"
            return
        super()._tell(error)
