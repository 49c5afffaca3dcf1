"""Runs of probes: equal sizes, equal streams, honest rows; and what rows say together."""

import dataclasses

import numpy as np
import pytest
import torch

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.probes.contract import packed
from tsgdn2.evaluation.probes.model import ProbeModel
from tsgdn2.evaluation.probes.standings import Range, order, standings, verdict
from tsgdn2.evaluation.probes.suite import BASE, MIXERS, PROBES, SMALL, config_of, probe_of
from tsgdn2.evaluation.probes.trial import FACTORS, GAPS, MISSING, Budget, Trial, run
from tsgdn2.evaluation.rows import Row, row
from tsgdn2.mixers.registry import cost
from tsgdn2.parameters import decay_groups
from tsgdn2.sequence import Sequences

POINTS = [f"x{factor}" for factor in FACTORS] + [f"gap {g}" for g in GAPS] + [f"missing {m}" for m in MISSING]
BRIEF = Budget(steps=3, streams=4, tested=4)


RATELESS = ("gdn", "deltanet", "mamba2")
"""Members of the delta family with gdn2's matrices and convolution, and fewer rates beside them."""


def test_every_rival_has_at_least_the_state_of_gdn2_and_hardly_more_and_as_many_weights():
    configs = {name: config_of(name) for name in MIXERS}
    costs = {name: cost(config) for name, config in configs.items()}
    ours = costs["gdn2"]
    for name, one in costs.items():
        if name not in (*RATELESS, "none"):
            assert 1 <= one.state_bytes / ours.state_bytes < 1.15, name
        if name != "lstm":
            assert abs(one.parameters / ours.parameters - 1) < 0.02, name
    assert costs["lstm"].parameters > 2 * ours.parameters
    for name in RATELESS:
        assert costs[name].memory_floats == ours.memory_floats
        assert ours.state_bytes * 0.93 < costs[name].state_bytes < ours.state_bytes
    assert configs["gdn2"] == BASE


@pytest.mark.parametrize("name", MIXERS)
def test_a_row_holds_every_test_point_and_what_the_run_cost(name):
    made = run(Trial("overwrite", 50, name, 1), BRIEF)
    assert {*POINTS, "kept", "new", "parameters", "state_bytes", "memory_floats", "steps"} <= set(made.values)
    assert all(0 <= made.values[point] <= 1 for point in POINTS)
    assert made.values["steps"] == 3
    assert made.seed == 1
    assert made.cpu_seconds >= made.values["train_seconds"] > 0
    assert made.shape == {
        "probe": "overwrite", "level": 50, "mixer": name, "tokens": 32, "seconds": None, "steps": 3
    }  # fmt: skip


@pytest.mark.parametrize("name", PROBES)
def test_a_run_of_steps_is_the_same_again_and_another_with_another_seed(name):
    trial = Trial(name, PROBES[name].levels[0], "gdn2", 0)
    first, again, other = (run(each, BRIEF) for each in (trial, trial, dataclasses.replace(trial, seed=1)))
    timed = ("train_seconds", "step_seconds")
    known = [{key: value for key, value in one.values.items() if key not in timed} for one in (first, again, other)]
    assert known[0] == known[1]
    assert known[0]["loss"] != known[2]["loss"]


def test_a_budget_of_seconds_ends_the_training():
    made = run(Trial("parity", 50, "none", 0), Budget(seconds=0.2, streams=2, tested=2))
    assert made.values["steps"] >= 1
    assert (made.shape["seconds"], made.shape["steps"]) == (0.2, None)


def test_training_learns_what_needs_no_long_memory():
    made = run(Trial("parity", 10, "gdn2", 0), Budget(steps=60, streams=24, tested=32))
    assert made.values["loss"] < 0.66  # always even has 0.66 at T


def test_norms_convolutions_and_rates_do_not_decay():
    for name in MIXERS:
        model = ProbeModel(config_of(name), 3, 1)
        names = {id(weight): own for own, weight in model.named_parameters()}
        decayed, plain = ({names[id(p)] for p in group["params"]} for group in decay_groups(model, 0.1))
        assert len(decayed) + len(plain) == len(names)
        assert {"embed.weight", "head.weight"} <= decayed
        assert {"embed.bias", "norm.weight"} <= plain
        assert not any("conv" in own or "A_log" in own or own.endswith("norm") for own in decayed)


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
    assert "No better than the floor over all lengths: none." in text
    close = verdict([one for one in found if one.mixer in ("gdn2", "kda")])
    assert "**gdn2** is best with 0.81 (0.80 - 0.82), and level with it is kda." in close
    nobody = verdict([one for one in found if one.mixer == "none"])
    assert nobody.startswith("At the length of training no mixer is better than the floor (0.25)")


def test_bad_budgets_and_names_are_errors():
    for wrong in ({"seconds": 0.0}, {"steps": 0}, {"streams": 0}, {"lr": 0.0}):
        with pytest.raises(ConfigError, match="must be above 0"):
            Budget(**wrong)
    with pytest.raises(ConfigError, match="mixers: must be among gdn2, kda"):
        config_of("gru")
    assert {name: probe_of(name, level).name for name, level in SMALL.items()} == {name: name for name in SMALL}
