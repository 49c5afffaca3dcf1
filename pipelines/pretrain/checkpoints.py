"""Checkpoints of a training: whole or not at all, and enough of it that going on is equal to the bit on a CPU.

    <folder>/step-00000200/model.safetensors          as language/archive.py reads it
                           optimizer-exp_avg.safetensors, ..      one file per quantity of the optimiser
                           progress.json              step, tokens, loader, random numbers of every rank, settings
    <folder>/.step-00000200.draft/                    while it is written

A folder gets its name when all of it is on the disk, in one rename: a process that is killed leaves the older ones as
they were and a draft that the next write removes. Files are checked by their checksums when they are read; a damaged
checkpoint is named, and the one before it is taken. Rank 0 writes full tensors whatever the sharding, so a training may
go on with other ranks; rank 0 reads, and the others get their share from it. The price is host memory for weights and
optimiser on rank 0. On a GPU the same numbers go in, but sums of its atomic additions (the embedding's gradient among
them) come in any order: there a training that goes on differs in its last bits, as one that is started twice does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from tsgdn2 import checkpoint
from tsgdn2.datasets.tokens import write_whole
from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.language import archive
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.strategy import from_first, gathered, rank, ranks
from tsgdn2.pipelines.pretrain.training import Progress

CHECKPOINTS: Final = "checkpoints"
"""Folder of the checkpoints in the output of a training."""
KIND: Final = "pretraining optimizer"
SCHEMA: Final = 1
_NAME: Final = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint says beside its tensors."""

    progress: Progress
    loader: dict[str, int]
    identity: dict[str, Any]
    """What fixes the weights: config, options, data."""
    random: list[str]
    """State of torch's generators of every rank, base64."""
    quantities: list[str] = field(default_factory=list)
    """Of the optimiser, one file each."""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Text with a digest of itself; `from_json` is its inverse."""
        content = asdict(self)
        return json.dumps(content | {"sha256": _digest(content)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: Path) -> Saved:
        """Read what `to_json` wrote; CheckpointError: cut off, altered, or of a newer schema."""
        try:
            raw = json.loads(text)
            found = raw.pop("sha256")
            if raw["schema"] > SCHEMA:
                reason = f"schema {raw['schema']}, this version reads up to {SCHEMA}; upgrade"
                raise CheckpointError(f"path: {origin} has {reason}")
            if _digest(raw) != found:
                raise CheckpointError(f"path: {origin} was altered, its checksum does not match; restore a backup")
            return cls(**(raw | {"progress": Progress(**raw["progress"])}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"path: {origin} holds no progress of a training ({error!r})") from error


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(self, folder: Path, *, keep: int = 3, say: Callable[[str], None] = print) -> None:
        """folder: made on the first write. keep: newest ones that stay. say: told of what is damaged."""
        self.folder, self.keep, self.say = folder, keep, say

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Folder of a step."""
        return self.folder / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """The newest whole checkpoint; None where there is none."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def write(self, model: LanguageModel, optimizer: Optimizer, saved: Saved, *, tokenizer_digest: str = "") -> None:
        """Write one; all ranks call it, rank 0 writes and the others wait. OSError and a full disk go to the caller."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(model, options=options)
        moments = cast(dict[str, Any], get_optimizer_state_dict(model, optimizer, options=options).get("state", {}))
        trouble: str | None = None
        if rank() == 0:
            try:
                self._write(model, weights, moments, saved, tokenizer_digest)
            except OSError as error:
                trouble = f"{error.strerror or error}"
        trouble = gathered(trouble)[0]
        if trouble:
            raise CheckpointError(
                f"output: the checkpoint of step {saved.progress.step} could not be written to {self.folder} "
                f"({trouble}); the ones before it are whole: make room and start the same command again"
            )

    def _write(
        self, model: LanguageModel, weights: dict[str, Any], moments: dict[str, Any], saved: Saved, tokenizer: str
    ) -> None:
        target = self.path(saved.progress.step)
        draft = target.with_name(f".{target.name}.draft")
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".step-*.draft"):
            shutil.rmtree(left)
        draft.mkdir()
        try:
            if model.config.tied:
                weights.pop("head.weight", None)
            facts = {"config": model.config.to_json(), "tokenizer": tokenizer}
            checkpoint.write(draft / "model.safetensors", weights, facts, kind=archive.KIND, schema=archive.SCHEMA)
            saved = replace(saved, quantities=sorted({name for state in moments.values() for name in state}))
            for quantity in saved.quantities:
                own = {name: state[quantity] for name, state in moments.items() if quantity in state}
                checkpoint.write(draft / f"optimizer-{quantity}.safetensors", own, {}, kind=KIND, schema=SCHEMA)
            write_whole(draft / "progress.json", saved.to_json().encode())
            _to_disk(draft)
            if target.exists():  # the same step again, after an older checkpoint was gone on from
                shutil.rmtree(target)
            draft.rename(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        _to_disk(self.folder)
        steps = [step for step in self.steps() if step <= saved.progress.step]
        for step in sorted({*self.steps()} - {*steps[-self.keep :]}):  # later ones are damaged
            shutil.rmtree(self.path(step))

    def read(self, identity: Mapping[str, Any]) -> Reading | None:
        """The newest checkpoint that can be read, for a training of this identity; None where there is none at all.

        All ranks call it; rank 0 alone has the tensors then.

        Raises:
            ConfigError: The checkpoints are of another training, or the ranks are not of the same one.
            CheckpointError: There are some, and all are damaged.
        """
        for number, own in enumerate(gathered(dict(identity))):
            other = _differences(dict(identity), own)
            if other:
                raise ConfigError(f"output: rank {rank()} and rank {number} are of different trainings ({other}); give "
                                  "every rank the same options and the same data")  # fmt: skip
        found: list[Reading] = []

        def saved() -> Saved | None:
            found.extend(self._newest(identity))
            return found[0].saved if found else None

        told = from_first(saved)
        if found or told is None:
            return found[0] if found else None
        return Reading(saved=told, weights={}, moments={})

    def _newest(self, identity: Mapping[str, Any]) -> list[Reading]:
        """The newest one that can be read; none where there is none."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                reading = Reading.of(self.path(step))
            except CheckpointError as error:
                self.say(f"step {step} can not be gone on from, the one before it is tried: {error}")
                continue
            other = _differences(reading.saved.identity, dict(identity))
            if other:
                raise ConfigError(f"output: {self.folder} is of another training ({other}); name another output")
            return [reading]
        if steps:
            raise CheckpointError(f"output: all {len(steps)} checkpoints of {self.folder} are damaged; name another")
        return []


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """A checkpoint in memory, verified."""

    saved: Saved
    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]

    @classmethod
    def of(cls, path: Path) -> Reading:
        """Read a folder; CheckpointError: a file is missing, cut off or altered, or of a newer schema."""
        try:
            text = (path / "progress.json").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"path: {path} holds no readable progress.json ({error})") from error
        saved = Saved.from_json(text, path / "progress.json")
        weights, facts = checkpoint.read(path / "model.safetensors", kind=archive.KIND, schema=archive.SCHEMA)
        if json.loads(facts["config"]).get("tied"):
            weights["head.weight"] = weights["embedding.weight"]
        moments: dict[str, dict[str, Tensor]] = {}
        for quantity in saved.quantities:
            tensors, _ = checkpoint.read(path / f"optimizer-{quantity}.safetensors", kind=KIND, schema=SCHEMA)
            for name, tensor in tensors.items():
                moments.setdefault(name, {})[quantity] = tensor
        return cls(saved=saved, weights=weights, moments=moments)

    def into(self, model: LanguageModel, optimizer: Optimizer) -> None:
        """Put weights, optimiser and random numbers back, sharded as the model is; all ranks call it."""
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=ranks() > 1)
        set_model_state_dict(model, cast(dict[str, Any], self.weights), options=options)
        if self.saved.quantities:
            groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
            state: dict[str, Any] = {"state": self.moments, "param_groups": groups} if rank() == 0 else {}
            set_optimizer_state_dict(model, optimizer, state, options=options)
        if rank() < len(self.saved.random):
            _set_random(self.saved.random[rank()])


def random_states() -> list[str]:
    """State of torch's generators of every rank."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])
    return gathered("|".join(base64.b64encode(state.numpy().tobytes()).decode() for state in states))


def _set_random(text: str) -> None:
    states = [torch.from_numpy(np.frombuffer(base64.b64decode(one), np.uint8).copy()) for one in text.split("|")]
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    return "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in sorted({*old, *new})
                     if old.get(name) != new.get(name))  # fmt: skip


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _to_disk(folder: Path) -> None:
    """Bring a folder's names to the disk: of files, and of the folder that was renamed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
