"""What the rows of a GIFT-Eval run say: figures over seasonal_naive's, ranks among the published, a page.

    relative = figure / seasonal_naive's of the same run;  over configurations: geometric mean;  over seeds: mean first
    rank     = 1 + published models below, on the same configurations;  of 120, seasonal_naive and naive among them

A model that lacks a configuration of the run, or a seed of one, has no geometric mean. Models of the run are never
ranked among each other's figures, so that adding a rival changes no rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from tsgdn2.evaluation.gift_eval import CONFIGURATIONS, NAIVE, SEASONAL_NAIVE
from tsgdn2.evaluation.leaderboard import FIGURES, RUN_HERE, SHOWN, Entrant, Figure, entrant, ladder, rank
from tsgdn2.evaluation.rows import Row, Value, row
from tsgdn2.pipelines.jobs import Backtest
from tsgdn2.pipelines.report import Report

MEAN: Final = "geometric mean"
TOLERANCE: Final = 1e-4
"""Of the streamed forecasts, in deviations of a channel."""
ROUNDING: Final = 1e-5
"""Published figures have six decimals: one that was made again is not behind itself."""
Table = tuple[str, tuple[str, ...], list[dict[str, str]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """Models of a run beside the published ones, on the configurations of the run."""

    rows: Sequence[Row]
    """One per model, configuration and seed."""
    names: Sequence[str]
    """Configurations of the run, in the protocol's order."""
    board: Mapping[str, Entrant]
    """Published models."""
    models: Mapping[str, Entrant]
    """Models of the run, means over their seeds."""
    seeds: Mapping[str, Sequence[Entrant]]
    """The same, seed by seed."""
    _ladders: dict[tuple[str, ...], list[float]] = field(default_factory=dict, repr=False)
    """Sorted figures that ranks were counted on."""

    @classmethod
    def of(cls, rows: Sequence[Row], names: Sequence[str], board: Mapping[str, Entrant]) -> Standing:
        """Sort rows by model and seed."""
        models = {name: entrant(name, _cells(rows, name)) for name in dict.fromkeys(row.what for row in rows)}
        seeds = {
            name: [
                entrant(name, _cells([row for row in rows if row.seed == seed], name)) for seed in _seeds(rows, name)
            ]
            for name in models
        }
        return cls(rows=rows, names=list(names), board=board, models=models, seeds=seeds)

    def relative(self, model: Entrant, figure: Figure, names: Sequence[str]) -> float:
        """Figure over seasonal_naive's: of the run for its own models, of the table for published ones."""
        reference = (self.models if model.kind == RUN_HERE else self.board).get(SEASONAL_NAIVE)
        return math.nan if reference is None else model.relative(figure, names, reference)

    def metrics(self) -> dict[str, float]:
        """Every figure of the run, as MLflow has them."""
        out: dict[str, float] = {}
        for name, model in self.models.items():
            for figure in FIGURES:
                out[f"{figure}_relative/{name}"] = self.relative(model, figure, self.names)
                out |= {f"{figure}/{name}/{key}": value for key, value in model.figures[figure].items()}
        out |= {
            f"streamed_minus_batch/{row.shape['configuration']}": float(row.values["streamed_minus_batch"] or 0.0)
            for row in self.rows if "streamed_minus_batch" in row.values
        }  # fmt: skip
        return {name: value for name, value in out.items() if math.isfinite(value)}

    def aggregate(self, shown: Sequence[str] | None = None) -> Table:
        """Geometric means of the run's models and of the published ones, the lowest CRPS first."""
        columns = ("model", "kind", "MASE rel.", "rank", "CRPS rel.", "rank of CRPS", "seeds", "CPU-min")
        lines = []
        for model in [*self.models.values(), *(self.board[name] for name in (shown or self.board))]:
            figures = {figure: self.relative(model, figure, self.names) for figure in FIGURES}
            places = {figure: self._place(figures[figure], figure, self.names) for figure in FIGURES}
            own = model.kind == RUN_HERE
            lines.append((figures["CRPS"], {
                "model": model.name, "kind": model.kind + (", saw the test data" if model.leaked else ""),
                "MASE rel.": self._with_range(model, "MASE") if own else _number(figures["MASE"]),
                "rank": places["MASE"],
                "CRPS rel.": self._with_range(model, "CRPS") if own else _number(figures["CRPS"]),
                "rank of CRPS": places["CRPS"],
                "seeds": ", ".join(map(str, _seeds(self.rows, model.name))) or "-" if own else "-",
                "CPU-min": self._minutes(model.name) if own else "-",
            }))  # fmt: skip
        lines.sort(key=lambda line: (math.isnan(line[0]), line[0]))
        return f"Geometric means over {self._count()}", columns, [line for _, line in lines]

    def side_by_side(self, figure: Figure, shown: Sequence[str] = SHOWN) -> Table:
        """One figure of every configuration: the run's models with their ranks, then published ones."""
        others = [self.board[name] for name in shown]
        columns = ("configuration", *self.models, *(f"{other.name} *" for other in others))
        lines = []
        for title, names in (*((name, [name]) for name in self.names), (MEAN, self.names)):
            line = {"configuration": title}
            for name, model in self.models.items():
                value = self.relative(model, figure, names)
                line[name] = f"{_number(value)} (#{self._place(value, figure, names)})" if value == value else "-"
            line |= {f"{other.name} *": _number(self.relative(other, figure, names)) for other in others}
            lines.append(line)
        return f"{figure} over seasonal_naive's", columns, lines

    def details(self, model: str) -> Table:
        """Figures as they are, coverage, streaming and cost of one model, configuration by configuration."""
        columns = ("configuration", "MASE", "rel.", "rank", "CRPS", "CRPS rel.", "rank of CRPS", "coverage 80 %",
                   "streamed - batch", "CPU-s")  # fmt: skip
        lines = []
        own = self.models[model]
        for name in self.names:
            rows = [row for row in self.rows if row.what == model and row.shape["configuration"] == name]
            if not rows:
                lines.append({**dict.fromkeys(columns, "-"), "configuration": name})
                continue
            parts = {figure: self.relative(own, figure, [name]) for figure in FIGURES}
            gaps = _gaps(rows)
            lines.append({
                "configuration": name, "MASE": f"{own.figures['MASE'][name]:.4f}", "rel.": _number(parts["MASE"]),
                "rank": self._place(parts["MASE"], "MASE", [name]), "CRPS": f"{own.figures['CRPS'][name]:.4f}",
                "CRPS rel.": _number(parts["CRPS"]), "rank of CRPS": self._place(parts["CRPS"], "CRPS", [name]),
                "coverage 80 %": f"{_mean([float(row.values['coverage'] or 0) for row in rows]):.2f}",
                "streamed - batch": f"{max(gaps):.0e}" if gaps else "-",
                "CPU-s": f"{_mean([row.cpu_seconds or 0.0 for row in rows]):.0f}",
            })  # fmt: skip
        return f"{model}, every configuration", columns, lines

    def screens(self) -> list[Table]:
        """What a terminal shows: the first model in detail and the aggregate beside some published ones."""
        first = next((name for name in self.models if name != SEASONAL_NAIVE), SEASONAL_NAIVE)
        title, columns, lines = self.aggregate(SHOWN)
        return [self.details(first), (title, columns, lines)]

    def lines(self) -> list[Row]:
        """Rows for a README: every model's geometric means by seed ("all: model"), and each configuration of ours."""
        found = []
        for name, own in self.seeds.items():
            seeds: list[int | None] = [*_seeds(self.rows, name)] or [None]
            for seed, model in zip(seeds, own or [self.models[name]], strict=True):
                spent = [one.cpu_seconds or 0.0 for one in self.rows if one.what == name and one.seed == seed]
                found.append(self._line(f"all: {name}", model, self.names, seed, sum(spent)))
        found += [self._line(f"all: {name}, published", self.board[name], self.names, None, 0.0) for name in SHOWN]
        ours = next((name for name in self.models if name not in (SEASONAL_NAIVE, NAIVE)), SEASONAL_NAIVE)
        by_seed = dict(zip(_seeds(self.rows, ours), self.seeds[ours], strict=False))
        for one in sorted((one for one in self.rows if one.what == ours and one.seed in by_seed), key=self._turn):
            name = str(one.shape["configuration"])
            line = self._line(name, by_seed[one.seed or 0], [name], one.seed, one.cpu_seconds or 0.0)
            extra = {key: one.values.get(key) for key in ("MASE", "CRPS", "coverage", "streamed_minus_batch")}
            found.append(replace(line, values={**line.values, **extra}))
        return [one for one in found if one.values["CRPS relative"] is not None]

    def _turn(self, one: Row) -> int:
        return list(self.names).index(str(one.shape["configuration"]))

    def _line(self, what: str, model: Entrant, names: Sequence[str], seed: int | None, spent: float) -> Row:
        values: dict[str, Value] = {}
        for figure in FIGURES:
            value = self.relative(model, figure, names)
            place = self._place(value, figure, names)
            values |= {f"{figure} relative": None if math.isnan(value) else value,
                       f"rank of {figure}": None if place == "-" else int(place)}  # fmt: skip
        made = row(what, {"configurations": len(names)}, seed=seed, cpu_seconds=spent or None)
        return replace(made, values=values)

    def streamed(self) -> str:
        """One sentence on the streaming pass."""
        gaps = _gaps(self.rows)
        if not gaps:
            return "No model of this run was streamed."
        within = sum(gap <= TOLERANCE for gap in gaps)
        return (
            f"Streamed once from the first row, forecasts differ from the batch's by at most {max(gaps):.1e} "
            f"deviations of their channel; {within} of {len(gaps)} passes are within {TOLERANCE:g}."
        )

    def _place(self, value: float, figure: Figure, names: Sequence[str]) -> str:
        if math.isnan(value):
            return "-"
        key = (figure, *names)
        if key not in self._ladders:
            self._ladders[key] = ladder(figure, names, self.board)
        return str(rank(value * (1 - ROUNDING), self._ladders[key]))

    def _with_range(self, model: Entrant, figure: Figure) -> str:
        values = [self.relative(one, figure, self.names) for one in self.seeds[model.name]]
        text = _number(self.relative(model, figure, self.names))
        return text if len(values) < 2 else f"{text} ({_number(min(values))} - {_number(max(values))})"

    def _minutes(self, model: str) -> str:
        """Processor minutes of training of one seed, all configurations of the run together."""
        spent = [row.cpu_seconds or 0.0 for row in self.rows if row.what == model]
        return f"{sum(spent) / 60 / max(1, len(_seeds(self.rows, model))):.1f}"

    def _count(self) -> str:
        whole, own = len(CONFIGURATIONS), len(self.names)
        return f"all {whole} configurations" if own == whole else f"{own} of {whole} configurations"


