"""The house rules that no reviewer should have to check: who may import whom, where links point, how long files are."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("kernels", "datasets", "evaluation", "service", "pipelines")
ROOMS = ("tsgdn2", *LINKED)
MAY_IMPORT = {
    "kernels": set(),
    "tsgdn2": {"kernels"},
    "datasets": set(),
    "evaluation": {"tsgdn2", "kernels", "datasets"},
    "service": {"tsgdn2", "datasets"},
    "pipelines": set(ROOMS),
}
FRAMEWORKS = {"kernels": {"torch", "triton"}, "tsgdn2": {"torch", "numpy", "safetensors"}}
# The doors out of the model room, and what may come through them when they are called.
DOORS = {"to_gluonts": {"gluonts", "pandas"}, "to_polars": {"polars"}}
FACE = ROOT / "tsgdn2" / "__init__.py"
LONGEST = 320
VAGUE = {"utils", "util", "common", "misc", "helpers", "helper"}


class Import(NamedTuple):
    module: str
    inside: str | None
    line: int
    runs: bool


def sources(room: str) -> list[Path]:
    """Every Python file of a room; the links inside tsgdn2 belong to the rooms that they point to."""
    files = []
    for folder, subfolders, names in os.walk(ROOT / room, followlinks=False):
        subfolders[:] = [
            name for name in subfolders if name != "__pycache__" and not (Path(folder) / name).is_symlink()
        ]
        files += [Path(folder) / name for name in names if name.endswith(".py")]
    return sorted(files)


def imports(path: Path, package: str) -> Iterator[Import]:
    """Every import of a file: the full name of what is fetched, the innermost function around it, whether it runs."""

    def visit(node: ast.AST, inside: str | None, runs: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, inside, child.lineno, runs)
            elif isinstance(child, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                stem = ".".join([*base, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield Import(f"{stem}.{alias.name}", inside, child.lineno, runs)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child, child.name, runs)
            elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                yield from visit(ast.Module(child.body, []), inside, False)
                yield from visit(ast.Module(child.orelse, []), inside, runs)
            else:
                yield from visit(child, inside, runs)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), None, True)


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parent.parts
    return ".".join(parts if parts[0] == "tsgdn2" else ("tsgdn2", *parts))


def room_of(module: str) -> str:
    second = module.split(".")[1] if "." in module else ""
    return second if second in LINKED else "tsgdn2"


SAMPLE = """
import a.b
from tsgdn2 import kernels
if TYPE_CHECKING:
    import c
def f():
    from ..datasets import frame
    from . import x
"""


def test_an_import_is_read_whatever_its_form(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(SAMPLE)
    found = [(found.module, found.inside, found.runs) for found in imports(path, "tsgdn2.evaluation")]
    assert found == [
        ("a.b", None, True),
        ("tsgdn2.kernels", None, True),
        ("c", None, False),
        ("tsgdn2.datasets.frame", "f", True),
        ("tsgdn2.evaluation.x", "f", True),
    ]
    assert [room_of(found[row][0]) for row in (1, 3, 4)] == ["kernels", "datasets", "evaluation"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_that_the_table_allows(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        for path in sources(room)
        if path != FACE
        for found in imports(path, package_of(path))
        if found.module.split(".")[0] == "tsgdn2" and room_of(found.module) not in MAY_IMPORT[room] | {room}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", FRAMEWORKS)
def test_the_inner_rooms_keep_frameworks_out(room: str) -> None:
    allowed = FRAMEWORKS[room] | {"tsgdn2"} | set(sys.stdlib_module_names)
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        for path in sources(room)
        for found in imports(path, package_of(path))
        if found.runs
        and (top := found.module.split(".")[0]) not in allowed
        and not (room == "tsgdn2" and top in DOORS.get(found.inside or "", ()))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", LINKED)
def test_each_room_is_reached_through_a_relative_link(room: str) -> None:
    link = ROOT / "tsgdn2" / room
    assert link.is_symlink()
    assert os.readlink(link) == f"../{room}"


def test_a_room_is_packaged_as_soon_as_it_holds_something() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    held = {package_of(path) for room in ROOMS for path in sources(room)}
    assert set(packages) == held


def test_rooms_and_tests_have_no_init_file() -> None:
    assert [path for folder in (*LINKED, "tests") for path in (ROOT / folder).rglob("__init__.py")] == []


def test_importing_the_package_does_not_import_torch() -> None:
    program = (
        "import sys, tsgdn2; print([name for name in ('torch', 'numpy', 'polars', 'gluonts') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_no_file_is_too_long_to_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for room in (*ROOMS, "tests")
        for path in sources(room)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_files_are_named_after_what_they_hold() -> None:
    assert [
        path for room in (*ROOMS, "tests") for path in sources(room) if path.stem.removeprefix("test_") in VAGUE
    ] == []
