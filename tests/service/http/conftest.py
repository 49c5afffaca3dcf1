"""One service for all tests of a file that leave it as it was; one that needs another makes its own."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from tests.service.http.served import Served, served

from tsgdn2.service.logs import set_up_logs


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Without keys."""
    with served(tmp_path_factory.mktemp("service")) as client:
        yield client


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With keys; the client is the administrator of no tenant."""
    with served(tmp_path_factory.mktemp("keyed"), keys="required") as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place for a store."""
    return tmp_path


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that is logged, as JSON."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    set_up_logs("json", "debug", stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = before
    root.setLevel(level)
