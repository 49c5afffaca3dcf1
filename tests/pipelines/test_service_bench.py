"""The service's benchmark in small: contenders are sent rows that their journals then hold; pace and traffic."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.rows import read
from tsgdn2.evaluation.tables import TABLES
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.service_bench_broker import mosquitto
from tsgdn2.pipelines.service_bench_options import CONTENDERS, HTTP, MQTT, YARDSTICK, ServiceLoad
from tsgdn2.pipelines.service_bench_pace import Pace, Schedule, Taken, loop, submit
from tsgdn2.pipelines.service_bench_process import Child, ChildError
from tsgdn2.pipelines.service_bench_soak import Watch
from tsgdn2.pipelines.service_bench_traffic import BEGIN, CHANNELS, HOUR_NS, Traffic

TINY = ["bench", "--what", "service", "--quick", "true", "--seeds", "[3]", "--output", "out", "--quiet",
        "--service.streams", "40", "--service.seconds", "0.2", "--service.loads"]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the prepared store, which is made once."""
    return str(tmp_path_factory.mktemp("service"))


@pytest.mark.usefixtures("at_home")
def test_every_contender_has_a_row_and_its_journal_holds_what_it_was_sent(work: str) -> None:
    assert main([*TINY, '["aligned"]', "--service.work", work]) == 0
    rows = read(Path("out/service-quick.jsonl"))
    assert sorted(row.what for row in rows) == sorted(f"{name}, aligned" for name in CONTENDERS)
    for row in rows:
        name, values = row.what.partition(",")[0], row.values
        assert row.seed == 3
        assert row.shape["streams"] == 40
        assert row.versions.keys() >= {"python", "torch", "uvicorn"}
        assert ("mosquitto" in row.versions) == (name == MQTT)
        known = {"rows_per_s", "p50_ms", "p99_ms", "max_ms", "half_p50_ms", "half_p99_ms", "half_max_ms", "groups",
                 "rows_a_group", "cpu_service", "cpu_all", "rss_mb", "load_1m", "yardstick_over"}  # fmt: skip
        assert known <= values.keys()
        assert values["p50_ms"] <= values["p99_ms"] <= values["max_ms"]
        for part in ("", "half_"):
            assert values[f"{part}rows"] % (40 * 4) == 0, "whole patches of all streams"
            assert values.get(f"{part}journalled") == (None if name == "core" else values[f"{part}rows"])
        if name != "journal":
            assert values["status_new"] == values["rows"], "nothing was late, repeated or refused"
        assert ("cpu_sender" in values) == (name in (*HTTP, MQTT))
    page = Path("out/service-quick.md").read_text()
    assert all(f"| {name}, aligned |" in page for name in CONTENDERS)
    assert "of the yardstick's time" in page


@pytest.mark.usefixtures("at_home")
def test_a_long_load_watches_the_memory_of_the_serving_process(work: str) -> None:
    given = ["--service.work", work, "--service.minutes", "0.03", "--service.rate", "200"]
    assert main([*TINY, '["aligned"]', *given]) == 0
    (row,) = read(Path("out/service-quick.jsonl"))
    assert row.what == "memory under load, http-json, aligned"
    assert row.values["soak_journalled"] == row.values["soak_rows"] == 480
    assert set(TABLES["service_memory"].values()) <= row.values.keys()
    lines = [json.loads(line) for line in Path(work, "soak.jsonl").read_text().splitlines()]
    assert lines[0].keys() == {"minute", "rss_mb", "file_mb"}


def test_the_slope_is_that_of_the_last_two_thirds() -> None:
    watch = Watch.__new__(Watch)
    watch.minutes = list(range(90))
    watch.rss = [1e9] * 30 + [2e9 + 5.0 * minute for minute in range(60)]
    assert watch.slope() == pytest.approx(5.0)


@given(st.integers(8, 40), st.integers(2, 5), st.booleans())
def test_rows_of_a_stream_follow_one_another_and_patches_close_as_the_load_says(
    streams: int, patch: int, spread: bool
) -> None:
    traffic = Traffic(streams=streams, patch=patch, spread=spread, seed=1)
    rows = traffic.columns(0, traffic.first + 2 * patch * streams)
    times = {name: [] for name in traffic.names}
    for name, at, number in zip(rows.streams, rows.times.tolist(), rows.sequences.tolist(), strict=True):
        times[name].append((at, number))
    closing = np.zeros(patch, np.int64)
    for number, found in enumerate(times.values()):
        began = number % patch if spread else 0
        assert [at for at, _ in found] == [BEGIN + step * HOUR_NS for step in range(len(found))]
        assert [sweep for _, sweep in found] == list(range(began, began + len(found)))
        assert len(found) > patch
        closing[began % patch] += 1
    if spread:
        assert closing.max() - closing.min() <= 1
    pieces = [traffic.columns(traffic.first + at, 3) for at in (0, 3)]
    whole = traffic.columns(traffic.first, 6)
    np.testing.assert_array_equal(np.concatenate([piece.values for piece in pieces]), whole.values)


