"""20 kill -9 under load from a real mosquitto: nothing lost, nothing twice, every state as if it had never stopped."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from pathlib import Path

import httpx
from tests.service.endtoend.conftest import Serving
from tests.service.endtoend.evidence import compare_journal, compare_states, keep_a_copy, kept, twin_of
from tests.service.endtoend.flow import Sent, body_of, first_rows
from tests.service.endtoend.kills import kill_often, pause
from tests.service.endtoend.lives import DEADLINE, Service


def test_20_kills_at_random_moments_lose_nothing_and_apply_nothing_twice(
    tmp_path: Path, nurse: subprocess.Popen[str]
) -> None:
    figures = kill_often(tmp_path, nurse, kills=20, fresh=3, seed=8)
    assert figures["kills"] == 20
    assert figures["acknowledged"] == figures["published"] > figures["rows"] == figures["journalled"] > 1_000
    assert figures["received"] > figures["published"], "no kill has made the broker send anything again"
    assert figures["seen"] >= figures["published"] - figures["rows"], "a repeat was not known as one"
    assert figures["behind"] == figures["refused"] == 0


def killer(made: Service, dice: random.Random) -> threading.Thread:
    """Kills a life some time after it has entered the phase that it was started with."""

    def run() -> None:
        if made.board.wait(DEADLINE):
            pause(dice.random() * 0.003)
            made.signal(signal.SIGKILL)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_rows_that_http_has_answered_survive_and_others_are_never_taken_twice(serving: Serving) -> None:
    kind, dice = "replay", random.Random(6)
    made = serving(END_KIND=kind, LIMITS__JOURNAL_ROWS="400", LIMITS__SNAPSHOT_AFTER_S="0")
    keep_a_copy(made.store, kind)
    rows, answered = first_rows(30_000, seed=6), 0
    aims = ["appending", "applying", "snapshotting", "pruning", "appending", "any"]
    for aim in aims:
        made.start(aim="appending" if aim == "any" else aim, times=dice.choice((2, 9, 30)) if aim != "pruning" else 1)
        made.ready()
        again = rows[max(0, answered - 40) : answered]
        thread = killer(made, dice)
        if again:
            send(made, again, known=True)
        while (part := rows[answered : answered + dice.choice((1, 7, 60))]) and send(made, part):
            answered += len(part)
        thread.join()
        assert made.ended() == -signal.SIGKILL
    unanswered = rows[answered : answered + 60]
    made.start().ready()
    send(made, rows[:answered][-500:], known=True)
    assert send(made, unanswered)
    sent = rows[: answered + 60]
    twin = twin_of(sent, kind)
    compare_states(made.blobs(twin.streams), twin, kind)
    made.stop()
    assert compare_journal(made.store, sent) > 300
    compare_states(kept(made.folder, kind), twin, kind)


def send(made: Service, rows: list[Sent], *, known: bool = False) -> bool:
    """Send rows; whether they were answered. AssertionError where one was refused, or not known as it should be."""
    try:
        answer = made.client.post("/v1/observe/batch", json=body_of(rows))
    except httpx.TransportError:
        return False
    assert answer.status_code == 200, answer.text
    counts = answer.json()["counts"]
    assert "refused" not in counts
    assert not known or set(counts) == {"seen"}, counts
    return True
