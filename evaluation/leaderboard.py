"""The published figures of the GIFT-Eval leaderboard on its 23 configurations of ETT and Jena, and a rank among them.

    relative(model) = geometric mean over configurations of  figure / figure of seasonal_naive
    rank(figure)    = 1 + published models whose figure is lower

The figures are facts from the result files of 120 models, kept in results/gift_eval_published.jsonl (52 kB) so that
ranks need no download; `gift_eval_published.csv` in the folder of TSGDN2_DATA is read in its place where there is one.
They were made by their owners: other hardware, other budgets, many of them pretrained on other data, some on these very
test windows (`leaked`). They are there to be looked at beside rows that one machine has made, and say nothing of cost.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import polars as pl

from tsgdn2.datasets.fetch import local_file
from tsgdn2.errors import DataError, SchemaError
from tsgdn2.evaluation.gift_eval import CONFIGURATIONS, SEASONAL_NAIVE, geometric_mean
from tsgdn2.evaluation.rows import RESULTS

FILE: Final = RESULTS / "gift_eval_published.jsonl"
LOCAL: Final = "gift_eval_published.csv"
FIGURES: Final = ("MASE", "CRPS")
Figure = Literal["MASE", "CRPS"]
RUN_HERE: Final = "run here"
SHOWN: Final = ("TempoPFN", "xLSTM-Mixer", "PatchTST", "tft", "iTransformer", "DLinear", "deepar", "naive")
"""Published models that a narrow table shows beside those of a run: from-scratch ones, and our rivals' twins."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Entrant:
    """One model, published or run here."""

    name: str
    """As the leaderboard or the run calls it."""
    kind: str
    """zero-shot, pretrained, deep-learning, fine-tuned, agentic, statistical; "run here" for ours and its rivals."""
    leaked: bool
    """Whether its owners say that it has seen test data."""
    figures: Mapping[str, Mapping[str, float]]
    """MASE and CRPS, each by the name of the configuration; a run may lack some."""

    def relative(self, figure: Figure, names: Sequence[str], reference: Entrant) -> float:
        """Geometric mean over the configurations of this model's figure over the reference's; NaN where one lacks."""
        mine, theirs = self.figures[figure], reference.figures[figure]
        if not all(name in mine and name in theirs for name in names):
            return float("nan")
        return geometric_mean([mine[name] / theirs[name] for name in names])


def published(path: Path | None = None) -> dict[str, Entrant]:
    """Read the published models by name, from the folder of TSGDN2_DATA or from the file that is installed with us.

    path: another file, .csv with a row per model and configuration or .jsonl as ours. Raises DataError.
    """
    found = path or local_file((LOCAL,)) or FILE
    try:
        made = _long(found) if found.suffix == ".csv" else _compact(found)
    except (OSError, ValueError, KeyError, IndexError, pl.exceptions.PolarsError) as error:
        raise DataError(f"path: {found.name} holds no figures as the leaderboard gives them: {error}") from error
    if SEASONAL_NAIVE not in made:
        raise DataError(f"path: {found.name} lacks {SEASONAL_NAIVE}, which all figures are divided by")
    return made


def ladder(figure: Figure, names: Sequence[str], board: Mapping[str, Entrant]) -> list[float]:
    """Relative figures of the published models on these configurations, the lowest first."""
    reference = board[SEASONAL_NAIVE]
    return sorted(one.relative(figure, names, reference) for one in board.values())


def rank(value: float, steps: Sequence[float]) -> int:
    """Place of a relative figure on a `ladder` of the same configurations; 1 is best."""
    return 1 + bisect_left(steps, value)


def entrant(name: str, rows: Iterable[tuple[str, float, float]]) -> Entrant:
    """Make an entrant of (configuration, MASE, CRPS) rows; several of one configuration give their mean."""
    found: dict[str, list[tuple[float, float]]] = {}
    for configuration, mase, crps in rows:
        found.setdefault(configuration, []).append((mase, crps))
    unknown = set(found) - {one.name for one in CONFIGURATIONS}
    if unknown:
        raise SchemaError(f"rows of {name} name {sorted(unknown)[0]!r}, which is no configuration of the protocol")
    means = {key: [sum(column) / len(column) for column in zip(*own, strict=True)] for key, own in found.items()}
    figures = {figure: {key: mean[row] for key, mean in means.items()} for row, figure in enumerate(FIGURES)}
    return Entrant(name=name, kind=RUN_HERE, leaked=False, figures=figures)


def write(path: Path, entrants: Iterable[Entrant], source: str) -> None:
    """Write the compact file: a line that says what it is, then one line per model."""
    names = [one.name for one in CONFIGURATIONS]
    head = {"source": source, "columns": ["model", "kind", "saw the test data", *FIGURES], "configurations": names}
    lines = [json.dumps(head)]
    for one in sorted(entrants, key=lambda entrant: entrant.name.lower()):
        cells = [[one.figures[figure][name] for name in names] for figure in FIGURES]
        lines.append(json.dumps([one.name, one.kind, one.leaked, *cells], separators=(",", ":")))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _compact(path: Path) -> dict[str, Entrant]:
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    names = json.loads(head)["configurations"]
    made = {}
    for line in lines:
        name, kind, leaked, *cells = json.loads(line)
        figures = {figure: dict(zip(names, own, strict=True)) for figure, own in zip(FIGURES, cells, strict=True)}
        made[name] = Entrant(name=name, kind=kind, leaked=leaked, figures=figures)
    return made


def _long(path: Path) -> dict[str, Entrant]:
    table = pl.read_csv(path).with_columns(pl.concat_str(["dataset", "freq", "term"], separator="/").alias("one"))
    made = {}
    for (name,), own in table.group_by(["model"], maintain_order=True):
        figures = {figure: dict(zip(own["one"], own[figure], strict=True)) for figure in FIGURES}
        made[str(name)] = Entrant(
            name=str(name), kind=own["model_type"][0], leaked=own["testdata_leakage"][0] == "Yes", figures=figures
        )
    return made
