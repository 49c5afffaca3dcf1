"""NATS JetStream, through nats-py: a durable pull consumer, acknowledged message by message after the commit.

The number of a message in its JetStream stream is its sequence, under the name of that stream and the moment of its
making (a stream that is deleted and made anew counts from 1 again). A store knows repeats by comparing with the highest
number, so messages have to come in order. JetStream breaks that order after a crash or a lost connection: what was
delivered and not acknowledged comes again after `ack_wait`, behind newer ones. A connection that finds such messages
therefore makes the consumer anew, from the first one that was not acknowledged; what was taken since passes for a
repeat. With `shared`, several services read from one consumer and none may do that: order is then not kept, and a
message that comes more than 1,024 numbers late is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from tsgdn2.errors import ConfigError
from tsgdn2.service.connectors.connector import Connector, Lane, LostError
from tsgdn2.service.connectors.decoded import Decoded
from tsgdn2.service.connectors.delivery import Backoff, Sink
from tsgdn2.service.connectors.payload import Message, decode
from tsgdn2.service.connectors.router import Router

_OLD_REPLY = 9
_IDLE_SECONDS = 5.0
_CONNECT_SECONDS = 15.0
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class NatsOptions:
    """Where the server is and what is read from it."""

    servers: tuple[str, ...]
    """nats://host:port of each server of the cluster; tls:// for TLS."""
    stream: str
    """The JetStream stream; it must exist."""
    durable: str = "tsgdn2"
    """Name of the consumer, which remembers what was acknowledged."""
    shared: bool = False
    """Other processes read from the same consumer."""
    ack_wait: float = 60.0
    """Seconds after which the server sends again what was not acknowledged."""
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    """File of credentials."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        for name in ("stream", "durable"):
            if not (given := getattr(self, name)) or set(given) & set(" .*>"):
                raise ConfigError(f"{name}: must be a name without blanks, dots, * and >, got {given!r}")
        if not self.servers or self.ack_wait <= 0:
            raise ConfigError("servers, ack_wait: at least one server and a wait above 0 are needed")


class Place(NamedTuple):
    """Where a message stands: its number in the stream, when it was stored (ns), and how many are behind it."""

    sequence: int
    time: int
    pending: int


def place_of(reply: str) -> Place:
    """Read what JetStream writes into the reply subject of a message; ValueError where it did not."""
    tokens = reply.split(".")
    if tokens[:2] != ["$JS", "ACK"] or len(tokens) < _OLD_REPLY:
        raise ValueError(f"{reply[:80]!r} is not the reply subject of a JetStream message")
    at = 5 if len(tokens) == _OLD_REPLY else 7
    return Place(int(tokens[at]), int(tokens[at + 2]), int(tokens[at + 3]))


class NatsConnector(Connector):
    """Reads one JetStream stream."""

    away = (*Connector.away, NatsError)

    def __init__(
        self,
        options: NatsOptions,
        router: Router,
        *,
        name: str = "nats",
        in_flight: int = 2,
        group: int = 256,
        backoff: Backoff | None = None,
        patience: float = 30.0,
    ) -> None:
        super().__init__(name, in_flight=in_flight, group=group, backoff=backoff, patience=patience)
        self.options, self.router = options, router

    async def session(self, sink: Sink) -> None:
        """See Connector."""
        closed = asyncio.get_running_loop().create_future()

        async def on_closed() -> None:
            if not closed.done():
                closed.set_result(None)

        async def on_error(error: Exception) -> None:
            self.note(error)

        options = self.options
        # Connecting again is our own business, so the client tries every server and gives up.
        async with asyncio.timeout(_CONNECT_SECONDS):
            client = await nats.connect(
                list(options.servers), name=self.name, allow_reconnect=False, max_reconnect_attempts=1,
                reconnect_time_wait=0, connect_timeout=5, user=options.user, password=options.password,
                token=options.token, user_credentials=options.credentials, closed_cb=on_closed, error_cb=on_error,
            )  # fmt: skip
        try:
            await self._read(client, closed, sink)
        finally:
            with contextlib.suppress(*self.away):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await client.close()

    async def _read(self, client: Client, closed: asyncio.Future[None], sink: Sink) -> None:
        stream, context = self.options.stream, client.jetstream(timeout=10)
        created = (await context.stream_info(stream)).created
        source = f"nats:{stream}:{int(created.timestamp()) if created is not None else 0}"
        await self._consumer(context)
        subscription = await context.pull_subscribe_bind(consumer=self.options.durable, stream=stream)
        self.connected()

        async def acknowledge(messages: Sequence[Any]) -> None:
            for message in messages:
                await client.publish(message.reply, b"+ACK")
            await client.flush(10)

        def rows(messages: Sequence[Any]) -> Decoded:
            return decode([_message(message, source) for message in messages], "nats", self.router, self.now())

        async with Lane(self, sink, rows, acknowledge) as lane:
            while not self.stopping:
                group = await lane.receive(self._group(subscription, closed))
                if group:
                    await lane.put(group)

    async def _group(self, subscription: JetStreamContext.PullSubscription, closed: asyncio.Future[None]) -> list[Any]:
        """At least one message as soon as there is one, and with it those that stand behind it; none when idle."""
        fetch = asyncio.ensure_future(subscription.fetch(1, timeout=_IDLE_SECONDS))
        try:
            await asyncio.wait((fetch, closed), return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                raise LostError("the server closed the connection")
            messages = fetch.result()
        except TimeoutError:
            return []
        finally:
            fetch.cancel()
        behind = min(place_of(messages[0].reply).pending, self.group - 1)
        if behind:
            with contextlib.suppress(asyncio.TimeoutError):
                messages += await subscription.fetch(behind, timeout=1)
        return messages

    async def _consumer(self, context: JetStreamContext) -> None:
        """The durable consumer: made where it is not there, or where what it sends would come out of order."""
        options = self.options
        subjects = [subject for subject in self.router.topics("nats") if subject != ">"]
        config = ConsumerConfig(
            name=options.durable,
            durable_name=options.durable,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=options.ack_wait,
            max_ack_pending=(self.in_flight + 2) * self.group,
            # Servers before 2.10 filter by one subject; with several rules all comes, and what fits none is counted.
            filter_subject=subjects[0] if len(subjects) == len(self.router.topics("nats")) == 1 else None,
        )
        try:
            info = await context.consumer_info(options.stream, options.durable)
        except NotFoundError:
            await context.add_consumer(options.stream, config)
        else:
            if not options.shared and info.num_ack_pending and info.ack_floor is not None:
                await context.delete_consumer(options.stream, options.durable)
                start = (info.ack_floor.stream_seq or 0) + 1
                await context.add_consumer(
                    options.stream,
                    replace(config, deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=start),
                )


def _message(message: Any, source: str) -> Message:
    place = place_of(message.reply)
    return Message(message.subject, message.data, place.time, place.sequence, source)
