"""What a training will need, before it starts: memory of a device, time, cost. Nothing of its size is made.

    weights + gradients + AdamW      4 + 4 + 8 bytes of each parameter, over the devices where they are sharded
    fresh gradient                   the largest matrix once more, before it is added
    copies                           bfloat16: 2 bytes of each weight of a product, in whole, as autocast holds them
    gathered                         fsdp: two groups in whole (this block and the next), and the group of the head
    activations                      n (sum over blocks of a_l + max over blocks of (p_l - a_l))   without checkpointing
                                     n (4 D blocks + max over blocks of p_l)                       with checkpointing
    head                             logits of a piece, three times in float32; in bfloat16 once more
    states                           documents of a micro-batch, before and after each block; no rings of attention
    time                             tokens * operations / (devices * peak * MFU)

a_l and p_l are measured, not guessed: one block of each kind, as wide as asked for, reads a document here, forward and
backward, and every tensor that is made is weighed for as long as it lives; what is left after the forward is a_l, the
most that there was p_l, weights' gradients left out, and the slope over two lengths is a token's. That is also the
limit: it is the CPU's path, a GPU's kernels keep about as much. The runtime, buffers of communication and fragments
are the reserve.

n tokens of a micro-batch, D width.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tsgdn2.block import Block
from tsgdn2.errors import ConfigError
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.cost import footprint
from tsgdn2.language.model import LOSS_TOKENS, language_mixer
from tsgdn2.mixers.attention import AttentionMixer
from tsgdn2.mixers.contract import Commits
from tsgdn2.pipelines.pretrain.options import ClusterOptions, TrainingOptions
from tsgdn2.pipelines.pretrain.strategy import Kind, peak_of
from tsgdn2.sequence import Sequences

GIB: Final = 2**30
ASSUMED: Final = 989e12
"""Operations per second of a device where nobody says it: an H100's in bfloat16, for time and cost alone."""
_CHUNK: Final = 64
"""A block reads a multiple of it to be weighed, as the scan fills its chunks."""


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
    """Weights, gradients, fresh gradient, optimizer, copies, gathered, activations, head, states."""
    activations: Mapping[bool, int]
    """Bytes without and with checkpointing."""
    available: int | None
    """Bytes that a device has, the reserve taken off; None where that is not known."""
    peak: float
    """Operations per second of a device that time and cost go by."""
    peak_known: bool
    """Somebody said it, or the device's name; else it is ASSUMED, and no MFU is told."""
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
            "peak of a device": f"{self.peak / 1e12:,.4g} Tflop/s" + ("" if self.peak_known else ", assumed"),
            "steps": f"{self.steps:,}",
            "time": _duration(self.seconds),
            "cost": f"{self.cost:,.2f}",
        }  # fmt: skip
        return [{"what": name, "estimate": value} for name, value in lines.items()]


def estimate(
    config: LanguageConfig, training: TrainingOptions, cluster: ClusterOptions, *, kind: Kind,
    memory: int | None = None, document_tokens: float | None = None, device: str | None = None,
) -> Estimate:  # fmt: skip
    """Weigh a training.

    Args:
        config: The network.
        training: Batches and schedule.
        cluster: Devices; its memory_gib wins over `memory`.
        kind: How the devices share the work.
        memory: Bytes of a device that is here.
        document_tokens: Mean length of a document in the data; None takes the cluster's.
        device: Name of the device that is here.
    """
    cost = footprint(config, context=training.length)
    whole = cost.parameters + cost.vocabulary_parameters
    shards = cluster.devices if kind == "fsdp" else 1
    n = training.length * training.micro_windows
    mixers = config.layer_mixers
    weighed = {name: _weigh(config, mixers.index(name), training.precision) for name in set(mixers)}
    by_layer = [weighed[name] for name in mixers]
    inputs = 4 * config.width
    activations = {
        False: int(n * (sum(one.kept for one in by_layer) + max(one.most - one.kept for one in by_layer))),
        True: int(n * (inputs * config.layers + max(one.most for one in by_layer))),
    }  # fmt: skip
    half = training.precision == "bfloat16"
    documents = training.micro_windows + n / (document_tokens or cluster.document_tokens)
    group = cost.parameters // config.layers
    sizes = {
        "weights": 4 * whole // shards,
        "gradients": 4 * whole // shards,
        "fresh gradient": (6 if half else 4) * max(config.vocabulary * config.width,
                                                   *(one.matrix for one in by_layer)),
        "optimizer": 8 * whole // shards,
        "copies": 2 * cost.products if half else 0,
        "gathered": 0 if kind != "fsdp" else 2 * 4 * (2 * group + cost.vocabulary_parameters),
        "activations": activations[training.checkpointing],
        "head": (4 if half else 3) * 4 * min(LOSS_TOKENS, n) * config.vocabulary + 2 * inputs * n,
        "states": int(2 * documents * sum(one.state for one in by_layer)),
    }  # fmt: skip
    given = memory if cluster.memory_gib is None else int(cluster.memory_gib * GIB)
    known = peak_of(cluster, training.precision, device)
    peak = known or ASSUMED
    seconds = training.steps * training.step_tokens * cost.operations / (cluster.devices * peak * cluster.mfu)
    return Estimate(
        parameters=cost.parameters, vocabulary_parameters=cost.vocabulary_parameters,
        state_bytes_per_document=cost.state_bytes, operations=cost.operations, kind=kind, devices=cluster.devices,
        bytes=sizes, activations=activations, available=None if given is None else int(given * (1 - cluster.reserve)),
        peak=peak, peak_known=known is not None, steps=training.steps, seconds=seconds,
        cost=seconds / 3600 * cluster.devices * cluster.price,
    )  # fmt: skip


