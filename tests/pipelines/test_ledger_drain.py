"""The ledger of a service in MLflow: every row once, whatever dies when, and nothing that waits for it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pytest
from psycopg.conninfo import conninfo_to_dict

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties warn when they are imported
    from mlflow import MlflowClient
    from mlflow.entities import Run as Entity

from tests.pipelines.test_drain import Server
from tests.service.shelves import MODEL, place, store_at

from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.events import AUDIT_REASONS, AUDIT_STATUS, VersionTags
from tsgdn2.pipelines.ledger_batch import batch_of
from tsgdn2.pipelines.ledger_drain import FIXED, PASSED, LedgerDrain, Trimmer
from tsgdn2.pipelines.ledger_lease import Lease
from tsgdn2.pipelines.spool import ServerDownError, TrackingError
from tsgdn2.pipelines.tracking import default_tracking_uri
from tsgdn2.pipelines.versions import tag_version
from tsgdn2.service.sqlite_store import SqliteStore
from tsgdn2.service.store import LedgerRow, Store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow in SQLAlchemy
SECOND = 10**9
BEGIN = 1_700_000_000 * SECOND


def happened(numbers: range) -> list[LedgerRow]:
    """One row a second, of all kinds in turn."""
    kinds = [
        ("evicted", {"seq": 1}), ("reloaded", {"rows": 2}), ("late", {"rows": 3}),
        ("forgotten", {"cause": "decay", "retention": 0.05, "channel": "x"}),
        ("forgotten", {"cause": "erase", "retention": 0.01, "channel": "y"}),
        ("alert", {"channel": "x[1]", "bits": 12.5}), ("alert", {"channel": "y", "bits": "inf"}), ("expired", {}),
    ]  # fmt: skip
    found = []
    for number in numbers:
        kind, facts = kinds[number % len(kinds)]
        found.append(LedgerRow(kind=kind, stream=f"s{number}", facts=facts, time=BEGIN + number * SECOND))
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = SqliteStore(tmp_path / "store.db")
    store.open(MODEL)
    yield store
    store.close()


def client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def only_run(uri: str) -> Entity:
    """The one run of the service."""
    experiment = client(uri).get_experiment_by_name("service")
    assert experiment is not None
    (run,) = client(uri).search_runs([experiment.experiment_id])
    return run


def check(uri: str, count: int, folder: Path) -> None:
    """Rows 0 to count are in MLflow, once each, with their own times; and so are the counters."""
    run = only_run(uri)
    files = sorted(item.path for item in client(uri).list_artifacts(run.info.run_id, "ledger"))
    tables = [pl.read_parquet(client(uri).download_artifacts(run.info.run_id, file, str(folder))) for file in files]
    rows = pl.concat(tables).sort("id")
    assert rows["id"].to_list() == list(range(1, count + 1))
    assert rows["stream"].to_list() == [f"s{number}" for number in range(count)]
    assert rows["time"].to_physical().to_list() == [BEGIN + number * SECOND for number in range(count)]
    kinds = dict(rows["kind"].value_counts().iter_rows())
    latest = run.data.metrics
    assert {kind: latest[f"ledger/{kind}"] for kind in kinds} == kinds
    assert latest["late/rows"] == 3 * kinds["late"]
    assert latest["forgotten/decay"] + latest["forgotten/erase"] == kinds["forgotten"]
    assert latest["alert/x_1"] + latest["alert/y"] == kinds["alert"]
    for name in ("ledger/evicted", "forgotten/erase", "alert/y"):
        points = client(uri).get_metric_history(run.info.run_id, name)
        assert len({(point.step, point.timestamp) for point in points}) == len(points)
        assert all(point.timestamp * 10**6 == BEGIN + (point.step - 1) * SECOND for point in points)
    assert run.info.status == "RUNNING"


def test_a_batch_is_told_by_its_rows_alone_to_the_byte(store: Store, tmp_path: Path) -> None:
    store.record(happened(range(100)))
    first, again = (batch_of(store.read_ledger(), lambda name: 7) for _ in range(2))
    assert first.metrics == again.metrics
    assert first.metrics["ledger/evicted"] == 7 + 13
    assert first.metrics["forgotten/retention"] == pytest.approx(0.03, abs=0.005)
    assert first.metrics["alert/bits"] == float("inf")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    written = first.write(tmp_path / "one"), again.write(tmp_path / "two")
    assert written[0].name == "000000000001-000000000100.parquet"
    assert written[0].read_bytes() == written[1].read_bytes()
    assert json.loads(pl.read_parquet(written[0])["facts"][3]) == {"cause": "decay", "channel": "x", "retention": 0.05}


def test_facts_that_are_not_what_they_should_be_are_counted_and_stop_nothing(store: Store) -> None:
    odd = [
        LedgerRow(kind="alert", facts={"bits": "very many", "channel": None}),
        LedgerRow(kind="alert", facts={"bits": True, "channel": "\u00e4" * 400}),
        LedgerRow(kind="forgotten", facts={"cause": "../..", "retention": "nan"}),
        LedgerRow(kind="late", facts={"rows": None}),
        LedgerRow(kind="a kind/of its [own]"),
        *(LedgerRow(kind="alert", facts={"channel": f"c{number}", "bits": 1.0}) for number in range(1_500)),
    ]
    store.record(odd)
    found = batch_of(store.read_ledger(limit=10_000), lambda name: 0).metrics
    assert found["ledger/alert"] == 1_502
    assert found["ledger/a kind/of its _own"] == 1
    assert sum(name.startswith("alert/") for name in found) <= 1_001
    assert found["late/rows"] == 0


def test_a_death_between_sending_and_moving_on_leaves_every_row_once(root: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from tsgdn2.pipelines.ledger_drain import LedgerDrain\n"
        "from tsgdn2.service.sqlite_store import SqliteStore\n"
        "LedgerDrain.passed = lambda drain, batch: os.kill(os.getpid(), 9)\n"
        "store = SqliteStore(Path(sys.argv[1]))\n"
        "store.open()\n"
        "LedgerDrain(store, Path(sys.argv[2]), sys.argv[3], subject='tiny').turn()\n"
    )
    uri, where = default_tracking_uri(root), tmp_path / "killed.db"
    store = SqliteStore(where)
    store.open(MODEL)
    store.record(happened(range(30)))
    store.close()
    died = subprocess.run([sys.executable, "-c", code, str(where), str(root), uri], check=False, timeout=120)
    assert died.returncode == -signal.SIGKILL
    assert len(client(uri).list_artifacts(only_run(uri).info.run_id, "ledger")) == 1
    store.open(MODEL)
    assert (store.cursor(PASSED), store.cursor(FIXED)) == (0, 30)
    unclean = [row for row in store.read_ledger(30) if row.kind == "reopened"]
    assert len(unclean) == 1, "the store tells of the death itself"
    store.close()
    # What came in between goes into a batch of its own: the one that was sent is sent again as it was.
    assert main(["audit", "sync", "--store", str(where), "--runs", str(root)]) == 0
    store.open(MODEL)
    try:
        assert store.cursor(PASSED) == 31
        run = only_run(uri)
        files = [item.path for item in client(uri).list_artifacts(run.info.run_id, "ledger")]
        assert files == ["ledger/000000000001-000000000030.parquet", "ledger/000000000031-000000000031.parquet"]
        assert len(client(uri).get_metric_history(run.info.run_id, "ledger/evicted")) == 1
        assert run.data.metrics["ledger/evicted"] == 4
        assert run.data.tags["tsgdn2.model"] == "tiny"
        LedgerDrain(store, root, uri, keep=5).turn()
        assert [row.id for row in store.read_ledger()] == [27, 28, 29, 30, 31]
    finally:
        store.close()


def test_a_server_that_is_down_comes_up_dies_in_the_middle_and_comes_back_has_all_rows_once(
    root: Path, tmp_path: Path, store: Store, empty_store: Path
) -> None:
    home = tmp_path / "server"
    home.mkdir()
    (home / "mlflow.db").write_bytes(empty_store.read_bytes())
    server = Server(home)
    drain = LedgerDrain(store, root, server.uri, most=25, timeout=5)
    store.record(happened(range(40)))
    with pytest.raises(ServerDownError):
        drain.turn()
    assert (store.cursor(PASSED), store.cursor(FIXED), drain.waiting()) == (0, 0, 40)
    assert not (root / "service").exists(), "nothing is copied while it is down"
    try:
        server.start()
        passed = drain.passed

        def passed_then_die(batch) -> None:
            passed(batch)
            server.kill()

        drain.passed = passed_then_die  # type: ignore[method-assign]
        with pytest.raises(TrackingError):
            drain.turn()
        assert (store.cursor(PASSED), store.cursor(FIXED)) == (25, 40)
        store.record(happened(range(40, 70)))
        drain.passed = passed  # type: ignore[method-assign]
        server.start()
        drain.turn()
        check(server.uri, 70, tmp_path)
        assert drain.sent == 70
        assert not list((root / "service" / "spool").iterdir())
    finally:
        server.kill()


def test_a_poisoned_state_fails_the_registered_version_that_is_served(root: Path, store: Store) -> None:
    uri = default_tracking_uri(root)
    client(uri).create_registered_model("tiny")
    client(uri).create_model_version("tiny", str(root), tags={AUDIT_STATUS: "passed"})
    store.record([LedgerRow(kind="poisoned", stream="s", facts={"what": "the model's state"})])
    LedgerDrain(store, root, uri, version=("tiny", "1")).turn()
    tags = client(uri).get_model_version("tiny", "1").tags
    assert tags[AUDIT_STATUS] == "failed"
    assert "the model's state is not finite" in tags[AUDIT_REASONS]
    # A version that was deleted keeps nothing back.
    tag_version(client(uri), VersionTags(name="gone", version="9", values={AUDIT_STATUS: "failed"}))


def test_a_drain_ends_at_once_while_its_server_hangs(store: Store, root: Path) -> None:
    store.record(happened(range(5)))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        drain = LedgerDrain(store, root, f"http://127.0.0.1:{silent.getsockname()[1]}", every_s=0.001, timeout=0.2)
        with drain:
            while not drain._said:
                drain._stopping.wait(0.01)
    assert drain._said == "down"
    assert store.cursor(PASSED) == 0


def test_without_mlflow_the_ledger_is_only_kept_short(store: Store) -> None:
    store.record(happened(range(50)))
    Trimmer(store, keep=10, every_s=60).turn()
    assert [row.id for row in store.read_ledger()] == list(range(41, 51))


def test_of_the_processes_of_one_postgresql_store_one_sends(tmp_path: Path) -> None:
    conninfo = conninfo_to_dict(place("postgres", tmp_path))
    where = f"postgresql://tester@127.0.0.1:{conninfo['port']}/postgres?options={quote(conninfo['options'])}"
    first, second = Lease(where), Lease(where)
    assert first.held()
    assert not second.held()
    assert first.held()
    store = store_at("postgres", where)
    store.open(MODEL)
    store.record(happened(range(3)))
    drain = LedgerDrain(store, tmp_path, "http://127.0.0.1:9", place=where, timeout=0.2)
    drain.turn()
    assert store.cursor(FIXED) == 0, "another one sends"
    first.close()
    with pytest.raises(ServerDownError):
        drain.turn()
    drain._close()
    assert second.held()
    second.close()
    store.close()
    assert Lease("store.db").held()
