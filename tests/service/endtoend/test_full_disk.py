"""A disk that is full: rows are refused and nothing else, brokers keep theirs, and with room it goes on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.service.brokers import Mosquitto
from tests.service.endtoend.conftest import Serving
from tests.service.endtoend.evidence import compare_journal, compare_states, keep_a_copy, twin_of, wait_for
from tests.service.endtoend.flow import body_of, first_rows
from tests.service.endtoend.lives import Service, end, line_of, module, until

SIZE = 8 << 20
STREAMS = 5


def mounted(place: Path) -> bool:
    """Whether a small file system of its own is at a place now; that needs the right to mount one."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def unmount(place: Path) -> None:
    """Take it away."""
    subprocess.run(["umount", str(place)], capture_output=True, check=True)


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    with Mosquitto() as made:
        yield made


@pytest.fixture(params=["a file system", "a limit of file sizes"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | None]:
    """A small file system; None, and so the other way, where none can be mounted or the other way is asked for."""
    place = tmp_path / "disk"
    if request.param != "a file system" or not mounted(place):
        yield None
        return
    yield place
    unmount(place)


def fill(made: Service, disk: Path | None) -> None:
    """Leave no byte of room."""
    if disk is None:
        made.limit(made.store.with_name("store.db-wal").stat().st_size + 9_000)
        return
    with (disk / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 4_096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def make_room(made: Service, disk: Path | None) -> None:
    """Give it back."""
    if disk is None:
        made.limit(-1)
    else:
        (disk / "ballast").unlink()


@pytest.mark.parametrize("killed", [False, True])
def test_a_full_disk_refuses_rows_and_keeps_all_that_it_has_acknowledged(
    disk: Path | None, serving: Serving, tmp_path: Path, broker: Mosquitto, killed: bool
) -> None:
    seed = 10 + killed + 2 * (disk is None)
    folder, rows = disk or tmp_path, first_rows(20_000, seed, STREAMS)
    made = serving(END_MQTT=str(broker.port), END_CLIENT=f"reader-{seed}", STORE=str(folder / "store.db"))
    keep_a_copy(made.store, "tag")
    made.start().ready()
    until(lambda: made.events("mqtt: connected"), "the session at the broker")
    answered = 0
    answer = made.client.post("/v1/observe/batch", json=body_of(rows[:200]))
    while answer.status_code == 200:
        answered += 200 if not answered else 10
        if answered == 200:
            fill(made, disk)
        answer = made.client.post("/v1/observe/batch", json=body_of(rows[answered : answered + 10]))
    assert answer.status_code == 503
    assert answer.json()["error"] == "store"
    assert "the disk" in answer.json()["detail"]
    assert "make room and send it again" in answer.json()["what_to_do"]
    until(lambda: made.events("memory.store_failed"), "the log says it")
    assert "make room" in made.events("memory.store_failed")[0]["error"]
    most = answered + 300
    publisher = module("publishing", str(broker.port), str(seed), str(STREAMS), "100000", str(most))
    try:
        assert line_of(publisher) == "publishing"
        assert json.loads(line_of(publisher))["acknowledged"] == most
        until(lambda: "mqtt: the service can not take" in made.said, "the connector is refused")
        twin = twin_of(rows[:answered])
        compare_states(made.blobs(twin.streams), twin)
        assert made.client.get("/readyz").status_code == 200
        if killed:
            made.kill()
            if disk is not None:
                fill(made, disk)
                made.start()
                assert made.ended() == 1
                assert "make room" in made.events("service.not_opened")[0]["error"]
                make_room(made, disk)
            made.start().ready()
        else:
            make_room(made, disk)
        twin = twin_of(rows[:most])
        wait_for(made.store, len(set(rows[:most])))
        until(lambda: made.client.get("/v1/streams").json()["streams"], "it answers")
        compare_states(made.blobs(twin.streams), twin)
        made.stop()
    finally:
        end(publisher)
    compare_journal(made.store, rows[:most])
