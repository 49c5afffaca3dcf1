"""The lives of one service: started, forked or as a new process, looked at, killed, stopped and started again."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import httpx
from tests.service.brokers import free_port
from tests.service.endtoend.flow import MAPPING
from tests.service.endtoend.phases import Board

ROOT: Final = Path(__file__).resolve().parents[3]
DEADLINE: Final = 60.0
"""Seconds that anything may take before a test gives it up; nothing is said of how long it takes."""
_LOOK: Final = 0.005


def until(condition: Callable[[], object], what: str, look: float = _LOOK) -> None:
    """Look often for something that has to become true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE:g} s"
        time.sleep(look)


def module(name: str, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    """A module of this folder as a process that is spoken with in lines."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.service.endtoend.{name}", *arguments], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=more.pop("stdout", subprocess.PIPE), **more,
    )  # fmt: skip


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a process says; AssertionError where it has ended, or says nothing for too long."""
    assert process.stdout is not None
    # A process is only listened to line by line, so nothing that it has said waits in a buffer of ours.
    assert select.select([process.stdout], [], [], DEADLINE)[0], f"it has said nothing for {DEADLINE:g} s"
    line = process.stdout.readline()
    assert line, f"it has ended with {process.poll()}"
    return line.strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Say a line to a process."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> None:
    """End a process for sure."""
    process.kill()
    process.communicate()


class Service:
    """One store and its lives, one after another; everything is in a folder."""

    def __init__(self, folder: Path, nursery: subprocess.Popen[str] | None = None, **settings: str) -> None:
        """settings: of the environment, END_*, or the service's own without their prefix."""
        self.folder, self.nursery = folder, nursery
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mapping.yaml").write_text(MAPPING)
        self.log, self.board = folder / "log", Board(folder / "board")
        given = {"STORE": str(folder / "store.db"), "KEYS": "off", "MAPPING": str(folder / "mapping.yaml")} | settings
        self.given = {
            name if name.startswith(("END_", "LD_", "FAKETIME", "NO_")) else f"TSGDN2_SERVE_{name}": value
            for name, value in given.items()
        } | {"END_LOG": str(self.log), "END_BOARD": str(folder / "board")}
        self.store = Path(given["STORE"])
        self.began = 0
        """Bytes of the log before this life."""
        self._process: subprocess.Popen[str] | None = None
        self._pid = 0
        self._client: httpx.Client | None = None

    def start(self, *, fresh: bool = False, aim: str = "", times: int = 1) -> Self:
        """Begin a life; as a new process where there is no nursery, or if asked for. aim, times: see Board.clear."""
        environment = self.given | {"TSGDN2_SERVE_PORT": str(free_port())}
        self.log.touch()
        self.began = self.log.stat().st_size
        self.board.clear(aim, times)
        if fresh or self.nursery is None:
            with self.log.open("ab") as log:
                self._process = module("serving", env=environment, stdout=log, stderr=log)
            self._pid = self._process.pid
        else:
            tell(self.nursery, json.dumps(environment))
            self._pid = int(line_of(self.nursery).removeprefix("pid "))
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{environment['TSGDN2_SERVE_PORT']}", timeout=DEADLINE, trust_env=False
        )
        return self

    @property
    def client(self) -> httpx.Client:
        """A client of this life."""
        assert self._client is not None
        return self._client

    def ready(self) -> Self:
        """Wait until it takes rows."""

        def answers() -> bool:
            assert self.alive, f"it has ended with {self.ended()}:\n{self.said[-3000:]}"
            try:
                return self.client.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        until(answers, "the service is ready", look=0.02)
        return self

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        if self._process is not None:
            return self._process.poll() is None
        try:
            return Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def kill(self) -> None:
        """End this life at once."""
        self.signal(signal.SIGKILL)
        assert self.ended() == -signal.SIGKILL

    def stop(self) -> None:
        """End this life in order."""
        self.signal(signal.SIGTERM)
        assert self.ended() in (0, -signal.SIGTERM), self.said[-3000:]

    def signal(self, number: int) -> None:
        """Send a signal to this life."""
        os.kill(self._pid, number)

    def limit(self, size: int) -> None:
        """Let no file of this life grow beyond so many bytes; -1 takes the limit away."""
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def ended(self) -> int:
        """Wait for the end of this life; its exit status."""
        if self._process is not None:
            status = self._process.wait(DEADLINE)
            end(self._process)
            self._process = None
        else:
            assert self.nursery is not None
            status = int(line_of(self.nursery).removeprefix("dead "))
        self.client.close()
        return status

    @property
    def said(self) -> str:
        """What this life has said so far."""
        return self.log.read_bytes()[self.began :].decode()

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What it has logged in this life, all or what is called so."""
        lines = (line for line in self.said.splitlines() if line.startswith("{") and line.endswith("}"))
        found: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [line for line in found if not names or line["event"] in names]

    def ledger(self, *kinds: str) -> list[dict[str, Any]]:
        """Rows of the ledger, all or of these kinds."""
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = self.client.get("/v1/ledger", params={"after": after, "limit": 1_000}).json()
            found += page["entries"]
            after = page["next"]
        return [row for row in found if not kinds or row["kind"] in kinds]

    def blobs(self, streams: Iterable[str]) -> dict[str, bytes]:
        """The whole state of some streams."""
        made = {}
        for stream in streams:
            answer = self.client.get(f"/v1/streams/{stream}/export")
            assert answer.status_code == 200, answer.text
            made[stream] = answer.content
        return made


@contextmanager
def nursery(environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that services are forked from."""
    made = module("serving", "nurse", env=dict(environment or {}))
    try:
        assert line_of(made) == "here"
        yield made
    finally:
        end(made)


@contextmanager
def service(folder: Path, nursery: subprocess.Popen[str] | None = None, **settings: str) -> Iterator[Service]:
    """A service that is dead in the end, whatever happens."""
    made = Service(folder, nursery, **settings)
    try:
        yield made
    finally:
        if made._client is not None and not made.client.is_closed:
            if made.alive:
                made.signal(signal.SIGKILL)
            made.ended()
