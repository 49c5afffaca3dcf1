"""What a training will need, before it starts: memory of a device, time, cost. Nothing of its size is made.

    weights + gradients + AdamW      4 + 4 + 8 bytes of each parameter, over the devices where they are sharded
    gathered                         fsdp: two groups in whole (this block and the next), and the group of the head
    activations                      n (sum over blocks of a_l + 4 D)                      without checkpointing
                                     n (4 D blocks + max over blocks of a_l)               with checkpointing
    head                             logits of a piece, three times in float32
    states                           documents of a micro-batch, before and after each block
    time                             tokens * operations / (devices * peak * MFU)

a_l is measured, not guessed: one block of each kind, as wide as asked for, reads a few documents here and the tensors
that its backward keeps are weighed; the slope over two lengths is its bytes a token. That is also the limit: it is the
CPU's path, a GPU's kernels keep about as much. The runtime, buffers of communication and fragments are the reserve.

n tokens of a micro-batch, D width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from tsgdn2.block import Block
from tsgdn2.errors import ConfigError
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.cost import footprint
from tsgdn2.language.model import LOSS_TOKENS, language_mixer
from tsgdn2.mixers.contract import Commits
from tsgdn2.pipelines.pretrain.options import ClusterOptions, TrainingOptions
from tsgdn2.pipelines.pretrain.strategy import Kind
from tsgdn2.sequence import Sequences

GIB: Final = 2**30
_FEW: Final = (64, 192)
"""Tokens that a block reads to be weighed: multiples of the scan's chunk."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes are of one device, at the widest moment of a step."""

    parameters: int
    """Weights of the blocks."""
    vocabulary_parameters: int
    """Embedding, head and final norm."""
    state_bytes_per_document: int
    """Of a document that is read or generated, in float32."""
    operations: float
    """Per token, forward and backward."""
    kind: Kind
    devices: int
    bytes: Mapping[str, int]
    """Weights, gradients, optimizer, gathered, activations, head, states."""
    activations: Mapping[bool, int]
    """Bytes without and with checkpointing."""
    available: int | None
    """Bytes that a device has, the reserve taken off; None where that is not known."""
    steps: int
    seconds: float
    cost: float

    @property
    def total(self) -> int:
        """Bytes of a device."""
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        """It does, or nobody knows."""
        return self.available is None or self.total <= self.available

    def require(self) -> None:
        """ConfigError that says what is too large and what would help."""
        if self.fits:
            return
        assert self.available is not None
        widest = sorted(self.bytes, key=lambda name: -self.bytes[name])[:2]
        saved = self.activations[False] - self.activations[True]
        remedies = ["fewer training.micro_windows"]
        if saved > 0 and self.bytes["activations"] == self.activations[False]:
            remedies.append(f"training.checkpointing (saves {saved / GIB:.1f} GiB)")
        if self.kind != "fsdp":
            remedies.append("cluster.strategy fsdp over more devices")
        else:
            remedies.append("more devices")
        raise ConfigError(
            f"cluster.memory_gib: a device has {self.available / GIB:.1f} GiB to use, the training needs "
            f"{self.total / GIB:.1f} GiB, most of it for {' and '.join(widest)}; it was not started. What helps: "
            f"{', '.join(remedies)}"
        )

    def rows(self) -> list[dict[str, str]]:
        """Lines of a table: what, figure."""
        lines = {
            "parameters of the blocks": f"{self.parameters:,}",
            "embedding, head, final norm": f"{self.vocabulary_parameters:,}",
            "state of a document": f"{self.state_bytes_per_document:,} bytes",
            "operations a token": f"{self.operations:.4g}",
            "devices": f"{self.devices} ({self.kind})",
            **{f"memory: {name}": _size(size) for name, size in self.bytes.items()},
            "activations without / with checkpointing":
                f"{_size(self.activations[False])} / {_size(self.activations[True])}",
            "memory of a device: needed": _size(self.total),
            "memory of a device: to use": "not known" if self.available is None else _size(self.available),
            "steps": f"{self.steps:,}",
            "time": _duration(self.seconds),
            "cost": f"{self.cost:,.2f}",
        }  # fmt: skip
        return [{"what": name, "estimate": value} for name, value in lines.items()]


