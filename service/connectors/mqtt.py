"""MQTT, through aiomqtt: QoS 1, acknowledged by hand after the commit, in a session that outlives the process.

The client id is fixed and the session is kept (clean start off, `expiry` seconds), so a service that was killed gets
again what it had not acknowledged, in order and before anything newer. The broker keeps what it is told to keep:
mosquitto forgets what is above max_queued_messages (1,000 by default) while the service is away, and sends no more than
max_inflight_messages (20 by default) ahead of the acknowledgements, which limits the rate; set both to 0.

MQTT numbers nothing for its readers: the sequence that makes a repeat harmless comes from the payload (mapping.py).
What is published with QoS 0 has no acknowledgement; of that, at most a window is held and the rest is dropped, counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tsgdn2.errors import ConfigError
from tsgdn2.service.connectors.connector import Connector, Lane, LostError
from tsgdn2.service.connectors.decoded import Decoded
from tsgdn2.service.connectors.delivery import Backoff, Sink
from tsgdn2.service.connectors.payload import Message, decode
from tsgdn2.service.connectors.router import Router

_WINDOW = 65_535
_REFUSED = 128
_READS = 128


@dataclass(frozen=True, kw_only=True)
class MqttOptions:
    """Where the broker is and who we are to it."""

    host: str
    port: int = 1883
    client_id: str = "tsgdn2"
    """Fixed: the broker keeps the session under it. Two services need two."""
    username: str | None = None
    password: str | None = None
    tls: aiomqtt.TLSParameters | None = None
    version: Literal["3.1.1", "5"] = "5"
    expiry: int = 7 * 86_400
    """Seconds that the broker keeps the session of a service that is away (version 5)."""
    keepalive: int = 30
    topics: tuple[str, ...] | None = None
    """What to subscribe to, $share/group/.. for instance; None: the topics of the mapping's rules."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not self.client_id:
            raise ConfigError("client_id: must not be empty, the broker keeps what is not acknowledged under it")


class Arrival(NamedTuple):
    """A message and what acknowledges it."""

    message: Message
    mid: int
    qos: int


class Client(aiomqtt.Client):
    """aiomqtt's client with paho's manual acknowledgement, handing out all that has come at once.

    aiomqtt has neither in its interface, hence the reach into it; its version is pinned with the tests.
    """

    def __init__(self, window: int, **options: Any) -> None:
        super().__init__(**options)
        self._client.manual_ack_set(True)
        self._window = window
        self._arrivals: deque[Arrival] = deque()
        self._some = asyncio.Event()
        self.dropped = 0

    async def group(self, most: int) -> list[Arrival]:
        """At least one message, at most `most`; MqttError when the connection is gone."""
        while not self._arrivals:
            self._some.clear()
            waiting = asyncio.ensure_future(self._some.wait())
            try:
                await asyncio.wait((waiting, self._disconnected), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            if self._disconnected.done():
                raise LostError("the broker closed the connection") from self.ended()
        return [self._arrivals.popleft() for _ in range(min(most, len(self._arrivals)))]

    def ended(self) -> BaseException | None:
        """What ended the connection, if anything did; a future whose exception nobody looks at complains."""
        over = self._disconnected
        return over.exception() if over.done() and not over.cancelled() else None

    def acknowledge(self, arrival: Arrival) -> None:
        """Tell the broker that it need not come again; LostError when it can not be told."""
        if arrival.qos and self._client.ack(arrival.mid, arrival.qos) != 0:
            raise LostError("an acknowledgement could not be sent")

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        super()._on_socket_open(client, userdata, sock)

        def read() -> None:
            # aiomqtt reads one packet for each turn of the event loop, and the turn costs more than the packet.
            try:
                for _ in range(_READS):
                    before = len(self._arrivals)
                    client.loop_read()
                    pending = getattr(sock, "pending", None)
                    if len(self._arrivals) == before and not (pending is not None and pending()):
                        break
            except Exception as error:  # as aiomqtt does: whatever breaks reading breaks the connection
                if not self._disconnected.done():
                    self._disconnected.set_exception(error)

        self._loop.call_soon_threadsafe(self._loop.add_reader, sock.fileno(), read)

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:  # noqa: ARG002  paho's signature
        if message.qos == 0 and len(self._arrivals) >= self._window:
            self.dropped += 1
            return
        try:
            topic = message.topic
        except UnicodeDecodeError:  # it fits no rule, and so it is acknowledged, counted and gone
            topic = "\N{REPLACEMENT CHARACTER}"
        arrived = Message(topic, bytes(message.payload), Connector.now())
        self._arrivals.append(Arrival(arrived, message.mid, message.qos))
        self._some.set()


class MqttConnector(Connector):
    """Subscribes to the mapping's topics and delivers what comes."""

    away = (*Connector.away, aiomqtt.MqttError)

    def __init__(
        self,
        options: MqttOptions,
        router: Router,
        *,
        name: str = "mqtt",
        in_flight: int = 3,
        group: int = 512,
        backoff: Backoff | None = None,
        patience: float = 30.0,
    ) -> None:
        super().__init__(name, in_flight=in_flight, group=group, backoff=backoff, patience=patience)
        self.options, self.router = options, router

    async def session(self, sink: Sink) -> None:
        """See Connector."""
        client = self._client()

        async def acknowledge(arrivals: Sequence[Arrival]) -> None:
            for arrival in arrivals:
                client.acknowledge(arrival)

        def rows(arrivals: Sequence[Arrival]) -> Decoded:
            decoded = decode([arrival.message for arrival in arrivals], "mqtt", self.router, self.now())
            if client.dropped:
                decoded.rejected.add("oversize", "QoS 0", "came faster than it could be taken", count=client.dropped)
                client.dropped = 0
            return decoded

        try:
            async with client:
                await self._subscribe(client)
                self.connected()
                async with Lane(self, sink, rows, acknowledge) as lane:
                    while not self.stopping:
                        arrivals = await lane.receive(client.group(self.group))
                        if arrivals:
                            await lane.put(arrivals)
        finally:
            client.ended()

    async def _subscribe(self, client: Client) -> None:
        five = self.options.version == "5"
        for topic in self.options.topics or self.router.topics("mqtt"):
            # Retained messages come with a new subscription only, not again with every connection.
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
            granted = await (client.subscribe(topic, options=options) if five else client.subscribe(topic, qos=1))
            for code in granted:
                if (code.value if isinstance(code, ReasonCode) else code) >= _REFUSED:
                    raise LostError(
                        f"the broker refused the subscription to {topic!r} ({code}); check its access rules"
                    )

    def _client(self) -> Client:
        options, window = self.options, min((self.in_flight + 2) * self.group, _WINDOW)
        given: dict[str, Any] = {
            "hostname": options.host,
            "port": options.port,
            "identifier": options.client_id,
            "username": options.username,
            "password": options.password,
            "tls_params": options.tls,
            "keepalive": options.keepalive,
        }
        if options.version == "3.1.1":
            return Client(window, protocol=aiomqtt.ProtocolVersion.V311, clean_session=False, **given)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = options.expiry
        properties.ReceiveMaximum = window
        return Client(window, protocol=aiomqtt.ProtocolVersion.V5, clean_start=False, properties=properties, **given)
