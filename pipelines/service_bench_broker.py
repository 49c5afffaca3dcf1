"""A real mosquitto for the service's benchmark: on a free port of the loopback, its data in a folder, without limits.

What it keeps for a subscriber is on the disk every second, as its own persistence does it; it does not sync each
message, so it promises less than the service does.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tsgdn2.errors import ConfigError

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin"])


_DIE_WITH_PARENT = 1


def mosquitto() -> str:
    """Path of the broker. ConfigError where there is none."""
    found = shutil.which("mosquitto", path=_PATH)
    if found is None:
        raise ConfigError(
            "service.only: mqtt needs the broker mosquitto, which is not installed; `apt-get install mosquitto` or the "
            "like, or leave mqtt out"
        )
    return found


def mosquitto_version() -> str:
    """Its version, in its own words."""
    said = subprocess.run([mosquitto(), "-h"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.search(r"version (\S+)", said)
    return found[1] if found else "unknown"


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """In the child: be killed when the parent dies, however it does."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


class Broker:
    """One mosquitto; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Start it, and wait until it takes connections. ConfigError: it does not."""
        path, data, self.port = mosquitto(), folder / "broker", free_port()
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        (data / "conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {data}/\nautosave_interval 1\nmax_queued_messages 0\n"
            f"max_inflight_messages 0\nset_tcp_nodelay true\n{'user root' if os.geteuid() == 0 else ''}\n",
            encoding="utf-8",
        )
        with (data / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [path, "-c", str(data / "conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        self.measured = psutil.Process(self._process.pid)
        deadline = time.monotonic() + 30
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                said = (data / "log").read_text(errors="replace")[-1_000:]
                raise ConfigError(f"service.only: mosquitto does not start: {said}")
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def _ready(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
