"""MQTT against a real mosquitto: what was not acknowledged comes again, in order, whoever dies."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import aiomqtt
import pytest

from tsgdn2.errors import SchemaError
from tsgdn2.service.connectors.mqtt import MqttConnector, MqttOptions
from tsgdn2.service.errors import BusyError, StoreError

SECOND = 10**9
T0 = 1_700_000_000
MAPPING = """
mqtt:
  - {{topic: {site}/+/env, stream: "{site}-{{1}}", channels: {{temp: t, load: l}},
     time: {{field: ts, unit: s}}, sequence: {{field: n}}}}
"""


@pytest.fixture
def site():
    return f"site{uuid.uuid4().hex[:8]}"


def connector_of(tools, broker, site, **options):
    router = tools.router(MAPPING.format(site=site))
    given = MqttOptions(host="127.0.0.1", port=broker.port, client_id=f"reader-{site}", **options)
    return MqttConnector(given, router, backoff=tools.fast, group=8)


async def publish(broker, site, numbers, *, device="a", **extra):
    async with aiomqtt.Client("127.0.0.1", broker.port, identifier=f"writer-{site}") as client:
        for n in numbers:
            payload = json.dumps({"ts": T0 + n, "n": n, "t": 20 + n, "l": None, **extra})
            await client.publish(f"{site}/{device}/env", payload, qos=1)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_messages_become_rows_with_the_time_and_sequence_of_their_payload(tools, mosquitto, site, version):
    async def scene():
        connector, sink = connector_of(tools, mosquitto, site, version=version), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.connected)
        await publish(mosquitto, site, range(20))
        await tools.until(lambda: connector.counts.acknowledged == 20)
        await connector.stop()
        await running
        stream, moment, values, source, sequence = sink.rows[3]
        assert (stream, moment, source, sequence) == (f"{site}-a", (T0 + 3) * SECOND, f"topic:{site}/a/env", 3)
        assert values[0] == 23.0
        assert values[1] != values[1]
        assert [row[4] for row in sink.rows] == list(range(20))
        assert not connector.counts.connected
        assert connector.counts.waiting == 0

    tools.run(scene())


def test_what_a_killed_connector_had_not_acknowledged_comes_again_in_order(tools, mosquitto, site):
    async def scene():
        first, held = connector_of(tools, mosquitto, site), tools.sink()
        running = asyncio.create_task(first.run(held))
        await tools.until(lambda: first.counts.connected)
        held.hold()
        await publish(mosquitto, site, range(30))
        await tools.until(lambda: held.held == 1)
        running.cancel()
        await asyncio.wait((running,))
        assert held.rows == []
        assert first.counts.acknowledged == 0
        second, sink = connector_of(tools, mosquitto, site), tools.sink()
        again = asyncio.create_task(second.run(sink))
        await tools.until(lambda: second.counts.acknowledged == 30)
        assert [row[4] for row in sink.rows] == list(range(30))
        await second.stop()
        await again

    tools.run(scene())


PROGRAM = """
import asyncio, sys
from tsgdn2.service.connectors.mqtt import MqttConnector, MqttOptions
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.mapping import parse_mapping

async def sink(delivery):
    print("held", flush=True)
    await asyncio.Event().wait()

async def main():
    router = Router(parse_mapping(sys.argv[3]), ("temp", "load"))
    connector = MqttConnector(MqttOptions(host="127.0.0.1", port=int(sys.argv[1]), client_id=sys.argv[2]), router)
    task = asyncio.create_task(connector.run(sink))
    while not connector.counts.connected:
        await asyncio.sleep(0.01)
    print("connected", flush=True)
    await task

