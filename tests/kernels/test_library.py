"""Where the compiled library is refused and what is said: each in a process of its own, as loading happens once."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tsgdn2.kernels.native import library

SOURCES = Path(__file__).resolve().parents[2] / "kernels" / "native"
HEADER = (SOURCES / "abi.h").read_text()
CC = shutil.which("cc")
CXX = shutil.which("c++")
LOAD = """
import importlib.util, sys, warnings
spec = importlib.util.spec_from_file_location("library", sys.argv[1])
library = importlib.util.module_from_spec(spec)
spec.loader.exec_module(library)
assert not {"torch", "tsgdn2"} & set(sys.modules)
"""
SAY = """
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    for _ in range(3):
        library.announce()
print(len(heard), *(f"{warning.category.__name__}: {warning.message}" for warning in heard))
print(library.library() is None, library.targets())
print(library.refusal())
"""


def run(program: str, file: Path = SOURCES / "library.py", **environment: str) -> list[str]:
    """Lines that a new process prints after it loaded library.py from `file`, and from nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TSGDN2_NATIVE")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD + program, str(file)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def refused(file: Path = SOURCES / "library.py", **environment: str) -> str:
    """The refusal, after a check that it is announced once and that nothing was loaded."""
    announced, nothing, refusal = run(SAY, file, **environment)
    assert announced.startswith("1 RuntimeWarning: tsgdn2 runs its scans in torch, on CPUs about 10 times slower")
    assert announced.endswith(refusal)
    assert nothing == "True ()"
    return refusal


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "absent.so")
    assert path in refused(TSGDN2_NATIVE=path)


def test_a_file_that_is_no_library_is_named_and_to_be_reinstalled(tmp_path: Path) -> None:
    path = tmp_path / "broken.so"
    path.write_text("not a library")
    refusal = refused(TSGDN2_NATIVE=str(path))
    assert refusal.startswith(f"{path} cannot be loaded (")
    assert "reinstall" in refusal


def test_switched_off_is_a_refusal_that_is_not_announced() -> None:
    announced, nothing, refusal = run(SAY, TSGDN2_NATIVE="off")
    assert (announced, nothing) == ("0", "True ()")
    assert refusal == "TSGDN2_NATIVE=off switches it off; unset it"


def test_an_install_without_a_compiler_is_told_how_to_get_the_library(tmp_path: Path) -> None:
    shutil.copy(SOURCES / "library.py", tmp_path)
    refusal = refused(tmp_path / "library.py")
    assert refusal.startswith("its native library was not compiled when it was installed")
    assert "install a C++ compiler" in refusal
    assert "pip install --force-reinstall --no-deps --no-cache-dir tsgdn2" in refusal


def test_importing_loads_nothing_and_says_nothing(tmp_path: Path) -> None:
    assert run("print(library._found)", TSGDN2_NATIVE=str(tmp_path / "absent.so")) == ["None"]


def test_asking_for_a_target_without_a_library_says_why() -> None:
    with_reason = "try: library.target()\nexcept ValueError as error: print(error)"
    assert run(with_reason, TSGDN2_NATIVE="off") == [
        "the native path cannot run here: TSGDN2_NATIVE=off switches it off; unset it"
    ]


@pytest.mark.parametrize(("code", "error"), [(1, MemoryError), (2, RuntimeError), (-7, RuntimeError)])
def test_codes_become_errors(code: int, error: type[Exception]) -> None:
    library.check(0)
    with pytest.raises(error):
        library.check(code)


def declared(structure: str) -> list[tuple[str, str]]:
    """Name and type of every field of a struct in abi.h, in order."""
    body = re.search(r"typedef struct \{([^}]*)\} " + structure + ";", HEADER)
    assert body
    fields = []
    for declaration in re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL).split(";")[:-1]:
        pointer = "*" in declaration
        words = declaration.replace("const", "").replace("*", " ").replace(",", " ").split()
        fields += [(name, "pointer" if pointer else words[0]) for name in words[1:]]
    return fields


@pytest.mark.parametrize(("name", "structure"), [("tsgdn2_scan", library.Scan), ("tsgdn2_step", library.Step)])
def test_structures_are_those_of_the_header(name: str, structure: type[ctypes.Structure]) -> None:
    types = {ctypes.c_int64: "int64_t", ctypes.c_double: "double", ctypes.c_void_p: "pointer"}
    assert [(field[0], types[field[1]]) for field in structure._fields_] == declared(name)


