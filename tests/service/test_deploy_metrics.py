"""Dashboard and alerts ask for what a running service shows, and a real Prometheus has an answer to each question."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.service.brokers import PrometheusServer
from tests.service.http.served import NO_TLS, Served, served, until
from tests.service.predictors import CHANNELS

from tsgdn2.pipelines.ledger_drain import PASSED
from tsgdn2.service.connectors.host import HostConnector
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.mapping import parse_mapping
from tsgdn2.service.receipts import STATUS
from tsgdn2.service.sqlite_store import SqliteStore
from tsgdn2.service.stock import READER, stock
from tsgdn2.service.store import LedgerRow

DEPLOY = Path(__file__).resolve().parents[2] / "service" / "deploy"
OF_PROMETHEUS = {"up", "ALERTS"}
TARGET = {"instance", "job"}
WORDS = {"or", "and", "unless", "by", "without", "offset", "bool", "on", "ignoring", "group_left", "group_right"}
MAY_BE_EMPTY = ("ALERTS", "changes(process_start_time_seconds")


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]
    return found


def questions() -> dict[str, str]:
    """Every expression of the dashboard, by its panel."""
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    asked = {f"{panel['title']} {target['refId']}": target["expr"] for panel in board["panels"]
             for target in panel.get("targets", ())}  # fmt: skip
    return asked | {one["name"]: one["expr"] for one in board["annotations"]["list"]}


def rules() -> dict[str, str]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


class Asked(NamedTuple):
    """Names of metrics, and (metric, label, pattern) of their selectors."""

    names: set[str]
    selectors: list[tuple[str, str, str]]


def asked(expression: str) -> Asked:
    selectors = []
    for name, inside in re.findall(r"(\w+)\{([^}]*)\}", expression):
        selectors += [(name, *pair) for pair in re.findall(r'(\w+)\s*[=!]~?\s*"([^"]*)"', inside)]
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without)\s*\([^)]*\)|offset\s+\w+", " ", bare)
    names = {name for name in re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare) if name not in WORDS}
    return Asked(names, selectors)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with keys, a connector, a ledger that somebody reads, and some rows."""
    router = Router(parse_mapping("host: {stream: me, channels: {x: cpu, y: memory}}"), CHANNELS)
    folder = tmp_path_factory.mktemp("watched")
    app = {"connectors": (HostConnector(router, interval=0.05),), "router": router}
    with served(folder, keys="required", app=app) as client:
        client.desk.store.record([LedgerRow(kind="evicted", stream="a"), LedgerRow(kind="evicted", stream="b")])
        client.desk.store.move({READER: 1})
        assert client.observe("a", range(8)).status_code == 200
        assert client.get("/v1/streams/a/forecast").status_code == 200
        yield client


def shown(client: Served) -> dict[str, list[dict[str, str]]]:
    """Samples' names of the page, and the labels of each sample."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def test_every_name_and_label_of_dashboard_and_alerts_is_on_the_page(watched: Served) -> None:
    page = shown(watched)
    for where, expression in (questions() | rules()).items():
        found = asked(expression)
        assert found.names, where
        for name in found.names - OF_PROMETHEUS:
            assert name in page, (where, name)
        for name, label, _ in found.selectors:
            if name not in OF_PROMETHEUS:
                assert label in TARGET or any(label in labels for labels in page[name]), (where, name, label)


def test_every_value_of_a_label_that_is_asked_for_is_one_that_can_be(watched: Served) -> None:
    page, patterns = shown(watched), (questions() | rules()).values()
    counts = {labels["count"] for labels in page["tsgdn2_connector"]}
    parts = {labels["part"] for labels in page["tsgdn2_group_seconds_total"]}
    routes = set(watched.get("/openapi.json").json()["paths"])
    for name, label, value in {one for expression in patterns for one in asked(expression).selectors}:
        possible = {"count": counts, "part": parts, "route": routes}.get(label)
        if label == "status" and name == "tsgdn2_rows_total":
            possible = set(STATUS)
        if possible is not None:
            for one in value.split("|"):
                assert any(re.fullmatch(one, item) for item in possible), (name, label, one)
    assert {labels["status"] for labels in page["tsgdn2_rows_total"]} == set(STATUS)


def test_panels_do_not_lie_on_each_other_and_have_one_source() -> None:
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    cells: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cells.setdefault(cell, panel["title"]) == panel["title"]
        for one in (panel, *panel.get("targets", ())):
            if one.get("type") != "row":
                assert one["datasource"] == {"type": "prometheus", "uid": "${source}"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


class Watcher(PrometheusServer):
    """A Prometheus with our configuration, rules and key, in a hurry."""

    def __init__(self, target: str, key: str) -> None:
        super().__init__()
        self._target, self._key = target, key

    def command(self) -> list[str]:
        arguments = super().command()
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "500ms"}
        for job in config["scrape_configs"]:
            own = {"tsgdn2": self._target, "prometheus": f"127.0.0.1:{self.port}"}[job["job_name"]]
            job["static_configs"] = [{"targets": [own]}]
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (self.folder / "alerts.yml").write_text((DEPLOY / "alerts.yml").read_text())
        (self.folder / "metrics-key").write_text(f"{self._key}\n")
        return arguments

    def ready(self) -> bool:
        if not super().ready():
            return False
        return httpx.get(f"http://127.0.0.1:{self.port}/-/ready", verify=NO_TLS, timeout=20).status_code == 200

    def ask(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=parameters, verify=NO_TLS, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


def test_a_real_prometheus_scrapes_it_with_a_read_key_and_answers_every_question(watched: Served) -> None:
    key = watched.keyed("read").headers["Authorization"].removeprefix("Bearer ")
    with Watcher(f"127.0.0.1:{watched.base_url.port}", key) as prometheus:
        until(lambda: prometheus.ask("query", query='up{job="tsgdn2"} == 1')["result"], "it is scraped")
        left = {where: expression.replace("$__rate_interval", "3s").replace("$instance", ".*")
                for where, expression in questions().items()}  # fmt: skip
        steps = iter(range(8, 10_000))

        def answered() -> bool:
            watched.observe("a", [next(steps)])
            for where, expression in list(left.items()):
                if prometheus.ask("query", query=expression)["result"] or expression.startswith(MAY_BE_EMPTY):
                    del left[where]
            return not left

        try:
            until(answered)
        except AssertionError:
            pytest.fail(f"no answer to {left}")
        until(lambda: all(rule["health"] == "ok" for group in prometheus.ask("rules")["groups"]
                          for rule in group["rules"]), "every rule is evaluated")  # fmt: skip
        (group,) = prometheus.ask("rules")["groups"]
        assert {rule["name"] for rule in group["rules"]} == set(rules())
        assert not [alert for alert in prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"]


def test_the_numbers_of_the_store_are_true_and_one_that_can_not_be_had_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    assert set(stock(store, "postgresql://nobody@nowhere/db")) == set()
    assert set(stock(store, str(path))) == {"store_free_bytes", "store_bytes"}
    store.open()
    assert "ledger_unsent_seconds" not in stock(store, str(path))  # nobody reads it
    store.record([LedgerRow(kind="evicted"), LedgerRow(kind="evicted", time=0)])
    store.move({READER: 1})
    found = stock(store, str(path))
    assert found["store_bytes"] == sum((tmp_path / name).stat().st_size for name in ("store.db", "store.db-wal"))
    assert found["store_free_bytes"] > 0
    assert found["ledger_unsent_seconds"] > 1e9  # since 1970
    assert READER == PASSED
    store.move({READER: 2})
    assert stock(store, str(path))["ledger_unsent_seconds"] == 0
    store.close()
