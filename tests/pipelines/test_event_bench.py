"""The benchmark of events in small: every row is there and adds up; padding a batch changes its time, nothing else."""

from __future__ import annotations

import datetime
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tsgdn2.evaluation.rows import read
from tsgdn2.pipelines import event_speed
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.event_bench import OURS


def traces(folder: Path) -> None:
    """Small request traces in the form of the public ones."""
    home = folder / "azure_llm_trace"
    home.mkdir()
    for seed, which in enumerate(("code", "conv")):
        rng = np.random.default_rng(seed)
        seconds = np.cumsum(rng.exponential(3.0, 900))
        begin, form = datetime.datetime(2023, 11, 16, 18, 15), "%Y-%m-%d %H:%M:%S.%f"
        stamps = [(begin + datetime.timedelta(seconds=float(s))).strftime(form) for s in seconds]
        rows = [f"{stamp}0,{rng.integers(1, 99)},9" for stamp in stamps]
        text = "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n"
        (home / f"AzureLLMInferenceTrace_{which}.csv").write_text(text)


@pytest.mark.usefixtures("at_home")
def test_every_part_of_the_benchmark_writes_its_rows_and_the_bar_is_the_best_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces(tmp_path)
    monkeypatch.setenv("TSGDN2_DATA", str(tmp_path))
    assert main(["bench", "--what", "events", "--quick", "true", "--seeds", "[3]", "--output", "out"]) == 0
    rows = read(Path("out/events-quick.jsonl"))
    assert Counter(row.what.partition(":")[0] for row in rows) == {"flights": 7, "azure": 14, "speed": 8}
    for data, parts in (("flights", ("count", "mean(dep_delay)")), ("azure", ("code", "conv"))):
        own = [row for row in rows if row.what.startswith(data) and "CRPS wait" not in row.values]
        (ours,) = (row for row in own if row.what == f"{data}: {OURS}")
        assert ours.seed == 3
        for name in (*(f"CRPS {part}" for part in parts), "CRPS"):
            bar = min(row.values[name] for row in own if row is not ours)
            assert ours.values[f"{name} / best baseline"] == pytest.approx(ours.values[name] / bar)
        assert ours.values["streamed_minus_batch"] < 1e-4
        assert 0 <= ours.values["coverage"] <= 1
    *bars, ours = (row for row in rows if row.what.startswith("flights: wait"))
    best = min(row.values["CRPS wait"] for row in bars)
    assert ours.values["CRPS wait / best baseline"] == pytest.approx(ours.values["CRPS wait"] / best)
    assert {row.shape["moments"] for row in (*bars, ours)} == {3 * 48}
    speed = [row for row in rows if row.what.startswith("speed")]
    for row in speed[:6]:
        assert row.values["events_per_second"] > 0
        assert row.shape["tokens"] > 0
    for row in speed[6:]:
        assert row.values["loss_difference"] < 1e-5
        assert (row.shape["shortest"], row.shape["longest"]) == (13, 128)


@pytest.mark.parametrize("queries", [True, False])
@pytest.mark.parametrize("lengths", [[3, 70, 12], [1, 1, 5], [9, 9]])
def test_a_padded_batch_has_the_loss_and_the_gradients_of_the_packed_one(lengths: list[int], queries: bool) -> None:
    training, packed = event_speed.batch_of(np.array(lengths), 0)
    training = training.double()
    whole = event_speed.padded(packed, queries=queries)
    assert whole.layout.length.tolist() == [max(lengths)] * len(lengths)
    assert len(whole.elapsed) == max(lengths) * len(lengths)
    assert whole.weight.sum() == packed.weight.sum() > 0
    assert len(whole.target) == (max(lengths) * len(lengths) if queries else sum(lengths))
    found = []
    for batch in (packed, whole):
        loss = event_speed.step(training, batch)
        found.append((loss, [p.grad.clone() for p in training.forecaster.parameters() if p.grad is not None]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-9)
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def test_every_commit_of_every_lane_is_a_token() -> None:
    one = event_speed.synthetic(3_000)
    model = event_speed.Forecaster(one.config).eval()
    patches = one.frame["time"].to_physical() // (one.config.patch_length * one.config.period_ns)
    complete = patches.n_unique() - 1
    assert event_speed.into_tokens(one, model) in (one.config.lanes * complete, one.config.lanes * (complete + 1))
