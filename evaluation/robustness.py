"""How forecasts worsen when their histories lose cells: one curve per model and kind of damage.

A history is damaged, its labels never: they and MASE's scale are those of the original data, so shares can be compared.
One damaged copy of a set is made per kind, share and seed; every window's history is cut from it, and every model sees
the same ones. Windows of one set are therefore damaged together: a second seed says how much that matters.

    curve(share) = score of the forecasts from histories that lost the share of their cells
    rise(share)  = CRPS(share) / CRPS(complete histories) - 1
    relative     = exp( mean over channels of log( CRPS / CRPS of SeasonalNaive on the complete history ) )

| kind | what is lost |
|---|---|
| at random | cells, each as likely |
| in blocks | runs of BLOCK steps of single channels |
| outages | runs of OUTAGE steps of all channels at once |
| jittered clock | stamps move by up to JITTER steps either way (the last value of a cell wins), then as at random |

At share 0 a jittered clock alone is at work; the other kinds leave the history complete there. A value whose stamp
moved past the origin has not arrived, one whose own time lies past it is no history: both are left out. Sets of several
units are compared by `relative`: a pooled CRPS is that of the loudest channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
import polars as pl
from gluonts.model.forecast import Forecast

from tsgdn2.datasets import catalog
from tsgdn2.datasets.corruption import jittered_clock, missing_at_random, missing_blocks, outages
from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.datasets.gluon import entries
from tsgdn2.datasets.grid import period_ns, regular
from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.backtest import ETTH1_A, Protocol
from tsgdn2.evaluation.baselines import Entry, SeasonalNaive, filled
from tsgdn2.evaluation.metrics import Judged, Key, Predicts, Score, channel_key, judge, pooled, scores
from tsgdn2.evaluation.rows import Row, Value, row

Kind = Literal["at random", "in blocks", "outages", "jittered clock"]
KINDS: Final[tuple[Kind, ...]] = ("at random", "in blocks", "outages", "jittered clock")
SHARES: Final = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
BLOCK: Final = 12
OUTAGE: Final = 72
JITTER: Final = 2
ROW: Final = "\0row"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A set of data and the windows that are judged on it; all series are univariate."""

    name: str
    """How rows call it."""
    load: Callable[[], pl.DataFrame]
    """Gives the frame."""
    period: str
    """Step of the grid."""
    protocol: Protocol
    """What may be trained on, and the windows."""

    def frame(self) -> pl.DataFrame:
        """The set on its grid, a row for every step."""
        return regular(self.load(), self.period, fill_gaps=True).frame


def _last_two_years() -> pl.DataFrame:
    frame = catalog.beijing_pm25().select(STREAM, TIME, "pm2.5", "DEWP", "TEMP", "PRES", "Iws")
    return frame.filter(pl.col(TIME).dt.year() >= 2013)


def _without_nmhc() -> pl.DataFrame:
    return catalog.uci_air_quality().drop("NMHC_GT")


def _hourly_means() -> pl.DataFrame:
    names = ["p", "T", "rh", "wv", "max_wv", "SWDR", "PAR", "max_PAR", "Tlog", "CO2"]
    hours = catalog.jena().group_by(STREAM, pl.col(TIME).dt.truncate("1h"), maintain_order=True)
    # the last stamp opens an hour of its own; a mean of nothing is missing
    return hours.agg(pl.col(names).mean())[:-1]