asyncio.run(main())
"""


def test_a_process_killed_between_delivery_and_commit_loses_nothing(tools, mosquitto, site):
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(mosquitto.port), f"reader-{site}", MAPPING.format(site=site)],
        stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "connected\n"
        tools.run(publish(mosquitto, site, range(5)))
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()

    async def scene():
        connector, sink = connector_of(tools, mosquitto, site), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.acknowledged == 5)
        assert [row[4] for row in sink.rows] == list(range(5))
        await connector.stop()
        await running

    tools.run(scene())


def test_a_broker_that_stops_and_starts_again_is_found_again_and_nothing_is_lost(tools, brokers, site):
    async def scene(broker):
        connector, sink = connector_of(tools, broker, site), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.connected)
        await publish(broker, site, range(3))
        await tools.until(lambda: connector.counts.acknowledged == 3)
        sink.hold()
        await publish(broker, site, range(3, 6))
        await tools.until(lambda: sink.held == 1)
        broker.stop()
        sink.open.set()  # durable now, but there is nobody to tell
        await tools.until(lambda: connector.counts.failures >= 2)
        broker.start()
        await tools.until(lambda: connector.counts.connects == 2)
        await publish(broker, site, range(6, 9))
        await tools.until(lambda: {row[4] for row in sink.rows} >= set(range(9)))
        fresh = list(dict.fromkeys(row[4] for row in sink.rows))
        assert fresh == list(range(9))
        await connector.stop()
        await running

    with brokers.Mosquitto() as broker:
        tools.run(scene(broker))


def test_poisoned_messages_are_acknowledged_counted_and_never_come_back(tools, mosquitto, site):
    async def scene():
        connector, sink = connector_of(tools, mosquitto, site), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.connected)
        async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
            for payload in (
                b"\xff\xfe garbage",
                b"[" * 100_000,
                b"{}",
                b'{"ts": 1, "n": 1, "t": 1e999}',
                b"x" * (1 << 21),
            ):
                await client.publish(f"{site}/b/env", payload, qos=1)
        await publish(mosquitto, site, [1])
        await tools.until(lambda: connector.counts.acknowledged == 6)
        await connector.stop()
        await running
        assert [row[0] for row in sink.rows] == [f"{site}-a"]
        assert dict(connector.counts.rejected.counts) == {"malformed": 2, "unmapped": 1, "value": 1, "oversize": 1}
        assert all(len(sample.detail) <= 200 for sample in connector.counts.rejected.samples)
        second, empty = connector_of(tools, mosquitto, site), tools.sink()
        again = asyncio.create_task(second.run(empty))
        await tools.until(lambda: second.counts.connected)
        await publish(mosquitto, site, [2])
        await tools.until(lambda: len(empty.rows) == 1)
        await second.stop()
        await again
        assert second.counts.received == 1

    tools.run(scene())


def test_a_busy_or_broken_store_is_asked_again_and_order_is_kept(tools, mosquitto, site):
    async def scene():
        connector, sink = connector_of(tools, mosquitto, site), tools.sink()
        sink.fail = [BusyError("full", retry_after=0.01), StoreError("disk is full"), None, StoreError("disk is full")]
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.connected)
        await publish(mosquitto, site, range(40))
        await tools.until(lambda: connector.counts.acknowledged == 40)
        assert [row[4] for row in sink.rows] == list(range(40))
        assert connector.counts.retries == 3
        await connector.stop()
        await running

    tools.run(scene())


def test_one_message_that_the_service_refuses_does_not_take_its_group_along(tools, mosquitto, site):
    class Picky(tools.sink):
        async def __call__(self, delivery):
            if 13 in delivery.rows.sequences:
                raise SchemaError("values: thirteen is not allowed")
            await super().__call__(delivery)

    async def scene():
        connector, sink = connector_of(tools, mosquitto, site), Picky()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.connected)
        await publish(mosquitto, site, range(20))
        await tools.until(lambda: connector.counts.acknowledged == 20)
        assert sorted(row[4] for row in sink.rows) == [n for n in range(20) if n != 13]
        assert connector.counts.rejected.counts["refused"] == 1
        await connector.stop()
        await running

    tools.run(scene())


def test_stop_gives_up_after_its_patience_and_what_was_held_comes_again(tools, mosquitto, site):
    async def scene():
        connector, sink = connector_of(tools, mosquitto, site), tools.sink()
        connector.patience = 0.05
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.connected)
        sink.hold()
        await publish(mosquitto, site, range(3))
        await tools.until(lambda: sink.held == 1)
        await connector.stop()
        await running
        assert connector.counts.acknowledged == 0
        second, taken = connector_of(tools, mosquitto, site), tools.sink()
        again = asyncio.create_task(second.run(taken))
        await tools.until(lambda: len(taken.rows) == 3)
        await second.stop()
        await again

    tools.run(scene())


def test_no_more_than_the_window_is_held_while_the_store_is_slow(tools, mosquitto, site):
    async def scene():
        connector, sink = connector_of(tools, mosquitto, site), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.connected)
        sink.hold()
        await publish(mosquitto, site, range(200))
        await tools.until(lambda: connector.counts.received >= connector.in_flight * connector.group)
        assert connector.counts.received <= (connector.in_flight + 2) * connector.group
        sink.open.set()
        await tools.until(lambda: connector.counts.acknowledged == 200)
        assert [row[4] for row in sink.rows] == list(range(200))
        await connector.stop()
        await running

    tools.run(scene())


def test_a_fault_in_the_service_ends_the_connection_and_the_messages_come_again(tools, mosquitto, site):
    async def scene():
        connector, sink = connector_of(tools, mosquitto, site), tools.sink()
        sink.fail = [RuntimeError("a fault of ours")]
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.connected)
        await publish(mosquitto, site, range(3))
        await tools.until(lambda: connector.counts.acknowledged == 3)
        assert [row[4] for row in sink.rows] == [0, 1, 2]
        assert "a fault of ours" in connector.counts.last_error
        assert connector.counts.connects == 2
        await connector.stop()
        await running

    tools.run(scene())
