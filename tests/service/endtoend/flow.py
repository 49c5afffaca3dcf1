"""What is published, told by nothing but its place in the flow, so that publisher, service and twin agree on it.

    row k of stream i     streams stand at different hours, so that their patches (of three hours) never close together;
                          some rows come late, some by more than a patch; one cell in six is missing, in some rows all
    flow                  rows of all streams in turn; some are sent again soon, some overtake the one before

The order of the flow is the order of the broker. A row that overtakes has the higher number first.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from tsgdn2.service.batch import Batch

STREAMS: Final = 36
HOUR: Final = 3_600_000_000_000
BEGIN: Final = 438_300
"""Hours from 1970 to 2020: all that is sent lies behind every clock that is set here."""
LATE: Final = (0, 0, 0, 2, 0, 0, 0, 5)
TOPIC: Final = "plant/+/telemetry"
MAPPING: Final = """
mqtt:
  - {topic: plant/+/telemetry, stream: "{1}", channels: "*", time: {field: ts}, sequence: {field: n}, source: "{.boot}"}
nats:
  - {subject: plant.*.telemetry, stream: "{1}", channels: "*", time: {field: ts}, sequence: {field: n},
     source: "{.boot}"}
"""


class Sent(NamedTuple):
    """A row by the number of its stream and its own."""

    stream: int
    number: int


def name_of(stream: int) -> str:
    """What a stream is called."""
    return f"press-{stream:02d}"


def source_of(row: Sent) -> str:
    """Who counts: a sender that was started anew once, and counts on under another name."""
    return f"boot-{row.stream}-{row.number // 400}"


def step_of(row: Sent) -> int:
    """The hour of a row."""
    return BEGIN + 7 * row.stream + row.number - LATE[(row.number + row.stream) % len(LATE)]


def values_of(row: Sent) -> tuple[float | None, float | None]:
    """Both channels; None is missing."""
    dice = random.Random(row.stream << 40 | row.number)
    made = [None if dice.random() < 1 / 6 else dice.gauss(10.0 + row.stream, 3.0) for _ in range(2)]
    return made[0], made[1]


def flow(seed: int = 0, streams: int = STREAMS) -> Iterator[Sent]:
    """Rows without an end, in the order in which they are sent."""
    dice, after = random.Random(seed), [0] * streams
    while True:
        for stream in range(streams):
            at, chance = after[stream], dice.random()
            if chance < 0.05 and at:
                yield Sent(stream, max(0, at - dice.randint(1, 60)))
            elif chance < 0.08:
                yield Sent(stream, at + 1)
                yield Sent(stream, at)
                after[stream] += 2
            else:
                yield Sent(stream, at)
                after[stream] += 1


def first_rows(count: int, seed: int = 0, streams: int = STREAMS) -> list[Sent]:
    """The first so many of the flow, repeats included."""
    return list(islice(flow(seed, streams), count))


def topic_of(row: Sent, between: str = "/") -> str:
    """Where a row is published."""
    return between.join(("plant", name_of(row.stream), "telemetry"))


def payload_of(row: Sent) -> bytes:
    """A row as the mapping reads it."""
    x, y = values_of(row)
    facts = {"ts": step_of(row) * HOUR, "n": row.number, "boot": source_of(row), "x": x, "y": y}
    return json.dumps(facts).encode()


def body_of(rows: Iterable[Sent]) -> dict[str, list[dict[str, object]]]:
    """Rows as /v1/observe/batch reads them."""
    return {
        "rows": [
            {"stream": name_of(row.stream), "time": step_of(row) * HOUR, "values": list(values_of(row)),
             "source": source_of(row), "sequence": row.number}
            for row in rows
        ]
    }  # fmt: skip


def batch_of(rows: list[Sent]) -> Batch:
    """Rows as the memory reads them."""
    cells = [[np.nan if cell is None else cell for cell in values_of(row)] for row in rows]
    return Batch.of(
        [name_of(row.stream) for row in rows], np.array([step_of(row) * HOUR for row in rows], np.int64),
        np.array(cells, np.float64).reshape(len(rows), 2), sources=[source_of(row) for row in rows],
        sequences=[row.number for row in rows],
    )  # fmt: skip
