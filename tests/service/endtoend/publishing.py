"""A process that publishes the flow with QoS 1, fast, until a line on its input says to stop; run by the tests.

    python -m tests.service.endtoend.publishing PORT SEED STREAMS RATE MOST

First it says `publishing`; once it has been told to stop, or MOST (-1 is no end) are out, it waits
for every acknowledgement of the broker (PUBACK) and says how many rows it has published, and how many of them the
broker acknowledged. A broker that is away is waited for, and what it has not acknowledged is sent again, in order.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from tests.service.endtoend.flow import flow, payload_of, topic_of

WINDOW = 400
"""Rows that may be without acknowledgement."""
STEP = 20
"""Rows between two looks at the clock."""


class Publisher:
    """A client, and what the broker has acknowledged to it."""

    def __init__(self, port: int) -> None:
        self.lock = threading.Condition()
        self.waiting: dict[int, int] = {}
        self.early: set[int] = set()
        self.acknowledged: set[int] = set()
        self.refused = 0
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="publisher", clean_session=False, protocol=paho.MQTTv311
        )
        self.client.on_publish = self.on_publish
        self.client.max_inflight_messages_set(WINDOW)
        self.client.max_queued_messages_set(0)
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port, keepalive=30)
        self.client.loop_start()

    def on_publish(self, client: Any, userdata: Any, mid: int, code: Any, properties: Any) -> None:
        """A PUBACK has come, perhaps before `publish` has returned its number."""
        with self.lock:
            self.refused += bool(code.is_failure)
            if mid in self.waiting:
                self.acknowledged.add(self.waiting.pop(mid))
            else:
                self.early.add(mid)
            self.lock.notify_all()

    def publish(self, place: int, topic: str, payload: bytes) -> None:
        """Publish the row of this place, once there is room in the window."""
        with self.lock:
            while len(self.waiting) >= WINDOW:
                self.lock.wait()
        mid = self.client.publish(topic, payload, qos=1).mid
        with self.lock:
            if mid in self.early:
                self.early.discard(mid)
                self.acknowledged.add(place)
            else:
                self.waiting[mid] = place


def listen(told: threading.Event) -> None:
    """Wait for the line that says to stop."""
    sys.stdin.readline()
    told.set()


def main(port: int, seed: int, streams: int, rate: float, most: int) -> None:
    """Publish until told to stop."""
    publisher, told = Publisher(port), threading.Event()
    threading.Thread(target=listen, args=(told,), daemon=True).start()
    print("publishing", flush=True)
    began, place = time.monotonic(), 0
    for row in flow(seed, streams):
        if place % STEP == 0:
            ahead = place / rate - (time.monotonic() - began)
            if told.wait(max(ahead, 0.0)):
                break
        if place == most:
            break
        publisher.publish(place, topic_of(row), payload_of(row))
        place += 1
    with publisher.lock:
        while publisher.waiting:
            publisher.lock.wait()
    known = len(publisher.acknowledged)
    print(json.dumps({"published": place, "acknowledged": known, "refused": publisher.refused}), flush=True)
    publisher.client.disconnect()
    publisher.client.loop_stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
