"""NATS JetStream against a real nats-server: in order after a crash, repeats by the stream's own numbers."""

import asyncio
import json
import uuid

import nats
import pytest

from tsgdn2.errors import ConfigError
from tsgdn2.service.connectors.nats import NatsConnector, NatsOptions, Place, place_of

SECOND = 10**9
T0 = 1_700_000_000
MAPPING = """
nats:
  - {{subject: "{site}.*.env", stream: "{{1}}", channels: {{temp: t}}, time: {{field: ts, unit: s, absent: own}}}}
"""


@pytest.fixture
def site():
    return f"site{uuid.uuid4().hex[:8]}"


async def client_of(server, site):
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(name=site, subjects=[f"{site}.>"])
    return client


async def publish(client, site, numbers, device="a"):
    for n in numbers:
        await client.jetstream().publish(f"{site}.{device}.env", json.dumps({"ts": T0 + n, "t": 20 + n}).encode())


def connector_of(tools, server, site, **options):
    options = NatsOptions(servers=(server.url,), stream=site, durable="reader", **options)
    return NatsConnector(options, tools.router(MAPPING.format(site=site)), backoff=tools.fast, group=8)


def test_the_number_in_the_stream_is_the_sequence_and_acknowledgements_are_with_the_server(tools, nats_server, site):
    async def scene():
        client = await client_of(nats_server, site)
        await publish(client, site, range(30))
        await client.jetstream().publish(f"{site}.b.env", b'{"t": 5}')
        connector, sink = connector_of(tools, nats_server, site), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.acknowledged == 31)
        assert [row[4] for row in sink.rows] == list(range(1, 32))
        created = (await client.jetstream().stream_info(site)).created
        assert sink.rows[0][:2] == ("a", T0 * SECOND)
        assert sink.rows[0][3] == f"nats:{site}:{int(created.timestamp())}"
        assert abs(sink.rows[-1][1] - connector.now()) < 60 * SECOND
        await connector.stop()
        await running
        info = await client.jetstream().consumer_info(site, "reader")
        assert (info.num_ack_pending, info.ack_floor.stream_seq) == (0, 31)
        await client.close()

    tools.run(scene())


def test_after_a_crash_unacknowledged_messages_come_again_before_newer_ones_and_without_waiting(
    tools, nats_server, site
):
    async def scene():
        client = await client_of(nats_server, site)
        first, held = connector_of(tools, nats_server, site, ack_wait=3600), tools.sink()
        running = asyncio.create_task(first.run(held))
        await tools.until(lambda: first.counts.connected)
        await publish(client, site, range(4))
        await tools.until(lambda: first.counts.acknowledged == 4)
        held.hold()
        await publish(client, site, range(4, 12))
        await tools.until(lambda: held.held == 1)
        running.cancel()
        await asyncio.wait((running,))
        await publish(client, site, range(12, 15))
        second, sink = connector_of(tools, nats_server, site, ack_wait=3600), tools.sink()
        again = asyncio.create_task(second.run(sink))
        await tools.until(lambda: second.counts.acknowledged == 11)
        assert [row[4] for row in sink.rows] == list(range(5, 16))
        await second.stop()
        await again
        await client.close()

    tools.run(scene())


def test_a_server_that_stops_and_starts_again_is_found_again_and_nothing_is_lost(tools, brokers, site):
    async def scene(server):
        client = await client_of(server, site)
        connector, sink = connector_of(tools, server, site, ack_wait=0.5), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await publish(client, site, range(3))
        await tools.until(lambda: connector.counts.acknowledged == 3)
        await client.close()
        server.stop()
        await tools.until(lambda: connector.counts.failures >= 2)
        server.start()
        await tools.until(lambda: connector.counts.connects == 2)
        client = await client_of(server, site)
        await publish(client, site, range(3, 6))
        await tools.until(lambda: [row[4] for row in sink.rows] == list(range(1, 7)))
        await connector.stop()
        await running
        await client.close()

    with brokers.NatsServer() as server:
        tools.run(scene(server))


def test_poisoned_messages_are_acknowledged_and_counted(tools, nats_server, site):
    async def scene():
        client = await client_of(nats_server, site)
        for payload in (b"\x00\x01", b'{"ts": 1e300, "t": 1}', b'{"ts": 5, "t": 1}', b'{"t": "warm"}'):
            await client.jetstream().publish(f"{site}.a.env", payload)
        await publish(client, site, [1])
        connector, sink = connector_of(tools, nats_server, site), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.acknowledged == 5)
        await connector.stop()
        await running
        assert len(sink.rows) == 1
        assert dict(connector.counts.rejected.counts) == {"malformed": 1, "time": 2, "value": 1}
        info = await client.jetstream().consumer_info(site, "reader")
        assert info.num_ack_pending == 0
        await client.close()

    tools.run(scene())


def test_a_stream_that_is_not_there_yet_is_waited_for(tools, nats_server, site):
    async def scene():
        connector, sink = connector_of(tools, nats_server, site), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.failures >= 2)
        assert "NotFound" in connector.counts.last_error
        client = await client_of(nats_server, site)
        await publish(client, site, [1])
        await tools.until(lambda: len(sink.rows) == 1)
        await connector.stop()
        await running
        await client.close()

    tools.run(scene())


def test_a_reply_subject_is_read_in_both_of_its_forms():
    assert place_of("$JS.ACK.S.c.1.17.9.1700000000123456789.4") == Place(17, 1_700_000_000_123_456_789, 4)
    assert place_of("$JS.ACK._.hash.S.c.1.17.9.1700000000123456789.4.rnd") == Place(17, 1_700_000_000_123_456_789, 4)
    with pytest.raises(ValueError, match="not the reply subject"):
        place_of("inbox.a.b")


def test_names_that_no_server_would_take_are_refused():
    with pytest.raises(ConfigError, match="stream"):
        NatsOptions(servers=("nats://x",), stream="a.b")
    with pytest.raises(ConfigError, match="servers"):
        NatsOptions(servers=(), stream="a")
