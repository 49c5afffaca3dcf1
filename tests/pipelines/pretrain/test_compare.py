"""The job `pretrain compare` on two steps a run: equal sizes, one row per run, and none of them done twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.rows import Row, read, row
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.cost import footprint
from tsgdn2.pipelines.pretrain import compare, prepare
from tsgdn2.pipelines.pretrain.compare import matched, table, verdict
from tsgdn2.pipelines.pretrain.jobs import Compare, Prepare

TINY = """
model: {vocabulary: 257, width: 32, layers: 1, heads: 2, key_dim: 8, value_dim: 8, mlp: 48, mixer: gdn2}
training: {tokens: 256, step_tokens: 128, length: 32, micro_windows: 2, warmup_tokens: 64, validation_windows: 2,
           checkpoint_every: 2, validate_every: 2, log_every: 1}
cluster: {accelerator: cpu}
"""


def made(mixer: str, seed: int, bits: float) -> Row:
    facts = dataclasses.replace(row("compare", {"mixer": mixer, "mlp": 3}, seed=seed), cpu_seconds=1.0)
    return dataclasses.replace(facts, values={"bits_per_byte": bits, "parameters": 5, "state_floats": 7})


@pytest.mark.parametrize("mixer", ["gdn2", "kda", "gdn"])
def test_mixers_are_matched_in_state_and_weights(mixer: str) -> None:
    config = LanguageConfig(vocabulary=257, width=64, layers=2, heads=2, key_dim=16, value_dim=24, mlp=128)
    own = matched(config, mixer)
    assert footprint(own).state_floats == footprint(config).state_floats
    assert abs(footprint(own).parameters - footprint(config).parameters) <= 3 * 64 * 2 / 2 + 1
    assert own == config or own.mixer != "gdn2"


def test_a_mixer_with_another_state_is_refused() -> None:
    config = LanguageConfig(vocabulary=257, width=64, layers=2, heads=2, key_dim=16, value_dim=24, mlp=128)
    with pytest.raises(ConfigError, match="mixers: lstm has a state of"):
        matched(config, "lstm")


def test_a_comparison_that_was_stopped_goes_on_and_no_run_is_done_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for n in range(30):
        (text / f"{n:02}.txt").write_text(f"This is text number {n}. " * 12)
    prepare.run(Prepare(text=(str(text),), output=tmp_path / "data", validation_every=5, quiet=True))
    (tmp_path / "tiny.yaml").write_text(TINY)
    job = Compare(data=tmp_path / "data", recipe=str(tmp_path / "tiny.yaml"), output=tmp_path / "out", mixers=("gdn2",),
                  seeds=(0,), runs=tmp_path / "runs", quiet=True)  # fmt: skip
    compare.run(job)
    path = tmp_path / "out/compare.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + b'{"what": "comp')
    compare.run(dataclasses.replace(job, mixers=("gdn2", "kda")))
    assert "1 of 2 runs have their row already" in capsys.readouterr().out
    assert path.read_bytes().startswith(before)
    rows = read(path)
    assert [(one.shape["mixer"], one.seed) for one in rows] == [("gdn2", 0), ("kda", 0)]
    assert all(one.shape["steps"] == 2 for one in rows)
    assert "| kda | " in (tmp_path / "out/report.md").read_text()


def test_the_table_says_who_wins_and_who_is_level() -> None:
    rows = [made("gdn2", n, bits) for n, bits in enumerate((2.0, 2.1, 2.2))]
    rows += [made("kda", n, bits) for n, bits in enumerate((2.15, 2.3, 2.4))]
    rows += [made("gdn", n, bits) for n, bits in enumerate((2.5, 2.6, 2.7))]
    assert verdict(rows) == ("gdn2 has the fewest bits per byte, 2.1000 on average of 3 seeds; level with it, by the "
                             "range of the seeds: kda.")  # fmt: skip
    assert [line["mixer"] for line in table(rows)] == ["gdn2", "kda", "gdn"]
    assert table(rows)[0]["smallest"] == "2.0000"
    assert "every seed of it is better than every seed of gdn." in verdict(
        [one for one in rows if one.shape["mixer"] != "kda"]
    )