def test_functions_and_numbers_are_those_of_the_header() -> None:
    assert list(library.FUNCTIONS) == re.findall(r"\b(tsgdn2_\w+)\(", HEADER)
    assert f"TSGDN2_ABI = {library.ABI} " in HEADER
    assert f"TSGDN2_CHUNK = {library.CHUNK} " in HEADER
    assert "TSGDN2_DONE = 0, TSGDN2_NO_MEMORY = 1, TSGDN2_BAD_ARGUMENT = 2 " in HEADER


if CXX:

    def test_where_there_is_a_compiler_there_is_a_library() -> None:
        assert run("print(library.refusal())", Path(library.__file__)) == ["None"]


if CC:
    WHOLE = "".join(
        f"int {name}(void) {{ return 0; }}\n"
        for name in library.FUNCTIONS
        if name not in ("tsgdn2_abi", "tsgdn2_targets")
    )
    TARGETS = 'const char *tsgdn2_targets(void) { return "quick slow"; }\n'

    def compiled(folder: Path, *, abi: int = library.ABI, rest: str = WHOLE + TARGETS, sources: str = "") -> Path:
        """A library of a few lines under the name that is looked for."""
        text = f"int tsgdn2_abi(void) {{ return {abi}; }}\n{rest}"
        if sources:
            text += f'const char *tsgdn2_sources(void) {{ return "{sources}"; }}\n'
        (folder / "stand_in.c").write_text(text)
        path = folder / library.NAME
        subprocess.run([CC, "-shared", "-fPIC", "-o", path, folder / "stand_in.c"], check=True, timeout=60)
        return path

    def test_another_interface_is_refused_with_both_numbers(tmp_path: Path) -> None:
        path = compiled(tmp_path, abi=library.ABI + 1)
        refusal = refused(TSGDN2_NATIVE=str(path))
        assert refusal.startswith(f"{path} has interface {library.ABI + 1}, this tsgdn2 has {library.ABI}; reinstall")

    def test_a_library_without_its_functions_is_refused(tmp_path: Path) -> None:
        path = compiled(tmp_path, rest="")
        assert refused(TSGDN2_NATIVE=str(path)).startswith(f"{path} cannot be loaded (")

    def test_a_library_left_over_from_other_sources_is_refused_until_it_is_compiled_again(tmp_path: Path) -> None:
        shutil.copy(SOURCES / "library.py", tmp_path)
        (tmp_path / "arithmetic.hpp").write_text("first")
        made_of = library.fingerprint(tmp_path)
        assert made_of is not None
        compiled(tmp_path, sources=made_of)
        loaded = ["print(library.refusal(), library.targets(), library.target())", tmp_path / "library.py"]
        assert run(*loaded) == ["None ('quick', 'slow') b'quick'"]
        (tmp_path / "arithmetic.hpp").write_text("second")
        assert "compiled from other sources" in refused(tmp_path / "library.py")
        compiled(tmp_path)
        assert "compiled from other sources" in refused(tmp_path / "library.py")
        compiled(tmp_path, sources=library.fingerprint(tmp_path) or "")
        assert run(*loaded) == ["None ('quick', 'slow') b'quick'"]

    def test_the_target_may_be_named_if_the_machine_has_it(tmp_path: Path) -> None:
        path = str(compiled(tmp_path))
        program = "try: print(library.target())\nexcept ValueError as error: print(error)"
        assert run(program, TSGDN2_NATIVE=path) == ["b'quick'"]
        assert run(program, TSGDN2_NATIVE=path, TSGDN2_NATIVE_TARGET="slow") == ["b'slow'"]
        assert run(program, TSGDN2_NATIVE=path, TSGDN2_NATIVE_TARGET="avx9") == [
            "TSGDN2_NATIVE_TARGET must be one of quick, slow on this machine; got 'avx9'; unset it"
        ]

    def test_threads_that_ask_at_once_get_one_library(tmp_path: Path) -> None:
        program = """
import ctypes, threading, concurrent.futures
opened, barrier, real = [], threading.Barrier(8), ctypes.CDLL
def count(path):
    opened.append(path)
    return real(path)
library.ctypes.CDLL = count
def ask(_):
    barrier.wait()
    return id(library.library())
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(len(set(pool.map(ask, range(8)))), len(opened))
"""
        assert run(program, TSGDN2_NATIVE=str(compiled(tmp_path))) == ["1 1"]
