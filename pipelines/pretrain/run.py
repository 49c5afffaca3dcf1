"""The job `pretrain run`: a language model from prepared shards; started again, it goes on from the newest checkpoint.

    <output>/checkpoints/step-.../     checkpoints.py
    <output>/curve.jsonl               a row per step, telemetry.py
    <output>/settings.json             what was asked for
    <output>/result.json               the figures at the end; its presence says that the training is done

The estimate comes first and refuses what can not fit. Under torchrun every rank runs this file; rank 0 alone weighs,
reads the checkpoint, writes and speaks. Two trainings can not share an output: the second one is refused.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, cast

import lightning.pytorch as pl
import torch

from tsgdn2.datasets.tokens import TokenShards, write_whole
from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.folder_lock import alone
from tsgdn2.pipelines.pretrain import strategy
from tsgdn2.pipelines.pretrain.checkpoints import CHECKPOINTS, Checkpoints, Reading, Saved, random_states
from tsgdn2.pipelines.pretrain.estimate import Estimate, device_memory, estimate
from tsgdn2.pipelines.pretrain.jobs import Pretrain
from tsgdn2.pipelines.pretrain.loader import TokenLoader
from tsgdn2.pipelines.pretrain.options import TrainingOptions
from tsgdn2.pipelines.pretrain.prepare import TRAIN, VALIDATION
from tsgdn2.pipelines.pretrain.telemetry import CURVE, Telemetry, read_curve
from tsgdn2.pipelines.pretrain.training import Pretraining, Progress, Steps
from tsgdn2.pipelines.pretrain.validation import Score, Validation
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Phase, Screen
from tsgdn2.pipelines.training import record_options, write_settings

RESULT: Final = "result.json"
# What may differ when a training goes on: it changes no weight, or only their last bits.
_FREE: Final = ("micro_windows", "checkpointing", "compile", "checkpoint_every", "keep", "validate_every",
                "validation_windows", "log_every", "skips")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The end of a training."""

    step: int
    tokens: int
    skipped: int
    """Steps left out."""
    loss: float | None
    """Mean nats per counted token of the last step; None where the curve has lost its row."""
    validation: Score | None
    """The held-out windows at the end; None where there are none."""
    seconds: float
    """Of training in this process, wall clock."""


def run(job: Pretrain) -> None:
    """Estimate, then train to the last step."""
    world = strategy.World.here()
    screen = Screen(job.quiet or world.rank > 0)
    if world.ranks > 1 and not job.dry_run:
        job = replace(job, cluster=replace(job.cluster, devices=world.ranks))
        strategy.join(world, job.cluster)
    weighed = strategy.from_first(lambda: weigh(job, world))
    if world.rank == 0:
        screen.table("Before the run", ["what", "estimate"], weighed.rows())
    weighed.require()
    if job.dry_run:
        screen.say("dry run: it fits" if weighed.available is not None else "dry run: the memory is not known")
        return
    train(job, world, screen, weighed)


def weigh(job: Pretrain, world: strategy.World) -> Estimate:
    """Estimate a job: for the devices that are here, or for those that a dry run describes."""
    cluster = job.cluster
    described = job.dry_run and cluster.memory_gib is not None
    accelerator = "cuda" if described and cluster.accelerator != "cpu" else strategy.accelerator_of(cluster)
    mean = None
    if (job.data / TRAIN).is_dir():
        shards = TokenShards(job.data / TRAIN)
        mean = shards.tokens / max(1, shards.documents)
    memory = None if described else device_memory(accelerator, world.local_ranks)
    device = torch.cuda.get_device_name() if accelerator == "cuda" and not described else None
    return estimate(job.model, job.training, cluster, kind=strategy.kind_of(cluster, accelerator), memory=memory,
                    document_tokens=mean, device=device)  # fmt: skip


