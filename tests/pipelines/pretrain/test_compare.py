"""The job `pretrain compare` on two steps a run: equal sizes, one row per run, and none of them done twice."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tsgdn2.datasets.errors import ChecksumError
from tsgdn2.datasets.token_writer import TokenWriter
from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.rows import Row, read, row
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.cost import footprint
from tsgdn2.pipelines.pretrain import compare, prepare
from tsgdn2.pipelines.pretrain.compare import matched, table, verdict
from tsgdn2.pipelines.pretrain.jobs import Compare, Prepare
from tsgdn2.pipelines.pretrain.tokenizer import load_tokenizer

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


def small_job(home: Path, store: Path) -> Compare:
    """Two steps of gdn2 on thirty small documents."""
    text = home / "text"
    text.mkdir()
    (home / "runs").mkdir()
    shutil.copy(store, home / "runs" / "mlflow.db")
    for n in range(30):
        (text / f"{n:02}.txt").write_text(f"This is text number {n}. " * 12)
    prepare.run(Prepare(text=(str(text),), output=home / "data", validation_every=5, quiet=True))
    (home / "tiny.yaml").write_text(TINY)
    return Compare(data=home / "data", recipe=str(home / "tiny.yaml"), output=home / "out", mixers="gdn2", seeds=0,
                   runs=home / "runs", quiet=True)  # fmt: skip


def test_a_comparison_that_was_stopped_goes_on_and_no_run_is_done_twice(
    tmp_path: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = small_job(tmp_path, empty_store)
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


def test_rows_depend_on_both_parts_of_the_data_and_damage_of_either_is_seen(tmp_path: Path, empty_store: Path) -> None:
    job = small_job(tmp_path, empty_store)
    (only,) = compare.trials(job)
    before = compare.key(only)
    assert compare.key(compare.trials(job)[0]) == before
    for part in ("train", "validation"):
        folder = tmp_path / "data" / part
        whole = {file: file.read_bytes() for file in folder.iterdir()}
        (folder / "manifest.json").unlink()
        writer = TokenWriter(folder / "new", vocabulary=257, end_of_document=256, shard_tokens=100,
                             tokenizer_digest=load_tokenizer(tmp_path / "data").digest)  # fmt: skip
        writer.append([1, 2, 3], text_bytes=3, cursor=(0,))
        writer.close()
        for file in (folder / "new").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        assert compare.key(only) != before
        shutil.rmtree(folder / "new")
        for file, content in whole.items():
            file.write_bytes(content)
        assert compare.key(only) == before
    path = tmp_path / "data" / "train" / "shard-000000.tokens"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ChecksumError, match=r"train/shard-000000\.tokens: has sha256"):
        compare.run(job)


def test_data_whose_text_was_lost_is_refused(tmp_path: Path, empty_store: Path) -> None:
    job = small_job(tmp_path, empty_store)
    settings = tmp_path / "data" / "prepare.json"
    settings.write_text(settings.read_text().replace('"text_lost": false', '"text_lost": true'))
    with pytest.raises(ConfigError, match=r"data: the tokenizer of .* loses text"):
        compare.run(job)


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
