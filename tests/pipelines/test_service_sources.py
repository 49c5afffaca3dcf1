"""Sources as they are written on the command line: what they become, what is refused, and that no password is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.service_sources import connectors_of, source_of
from tsgdn2.service.connectors.files import FileConnector
from tsgdn2.service.connectors.host import HostConnector
from tsgdn2.service.connectors.kafka import KafkaConnector
from tsgdn2.service.connectors.mqtt import MqttConnector
from tsgdn2.service.connectors.nats import NatsConnector
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.connectors.scrape import ScrapeConnector
from tsgdn2.service.connectors.tail import TailConnector
from tsgdn2.service.mapping import MappingFile

ROUTER = Router(MappingFile(), ("cpu", "memory"))


def made(text: str, step_s: float = 60.0, **environ: str):
    (one,) = connectors_of([source_of(text)], ROUTER, step_s, environ)
    return one


def test_the_host_is_read_once_a_step_of_the_model_unless_said() -> None:
    assert isinstance(made("host"), HostConnector)
    assert made("host", 60.0).interval == 60.0
    assert made("host:500ms").interval == 0.5


def test_a_broker_of_mqtt_with_its_wildcards_tls_and_session() -> None:
    plain = made("mqtt://me:p%40ss@broker/plant/+/#?client_id=a&version=3.1.1&expiry=60")
    assert isinstance(plain, MqttConnector)
    options = plain.options
    assert (options.host, options.port, options.username, options.password) == ("broker", 1883, "me", "p@ss")
    assert (options.topics, options.client_id, options.version, options.expiry) == (("plant/+/#",), "a", "3.1.1", 60)
    assert options.tls is None
    secure = made("mqtts://broker:8884", TSGDN2_MQTT_USERNAME="u", TSGDN2_MQTT_PASSWORD="of the environment").options
    assert (secure.port, secure.topics, secure.username, secure.password) == (8884, None, "u", "of the environment")
    assert secure.tls is not None


def test_a_stream_of_nats_and_a_group_of_kafka() -> None:
    nats = made("tls://u:p@h:4222/SENSORS?durable=d&shared=true&ack_wait=5", TSGDN2_NATS_TOKEN="t")
    assert isinstance(nats, NatsConnector)
    assert (nats.options.servers, nats.options.stream, nats.options.durable) == (("tls://h:4222",), "SENSORS", "d")
    assert (nats.options.user, nats.options.password, nats.options.token) == ("u", "p", "t")
    assert (nats.options.shared, nats.options.ack_wait) == (True, 5.0)
    kafka = made("kafka://u:p@a:1,b:2?group=g&begin=latest&mechanism=SCRAM-SHA-256")
    assert isinstance(kafka, KafkaConnector)
    assert (kafka.options.servers, kafka.options.group_id, kafka.options.begin) == (("a:1", "b:2"), "g", "latest")
    security = dict(kafka.options.security or {})
    assert security.pop("ssl_context").check_hostname
    assert security == {
        "security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-256", "sasl_plain_username": "u",
        "sasl_plain_password": "p",
    }  # fmt: skip
    assert made("kafka://a:1").options.security == {"security_protocol": "PLAINTEXT"}


def test_a_scraped_page_keeps_its_own_query_and_loses_its_password() -> None:
    page = made("scrape:5s:http://u:p@h:1/metrics?job=a")
    assert isinstance(page, ScrapeConnector)
    (target,) = page.targets
    assert (target.url, target.headers, page.interval) == (
        "http://h:1/metrics?job=a", {"Authorization": "Basic dTpw"}, 5.0,
    )  # fmt: skip
    assert made("scrape:https://h/metrics").interval == 15.0


def test_files_and_tails_with_the_names_of_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "a?b.csv"
    path.write_text("when,cpu\n")
    file = made(f"file:{path}?speed=10&time=when")
    assert isinstance(file, FileConnector)
    assert (file.path, file.speed, file.layout.time) == (path, 10.0, "when")
    assert made(f"file:{path}?speed=max").speed is None
    tail = made(f"tail:{tmp_path / 'later.jsonl'}")
    assert isinstance(tail, TailConnector)
    assert tail.path == tmp_path / "later.jsonl"


def test_each_connector_has_a_name_of_its_own() -> None:
    texts = ["mqtt://a", "host", "mqtts://b", "mqtt://c"]
    found = connectors_of([source_of(text) for text in texts], ROUTER, 1.0, {})
    assert [one.name for one in found] == ["mqtt", "host", "mqtt-2", "mqtt-3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("amqp://u:secret@h", "must begin with one of host, mqtt, nats"),
        ("mqtt:", "says no place"),
        ("host:soon", "has no interval such as 5s"),
        ("mqtt://u:secret@h?clientid=a", r"\['clientid'\]; mqtt knows ca, client_id, expiry, version"),
        ("mqtt://u:secret@h:port", "can not be read"),
        ("mqtt://u:secret@h?version=4", "version: must be 5 or 3.1.1"),
        ("nats://u:secret@h", "stream: must be a name"),
        ("kafka://u:secret@h?begin=now", "begin: must be earliest or latest"),
        ("scrape:ftp://u:secret@h", "url: must be http"),
        ("file:nowhere.csv", "is no file"),
        ("tail:notes.txt", "a tail reads"),
        ("file:nowhere.csv?speed=fast", "is no file"),
    ],
)
def test_a_source_that_is_none_is_refused_without_its_password(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as found:
        made(text)
    assert "secret" not in str(found.value)


def test_a_source_as_it_is_shown_has_no_password() -> None:
    for text in ("mqtt://u:secret@h/a", "nats://u:secret@h/S", "kafka://u:secret@h:1", "scrape:http://u:secret@h/m"):
        assert "secret" not in source_of(text).text
