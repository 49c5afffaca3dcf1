"""A language model in one safetensors file: weights, config and the digest of its tokenizer. No pickle.

The checksum is checked on the way in (checkpoint.py). A tied head is stored once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from tsgdn2 import checkpoint
from tsgdn2.errors import CheckpointError
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.model import LanguageModel

KIND: Final = "language model"
SCHEMA: Final = 1


def save(model: LanguageModel, path: Path, *, tokenizer_digest: str = "") -> None:
    """Write atomically; tokenizer_digest says which tokenizer the numbers mean. OSError goes to the caller."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if model.config.tied:
        del tensors["head.weight"]
    facts = {"config": model.config.to_json(), "tokenizer": tokenizer_digest}
    checkpoint.write(path, tensors, facts, kind=KIND, schema=SCHEMA)


def load(path: Path, *, tokenizer_digest: str | None = None) -> LanguageModel:
    """Read a model for inference, on the CPU, in the dtype it was saved in.

    tokenizer_digest: of the tokenizer that will be used; another one than the model was trained with is an error.
    Errors: CheckpointError; ConfigError of a config from another version.
    """
    tensors, facts = checkpoint.read(path, kind=KIND, schema=SCHEMA)
    known = facts.get("tokenizer", "")
    if tokenizer_digest is not None and known and tokenizer_digest != known:
        raise CheckpointError(
            f"tokenizer: {path} was trained with tokenizer {known}, got {tokenizer_digest}; "
            "give the tokenizer that its data were prepared with"
        )
    config = LanguageConfig.from_json(facts["config"])
    with torch.device("meta"):
        model = LanguageModel(config)
    if config.tied:
        tensors["head.weight"] = tensors["embedding.weight"]
    model.load_state_dict(tensors, assign=True)
    if config.tied:
        model.head.weight = model.embedding.weight
    return model.eval()
