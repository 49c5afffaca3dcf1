from __future__ import annotations

import json
from pathlib import Path

import pytest

from tsgdn2.errors import ConfigError, DataError
from tsgdn2.evaluation.rows import append, measure, read, row, table, timing_quantiles


def test_rows_come_back_as_they_were_written_and_are_only_appended(tmp_path: Path) -> None:
    path = tmp_path / "results" / "speed.jsonl"
    calls = []
    timing = measure(lambda: calls.append(1), repeats=5, warmup=2)
    assert len(calls) == 7
    first = row("step", {"B": 4, "backend": "chunked"}, seed=1, timing=timing, bytes=128, CRPS=0.25)
    second = row("scan", {"B": 8})
    append(path, first)
    append(path, second)
    assert read(path) == [first, second]
    assert {"python", "torch", "numpy"} <= set(first.versions)
    assert first.device.endswith("threads")
    assert first.commit
    assert json.loads(path.read_text().splitlines()[0])["what"] == "step"


def test_a_table_shows_what_it_is_asked_for_and_leaves_gaps_empty() -> None:
    rows = [row("a|b", {"B": 4}, CRPS=0.123456, seed=3), row("c", {}, device="other", cpu_seconds=2.0)]
    text = table(rows, {"model": "what", "B": "shape.B", "CRPS": "values.CRPS", "seed": "seed", "CPU s": "cpu_seconds"})
    assert text.splitlines() == [
        "| model | B | CRPS | seed | CPU s |",
        "|---|---|---|---|---|",
        "| a\\|b | 4 | 0.1235 | 3 |  |",
        "| c |  |  |  | 2 |",
    ]


def test_timings_are_quantiles() -> None:
    assert timing_quantiles([1.0, 2.0, 3.0, 4.0, 5.0])["0.5"] == 3.0
    with pytest.raises(ConfigError, match="at least one measurement"):
        timing_quantiles([])


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="repeats must be at least 1"):
        measure(lambda: None, repeats=0)
    with pytest.raises(ConfigError, match="at least one column"):
        table([], {})
    with pytest.raises(ConfigError, match="columns must come from"):
        table([row("a", {})], {"x": "valeus.x"})
    broken = tmp_path / "broken.jsonl"
    append(broken, row("a", {}))
    broken.write_text(broken.read_text() + '{"what": "b"\n')
    with pytest.raises(DataError, match="line 2"):
        read(broken)
    broken.write_text('{"what": "b"}\n')
    with pytest.raises(DataError, match="line 1"):
        read(broken)
