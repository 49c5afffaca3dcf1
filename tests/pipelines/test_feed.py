"""`tsgdn2 feed` against a real service: a table arrives whole and once, and what can not be sent says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.service.http.served import HOUR, served
from tests.service.predictors import predictor

from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.feed import FeedError, run
from tsgdn2.pipelines.service_jobs import Feed


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twenty hours of two streams, with cells missing, not in order."""
    dice = np.random.default_rng(0)
    values = dice.normal(size=(40, 2)) * 3 + 10
    times = np.repeat(np.arange(20), 2) * HOUR
    frame = pl.DataFrame({
        "stream": ["a", "b"] * 20, "time": pl.Series(times).cast(pl.Datetime("ns")),
        "x": np.where(dice.random(40) < 0.2, np.nan, values[:, 0]), "y": values[:, 1],
    })  # fmt: skip
    path = tmp_path / "table.parquet"
    frame.fill_nan(None).sample(fraction=1.0, shuffle=True, seed=0).write_parquet(path)
    return path


def test_a_table_arrives_in_order_and_a_second_run_sends_nothing_twice(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = predictor()
    frame = pl.read_parquet(table).sort("time", "stream")
    for stream, time, x, y in frame.iter_rows():
        twin.observe(stream, time, [np.nan if x is None else x, y])
    with served(tmp_path) as client:
        url = str(client.base_url)
        assert main(["feed", "--data", str(table), "--url", url, "--batch", "7", "--quiet"]) == 0
        assert "\n40 rows of 2 streams: 40 kept\n" in capsys.readouterr().out
        for stream in "ab":
            assert client.get(f"/v1/streams/{stream}/export").content == twin.take_out(stream)
        run(Feed(data=str(table), url=url, quiet=True, speed=1e9))
        assert "40 rows of 2 streams: 40 seen\n" in capsys.readouterr().out


def test_what_can_not_be_sent_says_why(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(tmp_path, keys="required") as client:
        url = str(client.base_url)
        monkeypatch.delenv("TSGDN2_KEY", raising=False)
        with pytest.raises(FeedError, match=r"answered 401: .*key"):
            run(Feed(data=str(table), url=url, quiet=True))
        monkeypatch.setenv("TSGDN2_KEY", client.keyed("write").headers["Authorization"].removeprefix("Bearer "))
        run(Feed(data=str(table), url=url, quiet=True))
    with pytest.raises(FeedError, match="can not be reached"):
        run(Feed(data=str(table), url=url, quiet=True, timeout=0.2))
    assert main(["feed", "--data", str(table), "--url", "localhost"]) == 2
    assert "must begin with http" in capsys.readouterr().err
