"""Arrow bodies: what is taken, what is refused before it costs anything, and that no bytes do more than be refused."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.errors import TsgdnError
from tsgdn2.service.arrow import from_arrow
from tsgdn2.service.columns import from_body

CHANNELS = ("x", "y")


def written(table: pa.Table, *, compression: str | None = None, file: bool = False) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def table(**columns: Any) -> pa.Table:
    return pa.table({"stream": ["a", "b"], "time": pa.array([1, 2], pa.int64())} | columns)


def test_columns_of_all_useful_types_are_read() -> None:
    given = table(
        stream=pa.array(["a", None]).dictionary_encode(), time=pa.array([1, 2], pa.timestamp("ms", "Europe/Berlin")),
        x=pa.array([1, None], pa.int8()), y=pa.array([True, False]), source=["s", None],
        sequence=pa.array([5, None], pa.uint16()),
    )  # fmt: skip
    raw = from_arrow(written(given), CHANNELS, 10)
    assert list(raw.streams) == ["a"]
    assert raw.times.tolist() == [10**6]
    assert raw.values.tolist() == [[1.0, 1.0]]
    assert raw.sources == ["s"]
    assert raw.sequences is not None
    assert raw.sequences.tolist() == [5]
    assert raw.refused == {1: "stream: is missing; name it"}
    assert (raw.total, raw.places.tolist()) == (2, [0])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("file", [False, True])
def test_text_of_any_layout_is_read_from_a_stream_and_a_file(kind: Any, file: bool) -> None:
    names = ["short", "a name that is longer than twelve bytes"]
    raw = from_arrow(written(table(stream=pa.array(names, kind), x=[1.0, np.nan]), file=file), CHANNELS, 10)
    assert list(raw.streams) == names
    assert raw.values[0, 0] == 1.0
    assert np.isnan(raw.values[1]).all()


@pytest.mark.parametrize(
    "columns",
    [
        {"x": pa.array([[1], [2]])}, {"x": ["1", "2"]}, {"x": pa.nulls(2)}, {"z": [1, 2]}, {"time": [1.0, 2.0]},
        {"time": ["1", "2"]}, {"stream": [1, 2]}, {"stream": pa.array([b"a", b"b"])}, {"sequence": [1.0, 2.0]},
        {"x": pa.array([1, 2]).dictionary_encode()}, {"x": pa.array([{"a": 1}, {"a": 2}])},
        {"time": pa.array([2**62, 1], pa.timestamp("s"))}, {"sequence": pa.array([2**64 - 1, 1], pa.uint64())},
        {"stream": pa.DictionaryArray.from_arrays([0, 0], ["x" * 100_000])},
        {"stream": pa.array(["x" * 100_000, "y"], pa.string_view())}, {"stream": ["x" * 100_000, "y"]},
    ],
)  # fmt: skip
def test_columns_that_are_none_of_ours_are_refused(columns: dict[str, Any]) -> None:
    with pytest.raises(TsgdnError):
        from_arrow(written(table(**columns)), CHANNELS, 10)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("file", [False, True])
def test_buffers_that_would_unpack_inside_are_refused(compression: str, file: bool) -> None:
    bomb = table(stream=pa.array(["a"] * 2).dictionary_encode())
    with pytest.raises(TsgdnError, match="compressed"):
        from_arrow(written(bomb, compression=compression, file=file), CHANNELS, 10)


def test_more_rows_than_allowed_are_refused() -> None:
    with pytest.raises(TsgdnError, match="at most 1 are taken"):
        from_arrow(written(table(x=[1.0, 2.0])), CHANNELS, 1)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.booleans())
def test_changed_bytes_are_rows_or_an_error_of_ours(seed: int, changes: int, file: bool) -> None:
    dice = random.Random(seed)
    rows = table(
        stream=pa.array(["a", "b"], dice.choice([pa.string(), pa.string_view()])), x=[1.0, None], y=[3, 4],
        source=pa.array(["s", "t"]).dictionary_encode(), sequence=[1, 2],
    )  # fmt: skip
    body = bytearray(written(rows, file=file))
    for _ in range(changes):
        at = dice.randrange(len(body))
        body[at] = dice.choice([0, 1, 127, 128, 255, dice.randrange(256)])
    if dice.random() < 0.3:
        del body[dice.randrange(len(body)) :]
    try:
        raw = from_arrow(bytes(body), CHANNELS, 100)
    except TsgdnError:
        return
    assert len(raw.streams) == len(raw.times) == len(raw.values) == len(raw.places) <= 100


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_an_error_of_ours(body: bytes) -> None:
    for decode in (from_arrow, from_body):
        for content in (body, b"ARROW1\x00\x00" + body, b'{"rows": [' + body + b"]}"):
            try:
                decode(content, CHANNELS, 100)
            except TsgdnError:
                continue
