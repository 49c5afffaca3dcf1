"""The time of day jumps to and fro by years: what is an interval goes on, what is a date follows, nothing is lost."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from tests.service.brokers import Mosquitto
from tests.service.endtoend.clocks import YEAR, Clock
from tests.service.endtoend.conftest import Serving
from tests.service.endtoend.evidence import (
    beyond,
    compare_journal,
    compare_states,
    count_of,
    keep_a_copy,
    twin_of,
    wait_for,
)
from tests.service.endtoend.flow import HOUR, TOPIC, first_rows, name_of
from tests.service.endtoend.lives import end, line_of, module, nursery, tell, until

STREAMS = 12
DAY = 86_400
SECOND = 10**9


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock") / "set")


@pytest.fixture(scope="module")
def nurse(clock: Clock) -> Iterator[subprocess.Popen[str]]:
    """A nursery whose time of day is that of the test."""
    with nursery(clock.environment) as made:
        yield made


@pytest.fixture(autouse=True)
def right(clock: Clock) -> Iterator[None]:
    yield
    clock.set(0)


def covered(store: Path) -> int:
    """The last row that a snapshot holds."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=30)
    try:
        return int(connection.execute("SELECT COALESCE(MAX(seq), 0) FROM snapshots").fetchone()[0])
    finally:
        connection.close()


@contextmanager
def published_by_hand(port: int) -> Iterator[paho.Client]:
    """A client that publishes."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="by hand")
    client.connect("127.0.0.1", port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


def test_jumps_under_load_lose_nothing_and_stop_nothing(serving: Serving, clock: Clock) -> None:
    with Mosquitto() as broker:
        made = serving(
            END_MQTT=str(broker.port), LIMITS__JOURNAL_ROWS="100", LIMITS__SNAPSHOT_AFTER_S="0", LIMITS__TTL_S="3600",
            LIMITS__RENEW_S="0.05",
        )  # fmt: skip
        keep_a_copy(made.store, "tag")
        made.start().ready()
        until(lambda: made.events("mqtt: connected"), "the session at the broker")
        publisher = module("publishing", str(broker.port), "31", str(STREAMS), "60", "-1")
        try:
            assert line_of(publisher) == "publishing"
            for number, ahead in enumerate((-4 * YEAR, 3_600, 10 * YEAR, -3_600, -4 * YEAR)):
                if number in (2, 4):
                    made.kill()
                    clock.set(ahead)
                    made.start().ready()
                clock.set(ahead, made)
                begun = count_of(made.store)
                until(partial(beyond, count_of, made.store, begun + 30), "rows are taken", look=0.02)
                until(partial(beyond, covered, made.store, begun), "snapshots are made", look=0.02)
            tell(publisher, "stop")
            said = json.loads(line_of(publisher))
        finally:
            end(publisher)
        rows = first_rows(said["published"], 31, STREAMS)
        wait_for(made.store, len(set(rows)))
        twin = twin_of(rows)
        compare_states(made.blobs(twin.streams), twin)
        ledger = made.ledger()
        assert not [row for row in ledger if row["kind"] in ("expired", "corrupt", "deleted")]
        times, ids = [row["time"] for row in ledger], [row["id"] for row in ledger]
        assert ids == sorted(set(ids))
        assert max(times) - min(times) > 10 * YEAR * SECOND, "the ledger was written by another clock"
        # Told by the clock of then, in the order of what happened.
        assert times != sorted(times)
        made.stop()
        compare_journal(made.store, rows)
    assert said["acknowledged"] == said["published"]


def test_a_key_ends_by_the_time_of_day_and_a_quota_does_not(serving: Serving, clock: Clock) -> None:
    made = serving(KEYS="required", TENANT_ROWS_PER_S="0.02")
    made.start().ready()
    until(lambda: "it is shown once" in made.said and made.said.count("tsgdn2_"), "the first key")
    first = next(word for word in made.said.split() if word.startswith("tsgdn2_"))
    head = {"Authorization": f"Bearer {first}"}
    given = made.client.post("/v1/keys", headers=head, json={"role": "write", "tenant": "t", "days": 1}).json()["text"]
    own = {"Authorization": f"Bearer {given}"}
    rows = [{"stream": "s", "time": n * HOUR, "values": [1.0, 2.0], "source": "a", "sequence": n} for n in range(20)]

    def send() -> tuple[int, float]:
        answer = made.client.post("/v1/observe/batch", headers=own, json={"rows": rows})
        return answer.status_code, float(answer.headers.get("Retry-After", 0))

    assert send() == (200, 0)  # more than the bucket holds: it is paid for in the next 1,000 seconds
    for ahead, status in ((YEAR, 401), (-YEAR, 429), (0, 429), (2 * DAY, 401), (DAY // 2, 429)):
        clock.set(ahead, made)
        found, after = send()
        assert found == status, ahead
        assert after <= 1_000
    assert made.client.get("/v1/streams", headers=head).status_code == 200
    made.stop()


def test_rows_that_a_clock_set_back_takes_for_the_future_are_refused_with_the_reason_and_their_neighbours_go_on(
    serving: Serving, clock: Clock
) -> None:
    now = time.time_ns() // HOUR * HOUR
    with Mosquitto() as broker:
        made = serving(END_MQTT=str(broker.port), LIMITS__MOST_AHEAD_S="7200")
        made.start().ready()
        until(lambda: made.events("mqtt: connected"), "the session at the broker")

        def send(hours: int, number: int) -> tuple[list[str], dict[str, str]]:
            rows = [
                {"stream": "now", "time": now + hours * HOUR, "values": [1.0, 2.0], "source": "a", "sequence": number},
                {"stream": "then", "time": number * HOUR, "values": [1.0, 2.0], "source": "a", "sequence": number},
            ]
            answer = made.client.post("/v1/observe/batch", json={"rows": rows}).json()
            return answer["status"], answer["reasons"]

        assert send(0, 1) == (["new", "new"], {})
        clock.set(-YEAR, made)
        status, reasons = send(1, 2)
        assert status == ["refused", "new"]
        assert "ahead of this machine's clock; set the clock of the source" in reasons["0"]
        topic = TOPIC.replace("+", name_of(0))
        with published_by_hand(broker.port) as client:
            for number in (1, 2):
                facts = {"ts": now + number * HOUR, "n": number, "boot": "b", "x": 1.0, "y": 2.0}
                client.publish(topic, json.dumps(facts), qos=1).wait_for_publish(20)
                if number == 1:
                    until(lambda: "ahead of this clock" in made.said, "the log says what was not taken")
                    clock.set(0, made)
        until(lambda: made.client.get(f"/v1/streams/{name_of(0)}").status_code == 200, "the second one is taken")
        (line,) = (line for line in made.events() if "mqtt: not taken" in line["event"])
        assert "limits.ahead_seconds" in line["event"]
        assert send(1, 2) == (["new", "seen"], {})
        made.stop()
