"""One stream as one blob: how it leaves an online predictor, and what a predictor asks before it lets one in.

    schema 1: all that the stream's slot holds (stream.*, state.*, held.*, rewind.*, ..), its rows of the audit with the
              evictions that wait, what of it came late

A blob fits every predictor of the same model, channels, late policy and audit: what the predictor is stands in the
facts of the blob, and each that differs is an error that names it. The checksum finds an accident, not an intent: who
may hand in blobs can make a stream say what he likes, of that stream, and of no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

from tsgdn2 import checkpoint
from tsgdn2.audit import OnlineAudit
from tsgdn2.audit.tracking import Eviction
from tsgdn2.checkpoint import Source
from tsgdn2.errors import CheckpointError, ConfigError, TsgdnError
from tsgdn2.forecaster import Forecaster
from tsgdn2.slab import Ints
from tsgdn2.standards import Standards

Arrival = TypeVar("Arrival")
SCHEMA = 1
SOURCE = Source("blob: it", "`take_out`", "take it from where it is whole")
_NAMES = {
    "fingerprint": "the model's config (its fingerprint)",
    "model": "the model's weights and standards (their SHA-256)",
    "channels": "channels",
    "late": "late policy",
    "audit": "audit",
}


class Evicted(NamedTuple):
    """An eviction of a stream's memory: of this channel, None where one lane serves all channels."""

    stream: str
    channel: str | None
    eviction: Eviction


class Unread(NamedTuple, Generic[Arrival]):
    """What a removed stream had to say that nobody has read: its queued evictions, and what of it came too late."""

    evictions: list[Evicted]
    late_arrivals: list[Arrival]


class Passing(Protocol):
    """What keeps the streams of a predictor, by slot; Route has it."""

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """All that these streams [N] hold, in this order."""

    def restore(self, tensors: dict[str, Tensor], slots: Ints) -> None:
        """Put what `tensors` gave into slots [N] that are clear; KeyError or ValueError where it does not fit."""

    def clear(self, slots: Ints) -> None:
        """Forget all about these streams."""


class Policy(Protocol):
    """What becomes of what comes late."""

    def to_json(self) -> str:
        """As text."""


class Listed(Protocol):
    """The list of what came too late."""

    dropped: int

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """What is listed of these streams, by their place in slots."""

    def read(self, tensors: dict[str, Tensor], slots: Ints) -> list[Any]:
        """Rows that `tensors` gave, for `put`."""

    def put(self, rows: Sequence[Any], instead: Iterable[int] = ()) -> None:
        """List rows, in place of those of the streams in slots `instead`."""


class Passport(NamedTuple):
    """What a predictor is, as far as a stream in it depends on that: the kind of blob and the facts in it."""

    kind: str
    facts: dict[str, str]


def passport(
    kind: str, forecaster: Forecaster, standards: Standards, channels: tuple[str, ...], late: str,
    audit: OnlineAudit | None,
) -> Passport:  # fmt: skip
    """Of a predictor; late is the JSON of its policy. Reads every weight once."""
    model = checkpoint.digest(forecaster.state_dict(), {"standards": standards.to_json()})
    config = "" if audit is None else json.dumps(asdict(audit.config), sort_keys=True)
    facts = {"fingerprint": forecaster.config.fingerprint, "model": model, "channels": json.dumps(channels)}
    return Passport(kind, facts | {"late": late, "audit": config})


def pack(own: Passport, tensors: dict[str, Tensor], stream: str) -> bytes:
    """The blob of a stream with its name."""
    return checkpoint.encode(tensors, own.facts | {"stream": stream}, kind=own.kind, schema=SCHEMA)


def unpack(own: Passport, blob: bytes) -> dict[str, Tensor]:
    """Tensors of a blob that fits; CheckpointError where it is broken, ConfigError where another predictor made it."""
    tensors, facts = checkpoint.decode(blob, SOURCE, kind=own.kind, schema=SCHEMA)
    for name, mine in own.facts.items():
        if (theirs := facts.get(name, "")) != mine:
            raise ConfigError(
                f"blob: it left a predictor with another {name}, {_NAMES[name]}: there {theirs or 'none'}, here "
                f"{mine or 'none'}; put it into a predictor that was built like that one"
            )
    return tensors


@contextmanager
def fitting() -> Iterator[None]:
    """CheckpointError in the place of what goes wrong with a blob that is whole but holds what no stream does."""
    try:
        yield
    except TsgdnError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"blob: it does not fit this version ({error}); take it out again") from error
