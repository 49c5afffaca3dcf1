"""Instants of any writing as exact int64 nanoseconds: stamps, dates, text, whole numbers and decimals.

    text with a format, or ISO 8601     digits of the second up to the ninth are kept, later ones are cut
    text of a decimal number, a unit    "1700158623.9799601" s: read digit by digit, never through a float
    integers, a unit                    exact
    floats, a unit                      rounded to the nanosecond, but a float holds 53 bits: seconds of our days
                                        are told apart to 240 ns only, so let a CSV's column stay text (readers do)

A naive stamp is taken as UTC, an aware one is converted. What int64 nanoseconds do not reach (before 1677, after 2262)
is an error; polars alone would wrap such text around to another century, measured.
"""

from __future__ import annotations

from typing import Final, Literal

import polars as pl

from tsgdn2.datasets.errors import FrameError

Unit = Literal["ns", "us", "ms", "s"]

_NS: Final[dict[str, int]] = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_INT64_MAX: Final = 2**63 - 1


def instants(raw: pl.Series, time_format: str | None = None, unit: Unit | None = None) -> pl.Series:
    """Give the instants of a column without nulls, as Datetime(ns, UTC) in the same order.

    Args:
        raw: the column; its name stands in errors.
        time_format: strftime format of text; None expects ISO 8601, or a decimal number where `unit` is given.
        unit: unit of numbers since 1970-01-01T00:00Z: ns, us, ms or s.

    Raises FrameError naming the column and the first row that is no instant.
    """
    dtype = raw.dtype
    why = "outside the years 1677 to 2262 that int64 nanoseconds reach"
    if isinstance(dtype, pl.Datetime):
        out = raw.cast(pl.Datetime("ns", dtype.time_zone), strict=False)
        out = out.dt.convert_time_zone("UTC") if dtype.time_zone else out.dt.replace_time_zone("UTC")
    elif dtype == pl.Date:
        out = raw.cast(pl.Datetime("ns"), strict=False).dt.replace_time_zone("UTC")
    elif dtype == pl.String and (unit is None or time_format is not None):
        out, odd = _from_text(raw, time_format)
        if odd:
            why = f"not text of the form {time_format}" if time_format else "not ISO 8601; pass time_format"
    elif dtype == pl.String or dtype.is_numeric():
        if unit not in _NS:
            raise FrameError(
                f"time column {raw.name!r} holds numbers ({dtype}): unit must be ns, us, ms or s, got {unit!r}"
            )
        read = _from_decimals if dtype == pl.String else _from_numbers
        out = read(raw, _NS[unit]).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
        why = f"no finite number of {unit} within int64 nanoseconds"
    else:
        raise FrameError(f"time column {raw.name!r} must be datetime, date, text or numbers, got {dtype}")
    empty = out.is_null().arg_true()
    if len(empty):
        row = int(empty[0])
        raise FrameError(f"time column {raw.name!r}, row {row}: {raw[row]!r} is {why}")
    return out


def _from_text(raw: pl.Series, time_format: str | None) -> tuple[pl.Series, bool]:
    """Instants of text, null where there is none, and whether the first null is text that can not be read at all."""
    if time_format and "%f" in time_format:
        raise FrameError(
            f"time_format {time_format!r}: %f alone reads .5 as 5 nanoseconds; write %.f for a fraction of a second, "
            "with its point"
        )
    foreign = (~raw.str.contains(r"^\s*\d{4}[-/]?\d{2}")).arg_true() if time_format is None else pl.Series([])
    if len(foreign):  # polars would guess, and read 01/02 as the first of February
        row = int(foreign[0])
        raise FrameError(
            f"time column {raw.name!r}, row {row}: {raw[row]!r} is not ISO 8601 (year first); "
            "pass time_format, '%d/%m/%Y' or '%m/%d/%Y' say"
        )
    text = raw.str.strip_chars().str
    fine = text.to_datetime(time_format, time_unit="ns", time_zone="UTC", strict=False)
    coarse = text.to_datetime(time_format, time_unit="us", time_zone="UTC", strict=False)
    # Nanoseconds that have wrapped around are no longer those of the microseconds, which reach 292,000 years.
    within = (fine.to_physical() // 1000 == coarse.to_physical()).fill_null(True)
    out = pl.select(pl.when(within).then(fine)).to_series()
    return out, bool((coarse.is_null() & (out.is_null().cum_sum() == 1)).any())


def _from_numbers(raw: pl.Series, factor: int) -> pl.Series:
    """Nanoseconds as Int64, null where they do not fit; whole units and fraction apart, to keep what a float holds."""
    if raw.dtype.is_integer():
        whole, limit = raw.cast(pl.Int64, strict=False), _INT64_MAX // factor
        fits = (whole >= -limit) & (whole <= limit)
        return pl.select(pl.when(fits).then(whole * factor)).to_series()
    whole = raw.cast(pl.Float64).floor()
    rest = ((raw.cast(pl.Float64) - whole) * factor).round()
    fits = (whole.abs() < float(_INT64_MAX // factor)) & whole.is_finite()
    safe = pl.select(pl.when(fits).then(whole)).to_series().cast(pl.Int64, strict=False)
    return safe * factor + rest.cast(pl.Int64, strict=False)


def _from_decimals(raw: pl.Series, factor: int) -> pl.Series:
    """Nanoseconds as Int64 of text such as "-1700158623.9799601", null where they do not fit; 1e9 goes as a float."""
    places, limit = len(str(factor)) - 1, _INT64_MAX // factor
    text = raw.str.strip_chars()
    found = text.str.extract_groups(r"^([+-]?)(\d+)(?:\.(\d*))?$").struct
    whole = found.field("2").cast(pl.Int64, strict=False)
    digits = (found.field("3").fill_null("") + "0" * places).str.slice(0, places)
    rest = digits.cast(pl.Int64, strict=False).fill_null(0)
    fits = (whole < limit) | ((whole == limit) & (rest <= _INT64_MAX - limit * factor))
    exact = pl.select(pl.when(fits).then(whole)).to_series() * factor + rest
    signed = pl.select(pl.when(found.field("1") == "-").then(-exact).otherwise(exact)).to_series()
    if found.field("2").null_count() == 0:
        return signed
    rough = _from_numbers(text.cast(pl.Float64, strict=False), factor)
    return pl.select(pl.when(found.field("2").is_null()).then(rough).otherwise(signed)).to_series()
