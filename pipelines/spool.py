"""Everything that a run logs, kept in a local folder until a tracking server has it.

A spool costs one appended line per call and a copy of each artifact; it never speaks to a server, so a dead one can
not slow a job. Sending is the business of drain.py.

    <root>/spool/<id>/run.json       who the run is; written once, atomically
    <root>/spool/<id>/events.jsonl   one JSON object per line, numbered from 0, with a fixed time; append only
    <root>/spool/<id>/files/<n>/     what event n brought along
    <root>/spool/<id>/state.json     how far it has been sent; replaced atomically by drain.py
    <root>/spool/<id>.live           locked by the process that still writes
    <root>/spool/<id>.lock           locked by the process that sends

A line counts once its newline is there: a torn last line is what a crash in mid-write leaves, and it is ignored.
Numbers and times are given when an event is recorded and never again, which is what makes sending it twice harmless.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from tsgdn2.datasets.tokens import write_whole
from tsgdn2.errors import ConfigError, DataError, TsgdnError
from tsgdn2.pipelines.events import KIND_NAMES, KINDS, Artifact, End, Event, ModelFolder, Payload

SCHEMA = 1


class TrackingError(TsgdnError):
    """The tracking store refused what was sent; the spool keeps it."""


class ServerDownError(TrackingError):
    """The tracking server does not answer; the spool is as it was."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Who a run is. `parent` is the spool id of the run that it is nested in."""

    spool_id: str
    experiment: str
    name: str
    tracking_uri: str
    started_ms: int
    parent: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a spool has been sent to one store: events before `done`, bytes before `byte`, as MLflow run `run_id`."""

    tracking_uri: str
    run_id: str
    done: int = 0
    byte: int = 0


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A spool id that sorts by the time of its making."""
    second, rest = divmod(time.time_ns(), 10**9)  # one look at the clock: two may fall on both sides of a full second
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(second))}-{rest:09d}-{uuid.uuid4().hex[:8]}"


def writer_lock(path: Path) -> FileLock:
    """The lock that the writer of a spool holds while it lives; the system frees it when the process dies."""
    return FileLock(path.with_name(f"{path.name}.live"), thread_local=False)


