"""What a language model costs, against the published counts and against the model itself."""

from __future__ import annotations

import pytest
import torch

from tsgdn2.language.config import LANGUAGE_MIXERS, LanguageConfig
from tsgdn2.language.cost import footprint
from tsgdn2.language.model import LanguageModel

PAPER = {"vocabulary": 32_000, "width": 2304, "layers": 18, "heads": 16}


@pytest.mark.parametrize(("mlp", "every", "parameters"), [(6208, 0, 1_302_638_112), (6784, 2, 1_300_314_384)])
def test_the_papers_models_have_the_papers_weights(mlp: int, every: int, parameters: int) -> None:
    found = footprint(LanguageConfig(**PAPER, mlp=mlp, attention_every=every))
    assert found.parameters == parameters
    assert found.vocabulary_parameters == 2 * 32_000 * 2304 + 2304
    assert found.state_floats[0] == 262_144


@pytest.mark.parametrize("mixer", LANGUAGE_MIXERS)
def test_the_count_is_that_of_a_model_that_was_made(mixer: str) -> None:
    config = LanguageConfig(
        vocabulary=11, width=16, layers=2, heads=2, key_dim=6, value_dim=8, mlp=24, mixer=mixer, attention_heads=2,
        attention_window=7,
    )  # fmt: skip
    model, found = LanguageModel(config), footprint(config)
    assert found.parameters + found.vocabulary_parameters == sum(p.numel() for p in model.parameters())
    state = model.initial_state(3)
    assert 3 * found.state_bytes == sum(t.nbytes for layer in state.layers for t in layer.values())
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert found.products == weights
    assert found.operations >= 6 * weights


def test_counting_draws_no_random_number() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    footprint(LanguageConfig(vocabulary=5, width=8, layers=1, heads=1, key_dim=4, value_dim=4, mlp=8))
    assert torch.equal(torch.rand(3), expected)


def test_operations_of_the_scan_follow_its_sizes_and_the_window_its_attention() -> None:
    small = footprint(LanguageConfig(**{**PAPER, "heads": 8}, mlp=6208)).mixing
    assert footprint(LanguageConfig(**PAPER, mlp=6208)).mixing == pytest.approx(2 * small)
    wide = LanguageConfig(**PAPER, mlp=6208, mixer="attention", attention_window=10**6)
    assert footprint(wide, context=8192).mixing == pytest.approx(2 * footprint(wide, context=4096).mixing)
