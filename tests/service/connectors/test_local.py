"""The host, files, tails and Kafka's records: sources that need no broker."""

import asyncio
import json
import os
import socket
import time

import numpy as np
import polars as pl
import pytest
from aiokafka import ConsumerRecord, TopicPartition

from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.readers import Layout
from tsgdn2.errors import ConfigError
from tsgdn2.service.connectors.delivery import Backoff
from tsgdn2.service.connectors.files import FileConnector
from tsgdn2.service.connectors.host import CHANNELS, HostConnector, Totals
from tsgdn2.service.connectors.kafka import KafkaConnector, KafkaOptions, message_of, offsets_of, subscription_of
from tsgdn2.service.connectors.payload import decode
from tsgdn2.service.connectors.tail import TailConnector
from tsgdn2.service.mapping import MappingError

T0 = 1_700_000_000
SECOND = 10**9


def test_the_host_is_read_on_the_grid_of_its_interval(tools):
    async def scene():
        router, sink = tools.router(channels=CHANNELS), tools.sink()
        connector = HostConnector(router, interval=0.1)
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: len(sink.rows) >= 3)
        await connector.stop()
        await running
        assert {row[0] for row in sink.rows} == {socket.gethostname()}
        ticks = [row[1] // (SECOND // 10) for row in sink.rows]
        assert ticks == sorted(set(ticks))
        assert 0 < sink.rows[-1][2][1] <= 100
        assert all(value >= 0 for value in sink.rows[-1][2])
        assert connector.counts.failures == 0

    tools.run(scene())


def test_a_slow_service_makes_the_host_leave_readings_out(tools):
    async def scene():
        connector, sink = HostConnector(tools.router(channels=("cpu",)), interval=0.02), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        sink.hold()
        await tools.until(lambda: sink.held == 1)
        held = time.monotonic()
        await tools.until(lambda: time.monotonic() > held + 0.3)
        sink.open.set()
        await tools.until(lambda: connector.counts.skipped >= 5)
        assert connector.counts.waiting <= 3
        await connector.stop()
        await running

    tools.run(scene())


def test_the_host_has_a_stream_name_and_channels_of_the_mappings_choice(tools):
    router = tools.router("host: {stream: 'node-{host}', channels: {temp: cpu}}")
    assert HostConnector(router, host="a").stream == "node-a"
    for text, message in (
        ("", "none of"), ("host: {channels: {temp: heat}}", "heat"), ("host: {stream: '{a}'}", "{a}"),
    ):  # fmt: skip
        with pytest.raises(MappingError, match=message):
            HostConnector(tools.router(text, channels=("temp",)))
    before, after = Totals(0.0, 10, 10, 10, 10), Totals(2.0, 30, 5, 10, 11)
    assert after.rates(before) == {"disk_read": 10.0, "net_in": 0.0, "net_out": 0.5}


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    steps = np.repeat(np.arange(30), 2)
    return pl.DataFrame(
        {"stream": ["a", "b"] * 30, "time": (T0 + steps * 10) * SECOND, "temp": rng.normal(size=60), "other": [1] * 60}
    ).with_columns(pl.col("time").cast(pl.Datetime("ns", "UTC")), pl.Series("load", [None, 2.5] * 30))


def written(table, path):
    {".csv": table.write_csv, ".parquet": table.write_parquet, ".jsonl": table.write_ndjson}[path.suffix](path)
    return path


async def replayed(tools, path, **options):
    connector, sink = FileConnector(path, tools.router(), **options), tools.sink()
    await connector.run(sink)
    assert connector.counts.waiting == 0
    return connector, sink


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_a_file_is_replayed_in_the_order_of_time_and_again_with_the_same_numbers(tools, tmp_path, table, ending):
    path = written(table.sort("stream"), tmp_path / f"data{ending}")

    async def scene():
        connector, sink = await replayed(tools, path, speed=None, group=7)
        assert [row[1] for row in sink.rows] == sorted(row[1] for row in sink.rows)
        assert [row[4] for row in sink.rows] == list(range(60))
        assert len({row[3] for row in sink.rows}) == 1
        assert [row[2][0] for row in sink.rows] == pytest.approx(table["temp"].to_list())
        assert sink.rows[1][2][1] == 2.5
        assert np.isnan(sink.rows[0][2][1])
        assert connector.counts.rows == 60
        _, again = await replayed(tools, path, speed=None)
        assert [row[:2] + row[3:] for row in again.rows] == [row[:2] + row[3:] for row in sink.rows]
        path.write_bytes(written(table.head(3), tmp_path / f"other{ending}").read_bytes())
        _, other = await replayed(tools, path, speed=None)
        assert other.rows[0][3] != sink.rows[0][3]

    tools.run(scene())


def test_a_replay_keeps_to_its_own_clock_at_the_speed_asked_for(tools, tmp_path, table):
    path = written(table, tmp_path / "data.parquet")  # 290 seconds of its clock

    async def scene():
        began = time.monotonic()
        _, sink = await replayed(tools, path, speed=1_000.0)
        assert time.monotonic() - began >= 0.25
        assert len(sink.deliveries) > 5
        assert len(sink.rows) == 60
        slow = FileConnector(path, tools.router(), speed=0.001)
        running = asyncio.create_task(slow.run(sink))
        await tools.until(lambda: len(sink.rows) == 62)
        await slow.stop()
        await running

    tools.run(scene())


def test_a_file_that_is_no_table_is_tried_again_and_says_why(tools, tmp_path):
    path = tmp_path / "data.csv"

    async def scene():
        connector, sink = FileConnector(path, tools.router(), speed=None, backoff=tools.fast), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.failures >= 2)
        assert "can not be opened" in connector.counts.last_error
        path.write_text("time,temp\n2023-01-01,1\n")
        await running
        assert sink.rows[0][0] == "data"

    tools.run(scene())
    with pytest.raises(ConfigError, match="speed"):
        FileConnector(path, tools.router(), speed=0)
    assert issubclass(DataError, ValueError)


