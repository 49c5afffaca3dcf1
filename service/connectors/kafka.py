"""Kafka, through aiokafka: a consumer group whose offsets are committed after our own commit.

A record's offset is its sequence, under the name of topic and partition, and its timestamp is its own time. A topic
that is deleted and made anew counts from 0 again: give its rule another `source`.

What was tested: records (aiokafka's own objects) into rows, the offsets that are committed for groups of several
partitions, the subscription, and waiting for a broker that is not there. No broker could be had where this was
written: reading from one, rebalancing and the commit itself are aiokafka's, and untested here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from tsgdn2.errors import ConfigError
from tsgdn2.service.connectors.connector import Connector, Lane
from tsgdn2.service.connectors.decoded import Decoded
from tsgdn2.service.connectors.delivery import Backoff, Sink
from tsgdn2.service.connectors.payload import Message, decode
from tsgdn2.service.connectors.router import Router

_POLL_MS = 500


@dataclass(frozen=True, kw_only=True)
class KafkaOptions:
    """Where the brokers are and who we are to them."""

    servers: tuple[str, ...]
    """host:port of one broker or more."""
    group_id: str = "tsgdn2"
    begin: Literal["earliest", "latest"] = "earliest"
    """Where a group that has no offset begins."""
    security: Mapping[str, Any] | None = None
    """aiokafka's own arguments: security_protocol, ssl_context, sasl_mechanism, sasl_plain_username and so on."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not self.servers or not self.group_id:
            raise ConfigError("servers, group_id: one broker and a name for the group are needed")


def message_of(record: ConsumerRecord[Any, Any], arrived: int) -> Message:
    """A record as a message; one without a timestamp has the time of its arrival, one without a value is empty."""
    time = record.timestamp * 10**6 if record.timestamp >= 0 else arrived
    return Message(record.topic, record.value or b"", time, record.offset, f"kafka:{record.topic}/{record.partition}")


def offsets_of(records: Iterable[ConsumerRecord[Any, Any]]) -> dict[TopicPartition, int]:
    """What to commit when all of these are done: for each partition, the offset that comes next."""
    offsets: dict[TopicPartition, int] = {}
    for record in records:
        partition = TopicPartition(record.topic, record.partition)
        offsets[partition] = max(offsets.get(partition, 0), record.offset + 1)
    return offsets


def subscription_of(topics: Sequence[str]) -> dict[str, Any]:
    """Arguments of `subscribe`: the names, or one pattern when a name has wildcards."""
    if any("*" in topic for topic in topics):
        either = "|".join(".*".join(map(re.escape, topic.split("*"))) for topic in topics)
        return {"pattern": f"^(?:{either})$"}
    return {"topics": list(topics)}


class KafkaConnector(Connector):
    """Reads the mapping's topics as a member of a consumer group."""

    away = (*Connector.away, KafkaError)

    def __init__(
        self,
        options: KafkaOptions,
        router: Router,
        *,
        name: str = "kafka",
        in_flight: int = 2,
        group: int = 256,
        backoff: Backoff | None = None,
        patience: float = 30.0,
    ) -> None:
        super().__init__(name, in_flight=in_flight, group=group, backoff=backoff, patience=patience)
        self.options, self.router = options, router

    async def session(self, sink: Sink) -> None:
        """See Connector."""
        options = self.options
        consumer = AIOKafkaConsumer(
            bootstrap_servers=list(options.servers),
            group_id=options.group_id,
            client_id=self.name,
            enable_auto_commit=False,
            auto_offset_reset=options.begin,
            max_poll_records=self.group,
            **(options.security or {}),
        )

        async def acknowledge(records: Sequence[ConsumerRecord[Any, Any]]) -> None:
            await consumer.commit(offsets_of(records))

        def rows(records: Sequence[ConsumerRecord[Any, Any]]) -> Decoded:
            arrived = self.now()
            return decode([message_of(record, arrived) for record in records], "kafka", self.router, arrived)

        consumer.subscribe(**subscription_of(self.router.topics("kafka")))
        try:
            await consumer.start()
            self.connected()
            async with Lane(self, sink, rows, acknowledge) as lane:
                while not self.stopping:
                    parts = await lane.receive(consumer.getmany(timeout_ms=_POLL_MS, max_records=self.group))
                    records = [record for part in (parts or {}).values() for record in part]
                    if records:
                        await lane.put(records)
        finally:
            await consumer.stop()
