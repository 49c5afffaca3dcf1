"""Where a trained language model lies, whatever its path names, and the data that it was trained on.

<training>/                      the newest checkpoint of a training
<training>/checkpoints/step-..   one checkpoint
model.safetensors                the weights of one, as language/archive.py wrote them
<exported>/                      what `pretrain export` wrote, which needs the extra `hf`
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final, NamedTuple

import torch

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.language import archive
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.checkpoints import CHECKPOINTS, Checkpoints

WEIGHTS: Final = "model.safetensors"


class Found(NamedTuple):
    """A model's place: the file of its weights, and whether it is an exported folder's."""

    file: Path
    exported: bool


def located(path: Path) -> Found:
    """The weights that a path means; CheckpointError says what was looked for."""
    if path.is_file():
        return Found(path, False)
    if (path / WEIGHTS).is_file():
        return Found(path / WEIGHTS, not (path / "progress.json").is_file() and (path / "config.json").is_file())
    for folder in (path, path / "checkpoints"):
        newest = Checkpoints(folder).latest()
        if newest is not None:
            return Found(newest / WEIGHTS, False)
    raise CheckpointError(
        f"checkpoint: {path} holds no model: neither {WEIGHTS} nor checkpoints step-..; name the output of "
        "`pretrain run`, one of its checkpoints, or an exported folder"
    )


def opened(path: Path, *, tokenizer_digest: str | None = None, device: str = "cpu") -> LanguageModel:
    """Load a model for inference; CheckpointError: damaged, or trained with another tokenizer."""
    found = located(path)
    if not found.exported:
        return archive.load(found.file, tokenizer_digest=tokenizer_digest).to(device)
    from tsgdn2.pipelines.pretrain.hugging_face import LanguageModelForCausalLM

    whole = LanguageModelForCausalLM.from_pretrained(found.file.parent)
    known = whole.config.tokenizer_digest
    if tokenizer_digest is not None and known and known != tokenizer_digest:
        raise CheckpointError(f"tokenizer: {path} was trained with tokenizer {known}, got {tokenizer_digest}; "
                              "give the data that it was trained on")  # fmt: skip
    model: LanguageModel = whole.model.to(device).eval()
    return model


def settings_of(path: Path) -> dict[str, object]:
    """The options of the training that a path belongs to, as its settings.json has them; empty: none.

    A checkpoint belongs to the folder that holds `checkpoints`, an export to that as `exported` there and no other.
    """
    start = located(path).file.parent.resolve()
    home = start.parent.parent if start.parent.name == CHECKPOINTS else start.parent
    own = start.name.startswith("step-") or (start.name == "exported" and (home / CHECKPOINTS).is_dir())
    for folder in (start, home) if own else (start,):
        file = folder / "settings.json"
        if file.is_file():
            try:
                raw = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"checkpoint: {file} is no JSON ({error}); mend it") from error
            if isinstance(raw, dict) and "training" in raw:
                return raw
    return {}


def training_length(path: Path) -> int | None:
    """Tokens of a window of the training that a path belongs to; None where nothing says it."""
    training = settings_of(path).get("training")
    return int(training["length"]) if isinstance(training, dict) and "length" in training else None


def device_of(name: str) -> str:
    """The device of a name; auto is cuda where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def digest(model: LanguageModel) -> str:
    """Sixteen hex digits that stand for config and weights."""
    found = hashlib.sha256(model.config.to_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
