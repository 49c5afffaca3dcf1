"""A service under load from a real mosquitto, killed with SIGKILL again and again; then everything is compared.

    python -m tests.service.endtoend.kills [KILLS] [FRESH] [SEED] [RATE]      the long version, figures as JSON

A kill is aimed at a phase: it comes up to 3 ms after the service has entered it (0.4 s for a recovery), or at any time.
A life that is fresh is a new interpreter; the others are forked from one that has imported everything, which makes no
difference to files, locks, sockets and threads.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

from tests.service.brokers import Mosquitto
from tests.service.endtoend.evidence import (
    compare_journal,
    compare_states,
    count_of,
    keep_a_copy,
    kept,
    twin_of,
    wait_for,
    without_repeats,
)
from tests.service.endtoend.flow import STREAMS, first_rows
from tests.service.endtoend.lives import DEADLINE, Service, end, line_of, module, nursery, service, tell, until
from tests.service.endtoend.phases import PHASES
from tests.service.predictors import limits

AIMS: Final = (
    "starting", "starting", "opening", "opening", "recovering", "recovering", "recovering", "appending", "appending",
    "applying", "applying", "snapshotting", "snapshotting", "snapshotting", "pruning", "acknowledging", "acknowledging",
    "any time", "any time", "any time",
)  # fmt: skip
SETTINGS: Final = {
    "LIMITS__JOURNAL_ROWS": "1500", "LIMITS__SNAPSHOT_AFTER_S": "0", "LIMITS__GROUP_ROWS": "256",
    "LIMITS__MEMORY_BYTES": str(limits(STREAMS - 2).memory_bytes),
}  # fmt: skip
"""Small enough that snapshots, prunings and evictions go on all the time."""


def strike(made: Service, aim: str, dice: random.Random, *, fresh: bool) -> str:
    """Start the service and kill it in the phase that is aimed at; gives the one that it was hit in."""
    begun = count_of(made.store)
    made.start(
        fresh=fresh, aim=aim, times=1 if aim in ("opening", "recovering", "pruning") else dice.choice((1, 3, 10))
    )
    if aim == "starting":
        pause(dice.random() * (3.0 if fresh else 0.1))
    elif aim == "any time":
        rows = begun + dice.choice((1, 50, 500))
        until(lambda: count_of(made.store) > rows, "the service works", look=0.02)
        pause(dice.random() / 2)
    else:
        assert made.board.wait(DEADLINE), f"{aim} did not begin within {DEADLINE:g} s:\n{made.said[-3000:]}"
        pause(dice.random() * (0.4 if aim == "recovering" else 0.003))
    made.kill()
    return made.board.phase


def pause(seconds: float) -> None:
    """Let a random moment come."""
    time.sleep(seconds)


def kill_often(
    folder: Path,
    nurse: Popen[str] | None = None,
    *,
    kills: int = 20,
    fresh: int = 3,
    seed: int = 8,
    rate: float = 400.0,
) -> dict[str, Any]:
    """All of it; AssertionError where anything was lost or came twice. Gives the figures.

    Without a nursery every life is a fresh one, with one `fresh` of them are.
    """
    dice = random.Random(seed)
    aims = [*AIMS * (kills // len(AIMS)), *AIMS[: kills % len(AIMS)]]
    dice.shuffle(aims)
    new = set(dice.sample(range(kills), fresh))
    hit, began = Counter[str](), time.monotonic()
    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto())
        made = stack.enter_context(service(folder, nurse, END_MQTT=str(broker.port), **SETTINGS))
        keep_a_copy(made.store, "tag")
        made.start().ready()
        until(lambda: made.events("mqtt: connected"), "the session at the broker")
        made.kill()
        publisher = module("publishing", str(broker.port), str(seed), str(STREAMS), str(rate), "-1")
        stack.callback(end, publisher)
        assert line_of(publisher) == "publishing"
        for number, aim in enumerate(aims):
            hit[strike(made, aim, dice, fresh=number in new)] += 1
        made.start().ready()
        tell(publisher, "stop")
        said: dict[str, int] = json.loads(line_of(publisher))
        sent = first_rows(said["published"], seed)
        rows = len(without_repeats(sent))
        wait_for(made.store, rows)
        twin = twin_of(sent)
        compare_states(made.blobs(twin.streams), twin)
        made.stop()
        journalled = compare_journal(made.store, sent)
        compare_states(kept(made.folder), twin)
        assert said["acknowledged"] == said["published"]
    return {
        **said, "rows": rows, "journalled": journalled, **made.board.counts, "kills": sum(hit.values()),
        "fresh": fresh, "aimed": dict(Counter(aims)), "hit": {phase: hit[phase] for phase in (*PHASES, "between")},
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip


def main() -> None:
    """The long version."""
    given = [float(text) for text in sys.argv[1:]]
    kills, fresh, seed, rate = given + [20.0, 20.0, 8.0, 400.0][len(given) :]
    with ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nurse = stack.enter_context(nursery()) if fresh < kills else None
        print(json.dumps(kill_often(where, nurse, kills=int(kills), fresh=int(fresh), seed=int(seed), rate=rate)))


if __name__ == "__main__":
    main()
