"""The README's numbers, made from benchmark rows: between two marks stands what the row files say, and nothing else.

    <!-- table: etth1 -->   ...   <!-- end -->

`python -m tsgdn2.evaluation.tables` rewrites the README of the current folder; a test fails while it is out of date.
Rows of one name are one line: the mean over their seeds, with the smallest and the largest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tsgdn2.evaluation.rows import RESULTS, Row, read

TABLES: Mapping[str, Mapping[str, str]] = {
    "quickstart": {
        "CRPS / SeasonalNaive's": "crps_relative", "MASE / SeasonalNaive's": "mase_relative",
        "coverage of 80 %": "coverage",
    },
    "etth1": {"CRPS A": "CRPS A", "CRPS B": "CRPS B", "MASE A": "MASE A", "MASE B": "MASE B"},
    "phases": {"worst phase / best": "worst_over_best"},
    "memory": {"CRPS streamed": "streamed", "CRPS restarted": "restarts", "ratio": "ratio"},
    "endurance": {
        "bytes of state": "bytes", "µs an observation, median": "median_us", "mean": "mean_us",
        "median / first row's": "median_over_first",
    },
}  # fmt: skip
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(name: str, rows: Sequence[Row]) -> str:
    """One Markdown table: what, size, the figures of TABLES, seeds, processor seconds."""
    columns = TABLES[name]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_label(row), []).append(row)
    head = ["", *columns, "seeds", "CPU-s"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for label, group in groups.items():
        cells = [_figure([row.values[key] for row in group if key in row.values]) for key in columns.values()]
        seeds = ", ".join(str(row.seed) for row in group if row.seed is not None) or "-"
        spent = [row.cpu_seconds for row in group if row.cpu_seconds]
        lines.append(f"| {label} | " + " | ".join([*cells, seeds, f"{np.mean(spent):.0f}" if spent else "-"]) + " |")
    return "\n".join(lines) + "\n"


def render(text: str, folder: Path = RESULTS) -> str:
    """`text` with every marked table made anew from <folder>/<name>.jsonl."""
    return _MARKED.sub(lambda m: m[1] + "\n" + table(m[2], read(folder / f"{m[2]}.jsonl")) + "\n" + m[3], text)


def _label(row: Row) -> str:
    count = row.shape.get("observations")
    return f"{row.what}, {count:,} observations" if isinstance(count, int) else row.what


def _figure(values: Sequence[object]) -> str:
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if not numbers:
        return "-"
    mean = _text(float(np.mean(numbers)))
    return mean if len(numbers) == 1 else f"{mean} ({_text(min(numbers))} - {_text(max(numbers))})"


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3f}"


if __name__ == "__main__":
    readme = Path("README.md")
    readme.write_text(render(readme.read_text(encoding="utf-8")), encoding="utf-8")
