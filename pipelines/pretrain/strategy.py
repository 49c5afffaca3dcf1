"""How a training is spread: one device, DDP, or FSDP2 through Lightning's ModelParallelStrategy; torchrun starts ranks.

    torchrun --nproc_per_node 8 -m tsgdn2.pipelines.cli pretrain run --config gdn2-1.3b --data shards

FSDP2 shards every block and the rest of the model (embedding, norm and head are one group), gradients are put together
after each micro-batch, so that no device ever holds all of them. Weights stay in float32 there: bfloat16 is autocast
around the loss, and neither FSDP2's `param_dtype` nor Lightning's "bf16-true", which would round A_log, dt_bias and
norms as well. The price is all-gathers of twice the bytes. Nothing is started from inside: without torchrun there is
one rank. Ranks meet before Lightning would have them meet: what rank 0 reads or weighs is broadcast, and a node needs
no disk of the others.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from tsgdn2.block import Block
from tsgdn2.errors import ConfigError, TsgdnError
from tsgdn2.language.model import LanguageModel, LanguageState
from tsgdn2.pipelines.pretrain.options import ClusterOptions

Kind = Literal["single", "ddp", "fsdp"]
T = TypeVar("T")

PEAKS: Final = {"A100": 312.0, "H100": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H200": 989.0, "B200": 2250.0,
                "L40S": 362.0}  # fmt: skip
"""Teraflops in bfloat16 without sparsity, by words of a device's name (the makers' data sheets)."""
_BACKENDS: Final = {"cuda": "nccl", "cpu": "gloo"}


@dataclass(frozen=True, kw_only=True)
class World:
    """Who this process is among those that torchrun started."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    """Ranks on this machine."""

    @classmethod
    def here(cls) -> World:
        """Read torchrun's environment; alone where there is none."""
        given = os.environ
        if "TORCHELASTIC_RUN_ID" not in given:
            return cls()
        return cls(rank=int(given["RANK"]), ranks=int(given["WORLD_SIZE"]), local_rank=int(given["LOCAL_RANK"]),
                   local_ranks=int(given["LOCAL_WORLD_SIZE"]))  # fmt: skip


def join(world: World, cluster: ClusterOptions) -> None:
    """Meet the other ranks; Lightning takes the group that is there. Nothing to do for one rank."""
    if world.ranks == 1 or distributed.is_initialized():
        return
    accelerator = accelerator_of(cluster)
    device = torch.device("cuda", world.local_rank) if accelerator == "cuda" else None
    if device is not None:
        torch.cuda.set_device(device)
    distributed.init_process_group(_BACKENDS[accelerator], device_id=device, timeout=distributed.default_pg_timeout)
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    """This process among the ranks that have met."""
    return distributed.get_rank() if ranks() > 1 else 0


def ranks() -> int:
    """Ranks that have met."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def from_first(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank; an error of ours too, so that no rank waits for one that gave up."""
    if ranks() == 1:
        return make()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = make()
        except TsgdnError as error:
            told[1] = error
    distributed.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    made: T = told[0]
    return made


def accelerator_of(cluster: ClusterOptions) -> Literal["cpu", "cuda"]:
    """Where the training runs; ConfigError for GPUs that are not there."""
    there = torch.cuda.is_available()
    if cluster.accelerator == "cuda" and not there:
        raise ConfigError("cluster.accelerator: cuda was asked for, torch finds no GPU; use cpu, or auto")
    return "cuda" if there and cluster.accelerator != "cpu" else "cpu"


def peak_of(cluster: ClusterOptions, precision: str, name: str | None = None) -> float | None:
    """Operations per second of a device at a precision: what the options say, or the data sheet of a device of this
    name; None where neither is known."""
    if cluster.teraflops is not None:
        return cluster.teraflops * 1e12
    words = set(re.split(r"[^A-Za-z0-9]+", name or ""))
    known = [key for key in PEAKS if set(key.split()) <= words]
    if not known or precision != "bfloat16" or "MIG" in words:
        return None
    return PEAKS[max(known, key=len)] * 1e12


