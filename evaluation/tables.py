"""The READMEs' numbers, made from benchmark rows: between two marks stands what the row files say, and nothing else.

    <!-- table: etth1 -->   ...   <!-- end -->
    <!-- table: scan_cpu of A: gdn2; step -->   ...   <!-- end -->        (rows whose names begin so)

`python -m tsgdn2.evaluation.tables` rewrites PAGES below the current folder; a test fails while one is out of date.
Rows of one name are one line: the mean over their seeds, with the smallest and the largest. A column's source is a name
among the values, or name@direction for rows of that direction alone.
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
    "scan_cpu": {
        "forward, ms": "median_ms@forward", "of its bound": "fraction_of_bound@forward",
        "over ours": "times_ours@forward", "with backward, ms": "median_ms@forward + backward",
        "of that bound": "fraction_of_bound@forward + backward", "over ours with it": "times_ours@forward + backward",
        "2 threads over 1": "gain", "rate": "rate",
    },
}  # fmt: skip
UNSEEDED = frozenset({"scan_cpu"})
"""Tables whose figures depend on no seed: without the columns of seeds and processor seconds."""
PAGES = ("README.md", "kernels/README.md")
_MARKED = re.compile(r"(<!-- table: (\w+)(?: of ([^>]+?))? -->\n).*?(<!-- end -->)", re.DOTALL)


def table(name: str, rows: Sequence[Row]) -> str:
    """One Markdown table: what, size, the figures of TABLES, and where they matter seeds and processor seconds."""
    columns = {title: source for title, source in TABLES[name].items() if _values(rows, source)}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_label(row), []).append(row)
    head = ["", *columns, *([] if name in UNSEEDED else ["seeds", "CPU-s"])]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for label, group in groups.items():
        cells = [_figure(_values(group, source)) for source in columns.values()]
        if name in UNSEEDED:
            lines.append(f"| {label}{_refusal(group)} | " + " | ".join(cells) + " |")
            continue
        seeds = ", ".join(str(row.seed) for row in group if row.seed is not None) or "-"
        spent = [row.cpu_seconds for row in group if row.cpu_seconds]
        lines.append(f"| {label} | " + " | ".join([*cells, seeds, f"{np.mean(spent):.0f}" if spent else "-"]) + " |")
    return "\n".join(lines) + "\n"


def render(text: str, folder: Path = RESULTS) -> str:
    """`text` with every marked table made anew from <folder>/<name>.jsonl."""

    def made(mark: re.Match[str]) -> str:
        begins = tuple((mark[3] or "").split("; "))
        rows = [row for row in read(folder / f"{mark[2]}.jsonl") if row.what.startswith(begins)]
        return f"{mark[1]}\n{table(mark[2], rows)}\n{mark[4]}"

    return _MARKED.sub(made, text)


def _label(row: Row) -> str:
    count = row.shape.get("observations")
    return f"{row.what}, {count:,} observations" if isinstance(count, int) else row.what


def _values(rows: Sequence[Row], source: str) -> list[object]:
    key, _, direction = source.partition("@")
    found = [row for row in rows if row.values.get(key) is not None]
    return [row.values[key] for row in found if direction in ("", row.shape.get("direction"))]


def _refusal(rows: Sequence[Row]) -> str:
    return " (cannot run here)" if all("error" in row.values for row in rows) else ""


def _figure(values: Sequence[object]) -> str:
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if not numbers:
        return "-"
    mean = _text(float(np.mean(numbers)))
    return mean if len(numbers) == 1 else f"{mean} ({_text(min(numbers))} - {_text(max(numbers))})"


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


if __name__ == "__main__":
    for page in map(Path, PAGES):
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
