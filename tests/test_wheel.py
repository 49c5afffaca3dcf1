"""The wheel and the sdist must hold every file of the rooms: setuptools leaves an unlisted folder out in silence.

The native library is optional: where it cannot be compiled the wheel is whole but for it, and works in torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tsgdn2.kernels.native.library import NAME

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "datasets", "evaluation", "service", "pipelines")
SHIPPED = {".py", ".md", ".html", ".js", ".css", ".svg", ".yml", ".yaml", ".jsonl", ".cpp", ".hpp", ".h"}
LIBRARY = "tsgdn2/kernels/native/" + NAME
BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"


def build(what: str, source: Path, out: Path, compiler: bool = True) -> Path:
    """Run one hook of the build backend in `source`, without network and without touching the checkout."""
    out.mkdir()
    environment = dict(os.environ)
    if not compiler:
        (out.parent / "empty").mkdir()
        environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
        environment["PATH"] = str(out.parent / "empty")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, what, str(out)],
        cwd=source,
        env=environment,
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
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    built = shutil.ignore_patterns("__pycache__", NAME)
    for room in ("tsgdn2", *ROOMS):
        if (ROOT / room).is_dir():
            shutil.copytree(ROOT / room, target / room, symlinks=True, ignore=built)
    return target


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def plain(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made where no compiler is on PATH."""
    return build("build_wheel", copy, tmp_path_factory.mktemp("plain") / "wheel", compiler=False)


def test_the_wheel_holds_every_file_of_the_rooms(plain: Path) -> None:
    wheel = contents(plain)
    assert expected() - wheel == set()
    assert {name.split("/")[0] for name in wheel} == {"tsgdn2"}


def test_a_wheel_built_from_the_sdist_is_the_same_and_holds_the_library(copy: Path, tmp_path: Path) -> None:
    sdist = build("build_sdist", copy, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    wheel = build("build_wheel", source, tmp_path / "wheel")
    assert expected() - contents(wheel) == set()
    assert (LIBRARY in contents(wheel)) == (shutil.which("c++") is not None)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")


def test_a_library_of_an_earlier_build_is_not_taken_for_one_that_could_not_be_compiled(
    copy: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(copy, source, symlinks=True, ignore=shutil.ignore_patterns("build"))
    for folder in ("build/lib", f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"):
        left_over = source / folder / LIBRARY
        left_over.parent.mkdir(parents=True)
        left_over.write_bytes(b"of other sources")
    (source / "kernels" / "native" / NAME).write_bytes(b"of other sources")
    assert LIBRARY not in contents(build("build_wheel", source, tmp_path / "wheel", compiler=False))


SCAN = """
import warnings
import torch
from tsgdn2.kernels import ops
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    for _ in range(2):
        x = torch.rand(2, 20, 1, 4)
        o, state = ops.gdn2_scan(x, x / 2, x, -x, x, x, backend="auto")
print(ops.__file__)
print(tuple(o.shape), bool(torch.isfinite(o).all()))
for warning in heard:
    print(f"{warning.category.__name__}: {warning.message}")
"""


def test_an_install_without_the_library_works_and_says_once_what_is_missing(plain: Path, tmp_path: Path) -> None:
    assert LIBRARY not in contents(plain)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(plain)], check=True, timeout=120)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TSGDN2_NATIVE")}
    done = subprocess.run(
        [sys.executable, "-c", SCAN],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    where, shape, *heard = done.stdout.splitlines()
    assert Path(where) == site / "tsgdn2" / "kernels" / "ops.py"
    assert shape == "(2, 20, 1, 4) True"
    (said,) = heard
    assert said.startswith("RuntimeWarning: tsgdn2 runs its scans in torch, on CPUs about 10 times slower")
    assert "install a C++ compiler" in said