class Spool:
    """The local record of one run; one process writes it, any process may read and send it.

    Each call reaches the operating system before it returns, so that the death of the process loses nothing.
    The disk is forced at most once in `fsync_seconds` (and at the end): a power cut may lose that much. 0 forces
    every event.

    Args:
        path: The folder of the run, `<root>/spool/<id>`.
        fsync_seconds: Longest time that an event may wait for the disk, in seconds.

    Raises:
        DataError: The folder holds no readable run.json, or one of a newer schema.
    """

    def __init__(self, path: Path, *, fsync_seconds: float = 1.0) -> None:
        """Open what `create` made; nothing is written yet."""
        self.path = path
        self.events_path = path / "events.jsonl"
        self.fsync_seconds = fsync_seconds
        self._live = writer_lock(path)
        self._threads = threading.Lock()
        self._next = -1
        self._forced = 0.0
        try:
            read = json.loads((path / "run.json").read_text(encoding="utf-8"))
            if read["schema"] > SCHEMA:
                raise DataError(f"path: {path} has schema {read['schema']}, newer than {SCHEMA}; update tsgdn2")
            self.header = Header(**read)
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"path: {path} is not the spool of a run ({error!r}); remove or mend it") from error

    @classmethod
    def create(cls, root: Path, header: Header, *, fsync_seconds: float = 1.0) -> Spool:
        """Make the folder of a new run under `root`/spool and take its writer's lock."""
        path = root / "spool" / header.spool_id
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"runs: {root} can not hold the spool ({error.strerror}); name another folder") from error
        live = writer_lock(path)
        live.acquire(timeout=0)  # before run.json is there, or a sync could take the run for a dead one
        path.mkdir()
        write_whole(path / "run.json", json.dumps(asdict(header)).encode())
        spool = cls(path, fsync_seconds=fsync_seconds)
        spool._live, spool._next = live, 0
        return spool

    def take(self) -> bool:
        """Become the writer; False when a living process is. Cuts off a torn last line."""
        try:
            self._live.acquire(timeout=0)
        except Timeout:
            return False
        number = end = 0
        try:
            for event in self.events():
                number, end = event.number + 1, event.end_byte
            if self.events_path.exists():
                os.truncate(self.events_path, end)
        except DataError:
            self.release()
            raise
        self._next = number
        return True

    def release(self) -> None:
        """Stop being the writer."""
        self._live.release()
        self._next = -1

    def append(self, payload: Payload, *, source: Path | None = None, time_ms: int | None = None) -> int:
        """Record one event, after copying `source` to files/<n>/; gives its number n.

        Raises:
            TrackingError: The run is closed, or another process writes it.
        """
        with self._threads:
            if self._next < 0:
                raise TrackingError(
                    f"run: {self.header.name} is closed, and takes no {KIND_NAMES[type(payload)]}; start a new one"
                )
            number = self._next
            if source is not None:
                self._copy(source, number)
            line = {"n": number, "t": now_ms() if time_ms is None else time_ms, "kind": KIND_NAMES[type(payload)]}
            self._write(json.dumps(line | {"body": asdict(payload)}).encode() + b"\n", force=isinstance(payload, End))
            self._next += 1
        if isinstance(payload, End):
            self.release()
        return number

    def _copy(self, source: Path, number: int) -> None:
        home = self.path / "files" / str(number)
        shutil.rmtree(home, ignore_errors=True)  # left by a crash between the copy and its line
        home.mkdir(parents=True)
        if source.is_dir():
            shutil.copytree(source, home / source.name)
        else:
            shutil.copy2(source, home / source.name)

    def _write(self, line: bytes, *, force: bool) -> None:
        with self.events_path.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError(f"the disk took only a part of an event of {self.path}; make room")
                if force or time.monotonic() - self._forced >= self.fsync_seconds:
                    os.fsync(file.fileno())
                    self._forced = time.monotonic()
            except OSError:
                os.truncate(self.events_path, start)  # the caller sees a failure, so nothing of it may stay
                raise

    def events(self, *, start_byte: int = 0) -> Iterator[Event]:
        """Whole events from `start_byte` on, in order; a torn last line is passed over.

        Raises:
            DataError: A line before the last is not an event: the file was altered.
        """
        if not self.events_path.exists():
            return
        with self.events_path.open("rb") as file:
            end = file.seek(start_byte)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                try:
                    read = json.loads(line)
                    payload = KINDS[read["kind"]](**read["body"])
                    yield Event(number=int(read["n"]), time_ms=int(read["t"]), payload=payload, end_byte=end)
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"path: {self.events_path} holds no event at the line that ends at byte {end} ({error!r}); "
                        "it was altered: mend or remove that line"
                    ) from error

    def file(self, event: Event) -> Path:
        """Where the file or folder of an Artifact or ModelFolder event lies."""
        assert isinstance(event.payload, Artifact | ModelFolder)
        return self.path / "files" / str(event.number) / event.payload.file

    def progress(self) -> Progress | None:
        """How far it has been sent; None before the first time, or when the note is unreadable."""
        try:
            return Progress(**json.loads((self.path / "state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def note(self, progress: Progress) -> None:
        """Remember how far it has been sent."""
        write_whole(self.path / "state.json", json.dumps(asdict(progress)).encode())

    def sender_lock(self) -> FileLock:
        """The lock that a sender holds."""
        return FileLock(self.path.with_name(f"{self.path.name}.lock"), thread_local=False)

    def remove(self) -> None:
        """Delete the folder; renamed first, so that no half of it is ever taken for a run."""
        grave = self.path.with_name(f".{self.path.name}.sent")
        self.path.rename(grave)
        shutil.rmtree(grave)
        self.path.with_name(f"{self.path.name}.live").unlink(missing_ok=True)


def files_below(path: Path) -> Iterator[tuple[Path, str]]:
    """Each file of a file or folder, with the folder that it goes to: "" for a file, "a/b" for a/b/c.txt in a."""
    if path.is_file():
        yield path, ""
        return
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        yield file, file.parent.relative_to(path.parent).as_posix()


def spool_paths(root: Path) -> list[Path]:
    """The folder of every spool under `root`, oldest first, so that a run comes before those nested in it."""
    home = root / "spool"
    found = [path for path in home.iterdir() if (path / "run.json").exists()] if home.is_dir() else []
    return sorted(path for path in found if not path.name.startswith("."))