def device_memory(accelerator: str, local_ranks: int = 1) -> int | None:
    """Bytes of the device that is here; a process's share of the machine's for a CPU. None where nothing says it."""
    if accelerator == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local_ranks
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


class _Weighed(NamedTuple):
    """Bytes of one block."""

    kept: float
    """A token's, between forward and backward."""
    most: float
    """A token's, at the widest moment of both."""
    state: int
    """A document's in training."""
    matrix: int
    """Weights of its largest matrix."""


def _weigh(config: LanguageConfig, layer: int, precision: str) -> _Weighed:
    """Weigh a block over two lengths of one document."""
    with torch.random.fork_rng(devices=[]):
        block = Block(config.width, config.mlp, language_mixer(config, layer))
    sizes = {size for p in block.parameters() for size in p.shape}
    lengths = [n for n in (_CHUNK * k for k in range(1, 100)) if n not in sizes][:3]  # no token's tensor looks like W
    (kept, most), (kept_longer, most_longer) = (_lived(block, config, n, precision) for n in (lengths[0], lengths[-1]))
    more = lengths[-1] - lengths[0]
    state = {} if isinstance(block.mixer, AttentionMixer) else block.mixer.initial_state(1)
    return _Weighed(kept=(kept_longer - kept) / more, most=(most_longer - most) / more,
                    state=sum(t.nbytes for t in state.values()),
                    matrix=max(p.numel() for p in block.parameters()))  # fmt: skip


def _lived(block: Block, config: LanguageConfig, tokens: int, precision: str) -> tuple[int, int]:
    """Bytes of a pass over one document that its backward keeps, and the most of forward and backward."""
    at = Sequences(np.array([tokens]), np.zeros(1, np.int64), bounded=False)
    x, ones = torch.zeros(tokens, config.width, requires_grad=True), torch.ones(tokens)
    state = {} if isinstance(block.mixer, AttentionMixer) else block.mixer.initial_state(1)
    with _Live([p.shape for p in block.parameters()]) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            y, _, _ = block(Commits(x, ones, ones, at), None, state, commit_output=True)
        kept = live.now
        assert y is not None
        y.sum().backward()
    block.zero_grad(set_to_none=True)
    return kept, live.most


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of tensors that operations make, while they live, and the most at a time; those of some shapes left out.

    Products of matrices come as zeros: their size is all that counts here, and a CPU is slow at them in bfloat16.
    """

    def __init__(self, without: Sequence[torch.Size]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._without = {shape for own in without for shape in (tuple(own), tuple(own[::-1]))}
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.mm.default:
            made = args[0].new_zeros(args[0].shape[0], args[1].shape[1])
        else:
            made = func(*args, **(kwargs or {}))
        for t in tree_leaves(made):
            if isinstance(t, Tensor) and tuple(t.shape) not in self._without:
                self._add(t.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self._known:
            self._known.add(id(storage))
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, id(storage), storage.nbytes())

    def _drop(self, name: int, size: int) -> None:
        self._known.remove(name)
        self.now -= size


def _size(size: int) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB // 10 else f"{size / 2**20:,.1f} MiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} seconds"