def lines(first, count, *, bad=()):
    return "".join(
        "oops,\n" if n in bad else f"2023-11-14T22:13:{n:02d}Z,s{n % 2},{n}.5\n" for n in range(first, first + count)
    )


def test_a_tail_reads_finished_lines_of_a_growing_file_and_its_successor(tools, tmp_path):
    path = tmp_path / "grow.csv"

    async def scene():
        connector, sink = TailConnector(path, tools.router(), poll=0.01, group=8, backoff=tools.fast), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.failures >= 1)  # it is not there yet
        path.write_text("time,stream,temp\n" + lines(0, 20, bad=[7]) + "2023-11-14T22:13:20Z,s0,2")
        await tools.until(lambda: connector.counts.received == 20)
        with path.open("a") as file:
            file.write("0.5\n" + lines(21, 2))
        await tools.until(lambda: len(sink.rows) == 22)
        assert [row[2][0] for row in sink.rows] == [n + 0.5 for n in range(23) if n != 7]
        assert [row[0] for row in sink.rows][:3] == ["s0", "s1", "s0"]
        assert sink.rows[1][4] == len("time,stream,temp\n" + lines(0, 1))
        assert dict(connector.counts.rejected.counts) == {"malformed": 1}
        os.replace(path, tmp_path / "old.csv")
        with (tmp_path / "old.csv").open("a") as file:
            file.write(lines(30, 1))
        path.write_text("time,stream,temp\n" + lines(40, 1))
        await tools.until(lambda: len(sink.rows) == 24)
        assert [row[2][0] for row in sink.rows[-2:]] == [30.5, 40.5]
        assert len({row[3] for row in sink.rows}) == 2
        await connector.stop()
        await running
        second, again = TailConnector(tmp_path / "old.csv", tools.router(), poll=0.01), tools.sink()
        running = asyncio.create_task(second.run(again))
        await tools.until(lambda: len(again.rows) == 23)
        assert [row[4] for row in again.rows] == [row[4] for row in sink.rows[:23]]
        await second.stop()
        await running

    tools.run(scene())