def kind_of(cluster: ClusterOptions, accelerator: str) -> Kind:
    """What `auto` means for these devices; ConfigError for a strategy that is none for so many."""
    if cluster.strategy != "auto":
        if (cluster.strategy == "single") != (cluster.devices == 1):
            allowed = "auto or single for one device" if cluster.devices == 1 else "auto, ddp or fsdp for several"
            raise ConfigError(
                f"cluster.strategy: must be {allowed}, got {cluster.strategy!r} for {cluster.devices}; leave it auto, "
                "or start the job with torchrun, which says how many there are"
            )
        return cluster.strategy
    if cluster.devices == 1:
        return "single"
    return "fsdp" if accelerator == "cuda" else "ddp"


def trainer(cluster: ClusterOptions, world: World, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """Lightning's trainer for one pass over the steps that are left; no files, no logger, no bar of its own.

    Raises:
        ConfigError: torchrun started another number of ranks than `cluster.devices`.
    """
    if cluster.devices != world.ranks:
        raise ConfigError(
            f"cluster.devices: is {cluster.devices}, but {world.ranks} process(es) run; start the job with "
            f"`torchrun --nproc_per_node {cluster.devices} -m tsgdn2.pipelines.cli pretrain run ..`, or set it to "
            f"{world.ranks}"
        )
    accelerator = accelerator_of(cluster)
    with _quiet():
        return pl.Trainer(
            accelerator=accelerator, devices=world.local_ranks, num_nodes=world.ranks // world.local_ranks,
            strategy=_strategy(kind_of(cluster, accelerator), accelerator, world), precision="32-true", max_epochs=1,
            limit_val_batches=0, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            callbacks=list(callbacks),
        )  # fmt: skip


def _strategy(kind: Kind, accelerator: str, world: World) -> Strategy:
    backend = _BACKENDS[accelerator]
    if kind == "single":
        return SingleDeviceStrategy(torch.device(accelerator, 0) if accelerator == "cuda" else torch.device("cpu"))
    if kind == "ddp":
        return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)
    return ModelParallelStrategy(
        data_parallel_size=world.ranks,
        tensor_parallel_size=1,
        process_group_backend=backend,
        save_distributed_checkpoint=False,
    )


def fit(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Fit; an interrupt stays a KeyboardInterrupt (Lightning makes it an exit with code 1)."""
    before = signal.getsignal(signal.SIGINT)
    try:
        with _quiet():
            trainer.fit(module)
    except SystemExit as left:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        if isinstance(left.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from left
        raise


def shard(model: LanguageModel, mesh: DeviceMesh) -> None:
    """FSDP2 over a mesh of one dimension: every block a group, the rest another one; `loss` gathers as forward does."""
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")
    model.__dict__["initial_state"] = partial(_whole_state, model)  # made before a block's weights are gathered


def _whole_state(model: LanguageModel, batch: int, *, kept: bool = True) -> LanguageState:
    """`initial_state` of a sharded model: what is made like a sharded weight is a DTensor, the scan wants plain."""
    state = type(model).initial_state(model, batch, kept=kept)
    return replace(state, layers=tuple({name: whole(t) for name, t in layer.items()} for layer in state.layers))


def whole(x: Tensor) -> Tensor:
    """A tensor that may be sharded, put together; every rank calls it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def compiled(model: LanguageModel) -> LanguageModel:
    """Compile norms, SwiGLU and the head's loss in place; mixers stay out, their kernels are compiled already."""
    for block in model.blocks:
        assert isinstance(block, Block)
        for part in (block.mixer_norm, block.mlp_norm, block.mlp):
            part.compile()
    model.norm.compile()
    model.__dict__["_piece"] = torch.compile(
        model._piece
    )  # a function of the instance, no module: state stays as it is
    return model


def summed(x: Tensor) -> Tensor:
    """Sum over all ranks, on each of them; x itself where there is one."""
    if ranks() > 1:
        x = x.clone()
        distributed.all_reduce(x)
    return x


def gathered(x: object) -> list[Any]:
    """What every rank has, on each of them, in order."""
    if ranks() == 1:
        return [x]
    found: list[Any] = [None] * ranks()
    distributed.all_gather_object(found, x)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says of what is deliberate here, and its tips."""
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*returned a view tensor.*")  # nothing here works in place on it
            warnings.filterwarnings("ignore", category=FutureWarning, module="lightning.*")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
