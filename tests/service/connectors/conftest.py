"""A sink that remembers, connectors that run beside a test, and the real brokers."""

import asyncio
import importlib.util
import time
from pathlib import Path

import pytest

from tsgdn2.service.connectors.delivery import Backoff
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.mapping import parse_mapping

DEADLINE = 20.0


def _module(path):
    spec = importlib.util.spec_from_file_location(f"tsgdn2_tests_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Remembering:
    """A sink: keeps every row; `hold` stops it before anything is durable, `fail` names the next errors to raise."""

    def __init__(self):
        self.deliveries, self.fail, self.held = [], [], 0
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, delivery):
        if not self.open.is_set():
            self.held += 1
            await self.open.wait()
        if self.fail:
            error = self.fail.pop(0)
            if error is not None:
                raise error
        self.deliveries.append(delivery)

    def hold(self):
        self.open.clear()

    @property
    def rows(self):
        """(stream, time, values, source, sequence) of every row, in order of arrival."""
        return [
            (stream, int(when), tuple(values), source, int(sequence))
            for batch in (delivery.rows for delivery in self.deliveries)
            for stream, when, values, source, sequence in zip(
                batch.streams, batch.times, batch.values.tolist(), batch.sources, batch.sequences, strict=True
            )
        ]


async def until(condition, what="the condition"):
    """Wait for something that has to become true, and look again often; a test that waits too long fails."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {DEADLINE} s"
        await asyncio.sleep(0.01)


class Tools:
    """What the tests of this folder share."""

    fast = Backoff(first=0.02, longest=0.1)
    until = staticmethod(until)
    sink = Remembering

    @staticmethod
    def router(text="", channels=("temp", "load"), **changes):
        return Router(parse_mapping(text), channels)

    @staticmethod
    def run(coroutine):
        """A test's coroutine in debug mode off, with a deadline over all of it."""

        async def bounded():
            done, waiting = await asyncio.wait((asyncio.ensure_future(coroutine),), timeout=2 * DEADLINE)
            if waiting:
                for task in asyncio.all_tasks():
                    task.print_stack()
            assert not waiting, "the test did not come to its end"
            for task in done:
                task.result()

        asyncio.run(bounded())


@pytest.fixture(scope="session")
def tools():
    return Tools


@pytest.fixture(scope="session")
def brokers():
    return _module(Path(__file__).resolve().parents[1] / "brokers.py")


@pytest.fixture(scope="module")
def mosquitto(brokers):
    with brokers.Mosquitto() as broker:
        yield broker


@pytest.fixture(scope="module")
def nats_server(brokers):
    with brokers.NatsServer() as server:
        yield server