def train(job: Pretrain, world: strategy.World, screen: Screen, weighed: Estimate) -> Trained:
    """Train to the last step, from the newest checkpoint of the output if there is one."""
    job = replace(job, output=job.output or job.runs / "pretrain")
    folder = job.folder("pretrain")
    shards, held_out = _shards(job)
    loader = _loader(job.training, shards, world)
    with ExitStack() as stack:
        if world.rank == 0:
            stack.enter_context(alone(folder, "training writes to"))
        checkpoints = Checkpoints(folder / CHECKPOINTS, keep=job.training.keep, say=screen.say)
        identity = _identity(job, shards)
        found = checkpoints.read(identity)
        if found and job.fresh:
            raise ConfigError(f"fresh: {folder} holds checkpoints; name another output, or leave --fresh out")
        progress = found.saved.progress if found else Progress()
        if found:
            loader.load_state_dict(found.saved.loader)
        torch.manual_seed(job.training.seed)
        model = LanguageModel(job.model)
        model.checkpointing = job.training.checkpointing
        validation = None
        if job.training.validation_windows and held_out is not None:
            validation = Validation(held_out, length=job.training.length, windows=job.training.validation_windows,
                                    micro=job.training.micro_windows, world=world)  # fmt: skip
        module = _Sharding(model, job.training, Steps(loader, job.training, progress.step), progress)
        telemetry = None
        if world.rank == 0:
            record = stack.enter_context(_record(job, shards, weighed, progress))
            write_settings(job, folder)
            telemetry = Telemetry(
                folder, record, screen, job.training, operations=weighed.operations, done=progress.step,
                peak=weighed.peak * weighed.devices if weighed.peak_known else None,
            )  # fmt: skip
            stack.callback(telemetry.close)
        phase = stack.enter_context(screen.phase("training", total=len(module.steps)))
        keeper = Keeper(checkpoints, identity, shards.tokenizer_digest, telemetry, validation, found, phase)
        if progress.step:
            screen.say(f"going on from step {progress.step} of {job.training.steps}")
        began = time.perf_counter()
        if len(module.steps):
            strategy.fit(strategy.trainer(job.cluster, world, [keeper]), module)
        done = Trained(
            step=module.progress.step, tokens=module.progress.tokens, skipped=module.progress.skipped,
            loss=module.result.loss if module.result else None, validation=keeper.score,
            seconds=time.perf_counter() - began,
        )  # fmt: skip
        if world.rank == 0 and module.result is None:  # killed behind its last checkpoint, before the result
            done = _ended(folder, done)
        if world.rank == 0:
            if len(module.steps) or not (folder / RESULT).exists():
                write_whole(folder / RESULT, (json.dumps(asdict(done), indent=1) + "\n").encode())
            record.artifact(folder / RESULT)
            record.artifact(folder / CURVE)
            screen.say(f"step {done.step} of {job.training.steps}, {done.skipped} left out: "
                       f"{checkpoints.latest() or 'no checkpoint'}")  # fmt: skip
    return done


class _Sharding(Pretraining):
    """The module that knows Lightning's mesh: weights are sharded before the optimiser sees them."""

    def configure_model(self) -> None:
        """Shard for FSDP2, compile where asked; called once for each process, on its device."""
        if self.device_mesh is not None and not hasattr(self.model, "unshard"):
            strategy.shard(self.model, self.device_mesh["data_parallel"])
        if self.options.compile and "_piece" not in self.model.__dict__:
            strategy.compiled(self.model)


