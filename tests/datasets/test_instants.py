"""Instants of every writing come in to the nanosecond; what int64 does not reach is an error, not another century."""

import datetime as dt
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.instants import instants

STAMPS = st.integers(-(2**63) + 1, 2**63 - 1)
UNITS = {"ns": 0, "us": 3, "ms": 6, "s": 9}
FORMAT = "%Y-%m-%d %H:%M:%S%.f"


def nanoseconds(values: list, *options: str | None) -> list[int]:
    return instants(pl.Series("t", values), *options).to_physical().to_list()


def written(stamp: int, digits: int) -> str:
    """The instant as text with that many digits after the second; Python's own clock has but six."""
    whole, rest = divmod(stamp, 10**9)
    second = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=whole)
    return f"{second:%Y-%m-%d %H:%M:%S}" + (f".{rest:09d}"[: digits + 1] if digits else "")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(STAMPS.filter(lambda n: n > 10**9 - 2**63), st.integers(0, 9)), min_size=1, max_size=8))
def test_text_of_any_number_of_digits_is_exact_with_a_format_and_without(rows):
    text = [written(*row) for row in rows]
    wanted = [stamp - stamp % 10 ** (9 - digits) for stamp, digits in rows]
    assert nanoseconds(text) == wanted
    assert nanoseconds(text, FORMAT) == wanted
    assert nanoseconds([f"{t}Z" for t in text]) == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(STAMPS, min_size=1, max_size=8), st.sampled_from(list(UNITS)), st.sampled_from(["", " "]))
def test_decimals_of_any_unit_are_read_digit_by_digit(stamps, unit, pad):
    text = [f"{Decimal(stamp).scaleb(-UNITS[unit]):f}{pad}" for stamp in stamps]
    assert nanoseconds(text, None, unit) == stamps


def test_hundred_nanoseconds_survive_as_text_where_a_float_loses_them():
    assert nanoseconds(["1700158623.9799601"], None, "s") == [1_700_158_623_979_960_100]
    assert nanoseconds([1_700_158_623.9799601], None, "s") != [1_700_158_623_979_960_100]
    assert nanoseconds(["2023-11-16 18:17:03.9799601"], FORMAT) == [1_700_158_623_979_960_100]


def test_other_ways_to_write_a_decimal_are_read_too_and_later_digits_are_cut():
    text = [" 7", "+1.5", "-1.5", "2.", "1e3", "0.0000000019", "-0.0000000019"]
    assert nanoseconds(text, None, "s") == [7 * 10**9, 1_500_000_000, -1_500_000_000, 2 * 10**9, 10**12, 1, -1]
    assert nanoseconds(["2020-01-01 00:00:00.1234567899"], FORMAT) == [1_577_836_800_123_456_789]


OUTSIDE = ["1677-09-21 00:12:43.145224191", "2262-04-11 23:47:16.854775808", "0001-01-01", "9999-12-31 23:59:59.5"]


@pytest.mark.parametrize("text", OUTSIDE)
def test_text_beyond_int64_is_an_error_and_not_another_century(text):
    with pytest.raises(FrameError, match=rf"row 1: '{text}' is outside the years 1677 to 2262"):
        nanoseconds(["2020-01-01 00:00:00", text])


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["2020-01-01", "x", "9999-01-01"], ("%F", None), "time column 't', row 1: 'x' is not text of the form %F"),
        (["2020-01-01", "9999-01-01", "x"], ("%F", None), "row 1: '9999-01-01' is outside"),
        (["2020-13-01"], (None, None), "row 0: '2020-13-01' is not ISO 8601; pass time_format"),
        (["1 May"], (None, None), "row 0: '1 May' is not ISO 8601 .year first"),
        (["1", "abc"], (None, "s"), "row 1: 'abc' is no finite number of s within int64 nanoseconds"),
        (["9223372036.854775808"], (None, "s"), "is no finite number of s"),
        (["99999999999999999999"], (None, "ns"), "is no finite number of ns"),
        (["1", "-1e300"], (None, "ms"), "row 1: '-1e300' is no finite number"),
        (["1"], (None, "h"), "unit must be ns, us, ms or s, got 'h'"),
        (["2020-01-01 00:00:00.5"], ("%Y-%m-%d %H:%M:%S.%f", None), "%f alone reads .5 as 5 nanoseconds; write %.f"),
        ([[1]], (None, "s"), "time column 't' must be datetime, date, text or numbers, got List"),
    ],
)
def test_what_is_no_instant_is_refused_by_name(values, options, message):
    with pytest.raises(FrameError, match=message):
        nanoseconds(values, *options)
