"""The bodies of requests and answers, with an example of each: what OpenAPI shows, and what is checked.

Times are int64 nanoseconds since 1970, or ISO 8601 text (without a zone it is UTC); answers have nanoseconds. A value
that is null or NaN is missing. Surprise is in bits: 0 at the median of the last forecast, 10 once in a thousand.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

from tsgdn2.service.keys import Role

_WIDEST: Final = 2**63 - 1
Number = Annotated[float, Strict()]
Whole = Annotated[int, Strict(), Field(ge=-_WIDEST, le=_WIDEST)]
Moment = Annotated[Whole | Annotated[str, Strict(), Field(max_length=64)], Field(description=(
    "int64 nanoseconds since 1970, or ISO 8601 text, which without a zone is UTC."
))]  # fmt: skip
Name = Annotated[str, Strict(), Field(min_length=1, max_length=512)]
Values = dict[Name, Number | None] | list[Number | None]
_HOUR = 1_700_002_800_000_000_000
Status = Literal[
    "new", "missing", "duplicate", "replaced", "filled", "late", "held", "replayed", "seen", "behind", "refused",
    "kept", "elsewhere",
]  # fmt: skip


def shaped(example: dict[str, Any]) -> ConfigDict:
    """Nothing beside the fields, and an example."""
    return ConfigDict(extra="forbid", json_schema_extra={"example": example})


class Row(BaseModel):
    """One moment of one stream."""

    model_config = shaped(
        {"stream": "boiler/1", "time": "2023-11-14T23:00:00Z", "values": {"x": 21.5, "y": None}, "source": "plc-7",
         "sequence": 4711}
    )  # fmt: skip

    stream: Name
    time: Moment
    values: Annotated[Values, Field(description="{channel: value}, or one value for each channel in their order.")]
    source: Annotated[str, Strict(), Field(max_length=512)] = ""
    sequence: Annotated[int, Strict(), Field(ge=-1, le=_WIDEST)] = -1


class Rows(BaseModel):
    """Many rows; one that is wrong is refused alone."""

    model_config = shaped({"rows": [
        {"stream": "boiler/1", "time": _HOUR, "values": {"x": 21.5, "y": 3.0}},
        {"stream": "boiler/2", "time": _HOUR, "values": [19.25, None], "source": "plc-8", "sequence": 12},
    ]})  # fmt: skip

    rows: list[Row]


class Columns(BaseModel):
    """Many rows in columns of one length."""

    model_config = shaped({
        "streams": ["boiler/1", "boiler/2"], "times": [_HOUR, _HOUR], "values": {"x": [21.5, 19.25], "y": [3.0, None]},
    })  # fmt: skip

    streams: list[Annotated[str, Strict()]]
    times: list[Moment]
    values: dict[Name, list[Number | None]]
    sources: list[Annotated[str, Strict()]] | None = None
    sequences: list[Whole] | None = None


class Answer(BaseModel):
    """What every answer has."""

    request_id: str = Field(default="", description="As in the header X-Request-ID and in the logs.")


class Observed(Answer):
    """What became of one row; it is on the disk."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "request_id": "4f1c0a9be2d84c1b", "status": "new", "surprise": {"x": 1.25, "y": None}, "reason": None,
    }})  # fmt: skip

    status: Status
    surprise: dict[str, float | None] = Field(description="Bits by channel; null: no value, or no forecast yet.")
    reason: str | None = Field(default=None, description="Why it was refused.")


