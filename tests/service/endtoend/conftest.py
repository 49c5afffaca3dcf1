"""One nursery for all tests of a process, and a folder for each."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.service.endtoend.lives import Service, nursery, service

Serving = Callable[..., Service]


@pytest.fixture(scope="session")
def nurse() -> Iterator[subprocess.Popen[str]]:
    """A process that services are forked from; one of them lives at a time."""
    with nursery() as made:
        yield made


@pytest.fixture
def serving(tmp_path: Path, nurse: subprocess.Popen[str]) -> Iterator[Serving]:
    """Makes the service of a test, with settings; it is dead when the test ends."""
    with ExitStack() as stack:

        def make(folder: Path = tmp_path, *, forked: bool = True, **settings: str) -> Service:
            return stack.enter_context(service(folder, nurse if forked else None, **settings))

        yield make
