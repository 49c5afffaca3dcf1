"""`tsgdn2 serve` as a process: saved models, this machine, registered versions, kill -9, and what it refuses."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.pipelines.tiny import HOUR, predictor, written
from tests.service.peers import free_port

from tsgdn2.audit import AuditConfig
from tsgdn2.errors import ConfigError
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.host_model import host_model
from tsgdn2.pipelines.live import _bring_in
from tsgdn2.pipelines.servable import open_servable
from tsgdn2.pipelines.serve import check_packages
from tsgdn2.pipelines.service_jobs import gathered
from tsgdn2.pipelines.tracking import default_tracking_uri
from tsgdn2.service.connectors.host import CHANNELS
from tsgdn2.service.errors import ServiceError, StoreError
from tsgdn2.service.memory import Memory
from tsgdn2.service.pool import model_of
from tsgdn2.service.server import serve
from tsgdn2.service.settings import read_settings
from tsgdn2.service.sqlite_store import SqliteStore
from tsgdn2.service.store import Store

pytestmark = pytest.mark.usefixtures("at_home")
BEGIN = 472_000 * HOUR
PROGRAM = "from tsgdn2.pipelines.cli import main; import sys; sys.exit(main())"


@pytest.fixture
def folder(at_home: None) -> Path:
    """A predictor's folder."""
    return written(Path("predictor"))


def values_at(step: int) -> list[float]:
    return [float(np.sin(step)), float(np.cos(3 * step))]


class Service:
    """`tsgdn2 serve` in a process of its own, in the folder of the test."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.log = Path("log")
        command = [sys.executable, "-c", PROGRAM, "serve", "--port", str(self.port), "--keys", "off", *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def ask(self, method: str, path: str, **more: Any) -> Any:
        answer = httpx.request(method, f"http://localhost:{self.port}{path}", timeout=20, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"http://localhost:{self.port}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def observe(self, stream: str, steps: range) -> list[str]:
        rows = [{"stream": stream, "time": BEGIN + step * HOUR, "values": values_at(step), "source": "t",
                 "sequence": step} for step in steps]  # fmt: skip
        status: list[str] = self.ask("POST", "/v1/observe/batch", json={"rows": rows})["status"]
        return status

    def forecast(self, stream: str) -> Any:
        return self.ask("GET", f"/v1/streams/{stream}/forecast")["quantiles"]

    def streams(self) -> list[str]:
        return [entry["stream"] for entry in self.ask("GET", "/v1/streams")["streams"]]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of the log of one event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(30)


def until(condition: Callable[[], object], seconds: float = 180.0) -> None:
    """Look often for something that has to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@contextmanager
def service(*arguments: str) -> Iterator[Service]:
    made = Service(*arguments)
    try:
        until(made.ready)
        yield made
    finally:
        made.process.kill()
        made.process.wait(30)


def test_what_was_acknowledged_is_there_after_kill_9_and_the_ledger_is_in_mlflow(
    folder: Path, empty_store: Path
) -> None:
    Path("runs").mkdir()
    shutil.copy(empty_store, "runs/mlflow.db")
    twin = OnlinePredictor.from_predictor(predictor(), late="tag")
    for step in range(50):
        twin.observe("s", BEGIN + step * HOUR, values_at(step))
    with service("--model", "predictor", "--ledger", "off") as first:
        assert first.observe("s", range(50)) == ["new"] * 50
        assert first.forecast("s") == twin.forecast("s").quantiles.tolist()
        assert "/pandas/" not in Path(f"/proc/{first.process.pid}/maps").read_text(), "only what serves is loaded"
        first.end(signal.SIGKILL)
    with service("--model", "predictor", "--ledger_every", "0.3") as second:
        assert second.forecast("s") == twin.forecast("s").quantiles.tolist()
        assert second.observe("s", range(48, 52)) == ["seen", "seen", "new", "new"]
        until(lambda: second.events("ledger.sent"))
        assert second.end(signal.SIGTERM) in (0, -signal.SIGTERM)
        assert not [line for name in ("memory.failed", "ledger.turn_failed") for line in second.events(name)]
    from mlflow import MlflowClient

    uri = default_tracking_uri(Path("runs"))
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("service").experiment_id])
    assert run.data.metrics["ledger/recovered"] == 1
    assert run.data.tags["tsgdn2.model"] == "predictor"
    other = open_servable(folder, channels=("a", "b", "c")).fresh()
    with pytest.raises(StoreError, match=r"give this one a new store \(--store\); the old one stays as it is"):
        SqliteStore(Path("tsgdn2-service.db")).open(model_of(other))


