"""What other systems send, over their own protocols: rows of the key's tenant, partial refusals in each one's words."""

from __future__ import annotations

import json
import random
from pathlib import Path

import cramjam
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from tests.service.http.served import HOUR, Served, served

from tsgdn2.service.connectors.prometheus import WriteRequest
from tsgdn2.service.errors import StoreError
from tsgdn2.service.sqlite_store import SqliteStore

NOW = 1_700_000_000
REMOTE = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy",
          "X-Prometheus-Remote-Write-Version": "0.1.0"}  # fmt: skip
PROTOBUF = {"Content-Type": "application/x-protobuf"}
TEXT = {"Content-Type": "text/plain"}


def write_request(name: str = "x", values: tuple[float, ...] = (1.0, 2.0)) -> bytes:
    request = WriteRequest()
    series = request.timeseries.add()
    for label, text in (("__name__", name), ("instance", "i:9100")):
        series.labels.add(name=label, value=text)
    for step, value in enumerate(values):
        series.samples.add(value=value, timestamp=(NOW + 3600 * step) * 1_000)
    return bytes(cramjam.snappy.compress_raw(request.SerializeToString()))


def metrics_request() -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics
    for name in ("x", "unknown"):
        point = metric.add(name=name).gauge.data_points.add(time_unix_nano=NOW * 10**9, as_double=1.5)
        point.attributes.add(key="room", value={"string_value": "one"})
    return request


def observations(client: Served, stream: str) -> int:
    found = client.get(f"/v1/streams/{stream}/state")
    assert found.status_code == 200, found.text
    return int(found.json()["counters"]["observations"])


def test_remote_write_makes_rows_of_the_keys_tenant(keyed: Served) -> None:
    acme = keyed.keyed("write", "acme")
    assert acme.post("/api/v1/write", content=write_request(), headers=REMOTE).status_code == 204
    assert acme.post("/api/v1/write", content=write_request("y", (3.0,)), headers=REMOTE).status_code == 204
    assert observations(acme, "instance=i:9100") == 3
    assert keyed.get("/v1/streams/instance=i:9100").status_code == 404
    for changed, status in (
        ({"Content-Type": "text/plain"}, 415),
        ({"X-Prometheus-Remote-Write-Version": "2.0.0"}, 415),
    ):
        assert acme.post("/api/v1/write", content=write_request(), headers=REMOTE | changed).status_code == status
    assert acme.post("/api/v1/write", content=b"\xff\xff\xff\xff\x0f", headers=REMOTE).status_code == 413
    assert acme.post("/api/v1/write", content=b"x", headers=REMOTE).status_code == 400


def test_otlp_answers_in_the_format_of_the_request_and_tells_of_what_it_refused(service: Served) -> None:
    request = metrics_request()
    answer = service.post("/v1/metrics", content=request.SerializeToString(), headers=PROTOBUF)
    assert answer.status_code == 200
    response = ExportMetricsServiceResponse.FromString(answer.content)
    assert response.partial_success.rejected_data_points == 1
    point = {"timeUnixNano": str((NOW + 3600) * 10**9), "asDouble": 2.0}
    given = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "x", "gauge": {"dataPoints": [point]}}]}]}]}
    answer = service.post("/v1/metrics", json=given)
    assert answer.json() == {}
    assert observations(service, "otlp") == 1
    assert observations(service, "room=one") == 1


def test_line_protocol_is_204_or_400_after_a_partial_write(service: Served) -> None:
    url = "/api/v2/write?bucket=b&org=o&precision=s"
    assert service.post(url, content=f"m,host=h x=1,y=2 {NOW}", headers=TEXT).status_code == 204
    partial = service.post(url, content=f"nonsense\nm,host=h x=2 {NOW + 3600}", headers=TEXT)
    assert partial.status_code == 400
    assert partial.json()["error"] == "partial_write"
    assert observations(service, "m,host=h") == 2
    assert service.post(url, content=f"m,host=h other=2 {NOW}", headers=TEXT).status_code == 204
    assert service.post("/api/v2/write?precision=y", content="", headers=TEXT).status_code == 400
    assert service.post(url, content=b"\xff", headers=TEXT).status_code == 400


def test_a_deleted_stream_makes_room_for_another_under_the_mappings_limit(service: Served) -> None:
    service.post("/api/v2/write?precision=s", content=f"gone x=1 {NOW}", headers=TEXT)
    known = service.desk._routers[""]._streams
    assert "gone,influx" in known
    assert service.delete("/v1/streams/gone,influx").status_code == 200
    assert "gone,influx" not in known