def page(standing: Standing, job: Backtest) -> Report:
    """The page of a run."""
    report = Report(
        "GIFT-Eval on ETT and Jena" + (", inside the training parts" if job.inside else ""),
        f"{len(standing.names)} configurations, seeds {', '.join(map(str, job.seeds))}, at most {job.budget:g} "
        "processor minutes of training for a model, a seed and a family; relative figures are over seasonal_naive's.",
    )
    own = [name for name in standing.models if name != SEASONAL_NAIVE]
    title, columns, lines = standing.aggregate()
    report.heading(title)
    report.table(columns, lines, ours=own, note=(
        "Published figures are facts from the leaderboard's result files: other machines, other budgets, most of them "
        "pretrained. rank: place among the published models on the same configurations. CPU-min: training of one seed."
    ))  # fmt: skip
    for figure in FIGURES:
        title, columns, lines = standing.side_by_side(figure)
        report.heading(title)
        report.table(columns, lines, note="(#rank among the published models); * published, not run here.")
    for name in own:
        title, columns, lines = standing.details(name)
        report.heading(title)
        report.table(columns, lines)
    report.paragraph(standing.streamed())
    return report


def _cells(rows: Sequence[Row], name: str) -> list[tuple[str, float, float]]:
    """Figures of a model; a configuration without all of its seeds is left out: fewer are another mean."""
    own = [row for row in rows if row.what == name]
    every = {row.seed for row in own}
    made: dict[str, set[int | None]] = {}
    for one in own:
        made.setdefault(str(one.shape["configuration"]), set()).add(one.seed)
    return [
        (str(row.shape["configuration"]), float(row.values["MASE"] or 0), float(row.values["CRPS"] or 0))
        for row in own
        if made[str(row.shape["configuration"])] == every
    ]


def _seeds(rows: Sequence[Row], name: str) -> list[int]:
    return sorted({row.seed for row in rows if row.what == name and row.seed is not None})


def _gaps(rows: Sequence[Row]) -> list[float]:
    """Differences of the streamed forecasts, of the rows that were streamed."""
    return [float(row.values["streamed_minus_batch"] or 0) for row in rows if "streamed_minus_batch" in row.values]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
