"""Runs of probes: equal sizes, equal streams, honest rows; and what rows say together."""

import dataclasses

import numpy as np
import pytest
import torch

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.probes.contract import packed
from tsgdn2.evaluation.probes.model import ProbeModel
from tsgdn2.evaluation.probes.standings import Range, order, standings, verdict
from tsgdn2.evaluation.probes.suite import MIXERS, PROBES, SMALL, config_of, probe_of
from tsgdn2.evaluation.probes.trial import FACTORS, GAPS, MISSING, Budget, Trial, run
from tsgdn2.evaluation.rows import Row, row
from tsgdn2.mixers.registry import cost
from tsgdn2.sequence import Sequences

POINTS = [f"x{factor}" for factor in FACTORS] + [f"gap {g}" for g in GAPS] + [f"missing {m}" for m in MISSING]
BRIEF = Budget(steps=3, streams=4, tested=4)


def test_every_mixer_has_the_same_memory_and_nearly_the_same_number_of_weights():
    costs = {name: cost(config_of(name)) for name in MIXERS}
    assert {one.memory_floats for name, one in costs.items() if name != "none"} == {costs["gdn2"].memory_floats}
    for name, one in costs.items():
        assert abs(one.parameters / costs["gdn2"].parameters - 1) < 0.02, name


@pytest.mark.parametrize("name", MIXERS)
def test_a_row_holds_every_test_point_and_what_the_run_cost(name):
    made = run(Trial("overwrite", 50, name, 1), BRIEF)
    assert {*POINTS, "kept", "new", "parameters", "state_bytes", "memory_floats", "steps"} <= set(made.values)
    assert all(0 <= made.values[point] <= 1 for point in POINTS)
    assert made.values["steps"] == 3
    assert made.seed == 1
    assert made.cpu_seconds >= made.values["train_seconds"] > 0
    assert made.shape == {
        "probe": "overwrite", "level": 50, "mixer": name, "tokens": 32, "seconds": 33.0, "steps": 3
    }  # fmt: skip


@pytest.mark.parametrize("name", PROBES)
def test_a_run_of_steps_is_the_same_again_and_another_with_another_seed(name):
    trial = Trial(name, PROBES[name].levels[0], "gdn2", 0)
    first, again, other = (run(each, BRIEF) for each in (trial, trial, dataclasses.replace(trial, seed=1)))
    timed = ("train_seconds",)
    known = [{key: value for key, value in one.values.items() if key not in timed} for one in (first, again, other)]
    assert known[0] == known[1]
    assert known[0]["loss"] != known[2]["loss"]


def test_a_budget_of_seconds_ends_the_training():
    made = run(Trial("parity", 50, "none", 0), Budget(seconds=0.2, streams=2, tested=2))
    assert made.values["steps"] >= 1


def test_training_learns_what_needs_no_memory_over_long_spans():
    made = run(Trial("stale", 8, "gdn2", 0), Budget(steps=40, streams=24, tested=32))
    assert made.values["kept"] > 0.3


def test_an_answer_rests_on_what_came_before_its_question_alone():
    torch.manual_seed(0)
    probe, rng = probe_of("recall", 4), np.random.default_rng(0)
    model = ProbeModel(config_of("gdn2+swa"), probe.features, probe.outputs).double()
    drawn = packed(probe.draw(rng, 2, 32), rng)
    commits = drawn.commits._replace(
        x=drawn.commits.x.double(), observed=drawn.commits.observed.double(), elapsed=drawn.commits.elapsed.double()
    )
    queries = drawn.queries._replace(x=drawn.queries.x.double(), elapsed=drawn.queries.elapsed.double())
    early = np.where(commits.at.owner == 0, 9, 40)
    at = Sequences(commits.at.length, commits.at.count, early, commits.at.owner)
    later = commits.x.clone()
    later[10:32] += 1.0
    later[41:] -= 1.0
    with torch.no_grad():
        first, other = (model(commits._replace(x=x, at=at), queries) for x in (commits.x, later))
    assert torch.allclose(first, other, rtol=1e-12, atol=1e-12)


def made(mixer: str, seed: int, x1: float, x16: float) -> Row:
    values = {"x1": x1, "x2": x1, "x4": x1, "x8": x1, "x16": x16, "gap 0.3": x1, "missing 0.6": x1, "parameters": 7}
    own = row(f"recall: {mixer}", {"probe": "recall", "level": 4, "mixer": mixer}, seed=seed, cpu_seconds=2.0)
    return dataclasses.replace(own, values=values)


def test_standings_give_the_mean_and_the_range_and_the_verdict_names_winners_equals_and_losers():
    scores = {"gdn2": (0.8, 0.3), "lstm": (0.95, 0.0), "kda": (0.79, 0.5), "none": (0.0, 0.0)}
    rows = [made(name, seed, min(1.0, x1 + 0.02 * seed), x16) for name, (x1, x16) in scores.items() for seed in (0, 1)]
    found = standings(rows)
    ours = found[0]
    assert (ours.mixer, ours.seeds, ours.scores["x16"]) == ("gdn2", (0, 1), Range(0.3, 0.3, 0.3))
    assert str(ours.scores["x1"]) == "0.81 (0.80 - 0.82)"
    assert str(ours.figures["cpu_seconds"]) == "2.00"
    assert [one.mixer for one in order(found)] == ["lstm", "kda", "gdn2", "none"]
    text = verdict(found)
    assert "At the length of training **lstm** is best with 0.96 (0.95 - 0.97), alone." in text
    assert "gdn2 is number 2 of 4 with 0.81 (0.80 - 0.82); it loses to lstm." in text
    assert "At 16 times that length **kda** is best with 0.50, alone." in text
    assert "No better than chance over all lengths: none." in text
    close = verdict([one for one in found if one.mixer in ("gdn2", "kda")])
    assert "**gdn2** is best with 0.81 (0.80 - 0.82), and level with it is kda." in close
    nobody = verdict([one for one in found if one.mixer == "none"])
    assert nobody.startswith("At the length of training no mixer is better than chance")


def test_bad_budgets_and_names_are_errors():
    for wrong in ({"seconds": 0.0}, {"steps": 0}, {"streams": 0}, {"lr": 0.0}):
        with pytest.raises(ConfigError, match="must be above 0"):
            Budget(**wrong)
    with pytest.raises(ConfigError, match="mixers: must be among gdn2, kda"):
        config_of("gru")
    assert {name: probe_of(name, level).name for name, level in SMALL.items()} == {name: name for name in SMALL}
