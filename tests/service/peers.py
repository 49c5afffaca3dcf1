"""Real servers for the tests: installed from Debian's packages where they are missing, started on a free port.

A server that can not be installed or started is a failed test with the reason, never a skipped one. Each test process
has its own, in a folder of its own, and takes it down when it ends.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import tempfile
from functools import cache
from glob import glob
from pathlib import Path
from uuid import uuid4

import psycopg
from filelock import FileLock, Timeout

INITDB = "/usr/lib/postgresql/*/bin/initdb"
"""Debian has each major version in a folder of its own; the newest one that is whole is taken."""
INSTALLING_S = 300


def installed(package: str, pattern: str) -> None:
    """Install a Debian package unless a file of this pattern is there; AssertionError says why it failed."""
    if glob(pattern):
        return
    assert shutil.which("apt-get"), f"{package} is needed here and there is no apt-get; install it by hand"
    assert os.geteuid() == 0, f"{package} is needed here and only root can install it: apt-get install {package}"
    said = ""
    try:
        with FileLock(Path(tempfile.gettempdir()) / "tsgdn2-apt.lock", timeout=INSTALLING_S):
            for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
                if not glob(pattern):  # another process may have installed it meanwhile
                    said += _apt(command)
    except Timeout:
        said = f"another process has been installing for {INSTALLING_S} seconds"
    assert glob(pattern), f"{package} could not be installed, and is needed here:\n{said[-2000:]}"


def _apt(command: list[str]) -> str:
    """What apt-get says; it waits for a lock of dpkg's for two minutes, asks nothing, and starts no service."""
    try:
        done = subprocess.run(
            ["apt-get", "-o", "DPkg::Lock::Timeout=120", *command], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False, timeout=INSTALLING_S,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"apt-get {command[0]} did not end within {INSTALLING_S} seconds\n"
    return done.stdout + done.stderr


def _major(binaries: Path) -> int:
    return int(binaries.parent.name) if binaries.parent.name.isdecimal() else 0


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A PostgreSQL server; `empty` gives each test a place of its own in it."""

    def __init__(self) -> None:
        """Make a cluster and start it."""
        # Debian's package begins a cluster of its own, which is neither used nor needed here.
        installed("postgresql", INITDB)
        self.binaries = max((Path(found).parent for found in glob(INITDB)), key=_major)
        self.home = Path(tempfile.mkdtemp(prefix="tsgdn2-postgres-"))
        self.user = "postgres" if os.geteuid() == 0 else None  # it refuses to be root
        if self.user:
            shutil.chown(self.home, self.user, self.user)
        atexit.register(self.remove)
        self._run("initdb", "--auth=trust", "--username=tester", "--encoding=UTF8", "--locale=C", "--no-instructions")
        self.port = free_port()
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = (
            f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=50 "
            "-c shared_buffers=32MB -c autovacuum=off"
        )
        self._run("pg_ctl", "-w", "-t", "60", "-l", str(self.home / "log"), "-o", settings, "start")

    def stop(self, how: str = "immediate") -> None:
        """Stop the server; "immediate" is a crash."""
        self._run("pg_ctl", "-w", "-m", how, "stop")

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        subprocess.run(
            [self.binaries / "pg_ctl", "-D", self.home / "data", "-m", "immediate", "stop"],
            capture_output=True, check=False, cwd="/", user=self.user, group=self.user,
        )  # fmt: skip
        shutil.rmtree(self.home, ignore_errors=True)

    def empty(self) -> str:
        """How to connect to a new, empty schema: much quicker made than a database, and as good."""
        server = f"host=127.0.0.1 port={self.port} user=tester dbname=postgres"
        name = f"t{uuid4().hex[:12]}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"{server} options='-c search_path={name}'"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.binaries / program, "-D", self.home / "data", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, timeout=120,
            cwd="/", text=True, user=self.user, group=self.user,
        )  # fmt: skip
        log = self.home / "log"
        assert not done.returncode, f"{program}: {done.stderr}\n{log.read_text()[-2000:] if log.exists() else ''}"


@cache
def postgres() -> Postgres:
    """The server of this test process."""
    return Postgres()
