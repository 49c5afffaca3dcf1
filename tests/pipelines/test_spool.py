"""The spool: what was recorded is read back whole, whatever a crash leaves behind."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.errors import DataError, SchemaError
from tsgdn2.pipelines.events import Artifact, End, Metrics, Params, clean_name
from tsgdn2.pipelines.spool import Header, Progress, Spool, TrackingError, new_id, spool_paths


def new_spool(root: Path) -> Spool:
    header = Header(spool_id=new_id(), experiment="e", name="n", tracking_uri="sqlite:///x", started_ms=1)
    return Spool.create(root, header)


def test_what_was_recorded_is_read_back_in_order_with_numbers_and_rising_times(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    payloads = [Params(values={"a": "1"}), Metrics(values={"x": math.inf, "y": -0.0}, step=3), End(status="FINISHED")]
    for payload in payloads:
        spool.append(payload)
    events = list(Spool(spool.path).events())
    assert [event.payload for event in events] == payloads
    assert [event.number for event in events] == [0, 1, 2]
    assert sorted(event.time_ms for event in events) == [event.time_ms for event in events]
    assert events[-1].end_byte == spool.events_path.stat().st_size


def test_a_nan_metric_survives_the_file(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    spool.append(Metrics(values={"x": math.nan}))
    (event,) = spool.events()
    assert isinstance(event.payload, Metrics)
    assert math.isnan(event.payload.values["x"])


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 2000), garbage=st.binary(max_size=6).filter(lambda piece: b"\n" not in piece))
def test_any_torn_end_leaves_the_whole_events_before_it_and_can_be_written_on(
    cut: int, garbage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spool = new_spool(tmp_path_factory.mktemp("torn"))
    for step in range(12):
        spool.append(Metrics(values={"x": float(step)}, step=step))
    spool.release()
    whole = spool.events_path.read_bytes()
    kept = whole[: min(cut, len(whole))]
    spool.events_path.write_bytes(kept + garbage)
    lines = kept.count(b"\n")
    again = Spool(spool.path)
    assert [event.number for event in again.events()] == list(range(lines))
    assert again.take()
    again.append(Params(values={"after": "crash"}))
    again.release()
    assert [event.number for event in again.events()] == list(range(lines + 1))


def test_an_altered_line_in_the_middle_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    spool.append(Params(values={"a": "1"}))
    spool.append(Params(values={"b": "1"}))
    lines = spool.events_path.read_bytes().splitlines(keepends=True)
    spool.events_path.write_bytes(lines[0][:5] + b"\n" + lines[1])
    with pytest.raises(DataError, match=r"events\.jsonl.*altered"):
        list(spool.events())


def test_a_write_that_fails_half_way_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = new_spool(tmp_path)
    spool.append(Params(values={"a": "1"}))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    spool.fsync_seconds = 0.0
    with pytest.raises(OSError, match="no space"):
        spool.append(Params(values={"b": "1"}))
    monkeypatch.undo()
    spool.append(Params(values={"c": "1"}))
    assert [event.payload for event in spool.events()] == [Params(values={"a": "1"}), Params(values={"c": "1"})]
    assert [event.number for event in spool.events()] == [0, 1]


def test_an_artifact_is_kept_as_it_was_when_recorded(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    source = tmp_path / "plot.html"
    source.write_text("before")
    spool.append(Artifact(file="plot.html"), source=source)
    source.write_text("after")
    (event,) = spool.events()
    assert spool.file(event).read_text() == "before"


def test_only_one_living_process_writes_a_spool_and_none_after_its_end(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    assert not Spool(spool.path).take()
    with pytest.raises(TrackingError, match="closed"):
        Spool(spool.path).append(Params(values={}))
    spool.append(End(status="FINISHED"))
    with pytest.raises(TrackingError, match="closed"):
        spool.append(Params(values={}))
    assert Spool(spool.path).take()


def test_an_unreadable_note_of_progress_counts_as_none(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    progress = Progress(tracking_uri="u", run_id="r", done=3, byte=99)
    spool.note(progress)
    assert spool.progress() == progress
    (spool.path / "state.json").write_text('{"tracking')
    assert spool.progress() is None


@pytest.mark.parametrize("content", ["", "{}", '{"schema": 1, "colour": "red"}', "[1]"])
def test_a_folder_without_a_readable_header_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match="not the spool of a run"):
        Spool(tmp_path)


def test_a_newer_schema_is_refused_with_the_remedy(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    header = json.loads((spool.path / "run.json").read_text())
    (spool.path / "run.json").write_text(json.dumps(header | {"schema": 2}))
    with pytest.raises(DataError, match="update tsgdn2"):
        Spool(spool.path)


def test_spools_are_listed_oldest_first_and_half_removed_ones_are_not(tmp_path: Path) -> None:
    made = [new_spool(tmp_path) for _ in range(5)]
    made[2].path.rename(made[2].path.with_name(f".{made[2].path.name}.sent"))
    assert spool_paths(tmp_path) == [spool.path for number, spool in enumerate(made) if number != 2]
    assert spool_paths(tmp_path / "nothing") == []


def test_an_id_made_at_a_full_second_sorts_by_one_reading_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    second = 1_763_771_714
    instants = [second * 10**9 + 999_999_999, (second + 1) * 10**9 + 5]
    clock = iter(instants)
    monkeypatch.setattr("time.time_ns", lambda: next(clock))
    first, later = new_id(), new_id()
    assert first < later
    assert first.startswith(time.strftime("%Y%m%dT%H%M%S-999999999-", time.gmtime(second)))
    assert later.startswith(time.strftime("%Y%m%dT%H%M%S-000000005-", time.gmtime(second + 1)))


@pytest.mark.parametrize(
    ("name", "clean"), [("Coverage[0.1]", "Coverage_0.1"), ("a/b c", "a/b c"), ("[]", ""), ("../x", ""), ("a//b", "")]
)
def test_names_are_made_fit_for_mlflow_or_refused(name: str, clean: str) -> None:
    if clean:
        assert clean_name("metrics", name) == clean
    else:
        with pytest.raises(SchemaError, match="metrics: names are"):
            clean_name("metrics", name)
