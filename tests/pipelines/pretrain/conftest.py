"""A small corpus in shards, and a training on it that takes a second: what the tests of this folder share."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tsgdn2.datasets.token_writer import TokenWriter
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.jobs import Pretrain
from tsgdn2.pipelines.pretrain.options import ClusterOptions, TrainingOptions

END = 96
MODEL = LanguageConfig(vocabulary=97, width=16, layers=2, heads=2, key_dim=4, value_dim=8, mlp=24)
TRAINING = TrainingOptions(
    tokens=6 * 192, step_tokens=192, length=24, micro_windows=2, peak=1e-2, floor=1e-3, warmup_tokens=300,
    checkpoint_every=1, keep=2, validate_every=3, validation_windows=5, log_every=2,
)  # fmt: skip


def write_corpus(folder: Path) -> None:
    """Documents of 0 to 60 tokens that repeat themselves."""
    draw = random.Random(5)
    for part, count in (("train", 60), ("validation", 9)):
        writer = TokenWriter(folder / part, vocabulary=97, end_of_document=END, tokenizer_digest="t", shard_tokens=500)
        for number in range(count):
            motif = [draw.randrange(96) for _ in range(5)]
            document = [motif[i % 5] for i in range(draw.randrange(60))]
            writer.append(document, text_bytes=len(document), cursor=(number,))
        writer.close()


def small_job(home: Path, *, output: str = "out", **training: object) -> Pretrain:
    """A training of six steps on the corpus in home/data."""
    return Pretrain(
        data=home / "data", runs=home / "runs", output=home / output, model=MODEL, quiet=True,
        training=replace(TRAINING, **training), cluster=ClusterOptions(accelerator="cpu", teraflops=0.1),
    )  # fmt: skip


def mixed_job(home: Path, *, output: str) -> Pretrain:
    """Three steps in bfloat16 of a hybrid whose head is its embedding."""
    job = small_job(home, output=output, precision="bfloat16", tokens=3 * TRAINING.step_tokens)
    return replace(job, model=replace(MODEL, tied=True, attention_every=2, attention_window=9))


def furnish(home: Path, empty_store: Path) -> None:
    """Put data/ and a store for runs into a folder, so that no test makes one."""
    write_corpus(home / "data")
    (home / "runs").mkdir()
    shutil.copy(empty_store, home / "runs" / "mlflow.db")


@pytest.fixture
def home(tmp_path: Path, empty_store: Path) -> Path:
    """A furnished folder."""
    furnish(tmp_path, empty_store)
    return tmp_path


@pytest.fixture
def job(home: Path) -> Pretrain:
    """Six steps on one device."""
    return small_job(home)


@pytest.fixture
def mixed(home: Path) -> Pretrain:
    """Three steps of `mixed_job` on one device."""
    return mixed_job(home, output="mixed")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Pretrain:
    """A training that has ended; for reading, or for copies of its home."""
    from tsgdn2.pipelines.pretrain.run import run

    place = tmp_path_factory.mktemp("finished")
    furnish(place, empty_store)
    run(small_job(place))
    return small_job(place)


class Lively:
    """Makes small models whose words depend on the text: weights as drawn say nearly the same everywhere."""

    def __call__(self, **fields: object) -> LanguageModel:
        """A model of 257 tokens, drawn from seed 1; fields of LanguageConfig."""
        torch.manual_seed(1)
        sizes: dict[str, object] = {"vocabulary": 257, "width": 32, "layers": 3, "heads": 2, "key_dim": 8,
                                    "value_dim": 8, "mlp": 48}  # fmt: skip
        model = LanguageModel(LanguageConfig(**(sizes | fields))).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(10)
        return model


@pytest.fixture(scope="session")
def lively() -> Lively:
    """Makes models for what is exported."""
    return Lively()
