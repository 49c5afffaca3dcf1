"""The real peers of the connectors: mosquitto, nats-server and prometheus, on loopback, on free ports, in temporary
folders, stopped for sure.

Each comes from Debian's package of its name, which apt-get installs where it is missing (that needs root and Debian).
A broker is a context manager; `stop` and `start` in between keep its port and its data, as a restart of the real one
would. The kernel ends them when the thread that started them dies, so start them from one that stays.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.service.peers import installed

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/usr/local/bin"])
_DIE_WITH_PARENT = 1


def binary(name: str) -> str:
    """Path of a program, from the Debian package of the same name if it is not there; AssertionError says why not."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        installed(name, f"/usr/*bin/{name}")
        found = shutil.which(name, path=_PATH)
    assert found is not None
    return found


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


class Broker:
    """A server in a folder of its own."""

    program = ""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def folder(self) -> Path:
        """Where its data are."""
        assert self._folder is not None
        return Path(self._folder.name)

    def command(self) -> list[str]:
        """Arguments of the program; its files may be written here."""
        raise NotImplementedError

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        path = binary(self.program)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [path, *self.command()], cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                preexec_fn=_end_with_parent,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while not self.ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text(errors="replace")[-2_000:]
                self.stop()
                raise RuntimeError(f"{self.program} does not start: {said}")
            time.sleep(0.02)

    def ready(self) -> bool:
        """Whether it takes connections."""
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, *, kill: bool = False) -> None:
        """End it, politely unless `kill`."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix=f"{self.program}-")
        try:
            self.start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop(kill=True)
        finally:
            assert self._folder is not None
            self._folder.cleanup()


class Mosquitto(Broker):
    """An MQTT broker that keeps its sessions on disk, without limits of its own."""

    program = "mosquitto"

    def command(self) -> list[str]:
        """See Broker."""
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        data.chmod(0o777)
        (self.folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {data}/\nautosave_interval 1\nuser root\n"
            "max_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true\n"
        )
        return ["-c", str(self.folder / "mosquitto.conf")]


class NatsServer(Broker):
    """A NATS server with JetStream."""

    program = "nats-server"

    @property
    def url(self) -> str:
        """Address for a client."""
        return f"nats://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """See Broker."""
        return ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder / "data")]


class PrometheusServer(Broker):
    """A Prometheus that scrapes itself every 200 ms and writes all of it to `remote_write`."""

    program = "prometheus"

    def __init__(self, remote_write: str | None = None) -> None:
        super().__init__()
        self._remote = remote_write

    @property
    def url(self) -> str:
        """Address of its page."""
        return f"http://127.0.0.1:{self.port}/metrics"

    def command(self) -> list[str]:
        """See Broker."""
        lines = [
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms}",
            "scrape_configs:",
            f"  - {{job_name: itself, static_configs: [{{targets: ['127.0.0.1:{self.port}']}}]}}",
        ]
        if self._remote is not None:
            lines += [
                "remote_write:",
                f"  - url: {self._remote}",
                "    queue_config: {batch_send_deadline: 100ms, min_backoff: 30ms, max_backoff: 100ms}",
            ]
        (self.folder / "prometheus.yml").write_text("\n".join(lines) + "\n")
        return [
            f"--config.file={self.folder / 'prometheus.yml'}", f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip
