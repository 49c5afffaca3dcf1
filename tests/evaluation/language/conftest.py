"""A tiny model in float64, and documents of letters for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from tsgdn2.datasets.tokens import Document
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.model import LanguageModel

END = 256


@pytest.fixture
def tiny() -> Callable[..., LanguageModel]:
    """Make a model of bytes; keyword arguments replace fields of its config."""

    def make(**fields: object) -> LanguageModel:
        torch.manual_seed(0)
        sizes: dict[str, object] = {"vocabulary": 257, "width": 24, "layers": 2, "heads": 2, "key_dim": 8,
                                    "value_dim": 8, "mlp": 32}  # fmt: skip
        return LanguageModel(LanguageConfig(**(sizes | fields))).double().eval()  # type: ignore[arg-type]

    return make


@pytest.fixture
def documents() -> Callable[[Sequence[int]], list[Document]]:
    """Documents of given numbers of random bytes, each with its end."""

    def make(sizes: Sequence[int]) -> list[Document]:
        rng = np.random.default_rng(0)
        return [Document(np.append(rng.integers(0, 256, size), END), size) for size in sizes]

    return make