class ManyObserved(Answer):
    """What became of N rows, in the order in which they came; those that are not refused are on the disk."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "request_id": "4f1c0a9be2d84c1b", "rows": 2, "counts": {"new": 1, "refused": 1}, "status": ["new", "refused"],
        "surprise": {"x": [1.25, None], "y": [0.5, None]},
        "reasons": {"1": "values: channel 'x' is inf; only finite numbers up to 1e+100 and NaN are allowed"},
    }})  # fmt: skip

    rows: int
    counts: dict[str, int] = Field(description="How many rows have each status.")
    status: list[Status] | None = Field(description="Of each row; null with results=counts.")
    surprise: dict[str, list[float | None]] | None = Field(description="Bits of each row by channel; null likewise.")
    reasons: dict[str, str] = Field(description="Why, by the number of the row from 0; the first 1,000.")


class ForecastOf(BaseModel):
    """What to forecast of one stream."""

    model_config = shaped({"horizon": 4, "at": "2023-11-15T00:00:00Z"})

    horizon: Annotated[int, Strict(), Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Steps; by default as many as the model was trained for, which is also the most."
    )
    at: Moment | None = Field(default=None, description="Forecast from this moment on, the stream's clock or later.")
    future: list[list[Number]] | None = Field(default=None, description="Known covariates of the horizon, [H, F].")


class ForecastOfMany(BaseModel):
    """What to forecast of many streams."""

    model_config = shaped({"streams": ["boiler/1", "boiler/2"], "horizon": 4})

    streams: list[Name] = Field(min_length=1)
    horizon: Annotated[int, Strict(), Field(ge=1, le=1_000_000)] | None = None
    at: Moment | None = None
    future: list[list[list[Number]]] | None = Field(default=None, description="[streams, H, F]")


class Forecasted(BaseModel):
    """Quantiles of one stream's next H steps."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "stream": "boiler/1", "levels": [0.1, 0.5, 0.9], "channels": ["x"], "times": [_HOUR], "freq": "h",
        "quantiles": [[[20.1, 21.4, 22.9]]],
    }})  # fmt: skip

    stream: str
    levels: list[float]
    channels: list[str]
    times: list[int] = Field(description="Start of each step [H], nanoseconds since 1970, UTC.")
    freq: str
    quantiles: list[list[list[float | None]]] = Field(description="[H, channels, levels]")


class ForecastAnswer(Answer, Forecasted):
    """A forecast."""


class Refused(BaseModel):
    """A stream of which there is no forecast."""

    stream: str
    error: str
    detail: str


class ForecastsAnswer(Answer):
    """Forecasts of the streams that have one, and why the others have none."""

    forecasts: list[Forecasted]
    refused: list[Refused] = []


class Listed(BaseModel):
    """A stream."""

    stream: str
    aside: str | None = Field(default=None, description="Why it is set aside; null where it is not.")


class Streams(Answer):
    """A page of streams, sorted by the bytes of their names."""

    streams: list[Listed]
    next: str | None = Field(description="Give it as `after` for the next page; null on the last one.")


class StreamState(Answer):
    """Readings of one stream's state."""

    stream: str
    channels: list[str]
    clock: int = Field(description="Start of the newest step, nanoseconds since 1970, UTC.")
    counters: dict[str, int] = Field(description="Observations, duplicates, replaced and late rows, replays.")
    state_bytes: int = Field(description="Bytes of its state at most, checkpoints and held rows included.")
    audit_bytes: int = Field(description="Bytes of its audit.")


class Done(Answer):
    """It is done, and durable."""

    stream: str
    done: Literal["deleted", "imported"]


class LedgerEntry(BaseModel):
    """Something that happened to a stream, or to the service (stream "")."""

    id: int
    time: int = Field(description="Nanoseconds since 1970, UTC.")
    kind: str
    stream: str
    facts: dict[str, str | int | float | bool | None]


class Ledger(Answer):
    """A page of the ledger, oldest first."""

    entries: list[LedgerEntry]
    next: int | None = Field(description="Give it as `after` for the next page; null where nothing more is there now.")


class Audited(Answer):
    """What the state of a stream keeps and has lost."""

    stream: str
    readings: dict[str, Any] | None = Field(description="Of the online audit by channel; null without an audit.")
    evictions: list[dict[str, Any]] = Field(description="Evictions that wait to be drained, oldest first.")
    ledger: list[LedgerEntry] = Field(description="The first rows of the ledger behind `after`.")
    next: int | None


class NewKey(BaseModel):
    """What a key shall be."""

    model_config = shaped({"role": "write", "tenant": "plant-a", "days": 90})

    role: Role
    tenant: Annotated[str, Strict(), Field(max_length=64)] | None = Field(
        default=None, description="By default the caller's own; another one only for an administrator of none."
    )
    days: Annotated[Number, Field(gt=0, le=36_500)] | None = None


class Rotation(BaseModel):
    """How long the old key stays good."""

    model_config = shaped({"overlap_s": 86_400})

    overlap_s: Annotated[Number, Field(ge=0, le=366 * 86_400)] = 86_400.0


class Key(BaseModel):
    """An API key without its secret."""

    id: str
    role: str
    tenant: str
    expires: int | None
    withdrawn: int | None


class Keys(Answer):
    """Keys, the ended ones as well."""

    keys: list[Key]


class KeyShown(Answer):
    """A new key: `text` is shown this once."""

    key: Key
    text: str


class Health(BaseModel):
    """How it stands."""

    status: Literal["alive", "ready", "not ready"]
