"""Sources of `tsgdn2 serve` as they are written on the command line, made into connectors.

    host  host:5s                                     this machine; every step of the model unless said
    mqtt://broker[:1883][/topic]     mqtts://         topics of the mapping unless one is named
    nats://server[:4222]/STREAM      tls://           a JetStream stream
    kafka://broker:9092[,broker]
    scrape:http://target/metrics   scrape:15s:https://..
    file:PATH                        tail:PATH

Behind a ? stand options, &-separated; OPTIONS has all of them, and an unknown one is an error. Who may read a process's
arguments reads passwords there too, so the environment may hold them. An error or a log shows neither.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.grid import period_ns
from tsgdn2.datasets.readers import Layout
from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.tracking import shown

if TYPE_CHECKING:
    from tsgdn2.service.connectors.connector import Connector
    from tsgdn2.service.connectors.router import Router

FILE: Final = frozenset({"time", "stream", "name", "unit", "time_format"})
OPTIONS: Final[dict[str, frozenset[str]]] = {
    "host": frozenset(),
    "mqtt": frozenset({"client_id", "version", "expiry", "ca"}),
    "nats": frozenset({"durable", "shared", "ack_wait", "credentials"}),
    "kafka": frozenset({"group", "begin", "protocol", "mechanism", "ca"}),
    "scrape": frozenset(),
    "file": FILE | {"speed"},
    "tail": FILE,
}
"""What may stand behind the ? of each kind; a scraped address keeps its own."""
_KINDS: Final = {"mqtts": "mqtt", "tls": "nats"}


class Source(NamedTuple):
    """One source: its kind, what stands behind the kind, options, and how often it is read where that is said."""

    kind: str
    place: str
    options: Mapping[str, str]
    every: float | None
    text: str
    """As it was written, without a password."""


def source_of(text: str) -> Source:
    """Read one source. ConfigError, without its password."""
    kind, _, place = text.partition(":")
    safe = f"{kind}:{_safe(kind, place)}" if place else kind
    kind = _KINDS.get(kind, kind)
    if kind not in OPTIONS:
        raise ConfigError(
            f"source: must begin with one of {', '.join([*OPTIONS, *_KINDS])}, got {safe!r}; a broker is written "
            "mqtt://broker, a file file:PATH"
        )
    every = None
    if kind == "host" and place:
        every, place = _seconds(place, safe), ""
    if kind == "scrape" and (found := re.match(r"(\d+[a-z]+):(?=https?://)", place)) is not None:
        every, place = _seconds(found[1], safe), place[found.end() :]
    options: dict[str, str] = {}
    if kind not in ("host", "scrape") and "?" in place:
        place, _, query = place.rpartition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(options) - OPTIONS[kind]):
        known = ", ".join(sorted(OPTIONS[kind])) or "none"
        raise ConfigError(f"source: {safe!r} has the options {unknown}; {kind} knows {known}")
    if kind != "host" and not place.strip("/"):
        raise ConfigError(f"source: {safe!r} says no place; --help shows how each kind is written")
    return Source(kind, place, options, every, safe)


def connectors_of(
    sources: Sequence[Source], router: Router, step_s: float, environ: Mapping[str, str] | None = None
) -> list[Connector]:
    """A connector for each source, each with a name of its own. step_s: seconds of one step of the model.

    ConfigError, MappingError: a source that does not fit.
    """
    given, made, count = os.environ if environ is None else environ, list[Any](), Counter[str]()
    for source in sources:
        count[source.kind] += 1
        name = source.kind if count[source.kind] == 1 else f"{source.kind}-{count[source.kind]}"
        try:
            made.append(_connector(source, router, step_s, given, name))
        except ConfigError as error:
            raise type(error)(f"source {source.text!r}: {error}") from None
        except ValueError as error:
            raise ConfigError(f"source: {source.text!r} can not be read ({error})") from None
    return made


def _connector(source: Source, router: Router, step_s: float, environ: Mapping[str, str], name: str) -> Connector:
    if source.kind == "host":
        from tsgdn2.service.connectors.host import HostConnector

        return HostConnector(router, interval=source.every or step_s, name=name)
    if source.kind in ("file", "tail"):
        return _file(source, router, name)
    if source.kind == "scrape":
        from tsgdn2.service.connectors.scrape import ScrapeConnector, Target

        url, headers = _without_user(source.place)
        return ScrapeConnector([Target(url=url, headers=headers)], router, interval=source.every or 15.0, name=name)
    place = urlsplit(f"{source.kind}:{source.place}", allow_fragments=False)  # # is a wildcard of MQTT
    user, password = _credentials(source.kind, place, environ)
    if source.kind == "mqtt":
        return _mqtt(source, place, user, password, router, name)
    if source.kind == "nats":
        return _nats(source, place, user, password, environ, router, name)
    return _kafka(source, place, user, password, router, name)


def _mqtt(
    source: Source, place: SplitResult, user: str | None, password: str | None, router: Router, name: str
) -> Connector:
    import aiomqtt

    from tsgdn2.service.connectors.mqtt import MqttConnector, MqttOptions

    options, secure = source.options, source.text.startswith("mqtts:")
    if options.get("version", "5") not in ("5", "3.1.1"):
        raise ConfigError(f"version: must be 5 or 3.1.1, got {options['version']!r}")
    topic = unquote(place.path.lstrip("/"))
    made = MqttOptions(
        host=place.hostname or "localhost", port=place.port or (8883 if secure else 1883), username=user,
        password=password, client_id=options.get("client_id", "tsgdn2"), topics=(topic,) if topic else None,
        version="3.1.1" if options.get("version") == "3.1.1" else "5", expiry=int(options.get("expiry", 7 * 86_400)),
        tls=aiomqtt.TLSParameters(ca_certs=options.get("ca")) if secure else None,
    )  # fmt: skip
    return MqttConnector(made, router, name=name)


def _nats(
    source: Source, place: SplitResult, user: str | None, password: str | None, environ: Mapping[str, str],
    router: Router, name: str,
) -> Connector:  # fmt: skip
    from tsgdn2.service.connectors.nats import NatsConnector, NatsOptions

    options, scheme = source.options, source.text.partition(":")[0]
    made = NatsOptions(
        servers=(f"{scheme}://{place.netloc.rpartition('@')[2]}",), stream=unquote(place.path.strip("/")), user=user,
        password=password, token=environ.get("TSGDN2_NATS_TOKEN"), durable=options.get("durable", "tsgdn2"),
        shared=options.get("shared", "false").lower() == "true", ack_wait=float(options.get("ack_wait", 60)),
        credentials=options.get("credentials", environ.get("TSGDN2_NATS_CREDENTIALS")),
    )  # fmt: skip
    return NatsConnector(made, router, name=name)


def _kafka(
    source: Source, place: SplitResult, user: str | None, password: str | None, router: Router, name: str
) -> Connector:
    from tsgdn2.service.connectors.kafka import KafkaConnector, KafkaOptions

    options, security = source.options, dict[str, Any]()
    if user is not None:
        security = {"sasl_plain_username": user, "sasl_plain_password": password or "", "sasl_mechanism": "PLAIN"}
    security["security_protocol"] = options.get("protocol", "SASL_SSL" if user is not None else "PLAINTEXT")
    if "mechanism" in options:
        security["sasl_mechanism"] = options["mechanism"]
    if security["security_protocol"].endswith("SSL"):
        security["ssl_context"] = ssl.create_default_context(cafile=options.get("ca"))
    begin = options.get("begin", "earliest")
    if begin not in ("earliest", "latest"):
        raise ConfigError(f"begin: must be earliest or latest, got {begin!r}")
    made = KafkaOptions(
        servers=tuple(place.netloc.rpartition("@")[2].split(",")), group_id=options.get("group", "tsgdn2"),
        begin="latest" if begin == "latest" else "earliest", security=security,
    )  # fmt: skip
    return KafkaConnector(made, router, name=name)


def _file(source: Source, router: Router, name: str) -> Connector:
    from tsgdn2.service.connectors.files import FileConnector
    from tsgdn2.service.connectors.tail import TailConnector

    path = Path(source.place.removeprefix("//"))
    options: dict[str, Any] = dict(source.options)
    speed = options.pop("speed", "1")
    layout = Layout(**options)
    if source.kind == "tail":
        return TailConnector(path, router, layout=layout, name=name)
    if not path.is_file():
        raise ConfigError(f"file: {path} is no file; give an existing one")
    return FileConnector(path, router, layout=layout, name=name, speed=None if speed == "max" else float(speed))


def _credentials(kind: str, place: SplitResult, environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """User and password: of the address, or else of the environment."""
    own = tuple(None if part is None else unquote(part) for part in (place.username, place.password))
    told = tuple(environ.get(f"TSGDN2_{kind.upper()}_{part}") for part in ("USERNAME", "PASSWORD"))
    return own[0] or told[0], own[1] or told[1]


def _without_user(url: str) -> tuple[str, dict[str, str] | None]:
    """An address that may be logged, and what shows who asks."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    token = base64.b64encode(pair.encode()).decode()
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), {"Authorization": f"Basic {token}"}


def _safe(kind: str, place: str) -> str:
    return place if kind in ("file", "tail") else shown(place)


def _seconds(text: str, safe: str) -> float:
    try:
        return period_ns(text) / 1e9
    except FrameError as error:
        raise ConfigError(f"source: {safe!r} has no interval such as 5s ({error})") from None
