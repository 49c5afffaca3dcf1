"""The whole service as a process: it starts, is killed, starts again, stops when asked, speaks TLS, logs in JSON."""

from __future__ import annotations

import datetime
import io
import ipaddress
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.service.http.served import HOUR, NO_TLS, Served, served, until
from tests.service.peers import free_port

from tsgdn2.errors import ConfigError
from tsgdn2.service.traces import Tracing

ROOT = Path(__file__).resolve().parents[3]
KEY = re.compile(r"tsgdn2_[0-9a-f]{12}_[\w-]{43}")


class Process:
    """A service in a process of its own."""

    def __init__(self, folder: Path, port: int, key: str = "", **settings: str) -> None:
        given = {"STORE": str(folder / "store.db"), "PORT": str(port)} | settings
        environ = {f"TSGDN2_SERVE_{name}": value for name, value in given.items()}
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.service.http.serving"], cwd=ROOT, stderr=log, stdout=log,
                env=os.environ | environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        self.url, self.key = f"http://127.0.0.1:{port}", key

    def ready(self) -> bool:
        """Whether it answers that it is; AssertionError where it has ended instead."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/readyz", verify=NO_TLS).status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, method: str, path: str, **more) -> httpx.Response:
        key = self.key or KEY.findall(self.log.read_text())[-1]
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.request(method, self.url + path, headers=headers, verify=NO_TLS, timeout=20, **more)


@contextmanager
def process(folder: Path, **settings: str) -> Iterator[Process]:
    made = Process(folder, free_port(), **settings)
    try:
        until(made.ready, "the process is ready")
        yield made
    finally:
        made.process.kill()
        made.process.wait(20)


def rows(step: int) -> dict[str, object]:
    return {"rows": [{"stream": "s", "time": step * HOUR, "values": [step, None], "source": "a", "sequence": step}]}


def test_what_was_answered_is_there_after_kill_9_and_a_stop_ends_well(folder: Path) -> None:
    with process(folder) as first:
        until(lambda: KEY.search(first.log.read_text()))
        for step in range(5):
            assert first.ask("POST", "/v1/observe/batch", json=rows(step)).json()["status"] == ["new"]
        forecast = first.ask("GET", "/v1/streams/s/forecast").json()["quantiles"]
        key = KEY.findall(first.log.read_text())[0]
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(20)
    with process(folder) as second:
        assert len(KEY.findall(second.log.read_text())) == 1  # shown once, by the first one
        second.key = key
        assert second.ask("POST", "/v1/observe/batch", json=rows(4)).json()["status"] == ["seen"]
        assert second.ask("GET", "/v1/streams/s/forecast").json()["quantiles"] == forecast
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(20) in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in second.log.read_text().splitlines() if line.startswith("{")]
    events = [line["event"] for line in lines]
    assert events.count("memory.recovered") == 2
    assert not [line for line in lines if line["level"] in ("error", "critical")]
    assert key.split("_", 2)[2] not in json.dumps(lines)
    requests = [line for line in lines if line["event"] == "http.request" and line["route"] == "/v1/observe/batch"]
    assert all(line["request_id"] and line["key"] and line["rows"] == 1 for line in requests)


def test_a_port_or_a_store_that_can_not_be_had_ends_it_with_a_clear_error(folder: Path) -> None:
    with process(folder) as first:
        port = int(first.url.rsplit(":", 1)[1])
        for given, said in (
            (Process(folder, free_port()), "another process"),
            (Process(folder, port, STORE=str(folder / "other.db")), "can not listen"),
        ):
            assert given.process.wait(30) == 1
            assert said in given.log.read_text()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1)).add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


def test_with_a_certificate_it_speaks_tls_only(folder: Path, certificate: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    with served(folder, certificate=certificate[0], private_key=certificate[1]) as client:
        url = f"https://127.0.0.1:{client.base_url.port}/healthz"
        answer = httpx.get(url, verify=trusting)
        assert answer.status_code == 200
        assert "max-age" in answer.headers["strict-transport-security"]
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"), verify=NO_TLS)
        old = ssl.create_default_context(cafile=str(certificate[0]))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert httpx.get(url, verify=old).status_code == 200


def test_a_certificate_and_a_key_that_do_not_belong_together_are_refused(
    folder: Path, certificate: tuple[Path, Path]
) -> None:
    (folder / "bad.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="certificate"), served(folder, certificate=folder / "bad.pem"):
        pass


def test_answers_have_safe_headers_a_request_id_and_no_word_of_the_server(service: Served) -> None:
    for path in ("/healthz", "/nope", "/v1/streams/nobody"):
        answer = service.get(path, headers={"X-Request-ID": "abc-1", "Origin": str(service.base_url)})
        assert answer.headers["x-request-id"] == "abc-1"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "server" not in answer.headers
        assert not [name for name in answer.headers if name.startswith("access-control")]
    strange = service.get("/nope", headers={"X-Request-ID": "a b\tc"})
    assert re.fullmatch(r"[0-9a-f]{16}", strange.headers["x-request-id"])
    assert strange.json()["request_id"] == strange.headers["x-request-id"]


def test_without_keys_no_foreign_page_and_no_foreign_name_gets_in(service: Served) -> None:
    for headers in ({"Origin": "https://example.org"}, {"Origin": "null"}, {"Host": "example.org"}, {"Host": ""}):
        answer = service.get("/v1/streams", headers=headers)
        assert answer.status_code in (400, 403), headers
    for host in ("localhost", "127.0.0.1:99", "[::1]:5"):
        assert service.get("/v1/streams", headers={"Host": host}).status_code == 200


def test_logs_and_spans_have_numbers_of_rows_and_never_values_or_secrets(folder: Path, logged: io.StringIO) -> None:
    spans = InMemorySpanExporter()
    with served(folder, keys="required", app={"tracing": Tracing("", exporter=spans)}) as client:
        parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
        row = {"stream": "private-name", "time": HOUR, "values": [123.456, -9876.5]}
        client.post("/v1/observe/batch", json={"rows": [row, {**row, "time": 5e99}]}, headers={"traceparent": parent})
        client.get("/v1/streams/private-name/forecast")
        secret = client.headers["Authorization"].split("_", 2)[2]
    text = logged.getvalue() + "".join(span.to_json() for span in spans.get_finished_spans())
    for hidden in ("123.456", "9876.5", secret, "private-name"):
        assert hidden not in text
    (batch,) = [span for span in spans.get_finished_spans() if span.name == "POST /v1/observe/batch"]
    assert batch.attributes is not None
    assert (batch.attributes["tsgdn2.rows"], batch.attributes["tsgdn2.streams"]) == (2, 1)
    assert batch.context is not None
    assert f"{batch.context.trace_id:032x}" == parent.split("-")[1]
    for line in logged.getvalue().splitlines():
        assert {"event", "level", "timestamp"} <= set(json.loads(line))
