"""The READMEs' numbers, made from benchmark rows: between two marks stands what the row files say, and nothing else.

    <!-- table: etth1 -->   ...   <!-- end -->
    <!-- table: scan_cpu of A: gdn2; step -->   ...   <!-- end -->        (rows whose names begin so)

`python -m tsgdn2.evaluation.tables` rewrites PAGES below the current folder; a test fails while one is out of date.
Rows of one name are one line: the mean over their seeds, with the smallest and the largest. A column's source is a name
among the values, or name@direction for rows of that direction alone. Where there is no row file yet, a line says so.
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
    "robustness": {
        "0 %": "CRPS 0", "10 %": "CRPS 0.1", "30 %": "CRPS 0.3", "50 %": "CRPS 0.5", "70 %": "CRPS 0.7",
        "90 %": "CRPS 0.9", "rise at 50 %": "rise 0.5",
    },
    "robustness_relative": {
        "0 %": "relative 0", "10 %": "relative 0.1", "30 %": "relative 0.3", "50 %": "relative 0.5",
        "70 %": "relative 0.7", "90 %": "relative 0.9",
    },
    "robustness_mase": {
        "0 %": "MASE 0", "10 %": "MASE 0.1", "30 %": "MASE 0.3", "50 %": "MASE 0.5", "70 %": "MASE 0.7",
        "90 %": "MASE 0.9",
    },
    "recovery": {
        "steps to recover": "recovery", "ratio at once": "ratio 0", "after 3": "ratio 3", "12": "ratio 12",
        "24": "ratio 24", "72": "ratio 72",
    },
    "events": {
        "CRPS of the count": "CRPS count", "of the mean delay": "CRPS mean(dep_delay)", "of code": "CRPS code",
        "of conv": "CRPS conv", "CRPS pooled": "CRPS", "count / best baseline": "CRPS count / best baseline",
        "mean delay / best": "CRPS mean(dep_delay) / best baseline", "code / best": "CRPS code / best baseline",
        "conv / best": "CRPS conv / best baseline", "pooled / best": "CRPS / best baseline",
        "CRPS of the wait": "CRPS wait", "wait / best baseline": "CRPS wait / best baseline",
        "coverage of 80 %": "coverage", "streamed - batch": "streamed_minus_batch",
        "events a second": "events_per_second", "events a processor second": "events_per_processor_second",
        "padded / packed": "padded_over_packed", "in processor time": "padded_over_packed_processor",
        "commits padded alone": "padded_commits_over_packed", "tokens, padded / packed": "tokens_ratio",
        "difference of the losses": "loss_difference",
    },
    "nab": {
        "standard": "standard", "reward low FP": "reward low FP", "reward low FN": "reward low FN",
        "windows found": "windows_found", "false alarms": "false_alarms",
    },
    "calibration": {
        "coverage": "coverage", "split": "split coverage", "model": "model coverage", "width / split's": "width ratio",
        "score / split's": "score ratio", "a day, 5 %": "rolling low", "95 %": "rolling high",
        "split's 5 %": "split rolling low", "95 % of it": "split rolling high", "repeats": "repeats",
    },
    "calibration_all": {
        "coverage": "coverage", "farthest from 80 %": "worst off", "split's": "worst split off",
        "within 2 points": "streams within 2 points", "width / split's, mean": "width ratio",
        "geometric": "width ratio, geometric", "widest": "worst width ratio", "within 1.2": "streams within 1.2",
        "score / split's": "score ratio", "leads 9 - 16": "coverage block 2", "17 - 24": "coverage block 3",
    },
    "gift_eval": {
        "MASE / seasonal_naive's": "MASE relative", "rank among 120": "rank of MASE",
        "CRPS / seasonal_naive's": "CRPS relative", "rank": "rank of CRPS", "coverage of 80 %": "coverage",
        "streamed - batch": "streamed_minus_batch",
    },
    "probe": {
        "T": "x1", "2 T": "x2", "4 T": "x4", "8 T": "x8", "16 T": "x16", "30 % gaps": "gap 0.3",
        "60 % missing": "missing 0.6",
    },
    "language": {
        "bits per byte": "bits_per_byte", "weights of the blocks": "parameters",
        "floats of state a layer": "state_floats",
    },
    "service": {
        "rows a second": "rows_per_s", "yardstick / it": "yardstick_over", "processor / its": "yardstick_cpu_over",
        "p50, ms": "p50_ms", "p99": "p99_ms", "at half rate: p50, ms": "half_p50_ms", "p99, ms": "half_p99_ms",
        "largest": "half_max_ms", "rows a group": "rows_a_group", "cores": "cpu_service", "cores of all": "cpu_all",
        "of others": "cpu_others", "MB": "rss_mb",
    },
    "service_memory": {
        "minutes": "soak_minutes", "rows a second": "soak_rows_per_s", "p50, ms": "soak_p50_ms", "p99": "soak_p99_ms",
        "largest": "soak_max_ms", "MB after a third": "rss_third_mb", "at the end": "rss_end_mb",
        "bytes a minute": "rss_slope_bytes_per_minute", "file, MB": "file_start_mb", "file at the end": "file_end_mb",
    },
    "serving": {
        "update, µs": "update_us", "mean of 8": "update_patch_us", "processor": "update_cpu_us",
        "/ ours": "update_over_ours", "/ youngest": "update_over_youngest", "forecast, µs": "forecast_us",
        "processor's": "forecast_cpu_us", "over ours": "forecast_over_ours", "over youngest": "forecast_over_youngest",
        "bytes a stream": "bytes",
    },
}  # fmt: skip
UNSEEDED = frozenset({"scan_cpu", "serving", "service", "service_memory"})
"""Tables whose figures depend on no seed: without the columns of seeds and processor seconds."""
FILES = {
    "robustness_relative": "robustness", "robustness_mase": "robustness", "recovery": "robustness",
    "calibration_all": "calibration", "service_memory": "service",
}  # fmt: skip
"""Tables made from the rows of another file than the one that bears their name."""
PAGES = ("README.md", "kernels/README.md", "evaluation/README.md")
_MARKED = re.compile(r"(<!-- table: (\w+)(?: of ([^>]+?))? -->\n).*?(<!-- end -->)", re.DOTALL)


def table(name: str, rows: Sequence[Row]) -> str:
    """One Markdown table: what, size, the figures of TABLES, and where they matter seeds and processor seconds."""
    head, found = cells(name, rows)
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in found)]) + "\n"


def cells(name: str, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings, the first of them empty, and lines of the same table; figures as they come for a name without one."""
    sources = TABLES.get(name) or {key: key for row in rows for key in row.values}
    columns = {title: source for title, source in sources.items() if _values(rows, source)}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_label(row), []).append(row)
    head = ["", *columns, *([] if name in UNSEEDED else ["seeds", "CPU-s"])]
    lines = []
    for label, group in groups.items():
        figures = [_figure(_values(group, source)) for source in columns.values()]
        if name in UNSEEDED:
            lines.append([f"{label}{_refusal(group)}", *figures])
            continue
        seeds = ", ".join(str(row.seed) for row in group if row.seed is not None) or "-"
        spent = [row.cpu_seconds for row in group if row.cpu_seconds]
        lines.append([label, *figures, seeds, f"{np.mean(spent):.0f}" if spent else "-"])
    return head, lines


def render(text: str, folder: Path = RESULTS) -> str:
    """`text` with every marked table made anew from <folder>/<name>.jsonl."""

    def made(mark: re.Match[str]) -> str:
        begins = tuple((mark[3] or "").split("; "))
        file = folder / f"{FILES.get(mark[2], mark[2])}.jsonl"
        if mark[2] in TABLES and not file.exists():
            return f"{mark[1]}\nNo rows of record yet: {file.name}.\n\n{mark[4]}"
        rows = [row for row in read(file) if row.what.startswith(begins)]
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
    if all(isinstance(value, int) for value in values) and len(set(numbers)) == 1:
        return f"{numbers[0]:,.0f}"
    mean = _text(float(np.mean(numbers)))
    return mean if len(numbers) == 1 else f"{mean} ({_text(min(numbers))} - {_text(max(numbers))})"


def _text(value: float) -> str:
    if 0 < abs(value) < 5e-4:
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


if __name__ == "__main__":
    for page in map(Path, PAGES):
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
