"""What the command line makes of the jobs' options: bare values, lists, and every command of the page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import tsgdn2.pipelines.pretrain
from tsgdn2.pipelines.cli import _job, parser
from tsgdn2.pipelines.pretrain.recipes import named


def test_one_bare_value_is_taken_for_several_and_so_is_a_list() -> None:
    whole = parser()

    def parsed(*given: str) -> Any:
        return _job(whole, whole.parse_args(["pretrain", *given]))[1]

    assert parsed("prepare", "--text", "hf://datasets/a/b/*.parquet").text == ("hf://datasets/a/b/*.parquet",)
    assert parsed("prepare", "--text", '["a", "data[1]/b"]').text == ("a", "data[1]/b")
    assert parsed("prepare").text == ("stdlib",)
    judged = ("evaluate", "--checkpoint", "c", "--data", "d")
    assert parsed(*judged, "--needles", "s-niah-1", "--needle_lengths", "512").needles == ("s-niah-1",)
    assert parsed(*judged, "--needles", "s-niah-1", "--needle_lengths", "512").needle_lengths == (512,)
    assert parsed(*judged, "--needles", "[]").needles == ()
    compared = parsed("compare", "--data", "d", "--mixers", "kda", "--seeds", "[3, 4]")
    assert (compared.mixers, compared.seeds) == (("kda",), (3, 4))


def test_every_command_of_the_page_is_understood() -> None:
    page = (Path(tsgdn2.pipelines.pretrain.__path__[0]) / "README.md").read_text()
    lines = page.replace("\\\n", " ").splitlines()
    commands = [line.split("#")[0].partition("pretrain ")[2] for line in lines
                if line.startswith("    ") and "pretrain " in line]  # fmt: skip
    assert len(commands) == 7
    whole = parser()
    for command in commands:
        name, _ = _job(whole, whole.parse_args(named(["pretrain", *shlex.split(command)])))
        assert name == f"pretrain {command.split()[0]}"