def test_a_row_that_the_memory_refuses_is_told_as_well(service: Served) -> None:
    answer = service.post("/api/v2/write", content="us\x1fname x=1 5000000000000000000", headers=TEXT)
    assert answer.status_code == 400
    answer = service.post("/api/v2/write", content=f"us\x1fname x=1 {NOW * 10**9}", headers=TEXT)
    assert answer.status_code == 400
    assert "U+001F" in answer.json()["detail"]


class Full(SqliteStore):
    """A store that fails from its second append on."""

    appended = 0

    def append(self, *given, **more):
        self.appended += 1
        if self.appended == 2:
            raise StoreError("store: the disk is full; make room")
        return super().append(*given, **more)


def test_a_body_that_breaks_off_says_how_much_is_kept_and_can_be_sent_again(folder: Path) -> None:
    body = "".join(f"m x={step} {NOW + 3600 * step}\n" for step in range(6))
    with served(folder, store=Full(folder / "store.db"), rows=2) as client:
        broken = client.post("/api/v2/write?precision=s", content=body, headers=TEXT)
        assert broken.status_code == 503
        assert "the first 2 of 6 rows are on the disk" in broken.json()["detail"]
        assert client.post("/api/v2/write?precision=s", content=body, headers=TEXT).status_code == 204
        counters = client.get("/v1/streams/m,influx/state").json()["counters"]
        assert counters["observations"] - counters["duplicates"] == 6 or counters["observations"] == 6


def test_a_body_beyond_the_tenants_rate_is_refused_before_its_first_part(folder: Path) -> None:
    body = "".join(f"m x={step} {NOW + 3600 * step}\n" for step in range(6))
    with served(folder, keys="required", rows=2, tenant_rows_per_s=2) as client:
        acme = client.keyed("write", "acme")
        assert acme.post("/api/v2/write?precision=s", content=body, headers=TEXT).status_code == 204
        assert acme.post("/api/v2/write?precision=s", content=body, headers=TEXT).status_code == 429
        assert observations(acme, "m,influx") == 6


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_are_never_a_fault_and_leave_the_service_sound(service: Served, seed: int) -> None:
    dice = random.Random(seed)
    snappy = write_request()
    plain = bytes(cramjam.snappy.decompress_raw(snappy))
    line = f'm,a=b x=1,y="t\\"" {NOW * 10**9}\nn x=2i\n'.encode() * 3
    otlp = metrics_request().SerializeToString()
    as_json = json.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "x"}]}]}]}).encode()
    rows = json.dumps({"rows": [{"stream": "f", "time": HOUR, "values": [1, None]}] * 3}).encode()
    blob = service.post("/v1/observe", json={"stream": "blob", "time": HOUR, "values": [1, 2]}) and service.get(
        "/v1/streams/blob/export"
    ).content  # fmt: skip
    kinds = (
        ("POST", "/api/v1/write", snappy, REMOTE, None),
        ("POST", "/api/v1/write", plain, REMOTE, cramjam.snappy.compress_raw),
        ("POST", "/api/v2/write", line, TEXT, None), ("POST", "/v1/metrics", otlp, PROTOBUF, None),
        ("POST", "/v1/metrics", as_json, {"Content-Type": "application/json"}, None),
        ("POST", "/v1/observe/batch", rows, {"Content-Type": "application/json"}, None),
        ("POST", "/v1/observe", rows[10:-60], {"Content-Type": "application/json"}, None),
        ("POST", "/v1/forecast", b'{"streams": ["f"], "horizon": 2}', {"Content-Type": "application/json"}, None),
        ("PUT", "/v1/streams/fuzzed/import", blob, {"Content-Type": "application/octet-stream"}, None),
    )  # fmt: skip
    for method, path, given, headers, pack in kinds:
        for _ in range(25):
            body = bytearray(given)
            for _ in range(dice.randrange(1, 8)):
                body[dice.randrange(len(body))] = dice.randrange(256)
            if dice.random() < 0.2:
                del body[dice.randrange(len(body)) :]
            content = bytes(pack(bytes(body))) if pack else bytes(body)
            answer = service.request(method, path, content=content, headers=headers)
            assert answer.status_code < 500, (path, bytes(body), answer.text)
    status = service.observe("after", [seed]).json()["status"]
    assert status == ["new"]
    assert service.get("/readyz").status_code == 200
    assert service.desk.memory.aside == {}