SETTINGS: Final[Mapping[str, Setting]] = {
    "ETTh1": Setting(name="ETTh1", load=lambda: catalog.ett("ETTh1"), period="1h", protocol=ETTH1_A),
    # Two years of hours, the last half year judged every nine days. Snow and rain are hours since they began, mostly 0.
    "Beijing": Setting(
        name="Beijing",
        load=_last_two_years,
        period="1h",
        protocol=Protocol(name="Beijing", prediction_length=24, season=24, windows=20, distance=216, train_end=13_140),
    ),
    # The last eleven weeks, every four days. Nine tenths of NMHC_GT are missing to begin with.
    "UCI": Setting(
        name="UCI",
        load=_without_nmhc,
        period="1h",
        protocol=Protocol(name="UCI", prediction_length=24, season=24, windows=20, distance=96, train_end=7_440),
    ),
    # Hourly means of ten sensors; the others follow from these, are angles, or say whether it rains.
    "Jena": Setting(
        name="Jena",
        load=_hourly_means,
        period="1h",
        protocol=Protocol(name="Jena", prediction_length=24, season=24, windows=20, distance=96, train_end=6_840),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model under test, and how gaps reach it."""

    name: str
    predictor: Predicts
    fill: bool = False
    """Fill every gap with the last value seen, and say that it was observed."""
    seed: int | None = None
    """Of its training."""
    cpu_seconds: float | None = None
    """Of its training."""

    def forecasts(self, inputs: Iterable[Entry]) -> Iterable[Forecast]:
        """Forecast every history."""
        return self.predictor.predict(forward_filled(inputs) if self.fill else inputs)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model on histories of one kind and share of damage."""

    contender: Contender
    kind: Kind
    share: float
    lost: float
    """Share of the observed cells that really went, jitter's collisions included."""
    score: Score
    """All windows, series and channels pooled."""
    rise: float
    """CRPS over that from complete histories, less 1."""
    relative: float
    """CRPS over SeasonalNaive's on complete histories, geometric mean over the channels."""


def histories(frame: pl.DataFrame, setting: Setting, kind: Kind, share: float, *, seed: int) -> list[Entry]:
    """Damaged history of every judged window, in the order of the protocol's own.

    frame: `setting.frame()`. share: of the cells, in [0, 1]; with a jittered clock of those that are left out on top.
    Errors: ConfigError for `kind`, DataError for `share` and `seed`.
    """
    if kind == "jittered clock":
        return list(_jittered(frame, setting, share, seed))
    damaged = {
        "at random": lambda: missing_at_random(frame, share, seed=seed),
        "in blocks": lambda: missing_blocks(frame, share, BLOCK, seed=seed),
        "outages": lambda: outages(frame, OUTAGE, seed=seed, share=share),
    }
    if kind not in damaged:
        raise ConfigError(f"kind: must be one of {', '.join(KINDS)}, got {kind!r}")
    return list(setting.protocol.test(entries(damaged[kind](), setting.period)).input)


def _jittered(frame: pl.DataFrame, setting: Setting, share: float, seed: int) -> Iterator[Entry]:
    step = period_ns(setting.period)
    number = pl.int_range(pl.len()).over(STREAM).cast(pl.Float64).alias(ROW)  # a channel goes where its row goes
    thinned = missing_at_random(frame, share, seed=seed).with_columns(number)
    shaken = {
        str(key[0]): part
        for key, part in jittered_clock(thinned, JITTER * step, seed=seed).group_by([STREAM], maintain_order=True)
    }
    first = {str(key[0]): part[TIME].to_physical()[0] // step for key, part in frame.group_by([STREAM])}
    for entry in setting.protocol.test(entries(frame, setting.period)).input:
        stream, _, channel = str(entry["item_id"]).rpartition("/")
        part, length = shaken[stream], len(cast(np.ndarray, entry["target"]))
        at = part[TIME].to_physical().to_numpy() // step - first[stream]
        value = part[channel].fill_null(np.nan).to_numpy()
        there = (part[ROW].to_numpy() < length) & (at >= 0) & (at < length) & np.isfinite(value)
        target = np.full(length, np.nan)
        target[at[there]] = value[there]  # in the order of time: the last value of a cell stays
        yield {**entry, "target": target}


def forward_filled(inputs: Iterable[Entry]) -> list[Entry]:
    """Histories without gaps: the last value seen, before the first one the first, 0 where there is none."""
    made: list[Entry] = []
    for entry in inputs:
        values_CT, _ = filled(entry["target"])
        made.append({**entry, "target": values_CT if np.ndim(cast(np.ndarray, entry["target"])) > 1 else values_CT[0]})
    return made


def lost(inputs: Sequence[Entry], complete: Sequence[Entry]) -> float:
    """Share of the observed cells of `complete` that are gone from `inputs`."""

    def observed(histories_: Sequence[Entry]) -> int:
        return sum(int(np.isfinite(np.asarray(entry["target"], np.float64)).sum()) for entry in histories_)

    return 1 - observed(inputs) / max(1, observed(complete))


def curves(
    contenders: Sequence[Contender],
    setting: Setting,
    frame: pl.DataFrame,
    *,
    kinds: Sequence[Kind] = KINDS,
    shares: Sequence[float] = SHARES,
    seed: int,
) -> list[Point]:
    """Judge every contender on every kind and share of damage; the names of contenders must differ."""
    protocol = setting.protocol
    test = protocol.test(entries(frame, setting.period))
    complete, labels = list(test.input), list(test.label)

    def judged(contender: Contender, inputs: Sequence[Entry]) -> Judged:
        # the complete pasts give MASE its scale
        return judge(contender.forecasts(inputs), labels, complete, season=protocol.season)

    naive = SeasonalNaive(protocol.prediction_length, protocol.season, spread="normal")
    reference = scores(judged(Contender(name="reference", predictor=naive), complete), channel_key)
    whole = {contender.name: judged(contender, complete) for contender in contenders}
    points = []
    for kind in kinds:
        for share in shares:
            untouched = share == 0 and kind != "jittered clock"
            inputs = complete if untouched else histories(frame, setting, kind, share, seed=seed)
            gone = lost(inputs, complete)
            for contender in contenders:
                found = whole[contender.name] if untouched else judged(contender, inputs)
                score = pooled(found)
                points.append(
                    Point(
                        contender=contender,
                        kind=kind,
                        share=share,
                        lost=gone,
                        score=score,
                        rise=score.crps / pooled(whole[contender.name]).crps - 1,
                        relative=relative_crps(scores(found, channel_key), reference),
                    )
                )
    return points


def relative_crps(ours: Mapping[Key, Score], reference: Mapping[Key, Score]) -> float:
    """Geometric mean of CRPS / reference's CRPS over the groups in which both are positive; NaN without one."""
    if set(ours) != set(reference):
        raise SchemaError(f"ours and reference must score the same groups, got {sorted(ours)} and {sorted(reference)}")
    logs = [
        np.log(score.crps / reference[group].crps)
        for group, score in ours.items()
        if score.crps > 0 and reference[group].crps > 0
    ]
    return float(np.exp(np.mean(logs))) if logs else float("nan")


def rows(points: Sequence[Point], setting: Setting, *, seed: int) -> list[Row]:
    """One row per kind and model: the figures of every share, named as in `CRPS 0.5`."""
    found: dict[tuple[Kind, str], list[Point]] = {}
    for point in points:
        found.setdefault((point.kind, point.contender.name), []).append(point)
    made = []
    for (kind, name), group in found.items():
        values: dict[str, Any] = {}
        for point in sorted(group, key=lambda one: one.share):
            values |= {
                f"CRPS {point.share:g}": point.score.crps,
                f"MASE {point.share:g}": point.score.mase,
                f"relative {point.share:g}": point.relative,
                f"coverage {point.share:g}": point.score.coverage,
                f"lost {point.share:g}": point.lost,
                f"rise {point.share:g}": point.rise,
            }
        shape: dict[str, Value] = {"data": setting.name, "kind": kind, "horizon": setting.protocol.prediction_length,
                 "windows": setting.protocol.windows, "block": BLOCK, "outage": OUTAGE, "jitter": JITTER}  # fmt: skip
        spent = group[0].contender.cpu_seconds
        made.append(row(f"{setting.name}, {kind}: {name}", shape, seed=seed, cpu_seconds=spent, **values))
    return made
