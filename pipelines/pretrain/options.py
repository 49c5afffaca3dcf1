"""How a language model is trained and on what: the schedule in tokens, the batches, the checkpoints, the devices.

The defaults are the paper's (arXiv 2605.22791) where it says them. Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tsgdn2.errors import require
from tsgdn2.pipelines.options import at_least_one


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Everything that fixes the weights at the end, beside the model and the data."""

    tokens: int = 100_000_000_000
    """Tokens of the whole training; the last step is the one that reaches them."""
    step_tokens: int = 524_288
    """Tokens of one step over all devices; must be a multiple of `length`."""
    length: int = 4_096
    """Tokens of a window; a window holds one or more documents, and nothing crosses from one to the next."""
    micro_windows: int = 4
    """Windows that a device reads at a time; the rest of its step is accumulated. Memory grows with it, results do
    not change."""
    peak: float = 4e-4
    """Highest learning rate."""
    floor: float = 4e-5
    """Learning rate at the end of the cosine."""
    warmup_tokens: int = 1_000_000_000
    """Tokens over which the rate rises to the peak."""
    beta1: float = 0.9
    """AdamW: mean of the gradient."""
    beta2: float = 0.95
    """AdamW: mean of its square."""
    weight_decay: float = 0.1
    """AdamW: decay of matrices and of the embedding, times the rate."""
    decay_all: bool = False
    """Decay norms, biases, convolutions, decay rates and steps too, as the paper's own optimiser does."""
    clip: float = 1.0
    """Largest norm of the gradient of all weights; 0 does not clip."""
    skips: int = 10
    """Steps in a row that may be left out because their gradient is not finite; one more ends the training."""
    seed: int = 0
    """Seed of the weights and of the order of the windows."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: products of matrices and tokens of the scan under autocast; weights, optimiser, decays and states stay
    in float32. For GPUs: a CPU gains nothing by it."""
    checkpointing: bool = False
    """Keep a block's input alone for the backward and compute the block again there: less memory, a third more time."""
    compile: bool = False
    """Compile norms, SwiGLU and the head's loss with torch.compile; mixers are left as they are."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step has one always."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    validate_every: int = 500
    """Steps between validations; 0 validates at the end alone."""
    validation_windows: int = 256
    """Windows of a validation, always the same; 0 does not validate."""
    log_every: int = 10
    """Steps between points of the curve in MLflow; the file has every step."""

    def __post_init__(self) -> None:
        """Check every bound; ConfigError names the field."""
        at_least_one(
            tokens=self.tokens, step_tokens=self.step_tokens, micro_windows=self.micro_windows,
            checkpoint_every=self.checkpoint_every, keep=self.keep, log_every=self.log_every,
        )  # fmt: skip
        require("length", self.length, "at least 2 tokens", self.length >= 2)
        require(
            "step_tokens", self.step_tokens, f"a multiple of length {self.length}", self.step_tokens % self.length == 0
        )
        require("peak", self.peak, "above 0", self.peak > 0)
        require("floor", self.floor, f"from 0 to the peak {self.peak}", 0 <= self.floor <= self.peak)
        require("warmup_tokens", self.warmup_tokens, "at least 0", self.warmup_tokens >= 0)
        for name in ("beta1", "beta2"):
            require(name, getattr(self, name), "in [0, 1)", 0 <= getattr(self, name) < 1)
        for name in ("weight_decay", "clip", "skips", "seed", "validate_every", "validation_windows"):
            require(name, getattr(self, name), "at least 0", getattr(self, name) >= 0)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return -(-self.tokens // self.step_tokens)

    @property
    def step_windows(self) -> int:
        """Windows of one step over all devices."""
        return self.step_tokens // self.length


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The devices, as they are or as they would be; the estimate needs no device to be there."""

    devices: int = 1
    """Devices; under torchrun the number that it started."""
    strategy: Literal["auto", "single", "ddp", "fsdp"] = "auto"
    """auto: one device, or fsdp over several GPUs, ddp over several processes on CPUs. fsdp shards weights, gradients
    and optimiser; ddp keeps a copy on each device. single is for one device alone."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    memory_gib: float | None = None
    """Memory of a device in GiB; None asks the device that is here."""
    reserve: float = 0.1
    """Share of a device's memory that is left for the runtime, buffers of communication and fragments."""
    teraflops: float | None = None
    """Peak of a device in 1e12 operations per second at the training's precision, without sparsity; None: that of
    bfloat16 for a device whose name is known. MFU is told where the peak is known alone."""
    mfu: float = 0.4
    """Share of the peak that the training is assumed to reach."""
    price: float = 0.0
    """Price of a device for an hour, in whatever money."""
    document_tokens: int = 1_000
    """Mean length of a document, where the data are not there to ask; each document in a batch has its own state."""

    def __post_init__(self) -> None:
        """Check every bound; ConfigError names the field."""
        at_least_one(devices=self.devices, document_tokens=self.document_tokens)
        for name in ("teraflops", "memory_gib"):
            value = getattr(self, name)
            require(f"cluster.{name}", value, "above 0", value is None or value > 0)
        require("cluster.mfu", self.mfu, "in (0, 1]", 0 < self.mfu <= 1)
        require("cluster.reserve", self.reserve, "in [0, 1)", 0 <= self.reserve < 1)
        require("cluster.price", self.price, "at least 0", self.price >= 0)
