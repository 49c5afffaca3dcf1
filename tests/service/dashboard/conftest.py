"""One browser for the tests of a file, and a service with an audit that forgets quickly and alarms at anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser
from tests.service.dashboard.browser import chromium
from tests.service.http.served import Served, served
from tests.service.predictors import predictor

from tsgdn2.audit import AuditConfig


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with two streams."""
    online = predictor(audit=AuditConfig(threshold=0.9))
    with served(
        tmp_path_factory.mktemp("dashboard"), online=online, alert_bits=2.0, forecast_every_s=0.05
    ) as client:  # fmt: skip
        for stream in ("boiler/1", "boiler/2"):
            client.observe(stream, range(60))
        yield client
