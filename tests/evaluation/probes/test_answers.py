"""Every probe's answers, found again by a plain loop over what the tokens and the questions say; scores; packing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.probes.contract import Episodes, packed
from tsgdn2.evaluation.probes.recall import IDS, NODES
from tsgdn2.evaluation.probes.sensors import CHANNELS, LABELS, LEVELS, SPIKING
from tsgdn2.evaluation.probes.suite import PROBES, probe_of
from tsgdn2.evaluation.probes.systems import AHEAD, KINDS
from tsgdn2.evaluation.probes.tracking import PLACES

CASES = [(name, level) for name, probe in PROBES.items() for level in probe.levels]


def keyed(tokens, question):
    """The last values that were written under the asked key."""
    held = {}
    for x in tokens:
        if x[0] == 1:
            held[int(x[2 : 2 + IDS].argmax())] = x[2 + IDS :]
    return held[int(question[2 : 2 + IDS].argmax())]


def linked(tokens, question):
    values, links = {}, {}
    for x in (*tokens, question):
        start, to, own = (x[3 + NODES * n : 3 + NODES * (n + 1)] for n in range(3))
        if x[0] == 1:
            links[int(start.argmax())] = int(to.argmax())
        if x[1] == 1:
            values[int(own.argmax())] = x[3 + 3 * NODES :]
    return values[links[int(start.argmax())] if start.any() else int(own.argmax())]


def looked_up(tokens, question):
    pulse = question[CHANNELS : 2 * CHANNELS].argmax()
    (moment,) = [x for x in tokens if x[CHANNELS + pulse] == 1]
    return moment[:CHANNELS]


def spiked(tokens, question):
    wanted = question[SPIKING : 2 * SPIKING].argmax()
    (height,) = [x[wanted] for x in tokens if x[wanted] > 1.2]
    return [height - 2.75]


def regime(tokens, question):
    own = [x[LABELS : LABELS + LEVELS] for x in tokens if x[question[:LABELS].argmax()] == 1]
    assert len(own) == 16 // len({int(x[:LABELS].argmax()) for x in tokens if x[:LABELS].any()})
    return np.mean(own, 0)


def rolled_out(tokens, question):
    planned, y = question[2 + KINDS : 2 + 2 * KINDS], question[1]
    assert y == tokens[-1][1]
    seen = [x[1] - 0.7 * x[0] for x in tokens if planned.any() and x[2 + planned.argmax()] == 1]
    effect = np.mean(seen) if planned.any() else 0.0  # known up to the noise of what was seen
    future = []
    for step in range(AHEAD):
        y = 0.7 * y + (effect if step == 0 else 0.0)
        future.append(y)
    return future


def response(tokens, question, level):
    """What a reader of the whole stream finds: dynamics and driver from what was heard, and whether it stopped."""
    heard = tokens[tokens[:, 3] == 1]
    early, late = heard[:-level], heard[-level:]
    keeps, was = np.linalg.lstsq(early[:, :2], early[:, 2], rcond=None)[0]
    left = [np.square(late[:, 2] - keeps * late[:, 0] - gain * late[:, 1]).sum() for gain in (was, 0.0)]
    if left[1] < left[0]:  # it stopped, and what came then tells of the dynamics alone
        rest = np.where(np.arange(len(heard)) < len(early), was, 0.0) * heard[:, 1]
        keeps = np.dot(heard[:, 0], heard[:, 2] - rest) / np.dot(heard[:, 0], heard[:, 0])
    return [keeps * question[0] + (was if left[0] <= left[1] else 0.0) * question[1], was * question[1]]


def parity(tokens):
    odd = 0
    for x in tokens:
        odd ^= int(x[0] > 0.5)
    return [odd]


def swapped(tokens, question):
    order = list(range(PLACES))
    for x in tokens:
        if not x[PLACES]:
            i, j = np.flatnonzero(x[:PLACES])
            order[i], order[j] = order[j], order[i]
    return [order[int(question[PLACES + 2 :].argmax())]]


BRUTE = {
    "recall": keyed,
    "overwrite": keyed,
    "topology": linked,
    "lookup": looked_up,
    "rare": spiked,
    "regime": regime,
    "effect": rolled_out,
    "s5": swapped,
}
STILL_SILENT = 0.25
"""How far noise may take a reader of few and noisy responses from the answer."""  # fmt: skip


@pytest.mark.parametrize(("name", "level"), CASES)
@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("missing", [0.0, 1.0])
def test_the_answer_follows_from_what_arrives_even_when_all_other_tokens_are_lost(name, level, factor, missing):
    probe = probe_of(name, level)
    drawn = probe.draw(np.random.default_rng(level), 6, factor * probe.length)
    assert drawn.tokens.shape == (6, factor * probe.length, probe.features)
    assert drawn.asked.shape == (*drawn.after.shape, probe.features)
    tolerance = {"effect": 0.1, "stale": STILL_SILENT}.get(name, 1e-9)
    for row in range(6):
        for m, question in enumerate(drawn.asked[row]):
            upto = slice(0, drawn.after[row, m] + 1)
            tokens = drawn.tokens[row, upto][drawn.vital[row, upto] | (missing == 0)]
            tokens = tokens if name != "effect" else drawn.tokens[row, upto]
            if name == "parity":
                found = parity(tokens)
            elif name == "stale":
                found = response(tokens, question, level)
            else:
                found = BRUTE[name](tokens, question)
            assert np.allclose(found, drawn.answer[row, m], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "level"), CASES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([0.0, 1.0, 1e6]))
def test_scores_lie_in_0_to_1_whatever_is_answered_and_the_truth_has_1(name, level, seed, size):
    probe, rng = probe_of(name, level), np.random.default_rng(seed)
    drawn = probe.draw(rng, 40, probe.length)
    answer, part = drawn.answer.reshape(-1, drawn.answer.shape[-1]), drawn.part.reshape(-1)
    noise = size * rng.normal(size=(len(answer), probe.outputs))
    assert all(0 <= value <= 1 for value in probe.score(noise, answer, part).values())
    truth = np.eye(probe.outputs)[answer[:, 0].astype(int)] if probe.classes else answer[:, : probe.outputs]
    assert probe.score(truth, answer, part)["score"] == pytest.approx(1.0, abs=1e-12)


def flat(drawn):
    """Answers and parts of all questions."""
    return drawn.answer.reshape(-1, drawn.answer.shape[-1]), drawn.part.reshape(-1)


@pytest.mark.parametrize(("name", "level"), CASES)
@pytest.mark.parametrize("factor", [1, 4])
def test_the_best_answer_without_memory_scores_what_the_probe_calls_chance(name, level, factor):
    probe = probe_of(name, level)
    tokens = factor * probe.length
    drawn = probe.draw(np.random.default_rng(1), 2000, tokens)
    answer, part = flat(drawn)
    if name == "parity":
        guesses = [np.tile([1.0, 0.0], (len(answer), 1))]
    elif name == "s5":
        places = drawn.asked[..., PLACES + 2 :].reshape(-1, PLACES)
        guesses = [places, np.eye(PLACES)[(places.argmax(1) + 1) % level]]
    else:
        guesses = [np.tile(answer[:, : probe.outputs].mean(0), (len(answer), 1))]
    best = max(probe.score(guess, answer, part)["score"] for guess in guesses)
    assert best == pytest.approx(probe.chance(tokens), abs=0.02)


@pytest.mark.parametrize(("name", "level"), CASES)
def test_the_mean_of_a_streams_own_things_scores_what_the_probe_calls_pooled(name, level):
    probe = probe_of(name, level)
    drawn = probe.draw(np.random.default_rng(2), 2000, probe.length)
    if probe.things == 1:
        assert probe.pooled == 0
        return
    if name == "topology":  # the values that the nodes have, not those that links happen to lead to
        own = drawn.answer[:, level:]
    elif name == "effect":
        own = drawn.answer[:, level:] - drawn.answer[:, :level]
    else:
        own = drawn.answer
    guess = np.repeat(own.mean(1, keepdims=True), drawn.answer.shape[1], 1)
    if name == "effect":
        guess = guess * (drawn.part == 1)[..., None] + np.concatenate([drawn.answer[:, :level]] * 2, 1)
    answer, part = flat(drawn)
    score = probe.score(guess.reshape(len(answer), -1), answer, part)["score"]
    assert score == pytest.approx(probe.pooled, abs=0.02)
    assert probe.floor(probe.length) == max(probe.pooled, probe.chance(probe.length))


def fitted(x, y, *, of):
    """What a linear map of x, found on the first `of` rows, says of the others."""
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    square = x[:of].T @ x[:of] + np.eye(x.shape[1])
    return x[of:] @ np.linalg.solve(square, x[:of].T @ y[:of])


@pytest.mark.parametrize("name", PROBES)
def test_the_last_three_tokens_and_the_question_do_not_hold_the_answer(name):
    probe, width = probe_of(name, PROBES[name].levels[-1]), 3
    streams = 9000 // probe.draw(np.random.default_rng(0), 1, probe.length).after.shape[1]
    drawn = probe.draw(np.random.default_rng(3), streams, probe.length)
    asked = drawn.after.shape[1]
    back = np.maximum(drawn.after[..., None] - np.arange(width), 0)
    last = drawn.tokens[np.arange(streams)[:, None, None], back].reshape(streams * asked, -1)
    question = drawn.asked.reshape(streams * asked, -1)
    question = question[:, question.std(0) > 0]
    last = last[:, last.std(0) > 0]
    pairs = (question[:, :, None] * last[:, None, :]).reshape(len(last), -1)
    answer, part = flat(drawn)
    wanted = np.eye(probe.outputs)[answer[:, 0].astype(int)] if probe.classes else answer[:, : probe.outputs]
    of = 2 * streams // 3 * asked
    found = fitted(np.concatenate([question, last, pairs], 1), wanted, of=of)
    score = probe.score(found, answer[of:], part[of:])["score"]
    assert score < max(0.3, probe.floor(probe.length) + 0.2)


@pytest.mark.parametrize("level", PROBES["stale"].levels)
@pytest.mark.parametrize("factor", [1, 4])
def test_stale_needs_the_stream_before_the_silence_and_a_reader_of_it_all_is_nearly_right(level, factor):
    probe = probe_of("stale", level)
    drawn = probe.draw(np.random.default_rng(4), 300, factor * probe.length)
    answer, part = flat(drawn)
    read = [[response(x, q, level) for q in asked] for x, asked in zip(drawn.tokens, drawn.asked, strict=True)]
    assert probe.score(np.reshape(read, (-1, 2))[:, :1], answer, part)["score"] > 0.85
    late = [np.linalg.lstsq(x[-3:, :2], x[-3:, 2], rcond=None)[0] for x in drawn.tokens]
    known = np.einsum("bmk,bk->bm", drawn.asked[..., :2], np.array(late)).reshape(-1, 1)
    assert probe.score(known, answer, part)["score"] < 0.05


@pytest.mark.parametrize(("name", "level"), CASES)
def test_every_probe_has_tokens_that_may_get_lost(name, level):
    probe = probe_of(name, level)
    vital = probe.draw(np.random.default_rng(0), 200, probe.length).vital
    assert vital.mean() < 0.8


def test_the_two_failures_of_an_overwrite_and_of_a_stale_driver_both_score_0():
    rng = np.random.default_rng(0)
    overwrite = probe_of("overwrite", 50)
    drawn = overwrite.draw(rng, 200, 32)
    answer, part = drawn.answer.reshape(-1, 2), drawn.part.reshape(-1)
    forgets_old = np.where(part[:, None] == 1, answer, 0.0)
    keeps_old = np.where(part[:, None] == 0, answer, rng.uniform(-1, 1, answer.shape))
    assert overwrite.score(forgets_old, answer, part)["score"] < 0.02
    assert overwrite.score(keeps_old, answer, part) == {"score": 0.0, "kept": 1.0, "new": 0.0}
    stale = probe_of("stale", 4)
    drawn = stale.draw(rng, 200, 32)
    answer, part = drawn.answer.reshape(-1, 2), drawn.part.reshape(-1)
    still_driven = np.where(part[:, None] == 1, answer[:, 1:], answer[:, :1])
    assert stale.score(still_driven, answer, part) == {"score": 0.0, "kept": 1.0, "forgotten": 0.0, "going": 1.0}
    assert stale.score(0 * still_driven, answer, part)["score"] == 0.0
    half_driven = np.where(part[:, None] == 0, answer[:, :1], answer[:, 1:] / 2)
    assert stale.score(half_driven, answer, part) == {"score": 0.0, "kept": 1.0, "forgotten": 0.0, "going": 0.0}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), gap=st.sampled_from([0.0, 0.3, 1.0]), missing=st.sampled_from([0.0, 0.5, 1.0]))
def test_packing_keeps_every_vital_token_and_all_the_time_that_passed(seed, gap, missing):
    rng = np.random.default_rng(seed)
    streams, tokens, asked = 3, 11, 4
    vital = rng.random((streams, tokens)) < 0.3
    episodes = Episodes(
        tokens=np.arange(streams * tokens).reshape(streams, tokens, 1).astype(float), vital=vital,
        asked=np.zeros((streams, asked, 1)), after=rng.integers(0, tokens, (streams, asked)),
        wait=np.full((streams, asked), 0.5), answer=np.zeros((streams, asked, 1)),
        part=np.zeros((streams, asked), np.int64),
    )  # fmt: skip
    state = rng.bit_generator.state
    drawn = packed(episodes, rng, gap=gap, missing=missing)
    whole = np.random.default_rng(0)
    whole.bit_generator.state = state
    times = np.cumsum(1 + (whole.random((streams, tokens)) < gap) * whole.uniform(8, 32, (streams, tokens)), 1)
    at = drawn.commits.at
    for row in range(streams):
        own = slice(int(at.offsets[row]), int(at.offsets[row + 1]))
        kept = drawn.commits.x[own, 0].numpy().astype(int) - row * tokens
        assert kept[0] == 0
        assert set(np.flatnonzero(vital[row])) <= set(kept)
        assert missing < 1 or len(kept) == vital[row, 1:].sum() + 1
        assert missing > 0 or len(kept) == tokens
        elapsed = drawn.commits.elapsed[own].numpy()
        assert np.allclose(elapsed[1:], np.diff(times[row, kept]), atol=1e-4)
        for m in range(asked):
            place = at.after[row * asked + m] - own.start
            after = episodes.after[row, m]
            assert kept[place] <= after
            assert place + 1 == len(kept) or kept[place + 1] > after
            assert drawn.queries.elapsed[row * asked + m] == pytest.approx(
                times[row, after] - times[row, kept[place]] + 0.5, abs=1e-4
            )


def test_an_unknown_level_is_named():
    with pytest.raises(ConfigError, match=r"level: must be one of \(1, 4, 8, 12\) \(keys written and asked\), got 5"):
        probe_of("recall", 5)