def estimate(
    config: LanguageConfig, training: TrainingOptions, cluster: ClusterOptions, *, kind: Kind,
    memory: int | None = None, document_tokens: float | None = None,
) -> Estimate:  # fmt: skip
    """Weigh a training.

    Args:
        config: The network.
        training: Batches and schedule.
        cluster: Devices; its memory_gib wins over `memory`.
        kind: How the devices share the work.
        memory: Bytes of a device that is here.
        document_tokens: Mean length of a document in the data; None takes the cluster's.
    """
    cost = footprint(config, context=training.length)
    whole = cost.parameters + cost.vocabulary_parameters
    shards = cluster.devices if kind == "fsdp" else 1
    n = training.length * training.micro_windows
    mixers = config.layer_mixers
    kept = {name: _kept(config, mixers.index(name), training.precision) for name in set(mixers)}
    by_layer = [kept[name] for name in mixers]
    inputs = 4 * config.width
    activations = {
        False: int(n * sum(by_layer)),
        True: int(n * (inputs * config.layers + max(by_layer))),
    }  # fmt: skip
    documents = training.micro_windows + n / (document_tokens or cluster.document_tokens)
    group = cost.parameters // config.layers
    sizes = {
        "weights": 4 * whole // shards,
        "gradients": 4 * whole // shards,
        "optimizer": 8 * whole // shards,
        "gathered": 0 if kind != "fsdp" else 2 * 4 * (2 * group + cost.vocabulary_parameters),
        "activations": activations[training.checkpointing],
        "head": 3 * 4 * min(LOSS_TOKENS, n) * config.vocabulary + 2 * inputs * n,
        "states": int(2 * documents * cost.state_bytes),
    }
    given = memory if cluster.memory_gib is None else int(cluster.memory_gib * GIB)
    seconds = training.steps * training.step_tokens * cost.operations / (
        cluster.devices * cluster.teraflops * 1e12 * cluster.mfu
    )  # fmt: skip
    return Estimate(
        parameters=cost.parameters, vocabulary_parameters=cost.vocabulary_parameters,
        state_bytes_per_document=cost.state_bytes, operations=cost.operations, kind=kind, devices=cluster.devices,
        bytes=sizes, activations=activations, available=None if given is None else int(given * (1 - cluster.reserve)),
        steps=training.steps, seconds=seconds, cost=seconds / 3600 * cluster.devices * cluster.price,
    )  # fmt: skip


def device_memory(accelerator: str, local_ranks: int = 1) -> int | None:
    """Bytes of the device that is here; a process's share of the machine's for a CPU. None where nothing says it."""
    if accelerator == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local_ranks
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


def _kept(config: LanguageConfig, layer: int, precision: str) -> float:
    """Bytes a token that the backward of one block keeps: the slope over two lengths of one document."""
    with torch.random.fork_rng(devices=[]):
        block = Block(config.width, config.mlp, language_mixer(config, layer))
    sizes = [_weighed(block, config, tokens, precision) for tokens in _FEW]
    return (sizes[1] - sizes[0]) / (_FEW[1] - _FEW[0])


def _weighed(block: Block, config: LanguageConfig, tokens: int, precision: str) -> int:
    """Bytes of the storages that autograd keeps of a pass over one document, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept: dict[int, Any] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no address comes twice
        return x

    at = Sequences(torch.tensor([tokens]).numpy(), torch.zeros(1, dtype=torch.int64).numpy(), bounded=False)
    x, ones = torch.zeros(tokens, config.width, requires_grad=True), torch.ones(tokens)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        block(Commits(x, ones, ones, at), None, block.mixer.initial_state(1), commit_output=True)
    return sum(storage.nbytes() for storage in kept.values())


def _size(size: int) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB // 10 else f"{size / 2**20:,.1f} MiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} seconds"
