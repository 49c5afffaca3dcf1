"""Rows in over HTTP: the same states, bit for bit, whatever the format; a bad row costs itself only."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from tests.service.http.served import HOUR, Served, served
from tests.service.predictors import batch, observed, predictor

from tsgdn2.service.batch import Batch

STREAM = {"Content-Type": "application/vnd.apache.arrow.stream"}
FILE = {"Content-Type": "application/vnd.apache.arrow.file"}
JSON = {"Content-Type": "application/json"}


def rows_of(rows: Batch) -> list[dict[str, Any]]:
    return [
        {"stream": stream, "time": time, "values": [None if value != value else value for value in values]}
        for stream, time, values in zip(rows.streams, rows.times.tolist(), rows.values.tolist(), strict=True)
    ]


def frame_of(rows: Batch, **casts: Any) -> pl.DataFrame:
    frame = pl.DataFrame(
        {"stream": list(rows.streams), "time": rows.times, "x": rows.values[:, 0], "y": rows.values[:, 1]}
    )
    return frame.with_columns(**casts)


def body_of(kind: str, rows: Batch) -> tuple[bytes, dict[str, str]]:
    """The same rows in one of the formats."""
    if kind == "rows":
        return json.dumps({"rows": rows_of(rows)}).encode(), JSON
    if kind == "columns":
        values = {name: [None if v != v else v for v in rows.values[:, c].tolist()] for c, name in enumerate("xy")}
        content = {"streams": list(rows.streams), "times": rows.times.tolist(), "values": values}
        return gzip.compress(json.dumps(content).encode()), JSON | {"Content-Encoding": "gzip"}
    sink = io.BytesIO()
    if kind == "polars stream":
        frame_of(rows, time=pl.from_epoch("time", time_unit="ns").dt.replace_time_zone("UTC")).write_ipc_stream(sink)
        return sink.getvalue(), STREAM
    if kind == "polars file":
        frame_of(rows, stream=pl.col("stream").cast(pl.Categorical)).write_ipc(sink, compression="uncompressed")
        return sink.getvalue(), FILE
    table = frame_of(rows).to_arrow()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue(), STREAM


@pytest.mark.parametrize("kind", ["rows", "columns", "polars stream", "polars file", "pyarrow"])
def test_every_format_leads_to_the_states_of_rows_observed_one_by_one(tmp_path: Path, kind: str) -> None:
    streams = ["a/b", "c", "ü", "a/b", "c"] * 12
    rows = batch(streams, [n // 5 for n in range(60)])
    twin = predictor()
    expected = observed(twin, rows)
    with served(tmp_path) as client:
        for part in rows.parts(25):
            body, headers = body_of(kind, part)
            answer = client.post("/v1/observe/batch", content=body, headers=headers)
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert found["rows"] == len(part) == len(found["status"])
            for row, (status, surprise) in zip(range(len(part)), expected, strict=False):
                assert found["status"][row] == status
                bits = [found["surprise"][name][row] for name in "xy"]
                assert np.array([np.nan if b is None else b for b in bits]).tobytes() == surprise
            expected = expected[len(part) :]
        for stream in ("a/b", "c", "ü"):
            blob = client.get(f"/v1/streams/{stream.replace('/', '%2F')}/export").content
            assert blob == twin.take_out(stream)


def test_one_row_is_observed_and_forecast(service: Served) -> None:
    for step in range(8):
        row = {"stream": "one", "time": f"1970-01-01T{step:02}:00:00.000000000Z", "values": {"x": step, "y": None}}
        answer = service.post("/v1/observe", json=row)
        assert answer.status_code == 200
        assert answer.json()["status"] == "new"
    assert answer.json()["surprise"]["x"] is not None
    assert answer.json()["surprise"]["y"] is None
    found = service.get("/v1/streams/one/forecast", params={"horizon": 2}).json()
    assert found["times"] == [8 * HOUR, 9 * HOUR]
    assert np.array(found["quantiles"]).shape == (2, 2, len(found["levels"]))
    later = service.post("/v1/streams/one/forecast", json={"at": "1970-01-01T10:00:00Z"}).json()
    assert later["times"][0] == 11 * HOUR
    state = service.get("/v1/streams/one/state").json()
    assert state["clock"] == 7 * HOUR
    assert state["counters"]["observations"] == 8


def test_who_waits_for_the_disk_alone_hears_that_rows_are_kept_and_reads_what_he_wrote(service: Served) -> None:
    for step in range(6):
        row = {"stream": "soon", "time": step * HOUR, "values": [step, 1.0], "source": "s", "sequence": step}
        answer = service.post("/v1/observe", json=row, params={"wait": "disk"}).json()
        assert (answer["status"], answer["surprise"]) == ("kept", {"x": None, "y": None})
        state = service.get("/v1/streams/soon/state").json()
        assert (state["clock"], state["counters"]["observations"]) == (step * HOUR, step + 1)
    rows = [{**row, "sequence": sequence, "time": sequence * HOUR} for sequence in (5, 6)] + [{**row, "values": [1]}]
    body = {"rows": rows}
    found = service.post("/v1/observe/batch", json=body, params={"wait": "disk"}).json()
    assert found["status"] == ["seen", "kept", "refused"]
    assert service.post("/v1/observe/batch", json=body, params={"wait": "a while"}).status_code == 422


def test_a_bad_row_is_refused_with_its_reason_and_the_others_go_on(service: Served) -> None:
    good = {"stream": "mixed", "time": HOUR, "values": [1, 2]}
    bad = [
        1, None, {}, {**good, "more": 1}, {**good, "stream": ""}, {**good, "stream": "a\x1fb"}, {**good, "stream": 5},
        {**good, "stream": "x" * 600}, {**good, "time": "yesterday"}, {**good, "time": 1.5}, {**good, "time": True},
        {**good, "time": 2**63}, {**good, "time": -(2**63)}, {**good, "time": 2**63 - 1}, {**good, "values": [1]},
        {**good, "values": {"z": 1}}, {**good, "values": ["1", 2]}, {**good, "values": [1e200, 2]},
        {**good, "values": [True, 2]}, {**good, "values": "12"}, {**good, "sequence": -2}, {**good, "source": "\x00"},
        {**good, "sequence": 2**64}, {**good, "stream": "a\x00"}, {**good, "values": [float("inf"), 1]},
    ]  # fmt: skip
    body = json.dumps({"rows": [good, *bad, {**good, "time": 2 * HOUR}]})
    found = service.post("/v1/observe/batch", content=body, headers=JSON).json()
    assert found["status"] == ["new", *["refused"] * len(bad), "new"]
    assert sorted(map(int, found["reasons"])) == list(range(1, len(bad) + 1))
    assert all(len(reason) > 10 for reason in found["reasons"].values())
    counts = service.post("/v1/observe/batch", params={"results": "counts"}, content=body, headers=JSON).json()
    assert counts["counts"] == {"duplicate": 2, "refused": len(bad)}
    assert counts["status"] is None


def test_half_a_character_is_refused_and_told_in_an_answer_that_can_be_read(service: Served) -> None:
    body = b'{"rows": [{"stream": "\\ud800", "time": 1, "values": [1, 2]}]}'
    answer = service.post("/v1/observe/batch", content=body, headers=JSON)
    assert answer.status_code in (200, 400)
    assert service.post("/v1/observe", content=body[10:-2], headers=JSON).status_code in (200, 400, 422)
    assert service.get("/v1/streams/%ED%A0%80").status_code == 400
    assert service.get("/v1/streams/%FF").status_code == 400


def test_rows_with_source_and_sequence_are_taken_once(service: Served) -> None:
    for status in ("new", "seen"):
        found = service.observe("numbered", [5], source="plc", sequence=1).json()
        assert found["status"] == [status]
    assert service.get("/v1/streams/numbered/state").json()["counters"]["observations"] == 1


@pytest.mark.parametrize(
    "body",
    [
        {}, [], 5, {"rows": 5}, {"rows": [], "streams": []}, {"streams": ["a"], "times": [], "values": {}},
        {"streams": ["a"], "times": [1], "values": {"z": [1]}}, {"streams": ["a"], "times": [1], "values": {"x": []}},
        {"streams": ["a"], "times": [1], "values": {"x": ["1"]}},
        {"streams": ["a"], "times": [1], "values": {"x": [1]}, "sources": []},
        {"streams": [1], "times": [1], "values": {}}, {"streams": ["a"], "times": [None], "values": {}},
    ],
)  # fmt: skip
def test_a_batch_that_does_not_fit_as_a_whole_is_an_error_of_the_request(service: Served, body: Any) -> None:
    answer = service.post("/v1/observe/batch", json=body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error", "detail", "what_to_do", "request_id", "retry_after"}


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-pickle", "multipart/form-data"])
def test_other_types_are_refused_with_415(service: Served, kind: str) -> None:
    answer = service.post("/v1/observe/batch", content=b"x", headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == 415
    assert service.put("/v1/streams/x/import", content=b"x", headers={"Content-Type": kind}).status_code == 415


def test_an_empty_batch_is_no_error(service: Served) -> None:
    for body in ({"rows": []}, {"streams": [], "times": [], "values": {}}):
        found = service.post("/v1/observe/batch", json=body)
        assert found.status_code == 200
        assert found.json()["rows"] == 0


def test_many_streams_are_forecast_as_one_by_one_and_the_missing_are_told(service: Served) -> None:
    names = [f"many-{n}" for n in range(40)]
    for name in names:
        service.observe(name, range(5))
    asked = [*names[:20], "nobody", "", "a\x1fb", *names[20:]]
    assert service.post("/v1/forecast", json={"streams": asked}).status_code == 422
    asked.remove("")
    found = service.post("/v1/forecast", json={"streams": asked, "horizon": 3}).json()
    assert [one["stream"] for one in found["forecasts"]] == names
    assert [(one["stream"], one["error"]) for one in found["refused"]] == [
        ("nobody", "unknown_stream"), ("a\x1fb", "stream")
    ]  # fmt: skip
    alone = service.get(f"/v1/streams/{names[7]}/forecast", params={"horizon": 3}).json()
    assert found["forecasts"][7]["quantiles"] == alone["quantiles"]
    early = service.post("/v1/forecast", json={"streams": names[:2], "at": 0}).json()
    assert [one["error"] for one in early["refused"]] == ["stream", "stream"]
    assert service.post("/v1/forecast", json={"streams": names[:2], "horizon": 5}).status_code == 400
    assert service.post("/v1/forecast", json={"streams": names * 10}).status_code == 413


def test_a_stream_is_exported_imported_and_goes_on_bit_for_bit(service: Served) -> None:
    blob_type = {"Content-Type": "application/octet-stream"}
    service.observe("from", range(10))
    blob = service.get("/v1/streams/from/export").content
    assert service.put("/v1/streams/to%2Fit/import", content=blob, headers=blob_type).json()["done"] == "imported"
    found = [service.observe(name, range(10, 14)).json() for name in ("from", "to/it")]
    assert found[0]["surprise"] == found[1]["surprise"]
    forecasts = [service.get(f"/v1/streams/{name}/forecast").json()["quantiles"] for name in ("from", "to%2Fit")]
    assert forecasts[0] == forecasts[1]
    kept = service.get("/v1/streams/to%2Fit/export").content
    for broken in (b"", b"x" * 100, blob[:-1], blob[:200], bytes(len(blob))):
        answer = service.put("/v1/streams/to%2Fit/import", content=broken, headers=blob_type)
        assert answer.status_code == 400, answer.text
    assert service.get("/v1/streams/to%2Fit/export").content == kept
