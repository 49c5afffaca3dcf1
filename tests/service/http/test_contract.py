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
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.service.http.served import Served, served

from tsgdn2.service.app import ROUTERS
from tsgdn2.service.arrow import FILE_TYPE, STREAM_TYPE
from tsgdn2.service.connectors.otlp import PROTOBUF

EXAMPLES = int(os.environ.get("TSGDN2_CONTRACT_EXAMPLES", "300"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
asked = [0]


@schemathesis.serializer(STREAM_TYPE, FILE_TYPE, PROTOBUF)
def as_bytes(_: Any, value: Any) -> bytes:
    """Whatever the examples hold, as bytes; bodies that are nearly right are in test_arrow.py and test_ingest.py."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def operations() -> Iterator[tuple[str, str]]:
    """Method and path of every operation."""
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute) and route.path != "/v1/events":
                for method in sorted(route.methods):
                    yield method, route.path


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


@pytest.mark.parametrize(("method", "path"), list(operations()))
def test_no_request_makes_a_fault_or_an_answer_that_is_not_described(contract: Any, method: str, path: str) -> None:
    share = max(1, EXAMPLES // len(list(operations())))

    @settings(
        max_examples=share, deadline=None, suppress_health_check=list(HealthCheck),
        database=None, derandomize=EXAMPLES <= 1_000,
    )  # fmt: skip
    @given(contract[path][method].as_strategy())
    def kept(case: schemathesis.Case) -> None:
        asked[0] += 1
        case.call_and_validate(checks=CHECKS)

    kept()
