"""The README's tables say what the row files say."""

from pathlib import Path

import pytest

from tsgdn2.evaluation.rows import append, row
from tsgdn2.evaluation.tables import PAGES, TABLES, render, table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_up_to_date_with_the_rows(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert render(text, ROOT / "evaluation" / "results") == text, "run: python -m tsgdn2.evaluation.tables"


def test_seeds_of_one_name_are_one_line_and_losing_rows_stay(tmp_path: Path):
    rows = [row("ours", {}, seed=s, cpu_seconds=10.0, **{"CRPS A": 0.2 + 0.01 * s}) for s in (0, 1)]
    rows.append(row("a rival that wins", {}, **{"CRPS A": 0.1}))
    append(tmp_path / "etth1.jsonl", *rows)
    text = render("x\n<!-- table: etth1 -->\nold\n<!-- end -->\ny", tmp_path)
    assert "| ours | 0.205 (0.200 - 0.210) |" in text
    assert "| a rival that wins | 0.100 |" in text
    assert "old" not in text
    assert text.startswith("x\n")
    assert set(TABLES) >= {"etth1", "endurance"}
    assert table("etth1", rows).count("\n") == 4


def test_a_table_without_its_row_file_says_so_and_a_name_that_is_no_table_is_an_error(tmp_path: Path):
    text = render("<!-- table: serving -->\nold\n<!-- end -->", tmp_path)
    assert "No rows of record yet: serving.jsonl." in text
    assert "old" not in text
    append(tmp_path / "serving.jsonl", row("ours, 1 stream", {"observations": 1000}, update_us=400.0))
    assert "| ours, 1 stream, 1,000 observations | 400 |" in render(text, tmp_path)
    with pytest.raises(FileNotFoundError):
        render("<!-- table: srving -->\n<!-- end -->", tmp_path)


def test_a_table_may_hold_the_rows_whose_names_begin_so_and_drops_empty_columns(tmp_path: Path):
    append(tmp_path / "etth1.jsonl", *(row(name, {}, **{"CRPS A": 0.5}) for name in ("a: one", "b: two", "c: three")))
    text = render("<!-- table: etth1 of a:; c: th -->\n<!-- end -->", tmp_path)
    assert "| a: one | 0.500 |" in text
    assert "| c: three | 0.500 |" in text
    assert "b: two" not in text
    assert "CRPS B" not in text