def test_the_streams_of_a_saved_state_go_on_and_come_once(at_home: None) -> None:
    held = OnlinePredictor.from_predictor(predictor(), audit=AuditConfig())
    for step in range(30):
        for stream in ("s", "gone"):
            held.observe(stream, BEGIN + step * HOUR, values_at(step))
    held.save("online.safetensors")
    with service("--model", "online.safetensors", "--ledger", "off") as first:
        assert first.streams() == ["gone", "s"]
        assert first.forecast("s") == held.forecast("s").quantiles.tolist()
        assert first.observe("s", range(30, 34)) == ["new"] * 4
        assert first.ask("GET", "/v1/audit/s")["readings"]["x"]["writes"] == 8
        answer = httpx.delete(f"http://localhost:{first.port}/v1/streams/gone", timeout=20)
        assert answer.status_code in (200, 204)
        first.end(signal.SIGKILL)
    for step in range(30, 34):
        held.observe("s", BEGIN + step * HOUR, values_at(step))
    state, settings = open_servable(Path("online.safetensors")), read_settings(environ={})
    _bring_in(state, settings)
    memory = Memory(state.fresh(), SqliteStore(Path(settings.store)))
    memory.start()
    try:
        assert memory.names().result() == ["s"], "what was deleted does not come again"
        found = memory.ask(["s"], lambda online: online.forecast("s")).result()
        np.testing.assert_array_equal(found.quantiles, held.forecast("s").quantiles)
    finally:
        memory.stop()


def test_the_machine_is_watched_with_no_other_set_up(at_home: None) -> None:
    arguments = ("--source", "host:1s", "--training_seconds", "0.5", "--ledger", "off")
    host = socket.gethostname()
    with service(*arguments) as first:
        until(lambda: host in first.streams())
        (note,) = first.events("serve.host_model")
        assert "New York" in first.log.read_text()
        assert "trained on weather" in note["what"]
        found = first.ask("GET", f"/v1/streams/{host}/forecast")
        assert found["channels"] == list(CHANNELS)
        assert np.array(found["quantiles"]).shape == (36, 8, 9)
    kept = Path("runs/host-model/predictor/weights.safetensors")
    made = kept.stat().st_mtime_ns
    again = host_model(Path("runs"), step_s=10.0, seconds=0.5)
    assert again.trained.config.period_ns == 10 * 10**9
    assert kept.stat().st_mtime_ns == made, "it is made once"


def test_what_can_not_begin_beside_a_service_ends_it_and_its_store_is_closed(folder: Path) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def beside(store: Store) -> AbstractContextManager[object]:
        raise RuntimeError(f"no room beside {store.meta().schema}")

    try:
        with pytest.raises(ServiceError, match=r"it has failed \(no room beside 1\)"):
            serve(read_settings(environ={}, port=0, store="s.db"), open_servable(folder).fresh, beside=beside)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        gc.unfreeze()
    store = SqliteStore(Path("s.db"))
    store.open(model_of(open_servable(folder).fresh()))
    store.close()


def test_a_package_that_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages("serve")
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    with pytest.raises(ConfigError, match=r"not installed \(aiokafka\); pip install 'tsgdn2\[service\]'"):
        check_packages("serve")


def test_a_source_may_be_given_several_times() -> None:
    given = ["serve", "--source", "host", "--port", "1", "--source=mqtt://b/a/#?client_id=x,y", "--source", "[a, 'b']"]
    assert gathered(given) == ["serve", "--port", "1", '--source=["host", "mqtt://b/a/#?client_id=x,y", "a", "b"]']
    assert gathered(["replay", "--source", "x"]) == ["replay", "--source", "x"]