def test_all_forms_on_the_wire_hold_the_same_rows() -> None:
    traffic = Traffic(streams=8, patch=2, spread=True, seed=0)
    rows = traffic.columns(traffic.first + 5, 6)
    columns, objects = (json.loads(rows.body(form)[0]) for form in ("http-json", "http-json-rows"))
    table = pa.ipc.open_stream(rows.body("http-arrow")[0]).read_all()
    messages = [(topic.decode(), json.loads(payload)) for topic, payload in rows.messages()]
    assert columns["streams"] == table["stream"].to_pylist() == [topic for topic, _ in messages] == rows.streams
    for number, row in enumerate(objects["rows"]):
        cells = dict(zip(CHANNELS, row["values"], strict=True))
        assert cells == {name: columns["values"][name][number] for name in CHANNELS}
        assert cells == {name: table[name][number].as_py() for name in CHANNELS}
        assert messages[number][1] == {"time": row["time"], "sequence": row["sequence"], **cells}


def test_at_a_rate_the_time_of_a_row_begins_when_it_is_due_however_late_it_is_sent() -> None:
    sent = []

    def slow(first: int, count: int) -> None:
        sent.append((first, count))
        if len(sent) == 1:
            end = time.monotonic() + 0.1  # a stall
            while time.monotonic() < end:
                pass

    found = loop(slow, Pace(first=10, seconds=0.2, batch=5, rate=1_000.0), group=20)
    assert found["rows"] == 200
    assert [first for first, _ in sent] == [10 + sum(n for _, n in sent[:at]) for at in range(len(sent))]
    assert max(count for _, count in sent) == 20, "what was due is taken together, up to a group"
    assert found["max_ms"] >= 100
    assert found["p50_ms"] > 1, "half of the rows were due in the stall or behind it"


def test_at_full_speed_rows_are_filled_up_to_whole_ones() -> None:
    found = loop(lambda first, count: None, Pace(first=0, seconds=0.01, batch=7, whole=64), group=30)
    assert found["rows"] % 64 == 0
    assert found["groups"] == -(-found["rows"] // 30)
    schedule = Schedule(Pace(first=0, seconds=1.0, batch=64, rate=100.0, whole=96))
    taken = [schedule.take() for _ in range(4)]
    assert [one and one[:2] for one in taken] == [(0, 64), (64, 64), (128, 64), None]
    assert np.diff([one[2] for one in taken if one]) == pytest.approx([0.64, 0.64])


def test_requests_under_way_are_bounded_and_an_error_of_one_ends_all() -> None:
    waiting: list[Future[None]] = []

    def begin(first: int, rows: int) -> Future[None]:
        waiting.append(Future())
        if len(waiting) == 3:
            for one in waiting:
                one.set_result(None)
            waiting.clear()
        return waiting[-1] if waiting else _done()

    found = submit(begin, Pace(first=0, seconds=0.01, batch=4, whole=48, abreast=3))
    assert found["rows"] % 48 == 0
    broken: Future[None] = Future()
    broken.set_exception(ConfigError("service: as it should"))
    with pytest.raises(ConfigError, match="as it should"):
        submit(lambda first, rows: broken, Pace(first=0, seconds=10.0, batch=4))


def _done() -> Future[None]:
    one: Future[None] = Future()
    one.set_result(None)
    return one


def test_figures_are_of_rows_and_not_of_requests() -> None:
    taken = Taken()
    taken.add(1.0, 1.1, rows=99)
    taken.add(1.0, 3.0, rows=1)
    found = taken.figures(1.0)
    assert found["rows"] == 100
    assert found["rows_per_s"] == pytest.approx(50)
    assert found["p50_ms"] == pytest.approx(100)
    assert found["max_ms"] == pytest.approx(2_000)


def test_a_process_that_fails_says_why_and_one_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with Child("senders", tmp_path / "log") as child:
        with pytest.raises(ChildError, match=r"'senders' failed \(TypeError"):
            child.ask(do="http", pace={"wrong": 1}, traffic={})
        child.end()
        with pytest.raises(ChildError, match="it has ended"):
            child.ask(do="http")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"only": ("htpp",)}, "service.only: must be some of core, journal"),
        ({"loads": ()}, "service.loads: must be some of spread, aligned, got none"),
        ({"streams": 3}, "service.streams: must be at least 8, got 3"),
        ({"seconds": 0.0}, "service.seconds: must be above 0"),
        ({"batch": 0}, "batch: must be at least 1"),
    ],
)
def test_what_can_not_be_measured_is_refused_by_name(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServiceLoad(**wrong)  # type: ignore[arg-type]


def test_requests_under_way_never_hold_two_rows_of_one_stream() -> None:
    for streams, batch in ((8, 256), (200, 64), (10_000, 256)):
        options = ServiceLoad(streams=streams, batch=batch)
        assert (options.abreast + 1) * options.rows <= streams
    assert YARDSTICK in ServiceLoad().only


def test_without_a_broker_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tsgdn2.pipelines.service_bench_broker._PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="mosquitto, which is not installed; `apt-get install mosquitto`"):
        mosquitto()
