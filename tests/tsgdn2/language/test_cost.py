"""What a language model costs, against the published counts and against the model itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tsgdn2.language.config import LANGUAGE_MIXERS, LanguageConfig
from tsgdn2.language.cost import CHUNK, footprint
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


def halves(*shapes: str) -> float:
    """Multiplications and additions of a chunk's products: rows, inner, columns of each; `t` halves a triangle's."""
    sizes = {"C": CHUNK, "K": 128, "V": 256}
    total = 0.0
    for shape in shapes:
        rows, inner, columns = (sizes[letter] for letter in shape[:3])
        total += 2.0 * rows * inner * columns / (2 if shape.endswith("t") else 1)
    return total


FORWARD = ("CKCt", "CKCt", "CCKt", "CCVt", "CKV", "CKV", "CCVt", "KCV")
"""T, P, Y = A Eg, U = A Z, Y S0, Qg S0, P R, Ktail^T R."""
BACKWARD = (
    "CVCt", "CCVt", "CKV", "CVK",  # dP = dO R^T, dR = P^T dO + Ktail dS, dKtail = R dS^T
    "KCV", "KCV", "CVK", "CVK",  # dS0 = Qg^T dO - Y^T dR, dQg = dO S0^T, dY = dR S0^T
    "CCVt", "CCKt", "CVCt", "CKCt",  # dZ = A^T dU, dEg = A^T dY, dA = dU Z^T + dY Eg^T
    "CCKt", "CCKt", "CCKt", "CCKt",  # X, Xs, W1, W2
)  # fmt: skip


def triangles(chunk: int) -> tuple[int, int]:
    """Operations of A = (I + T)^-1 by substitution, and of tril(A^T dA A^T), counted one by one."""
    below = np.tril(np.ones((chunk, chunk), np.int64))
    first = below.T @ below  # (A^T dA): how many terms each entry sums
    inverse = int(sum((below @ below)[i, j] for i in range(chunk) for j in range(i)))
    second = int(np.tril(np.ones((chunk, chunk), np.int64) @ below.T).sum())
    return 2 * inverse, 2 * (int(first.sum()) + second)


def test_operations_of_a_scan_are_those_of_its_products_one_by_one() -> None:
    config = LanguageConfig(vocabulary=11, width=16, layers=1, heads=3, key_dim=128, value_dim=256, mlp=24)
    found = footprint(config)
    solve, back = triangles(CHUNK)
    assert found.mixing == pytest.approx(3 * (halves(*FORWARD) + solve) / CHUNK, rel=1e-3)
    assert found.mixing_backward == pytest.approx(3 * (halves(*BACKWARD) + back) / CHUNK, rel=1e-3)
    plain = footprint(replace(config, mixer="mamba2"))
    assert plain.mixing == pytest.approx(3 * halves("CKCt", "CCVt", "CKV", "KCV") / CHUNK)
    assert plain.mixing_backward == 2 * plain.mixing


def test_operations_of_small_shapes_counted_by_hand() -> None:
    shape = LanguageConfig(vocabulary=10, width=4, layers=1, heads=1, key_dim=2, value_dim=4, mlp=8)
    attention = footprint(replace(shape, mixer="attention", attention_window=3), context=6)
    # q, k, v, o: 4 x 16 weights; SwiGLU: 3 x 32; head: 40. A token sees 3 (1 - 3 / 12) = 2.25 keys of 4 channels.
    assert attention.products == 64 + 96 + 40
    assert attention.mixing == 2.25 * (2 * 4 + 2 * 4)
    assert attention.operations == 6 * 200 + 3 * 36
    gdn2 = footprint(shape)
    # 6 K V = 48, C (3 K + 2 V) = 64 x 14 = 896, C^2 = 4096.
    assert gdn2.mixing == pytest.approx(48 + 896 + 4096 / 3)
    assert gdn2.mixing_backward == pytest.approx(2 * (48 + 896) + 4096)
    assert gdn2.operations == pytest.approx(6 * gdn2.products + 3 * 944 + 4096 * 4 / 3)