def test_a_tail_of_json_lines_takes_no_line_that_is_too_long(tools, tmp_path):
    path = tmp_path / "grow.jsonl"
    good = [json.dumps({"ts": T0 + n, "dev": "d", "t": n}) for n in range(5)]
    path.write_text(
        "\n".join([good[0], "{", "x" * 5_000, *good[1:4], '{"ts": 1.5, "dev": "d", "t": "warm"}', good[4], ""])
    )
    layout = Layout(time="ts", unit="s", stream="dev", rename=(("t", "temp"),))

    async def scene():
        router = tools.router("limits: {payload_bytes: 1000}")
        connector, sink = TailConnector(path, router, layout=layout, poll=0.01), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: len(sink.rows) == 5)
        assert [row[1:3] for row in sink.rows][4][0] == (T0 + 4) * SECOND
        assert [row[2][0] for row in sink.rows] == [0, 1, 2, 3, 4]
        assert dict(connector.counts.rejected.counts) == {"malformed": 2, "oversize": 1}
        await connector.stop()
        await running

    tools.run(scene())


def record(offset, value, *, partition=0, timestamp=T0 * 1000):
    return ConsumerRecord("tele", partition, offset, timestamp, 0, None, value, None, -1, len(value or b""), ())


def test_kafkas_records_become_rows_with_offset_and_timestamp_of_their_own(tools):
    router = tools.router("kafka: [{topic: 'te*', stream: '{1}-{.d}', channels: {temp: t}}]")
    now = T0 * SECOND + 5
    records = [
        record(7, b'{"d": 1, "t": 2}'),
        record(8, b'{"d": 1, "t": 3}', partition=1, timestamp=-1),
        record(9, None),
    ]
    decoded = decode([message_of(one, now) for one in records], "kafka", router, now)
    assert decoded.rows.streams == ("le-1", "le-1")
    assert decoded.rows.sources == ("kafka:tele/0", "kafka:tele/1")
    assert decoded.rows.sequences.tolist() == [7, 8]
    assert decoded.rows.times.tolist() == [T0 * SECOND, now]
    assert dict(decoded.rejected.counts) == {"malformed": 1}


def test_the_offset_that_is_committed_is_the_next_of_each_partition():
    records = [record(4, b""), record(9, b"", partition=2), record(5, b""), record(8, b"", partition=2)]
    assert offsets_of(records) == {TopicPartition("tele", 0): 6, TopicPartition("tele", 2): 10}
    assert offsets_of([]) == {}
    assert subscription_of(["a", "b.c"]) == {"topics": ["a", "b.c"]}
    assert subscription_of(["a.*", "b"]) == {"pattern": r"^(?:a\..*|b)$"}


def test_a_kafka_broker_that_is_not_there_is_waited_for_and_stop_ends_that(tools, brokers):
    async def scene():
        options = KafkaOptions(servers=(f"127.0.0.1:{brokers.free_port()}",))
        connector, sink = KafkaConnector(options, tools.router(), backoff=tools.fast), tools.sink()
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: connector.counts.failures >= 2)
        assert "Kafka" in connector.counts.last_error
        await connector.stop()
        await running

    tools.run(scene())


def test_waits_double_up_to_the_longest_and_are_cut_by_chance():
    waits = Backoff(first=1.0, longest=5.0).waits()
    found = [next(waits) for _ in range(6)]
    assert all(0.5 * full <= wait <= full for wait, full in zip(found, (1, 2, 4, 5, 5, 5), strict=True))
    with pytest.raises(ConfigError, match="backoff"):
        Backoff(first=2.0, longest=1.0)
