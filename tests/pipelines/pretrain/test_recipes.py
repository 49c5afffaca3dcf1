"""The package's configurations: the paper's counts, equal states, and what a wrong name or field is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsgdn2.errors import ConfigError
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.cost import footprint
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.pretrain.recipes import FOLDER, located, named, names, recipe
from tsgdn2.pipelines.pretrain.sizes import markdown

COUNTS = {
    "gdn2-1.3b": 1_302_638_112,
    "gdn2-swa-1.3b": 1_300_314_384,
    "kda-1.3b": 1_300_647_456,
    "gdn-1.3b": 1_303_191_360,
    "mamba2-1.3b": 1_302_528_096,
    "mamba3-1.3b": 1_301_389_920,
    "rwkv7-1.3b": 1_303_549_056,
    "transformer-1.3b": 1_301_971_968,
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_configuration_has_the_parameters_and_the_state_that_it_says(name: str) -> None:
    config = recipe(name, Path("data")).model
    cost = footprint(config)
    assert cost.parameters == COUNTS[name]
    assert f"{COUNTS[name]:,}" in located(name).read_text()
    for mixer, floats in zip(config.layer_mixers, cost.state_floats, strict=True):
        assert mixer == "attention" or floats == 262_144


def test_every_configuration_is_counted_here() -> None:
    assert {*names()} == {*COUNTS, "tiny"}
    assert recipe("tiny", Path("data")).training.steps == 200


def test_the_readme_shows_the_sizes_as_they_are() -> None:
    page = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- sizes -->\n\n")[2].partition("\n<!-- end -->")[0]
    assert shown == markdown(), "run: python -m tsgdn2.pipelines.pretrain.sizes"
    assert shown.count("\n") == len(names()) + 2
    assert "| gdn2-1.3b | 18 gdn2 | 1,302,638,112 | 1,450,096,416 | 262,144 |" in shown


def test_a_name_becomes_the_path_of_its_file_in_the_verbs_of_pretrain_alone(tmp_path: Path) -> None:
    assert named(["pretrain", "run", "--config", "tiny"])[-1] == str(FOLDER / "tiny.yaml")
    assert named(["pretrain", "run", "--config=tiny"])[-1] == f"--config={FOLDER / 'tiny.yaml'}"
    assert named(["train", "--config", "tiny"]) == ["train", "--config", "tiny"]
    own = tmp_path / "own.yaml"
    own.write_text("model: {vocabulary: 9, width: 8, layers: 1, heads: 1, mlp: 8}\n")
    assert named(["pretrain", "run", "--config", str(own)])[-1] == str(own)
    assert recipe(str(own), tmp_path).model.vocabulary == 9


def test_a_wrong_name_lists_the_right_ones_and_a_wrong_field_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "run", "--config", "gdn3", "--data", "x"]) == 2
    assert "one of gdn-1.3b, gdn2-1.3b" in capsys.readouterr().err


NETWORK = "model: {vocabulary: 9, width: 8, layers: 1, heads: 1, mlp: 8}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (NETWORK + "training: {peek: 1}\n", "'training' does not accept option 'peek'"),
        (NETWORK + "nothing: 1\n", "'nothing' is not accepted"),
        (NETWORK + "training:\n", "NoneType"),
        (NETWORK + "output: 5\n", "output"),
        (NETWORK + "training: {length: 1}\n", "length: must be at least 2 tokens"),
        ("model:\n", "must map `model`"),
        ("model: {vocabulary: 9, width: 8, layers: 1, heads: 1}\n", r"required: model\.mlp"),
        ("model: {vocabulary: nine, width: 8, layers: 1, heads: 1, mlp: 8}\n", "model.vocabulary"),
        ("[1]", "must map `model`"),
        ("a: [", "must map `model`"),
        ("", "must map `model`"),
    ],
)
def test_what_a_file_gets_wrong_is_told_in_one_error(tmp_path: Path, text: str, told: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(ConfigError, match=told):
        recipe(str(own), tmp_path)


def test_a_number_is_read_as_the_command_reads_it(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(NETWORK + "training: {peak: 4e-4}\noutput: there\n")
    job = recipe(str(own), tmp_path, fresh=True)
    assert job.training.peak == 4e-4
    assert (job.output, job.data, job.fresh) == (Path("there"), tmp_path, True)


@pytest.mark.parametrize("text", ["", "[1]", "3", '{"width": 8}', '{"vocabulary": "x", "width": 8, "layers": 1, '
                                  '"heads": 1, "mlp": 8}'])  # fmt: skip
def test_a_shape_that_is_none_is_told_in_one_error(text: str) -> None:
    with pytest.raises(ConfigError, match="config"):
        LanguageConfig.from_json(text)
