"""The published figures: what is installed equals what was published, and ranks count what is below."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tsgdn2.errors import DataError, SchemaError
from tsgdn2.evaluation.gift_eval import CONFIGURATIONS
from tsgdn2.evaluation.leaderboard import FILE, LOCAL, SHOWN, entrant, ladder, published, rank, write

NAMES = [one.name for one in CONFIGURATIONS]
DATA = os.environ.get("TSGDN2_DATA", "")


def test_the_installed_table_holds_every_configuration_of_120_models() -> None:
    board = published(FILE)
    assert len(board) == 120
    assert set(SHOWN) <= set(board)
    for one in board.values():
        assert all(set(figures) == set(NAMES) for figures in one.figures.values())
        assert all(value > 0 for figures in one.figures.values() for value in figures.values())
    reference = board["seasonal_naive"]
    assert board["xLSTM-Mixer"].relative("MASE", NAMES, reference) == pytest.approx(0.8945, abs=5e-5)
    assert board["xLSTM-Mixer"].relative("CRPS", NAMES, reference) == pytest.approx(0.4881, abs=5e-5)
    assert reference.relative("CRPS", NAMES, reference) == pytest.approx(1.0)


def test_a_rank_counts_the_published_models_below() -> None:
    board = published(FILE)
    steps = ladder("CRPS", NAMES, board)
    assert rank(0.0, steps) == 1
    assert rank(1e9, steps) == 121
    xlstm = board["xLSTM-Mixer"].relative("CRPS", NAMES, board["seasonal_naive"])
    assert rank(xlstm, steps) == 70


def test_seeds_are_averaged_and_what_lacks_a_configuration_has_no_mean() -> None:
    made = entrant("ours", [(NAMES[0], 1.0, 0.2), (NAMES[0], 3.0, 0.4), (NAMES[1], 1.0, 1.0)])
    assert made.figures["MASE"][NAMES[0]] == 2.0
    assert made.figures["CRPS"][NAMES[0]] == pytest.approx(0.3)
    reference = published(FILE)["seasonal_naive"]
    assert made.relative("MASE", NAMES[:2], reference) > 0
    assert math.isnan(made.relative("MASE", NAMES, reference))
    with pytest.raises(SchemaError, match="which is no configuration"):
        entrant("ours", [("ett1/H/never", 1.0, 1.0)])


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    board = published(FILE)
    write(tmp_path / "again.jsonl", board.values(), "a test")
    again = published(tmp_path / "again.jsonl")
    assert {name: (one.kind, one.leaked, one.figures) for name, one in again.items()} == {
        name: (one.kind, one.leaked, one.figures) for name, one in board.items()
    }


@pytest.mark.parametrize("content", ["", "{}\n", '{"configurations": ["a"]}\n["m", "k", false, [1.0], [1.0]]\n'])
def test_a_file_that_is_no_table_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"x\.jsonl"):
        published(tmp_path / "x.jsonl")


if DATA and (Path(DATA) / LOCAL).is_file():

    def test_the_installed_table_equals_the_published_file() -> None:
        ours, theirs = published(FILE), published(Path(DATA) / LOCAL)
        assert set(ours) == set(theirs)
        for name, one in theirs.items():
            assert ours[name].figures == one.figures
            assert (ours[name].kind, ours[name].leaked) == (one.kind, one.leaked)