class Keeper(pl.Callback):
    """What happens between steps: the resumed state first, then rows, validations and checkpoints."""

    def __init__(
        self, checkpoints: Checkpoints, identity: dict[str, Any], tokenizer_digest: str, telemetry: Telemetry | None,
        validation: Validation | None, found: Reading | None, phase: Phase,
    ) -> None:  # fmt: skip
        self.checkpoints, self.identity, self.tokenizer_digest = checkpoints, identity, tokenizer_digest
        self.telemetry, self.validation, self.found, self.phase = telemetry, validation, found, phase
        self.score: Score | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the checkpoint back, once weights and optimiser are where they belong."""
        module = cast(Pretraining, pl_module)
        told = strategy.gathered((module.progress, module.loader_state))
        if any(one != told[0] for one in told):
            raise CheckpointError(f"output: the ranks are at different places of the training ({told}); start it again")
        if self.found is not None:
            self.found.into(module.model, trainer.optimizers[0])
            self.found = None  # its host memory is free again
        if self.telemetry is not None:
            self.telemetry.resumed_clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int  # noqa: ARG002
    ) -> None:  # fmt: skip
        """After a step."""
        module = cast(Pretraining, pl_module)
        options, progress, result = module.options, module.progress, module.result
        assert result is not None
        last = progress.step == options.steps
        if self.telemetry is not None:
            self.telemetry.step(progress, result)
        if self.validation is not None and (last or _due(progress.step, options.validate_every)):
            self.score = self.validation.score(module.model, precision=options.precision)
            if self.telemetry is not None:
                self.telemetry.validated(progress, self.score)
                self.telemetry.resumed_clock()
        if last or _due(progress.step, options.checkpoint_every):
            saved = Saved(progress=progress, loader=module.loader_state, identity=self.identity, random=random_states())
            self.checkpoints.write(module.model, trainer.optimizers[0], saved, tokenizer_digest=self.tokenizer_digest)
            if self.telemetry is not None:
                self.telemetry.resumed_clock()
        self.phase.advance()


def _ended(folder: Path, done: Trained) -> Trained:
    """The figures of a training that another process brought to its end, from its curve."""
    rows = [row for row in read_curve(folder) if row["step"] == done.step]
    losses = [row["loss"] for row in rows if "loss" in row]
    scores = [row for row in rows if "validation_nats" in row]
    names = [one.name for one in fields(Score)]
    score = Score(**{name: scores[-1][f"validation_{name}"] for name in names}) if scores else None  # type: ignore[arg-type]
    return replace(done, loss=losses[-1] if losses else None, validation=score)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _shards(job: Pretrain) -> tuple[TokenShards, TokenShards | None]:
    """Both parts of the data; ConfigError where the model has no number for one of their tokens."""
    shards = TokenShards(job.data / TRAIN, verify="use")
    held_out = TokenShards(job.data / VALIDATION, verify="use") if (job.data / VALIDATION).is_dir() else None
    if shards.vocabulary > job.model.vocabulary:
        raise ConfigError(
            f"model.vocabulary: must be at least the {shards.vocabulary} ids of {job.data}, got "
            f"{job.model.vocabulary}; set it, or prepare the data with a smaller tokenizer"
        )
    return shards, held_out if held_out is not None and held_out.tokens else None


def _loader(options: TrainingOptions, shards: TokenShards, world: strategy.World) -> TokenLoader:
    each = options.micro_windows * world.ranks
    if options.step_windows % each:
        raise ConfigError(
            f"training.micro_windows: {options.step_windows} windows of a step must be a multiple of "
            f"micro_windows x ranks, got {options.micro_windows} x {world.ranks}; take a divisor of "
            f"{options.step_windows // world.ranks or 1}"
        )
    return TokenLoader(shards, length=options.length, windows=options.micro_windows, seed=options.seed,
                       rank=world.rank, ranks=world.ranks)  # fmt: skip


def _identity(job: Pretrain, shards: TokenShards) -> dict[str, Any]:
    """What fixes the weights, as JSON has it."""
    training = {f"training.{k}": v for k, v in asdict(job.training).items() if k not in _FREE}
    data = hashlib.sha256(shards.manifest.to_json().encode()).hexdigest()
    return {**training, "model": job.model.to_json(), "data": data}


def _record(job: Pretrain, shards: TokenShards, weighed: Estimate, progress: Progress) -> Run:
    """The MLflow run of this process."""
    tags = {"tsgdn2.job": "pretrain run", "tsgdn2.output": str(job.output), "tsgdn2.from_step": progress.step}
    record = Run.start(job.experiment, f"pretrain {job.model.mixer}", root=job.runs, tracking_uri=job.tracking_uri,
                       tags=tags)  # fmt: skip
    record_options(record, job)
    record.params({"parameters": weighed.parameters, "operations_per_token": weighed.operations,
                   "state_bytes": weighed.state_bytes_per_document})  # fmt: skip
    record.dataset(job.data.name or "tokens", shards.tokenizer_digest or "none", str(job.data))
    return record
