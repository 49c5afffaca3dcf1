"""The wheel and the sdist must hold every file of the rooms: setuptools leaves an unlisted folder out in silence."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "datasets", "evaluation", "service", "pipelines")
SHIPPED = {".py", ".md", ".html", ".yaml", ".jsonl"}
BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"


def build(what: str, source: Path, out: Path) -> Path:
    """Run one hook of the build backend in `source`, without network and without touching the checkout."""
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, what, str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


def expected() -> set[str]:
    """Names in the wheel of all files that the rooms hold."""
    names = set()
    for room in ("tsgdn2", *ROOMS):
        for path in (ROOT / room).rglob("*"):
            inside = path.relative_to(ROOT)
            linked = room == "tsgdn2" and inside.parts[1] in ROOMS
            if path.is_file() and not linked and (path.suffix in SHIPPED or path.name == "py.typed"):
                names.add((inside if room == "tsgdn2" else Path("tsgdn2") / inside).as_posix())
    return names


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("source") / "tsgdn2"
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for room in ("tsgdn2", *ROOMS):
        if (ROOT / room).is_dir():
            shutil.copytree(ROOT / room, target / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_rooms(copy: Path, tmp_path: Path) -> None:
    wheel = contents(build("build_wheel", copy, tmp_path / "wheel"))
    assert expected() - wheel == set()
    assert {name.split("/")[0] for name in wheel} == {"tsgdn2"}


def test_a_wheel_built_from_the_sdist_is_the_same(copy: Path, tmp_path: Path) -> None:
    sdist = build("build_sdist", copy, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert expected() - contents(build("build_wheel", source, tmp_path / "wheel")) == set()
