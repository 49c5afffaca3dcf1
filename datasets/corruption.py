"""How frames are spoiled, on purpose and repeatably: missing cells, missing blocks, whole outages, jittered clocks.

A stream's damage depends on the seed, its own name and its channels' names alone: other streams in the frame change
nothing. Shares count rows, not hours, so an existing gap is not made wider on purpose; the input frame is untouched.

    missing_at_random    round(share * observed) cells of each channel, each as likely
    missing_blocks       round(share * rows) rows of each channel, in runs of `length`
    outages              runs of `length` rows of all channels at once
    jittered_clock       time + uniform integer in [-scale, scale] nanoseconds
"""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.frame import STREAM, TIME, channels, validate


def missing_at_random(frame: pl.DataFrame, share: float, *, seed: int) -> pl.DataFrame:
    """Take away exactly round(share * observed) of the observed cells of every channel of every stream.

    `share` in [0, 1]. Rows stay, also when nothing is left in them. Raises DataError.
    """
    _check(frame, seed)
    _check_share(share)

    def mask(stream: str, channel: str, values: pl.Series) -> NDArray[np.bool_]:
        observed = np.flatnonzero(values.is_not_null().to_numpy())
        gone = np.zeros(len(values), dtype=np.bool_)
        gone[_rng(seed, stream, channel).choice(observed, round(share * len(observed)), replace=False)] = True
        return gone

    made = []
    for stream, part in _streams(frame):
        masks = {name: mask(stream, name, part[name]) for name in channels(frame)}
        made.append(_without(part, masks))
    return pl.concat(made) if made else frame


def missing_blocks(frame: pl.DataFrame, share: float, length: int, *, seed: int) -> pl.DataFrame:
    """Take away exactly round(share * rows) rows of every channel of every stream, in runs of `length` rows.

    The runs do not overlap, but may touch; one run is shorter when `length` does not divide the count. Channels are
    hit independently. Cells that were missing already count as rows. Raises DataError.
    """
    _check(frame, seed)
    _check_share(share)
    _check_positive("length", length)
    made = []
    for stream, part in _streams(frame):
        count = round(share * part.height)
        lengths = [length] * (count // length) + ([count % length] if count % length else [])
        made.append(_without(part, {c: _runs(part.height, lengths, _rng(seed, stream, c)) for c in channels(frame)}))
    return pl.concat(made) if made else frame


def outages(
    frame: pl.DataFrame,
    length: int,
    *,
    seed: int,
    count: int | None = None,
    share: float | None = None,
    drop_rows: bool = False,
) -> pl.DataFrame:
    """Silence whole streams for runs of `length` rows: nothing arrives from any channel.

    Args:
        frame: a frame of the schema.
        length: rows of one outage.
        seed: any non-negative integer.
        count: outages per stream, as many as fit; or
        share: share of each stream's rows, met exactly up to rounding; give one of the two.
        drop_rows: take the rows away, so that the outage is a gap; else they stay, with all channels null.

    Raises DataError.
    """
    _check(frame, seed)
    _check_positive("length", length)
    if (count is None) == (share is None):
        raise DataError(f"give either count or share of the outages, got count={count} and share={share}")
    if share is not None:
        _check_share(share)
    if count is not None and count < 0:
        raise DataError(f"count must be 0 or more, got {count}")
    made = []
    for stream, part in _streams(frame):
        rows = round(share * part.height) if share is not None else min(count or 0, part.height // length) * length
        lengths = [length] * (rows // length) + ([rows % length] if rows % length else [])
        gone = _runs(part.height, lengths, _rng(seed, stream, ""))
        made.append(part.filter(~gone) if drop_rows else _without(part, dict.fromkeys(channels(frame), gone)))
    return pl.concat(made) if made else frame


def jittered_clock(frame: pl.DataFrame, scale_ns: int, *, seed: int) -> pl.DataFrame:
    """Shift every instant by a uniform whole number of nanoseconds in [-scale_ns, scale_ns]; values go with their row.

    Rows may change places when the scale exceeds half a step. Two rows that fall on one nanosecond are moved apart,
    the later one by as little as it takes. Raises DataError.
    """
    _check(frame, seed)
    _check_positive("scale_ns", scale_ns, zero=True)
    made = []
    for stream, part in _streams(frame):
        time = part[TIME].to_physical().to_numpy()
        if len(time) and (int(time.min()) - scale_ns < -(2**63) or int(time.max()) + scale_ns + len(time) >= 2**63):
            raise DataError(f"scale_ns={scale_ns} moves stream {stream!r} out of int64 nanoseconds; use a smaller one")
        moved = time + _rng(seed, stream, "").integers(-scale_ns, scale_ns, len(time), endpoint=True)
        order = np.argsort(moved, kind="stable")
        place = np.arange(len(time))
        apart = np.maximum.accumulate(moved[order] - place) + place
        when = pl.Series(TIME, apart).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
        made.append(part[order].with_columns(when))
    return pl.concat(made) if made else frame


def _streams(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    return [(str(key[0]), part) for key, part in frame.group_by([STREAM], maintain_order=True)]


def _rng(seed: int, stream: str, channel: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), zlib.crc32(channel.encode())])


def _runs(rows: int, lengths: list[int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mark disjoint runs at random: their order is shuffled, and every choice of places between them is as likely."""
    gone = np.zeros(rows, dtype=np.bool_)
    free = rows - sum(lengths)
    places = np.sort(rng.choice(free + len(lengths), len(lengths), replace=False))
    before = 0
    for number, (place, length) in enumerate(zip(places, rng.permutation(lengths), strict=True)):
        start = int(place) - number + before
        gone[start : start + int(length)] = True
        before += int(length)
    return gone


def _without(part: pl.DataFrame, masks: dict[str, NDArray[np.bool_]]) -> pl.DataFrame:
    kept = (pl.when(pl.lit(pl.Series(~gone))).then(pl.col(name)).alias(name) for name, gone in masks.items())
    return part.with_columns(kept)


def _check(frame: pl.DataFrame, seed: int) -> None:
    validate(frame)
    if seed < 0:
        raise DataError(f"seed must be 0 or more, got {seed}")


def _check_share(share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise DataError(f"share must lie in [0, 1], got {share}")


def _check_positive(name: str, value: int, *, zero: bool = False) -> None:
    if value < (0 if zero else 1):
        raise DataError(f"{name} must be {'0 or more' if zero else 'at least 1'}, got {value}")
