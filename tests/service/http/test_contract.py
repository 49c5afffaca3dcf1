"""What OpenAPI promises is kept, whatever is sent: no fault, no undocumented status, type or body.

TSGDN2_CONTRACT_EXAMPLES=10000 makes it long; the examples are shared out among the operations. /v1/events never ends,
so it is tested by itself (test_events.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.service.http.served import Served, served

EXAMPLES = int(os.environ.get("TSGDN2_CONTRACT_EXAMPLES", "300"))
OPERATIONS = 24
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
asked = [0]


@pytest.fixture(scope="module")
def contracted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("contract")) as client:
        for stream in ("0", "a", "boiler/1"):
            client.observe(stream, range(6))
        yield client
        assert client.get("/readyz").status_code == 200
        assert client.desk.memory.aside == {}
        assert client.observe("afterwards", [1]).json()["status"] == ["new"]
        assert client.desk.room.held == 0
        print(f"{asked[0]} examples")


@pytest.fixture(scope="module")
def contract(contracted: Served) -> Any:
    return schemathesis.openapi.from_url(f"{contracted.base_url}/openapi.json").exclude(path="/v1/events")


schema = schemathesis.pytest.from_fixture("contract")


@schema.parametrize()
@settings(
    max_examples=max(1, EXAMPLES // OPERATIONS), deadline=None, suppress_health_check=list(HealthCheck), database=None
)
def test_no_request_makes_a_fault_or_an_answer_that_is_not_described(case: schemathesis.Case) -> None:
    asked[0] += 1
    case.call_and_validate(checks=CHECKS)
