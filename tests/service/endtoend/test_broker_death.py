"""Brokers that are killed and come back on their port with what they had kept: nothing of that is lost or taken twice.

mosquitto acknowledges before it saves, and saves now and then: what it acknowledged since it saved last dies with it,
and no reader can mend that. So it is killed with all that was published saved, and what it forgets is only what the
service has acknowledged; it sends that again. nats-server hands each message to the system before it acknowledges, and
is killed while it is published to.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from functools import partial

import nats
from nats.errors import Error as NatsError
from tests.service.brokers import Mosquitto, NatsServer
from tests.service.endtoend.conftest import Serving
from tests.service.endtoend.evidence import compare_journal, compare_states, count_of, keep_a_copy, twin_of, wait_for
from tests.service.endtoend.flow import Sent, first_rows, payload_of, topic_of
from tests.service.endtoend.lives import Service, end, line_of, module, until
from tests.service.endtoend.serving import JETSTREAM

STREAMS = 12


def saved(broker: Mosquitto) -> None:
    """Have mosquitto save all that it has, and wait for it."""
    place = broker.folder / "data" / "mosquitto.db"
    before = place.stat().st_mtime_ns if place.exists() else 0
    assert broker._process is not None
    broker._process.send_signal(signal.SIGUSR1)
    until(lambda: place.exists() and place.stat().st_mtime_ns > before, "mosquitto has saved")


def everything_is_there(made: Service, rows: list[Sent]) -> None:
    """Journal and states are those of an uninterrupted run."""
    wait_for(made.store, len(set(rows)))
    twin = twin_of(rows)
    compare_states(made.blobs(twin.streams), twin)
    made.stop()
    compare_journal(made.store, rows)


def reached(made: Service, rows: int) -> bool:
    """Whether so many rows are in the journal."""
    return count_of(made.store) >= rows


def found_again(made: Service, before: int) -> bool:
    """Whether the connector has connected more often than before."""
    return len(made.events("mqtt: connected")) > before


def test_mosquitto_killed_and_back_costs_nothing_that_it_has_saved(serving: Serving) -> None:
    rows, dice = first_rows(3_000, 21, STREAMS), random.Random(21)
    with Mosquitto() as broker:
        made = serving(END_MQTT=str(broker.port), LIMITS__GROUP_ROWS="64")
        keep_a_copy(made.store, "tag")
        made.start().ready()
        until(lambda: made.events("mqtt: connected"), "the session at the broker")
        made.kill()
        publisher = module("publishing", str(broker.port), "21", str(STREAMS), "100000", str(len(rows)))
        try:
            assert line_of(publisher) == "publishing"
            assert json.loads(line_of(publisher))["acknowledged"] == len(rows)
        finally:
            end(publisher)
        saved(broker)
        made.start().ready()
        for kill in (True, False, True):
            begun = count_of(made.store)
            few = min(begun + dice.randint(1, 400), len(set(rows)))
            until(partial(reached, made, few), "the service works")
            connected = len(made.events("mqtt: connected"))
            broker.stop(kill=kill)
            until(lambda: "mqtt: not connected" in made.said, "the log says that the broker is away")
            broker.start()
            until(partial(found_again, made, connected), "the connector has found it again")
        everything_is_there(made, rows)


async def published(server: NatsServer, rows: list[Sent], moments: dict[int, str], made: Service) -> None:
    """Publish rows, of each stream one at a time, until the server has acknowledged each; at some, things die."""
    client = await nats.connect(
        f"nats://127.0.0.1:{server.port}", reconnect_time_wait=0.02, max_reconnect_attempts=-1, error_cb=quiet
    )
    stream, done, one = client.jetstream(timeout=0.5), 0, asyncio.Lock()

    async def publish(row: Sent) -> None:
        while True:
            try:
                await stream.publish(topic_of(row, "."), payload_of(row))
            except (NatsError, TimeoutError, OSError):
                await asyncio.sleep(0.02)
            else:
                return

    async def lane(number: int) -> None:
        nonlocal done
        for row in rows:
            if row.stream == number:
                await publish(row)
                done += 1
                what = moments.get(done, "")
                if "server" in what:
                    # In this thread, as the server ends with the one that started it. The other lanes have one row each
                    # on its way.
                    server.stop(kill=True)
                    server.start()
                if "service" in what:
                    async with one:
                        await asyncio.to_thread(restart, made)

    await asyncio.gather(*(lane(number) for number in range(STREAMS)))
    await client.close()


async def quiet(_: Exception) -> None:
    """That the server is away is what this is about."""


def restart(made: Service) -> None:
    """The service dies and comes back."""
    made.kill()
    made.start().ready()


def test_jetstream_killed_while_it_is_published_to_costs_nothing_that_it_has_acknowledged(serving: Serving) -> None:
    rows = first_rows(1_500, 22, STREAMS)
    with NatsServer() as server:
        asyncio.run(made_stream(server))
        made = serving(END_NATS=str(server.port))
        keep_a_copy(made.store, "tag")
        made.start().ready()
        asyncio.run(published(server, rows, {200: "server", 500: "service", 900: "server and service"}, made))
        everything_is_there(made, rows)


async def made_stream(server: NatsServer) -> None:
    """Make the stream that everything is published to."""
    client = await nats.connect(f"nats://127.0.0.1:{server.port}")
    await client.jetstream().add_stream(name=JETSTREAM, subjects=["plant.>"])
    await client.close()
