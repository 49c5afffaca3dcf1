"""A moment that a sender wrote, in int64 nanoseconds since 1970: a number of some unit, or ISO 8601 text.

Integers are exact in every unit. A float holds 53 bits, so seconds of today are good to a quarter of a microsecond; the
same text gives the same moment every time, which is what a repeated message needs. Text without a zone is UTC.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Final

from tsgdn2.service.connectors.decoded import Refusal, clip
from tsgdn2.service.mapping import UNITS, Unit

_ISO: Final = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9})\d*)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds(given: object, unit: Unit) -> int:
    """Refusal for what is no moment; whether it lies in reason is asked elsewhere."""
    factor = UNITS[unit]
    if isinstance(given, bool) or given is None:
        raise Refusal("time", f"{given!r} is no moment")
    if isinstance(given, int):
        return given * factor
    if isinstance(given, float):
        if not math.isfinite(given):
            raise Refusal("time", f"{given!r} is no moment")
        whole = math.floor(given)
        return whole * factor + round((given - whole) * factor)
    if isinstance(given, str):
        return _from_text(given)
    raise Refusal("time", f"a {type(given).__name__} is no moment; send a number or ISO 8601 text")


def _from_text(text: str) -> int:
    found = _ISO.fullmatch(text) if len(text) <= 64 else None
    if found is None:
        raise Refusal("time", f"{clip(text)!r} is not ISO 8601 (2024-05-01T12:00:00Z)")
    moment, fraction, zone = found.groups()
    try:
        aware = datetime.fromisoformat(moment + (zone or "Z"))
    except ValueError as error:
        raise Refusal("time", f"{clip(text)!r} is no moment ({error})") from None
    delta = aware - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 10**9 + int((fraction or "0").ljust(9, "0"))
