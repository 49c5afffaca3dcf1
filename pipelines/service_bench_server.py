"""The serving process of the service's benchmark: `serve` as it is, on a prepared store, with MQTT where asked for.

Its one addition is a connector that writes down when each delivery was committed (monotonic clock, rows so far), right
before they are acknowledged to the broker: 16 bytes in a file, from which the publisher tells how long each row took,
and how far it may be ahead. Rows of one publisher come in its order, so their number is enough to know them.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.service_bench_inside import limits_of
from tsgdn2.service.connectors.connector import Connector
from tsgdn2.service.connectors.delivery import Delivery, Sink
from tsgdn2.service.connectors.mqtt import MqttConnector, MqttOptions
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.server import serve
from tsgdn2.service.settings import read_settings

COMMIT: Final = struct.Struct("<dq")
"""Moment [s, monotonic] at which so many rows had been committed."""
CLIENT: Final = "tsgdn2-bench"


class NotedMqtt(MqttConnector):
    """The MQTT connector, which notes its commits."""

    def __init__(self, options: MqttOptions, router: Router, commits: Path) -> None:
        super().__init__(options, router)
        self._file = os.open(commits, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._rows = 0

    async def run(self, sink: Sink) -> None:
        """See Connector."""

        async def noted(delivery: Delivery) -> object:
            found = await sink(delivery)
            self._rows += len(delivery.rows)
            os.write(self._file, COMMIT.pack(time.monotonic(), self._rows))
            return found

        await super().run(noted)


def serve_bench(given: dict[str, Any]) -> None:
    """Serve.

    given: model, place (of the store), port, streams, group_rows, threads, mapping; mqtt (a port) and commits, or
    neither.
    """
    torch.set_num_threads(given["threads"])
    online = OnlinePredictor.load(given["model"])
    settings = read_settings(
        environ={}, host="127.0.0.1", port=given["port"], store=given["place"], keys="off", mapping=given["mapping"],
        limits=limits_of(online, given["streams"], given["group_rows"]),
    )  # fmt: skip

    def connectors(router: Router) -> Sequence[Connector]:
        if not given.get("mqtt"):
            return ()
        options = MqttOptions(host="127.0.0.1", port=given["mqtt"], client_id=CLIENT)
        return (NotedMqtt(options, router, Path(given["commits"])),)

    serve(settings, lambda: online, connectors=connectors)
