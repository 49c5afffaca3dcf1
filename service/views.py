"""The bodies of what a page shows at a glance, with an example of each: /v1/overview and the newest rows and entries.

As in bodies.py times are nanoseconds since 1970 and surprise is in bits. What speaks of all tenants together is null
for a caller of one tenant.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from tsgdn2.service.bodies import Answer, LedgerEntry

_HOUR: Final = 1_700_002_800_000_000_000
_ID: Final = "4f1c0a9be2d84c1b"


def example(**facts: Any) -> ConfigDict:
    """An example of a body."""
    return ConfigDict(json_schema_extra={"example": facts})


class ModelFacts(BaseModel):
    """What the model reads and answers."""

    channels: list[str]
    freq: str
    period: int = Field(description="Nanoseconds of one step.")
    horizon: int = Field(description="Steps of a forecast.")
    levels: list[float] = Field(description="Of the quantiles of a forecast.")
    key_dim: int = Field(description="Directions that the state of one head has.")


class ConnectorFacts(BaseModel):
    """How a connector stands."""

    name: str
    connected: bool
    rows: int = Field(description="Rows that were made durable.")
    waiting: int = Field(description="Deliveries that are not durable yet.")
    rejected: int = Field(description="Messages or rows that were not taken.")
    last_error: str


class ServiceFacts(BaseModel):
    """The process, all tenants together."""

    hot: int = Field(description="Streams in memory.")
    hot_limit: int
    dirty: int = Field(description="Streams with rows behind their snapshot.")
    queue_rows: int = Field(description="Rows that wait.")
    queue_limit: int
    rows: dict[str, int] = Field(description="Rows since the start by what became of them.")
    reason: str = Field(description="What the store said when it failed last; empty when all is well.")
    connectors: list[ConnectorFacts]


class Overview(Answer):
    """The service at a glance."""

    model_config = example(
        request_id=_ID, version="2.0.0", now=_HOUR, tenant="", role="read", alert_bits=10.0, streams=3,
        streams_more=False, aside=0,
        model={"channels": ["x"], "freq": "h", "period": 3_600_000_000_000, "horizon": 24, "levels": [0.1, 0.5, 0.9],
               "key_dim": 16},
        service={"hot": 3, "hot_limit": 10_000, "dirty": 1, "queue_rows": 0, "queue_limit": 65_536,
                 "rows": {"new": 4_711}, "reason": "", "connectors": []},
    )  # fmt: skip

    version: str
    now: int = Field(description="The service's clock.")
    tenant: str = Field(description="Whose streams these are; empty: those of no tenant.")
    role: str = Field(description="Of the key.")
    alert_bits: float = Field(description="A surprise of so many bits is an alert.")
    streams: int = Field(description="Streams that are kept, hot or cold; many are counted at most every 15 seconds.")
    streams_more: bool = Field(description="Whether there are more than were counted.")
    aside: int = Field(description="Streams that are set aside.")
    model: ModelFacts
    service: ServiceFacts | None = Field(description="null for a caller of one tenant.")


class Glance(BaseModel):
    """A stream at a glance."""

    stream: str
    aside: str | None = Field(default=None, description="Why it is set aside; null where it is not.")
    hot: bool = Field(description="Whether its state is in memory.")
    observations: int | None = Field(default=None, description="Moments that its state has seen; null where cold.")
    time: int | None = Field(default=None, description="Of the last row at hand; null where there is none.")
    surprise: list[float | None] = Field(description="Largest bits of each of the last rows at hand, oldest first.")


class Glances(Answer):
    """A page of streams at a glance, sorted by the bytes of their names."""

    model_config = example(
        request_id=_ID, next=None,
        streams=[{"stream": "boiler/1", "aside": None, "hot": True, "observations": 42, "time": _HOUR,
                  "surprise": [0.5, 1.25]}],
    )  # fmt: skip

    streams: list[Glance]
    next: str | None = Field(description="Give it as `after` for the next page, which may be empty; null on the last.")


class Recent(Answer):
    """The last rows of a stream that are at hand, oldest first: one for each moment."""

    model_config = example(
        request_id=_ID, stream="boiler/1", channels=["x", "y"], times=[_HOUR], values=[[21.5, None]],
        surprise=[[1.25, None]],
    )  # fmt: skip

    stream: str
    channels: list[str]
    times: list[int] = Field(description="[N]")
    values: list[list[float | None]] = Field(description="[N, channels]; null is missing.")
    surprise: list[list[float | None]] = Field(description="[N, channels]; null also where it is not at hand.")


class Newest(Answer):
    """Entries of the ledger, newest first."""

    model_config = example(
        request_id=_ID, next=None,
        entries=[{"id": 7, "time": _HOUR, "kind": "alert", "stream": "boiler/1",
                  "facts": {"channel": "x", "bits": 12.5}}],
    )  # fmt: skip

    entries: list[LedgerEntry]
    next: int | None = Field(description="Give it as `before` for older ones, which may be none; null at the end.")
