"""Scraping of /metrics: the Prometheus text format, read with prometheus_client's parser, every few seconds.

Labels are those of the sample and `instance` (host and port) and `job`, as Prometheus adds them; from there on a sample
is treated as one that was written (prometheus.py). A page is taken or refused whole, as Prometheus does, and one target
that is away does not disturb the others. A reading missed is gone: there is nobody to ask again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tsgdn2.errors import ConfigError
from tsgdn2.service.connectors.connector import Connector, Lane, log
from tsgdn2.service.connectors.decoded import Decoded, DecodeError, OversizeError, Refusal, Rejections, Rows
from tsgdn2.service.connectors.delivery import Backoff, Sink
from tsgdn2.service.connectors.router import Router

_ACCEPT = "text/plain;version=0.0.4"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One page."""

    url: str
    job: str = "tsgdn2"
    headers: Mapping[str, str] | None = None

    @property
    def labels(self) -> dict[str, str]:
        """What its samples get on top of their own labels."""
        return {"instance": urlsplit(self.url).netloc.rpartition("@")[2], "job": self.job}

    def __post_init__(self) -> None:
        """Check the address."""
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ConfigError(f"url: must be http://host:port/metrics or https://.., got {self.url!r}")


class Page(NamedTuple):
    """What a target answered, and when (ns)."""

    target: Target
    text: str
    time: int


def decode(text: str, router: Router, now: int, labels: Mapping[str, str]) -> Decoded:
    """Rows of one page. DecodeError for a page that is none, OversizeError for one with too many samples."""
    rows, rejected, count = Rows(len(router.channels)), Rejections(), 0
    if len(text) > router.limits.body_bytes:
        raise OversizeError(f"page: at most {router.limits.body_bytes} characters are read, got {len(text)}")
    try:
        families = list(text_string_to_metric_families(text))
    # The parser is written for pages that are well formed; garbage ends in whatever it trips over.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DecodeError(f"page: not the text format of Prometheus ({type(error).__name__}: {error})"[:300]) from None
    for family in families:
        for sample in family.samples:
            count += 1
            if count > router.limits.samples:
                raise OversizeError(f"page: at most {router.limits.samples} samples are taken at once")
            try:
                target = router.target("prometheus", sample.name, tuple({**sample.labels, **labels}.items()))
                value = float(sample.value)
                if math.isnan(value):
                    continue
                moment = now if sample.timestamp is None else _milliseconds(float(sample.timestamp)) * 10**6
                cell = router.value(value, target.scale, target.offset)
                rows.cell(rows.open(target.stream, router.time(moment, now)), target.channel, cell)
            except Refusal as refusal:
                router.count(rejected, refusal, sample.name)
    return Decoded(rows.batch(router.sequence("prometheus")), rejected)


def _milliseconds(seconds: float) -> int:
    if not math.isfinite(seconds):
        raise Refusal("time", f"{seconds} is no moment")
    return round(seconds * 1000)


class ScrapeConnector(Connector):
    """Fetches every target each `interval` seconds."""

    def __init__(
        self,
        targets: Sequence[Target],
        router: Router,
        *,
        interval: float = 15.0,
        timeout: float = 10.0,
        name: str = "scrape",
        backoff: Backoff | None = None,
        patience: float = 30.0,
    ) -> None:
        super().__init__(name, in_flight=1, group=max(len(targets), 1), backoff=backoff, patience=patience)
        if not targets or not interval > 0 or not timeout > 0:
            raise ConfigError("targets, interval, timeout: at least one target, and seconds above 0, are needed")
        self.targets, self.router = tuple(targets), router
        self.interval, self.timeout = interval, timeout

    async def session(self, sink: Sink) -> None:
        """See Connector."""

        async def acknowledge(_: Sequence[Page]) -> None:
            """Nobody waits for it."""

        timeout = aiohttp.ClientTimeout(total=self.timeout)
        async with aiohttp.ClientSession(timeout=timeout) as http, Lane(self, sink, self._rows, acknowledge) as lane:
            self.connected()
            due = time.monotonic()
            while not self.stopping:
                found = await lane.receive(self._pages(http))
                for page in found or ():
                    if page is not None:
                        await lane.put([page])
                late = time.monotonic() - due
                self.counts.skipped += int(late // self.interval)
                due += self.interval * (1 + late // self.interval)
                await self.pause(due - time.monotonic())

    async def _pages(self, http: aiohttp.ClientSession) -> list[Page | None]:
        return await asyncio.gather(*(self._page(http, one) for one in self.targets))

    async def _page(self, http: aiohttp.ClientSession, target: Target) -> Page | None:
        most = self.router.limits.body_bytes
        try:
            async with http.get(target.url, headers={"Accept": _ACCEPT, **(target.headers or {})}) as answer:
                answer.raise_for_status()
                content = bytearray()
                async for chunk in answer.content.iter_chunked(1 << 16):
                    content += chunk
                    if len(content) > most:
                        raise OversizeError(f"page: more than {most} bytes; raise limits.body_bytes")
                return Page(target, content.decode(), self.now())
        except (aiohttp.ClientError, OSError, UnicodeDecodeError, OversizeError) as error:
            self.note(error)
            self.counts.failures += 1
            log.warning("%s: %s gave nothing: %s", self.name, target.url, self.counts.last_error)
            return None

    def _rows(self, pages: Sequence[Page]) -> Decoded:
        """One page, as `put` gets it and as a refused group is tried again."""
        rejected = Rejections()
        for page in pages:
            try:
                return decode(page.text, self.router, page.time, page.target.labels)
            except DecodeError as error:
                rejected.add("malformed", page.target.url, str(error))
        return Decoded(None, rejected)
