"""The audit of a language model: the trace rebuilds the state, and half-lives and evictors are those of the writes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tsgdn2.audit import eviction_events
from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.eviction import CLASSES, audit, token_class
from tsgdn2.language.model import LanguageModel

Tiny = Callable[..., LanguageModel]


@pytest.mark.parametrize(
    ("text", "name"),
    [("the", "letters"), (" the", "letters"), ("é", "letters"), (" 12", "digits"), ("\n ", "space"), 
     ("();", "punctuation"), (" +", "punctuation"), ("", "end"), ("\ufffd", "other"), ("\x07", "other")],
)  # fmt: skip
def test_a_token_is_of_the_class_of_its_first_sign(text: str, name: str) -> None:
    assert token_class(text) == name
    assert name in CLASSES


@pytest.mark.parametrize("window", [30, 17])
def test_every_write_of_the_window_is_accounted_for(tiny: Tiny, window: int) -> None:
    model = tiny(mixer="gdn2", layers=3, attention_every=3, attention_window=4, attention_heads=2)
    tokens = np.random.default_rng(0).integers(0, 256, 30)
    classes = [CLASSES[int(one) % 4] for one in tokens]
    steps: list[None] = []
    found = audit(model, tokens, classes, heads=2, window=window, threshold=0.6, tick=lambda: steps.append(None))
    assert len(steps) == 30
    assert found.tokens == window
    assert found.residual < 1e-10
    whole = [one for one in found.kept if one.group == "all"]
    assert [(one.layer, one.head) for one in whole] == [(0, 0), (0, 1), (1, 0), (1, 1)]  # attention has no trace
    assert all(one.writes == window for one in whole)
    for groups in (CLASSES, [f"{n}/4" for n in range(1, 5)]):
        for all_of, parts in ((one, [p for p in found.kept if (p.layer, p.head) == (one.layer, one.head)
                                     and p.group in groups]) for one in whole):  # fmt: skip
            assert sum(part.writes for part in parts) == all_of.writes
            assert sum(part.evicted for part in parts) == all_of.evicted
            assert sum(part.by_erase for part in parts) == all_of.by_erase
    evicted = sum(one.evicted for one in whole)
    assert 0 < found.taken.sum() <= evicted


def test_rows_are_those_of_the_trace_itself(tiny: Tiny) -> None:
    model = tiny(mixer="kda")
    tokens = np.random.default_rng(1).integers(0, 256, 20)
    found = audit(model, tokens, ["letters"] * 20, layers="last", heads=1, threshold=0.5)
    state, kept = model.initial_state(1), []
    with torch.no_grad():
        for token in tokens.tolist():
            _, state, traces = model.trace(torch.tensor([token]), state)
            kept.append(traces[1])
    k, e, g = (torch.stack([one[name][:, :1] for one in kept], 1) for name in ("k", "e", "g"))
    events = eviction_events(k, e, g, threshold=0.5)
    (whole,) = [one for one in found.kept if one.group == "all"]
    assert (whole.layer, whole.head) == (1, 0)
    assert whole.half_life == float(events.half_life()[0, 0])
    assert whole.evicted == int((~events.censored & ~events.void).sum())
    letters = CLASSES.index("letters")
    assert found.taken.sum() == found.taken[letters, letters]


def test_the_lost_are_the_rows_and_who_took_them_the_columns(tiny: Tiny) -> None:
    model = tiny(mixer="gdn2", layers=1)
    tokens = np.random.default_rng(2).integers(0, 256, 40)
    kinds = np.array([0] * 20 + [1] * 12 + [3] * 8)  # no token is taken by one of an earlier class
    found = audit(model, tokens, [CLASSES[kind] for kind in kinds], heads=2, threshold=0.7)
    state, kept = model.initial_state(1), []
    with torch.no_grad():
        for token in tokens.tolist():
            _, state, traces = model.trace(torch.tensor([token]), state)
            kept.append(traces[0])
    k, e, g = (torch.stack([one[name] for one in kept], 1) for name in ("k", "e", "g"))
    events = eviction_events(k, e, g, threshold=0.7, top=1)
    expected = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for head in range(2):
        for lost, (gone, by) in enumerate(zip(~events.void[0, head] & ~events.censored[0, head],
                                              events.evictors[0, head, :, 0].tolist(), strict=True)):  # fmt: skip
            if gone and by >= 0:
                assert by > lost
                expected[kinds[lost], kinds[by]] += 1
    assert found.taken.tolist() == expected.tolist()
    assert np.triu(found.taken, 1).sum() > 0
    assert np.tril(found.taken, -1).sum() == 0


def test_a_model_without_a_trace_has_no_rows_and_a_wrong_layer_is_named(tiny: Tiny) -> None:
    found = audit(tiny(mixer="mamba3"), np.array([1, 2, 3]), ["digits"] * 3)
    assert (found.kept, found.residual) == ((), 0.0)
    with pytest.raises(ConfigError, match=r"layers: must be among \[0, 1\], got \[5\]"):
        audit(tiny(), np.array([1]), ["digits"], layers=[5])
    with pytest.raises(ConfigError, match="tokens, classes: must be of one length"):
        audit(tiny(), np.array([1]), [])
