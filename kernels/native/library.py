"""Finds, checks and loads the compiled library, once and when first asked; says why where it cannot run.

What the first call finds stays for the life of the process: a library built later is seen by a new process only.
Structures and functions are those of abi.h, field by field; setup.py and the tests hold this file against the sources.

| environment variable | value |
|---|---|
| TSGDN2_NATIVE | another library file to load, or `off` |
| TSGDN2_NATIVE_TARGET | one of `targets()`, instead of the best |
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
import warnings
from ctypes import POINTER, c_char_p, c_double, c_int, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

ABI = 1  # of abi.h, like CHUNK and COLUMNS
CHUNK = 16  # tokens between two kept states
COLUMNS = 32  # columns of V whose gradients are summed together
NAME = "_native" + EXTENSION_SUFFIXES[-1]  # the plain suffix: the file is no Python module and fits any version
SOURCES = ("*.cpp", "*.hpp", "*.h")
REINSTALL = "pip install --force-reinstall --no-deps --no-cache-dir tsgdn2 (in a checkout: make native)"


class Scan(ctypes.Structure):
    """tsgdn2_scan of abi.h: the tensors, sizes and threads of one scan."""

    _fields_ = [
        *((name, c_int64) for name in ("sequences", "tokens", "heads", "keys", "values")),
        *((name, c_int64) for name in ("width", "threads", "columns")),
        ("scale", c_double),
        *((name, c_void_p) for name in ("offsets", "q", "k", "erase", "value", "write", "g", "mask", "initial")),
        *((name, c_void_p) for name in ("o", "final", "u", "checkpoints", "d_o", "d_final")),
        *((name, c_void_p) for name in ("dq", "dk", "d_erase", "d_value", "d_write", "dg", "d_initial")),
    ]


class Step(ctypes.Structure):
    """tsgdn2_step of abi.h: one token of several streams on rows of a pool of states."""

    _fields_ = [
        *((name, c_int64) for name in ("rows", "heads", "keys", "values", "width", "threads")),
        ("scale", c_double),
        *((name, c_void_p) for name in ("slots", "q", "k", "erase", "value", "write", "g", "mask", "pool", "o")),
    ]


FUNCTIONS: dict[str, tuple[type, tuple[type, ...]]] = {
    "tsgdn2_abi": (c_int, ()),
    "tsgdn2_targets": (c_char_p, ()),
    "tsgdn2_forward": (c_int, (POINTER(Scan), c_char_p)),
    "tsgdn2_backward": (c_int, (POINTER(Scan), c_char_p)),
    "tsgdn2_advance": (c_int, (POINTER(Step), c_char_p)),
}


class _Found(NamedTuple):
    library: ctypes.CDLL | None
    targets: tuple[str, ...]
    refusal: str | None
    wanted: bool  # whether anybody would be surprised that there is none


_lock = threading.Lock()
_found: _Found | None = None
_announced = False


def library() -> ctypes.CDLL | None:
    """The loaded library with its argument types declared; None where `refusal` says why."""
    return _load().library


def refusal() -> str | None:
    """Why the native path cannot run in this process, and what to do; None where it can."""
    return _load().refusal


def targets() -> tuple[str, ...]:
    """Instruction sets that the library has code for and this machine has, best first; empty without a library."""
    return _load().targets


def target() -> bytes:
    """The instruction set to run: the best, or the one named in TSGDN2_NATIVE_TARGET, read anew at each call.

    Raises ValueError if that one cannot run here, or if there is no library.
    """
    found = _load()
    if found.refusal is not None:
        raise ValueError(f"the native path cannot run here: {found.refusal}")
    name = os.environ.get("TSGDN2_NATIVE_TARGET") or found.targets[0]
    if name not in found.targets:
        allowed = ", ".join(found.targets)
        raise ValueError(f"TSGDN2_NATIVE_TARGET must be one of {allowed} on this machine; got {name!r}; unset it")
    return name.encode()


def announce() -> None:
    """Warn, once in a process, that scans run in torch, why, and what to do; not where that was asked for."""
    global _announced
    found = _load()
    if found.refusal is None or not found.wanted:
        return
    with _lock:
        if _announced:
            return
        _announced = True
    warnings.warn(
        f"tsgdn2 runs its scans in torch, on CPUs about 10 times slower than natively: {found.refusal}",
        RuntimeWarning,
        stacklevel=2,
    )


def check(code: int) -> None:
    """Turn what a function of the library returned into MemoryError or RuntimeError; 0 is success."""
    if code == 0:
        return
    if code == 1:
        raise MemoryError("the native scan got no memory for its work; use fewer threads or shorter sequences")
    raise RuntimeError(f"the native scan refused its arguments (code {code}); this is a defect of tsgdn2, report it")


def fingerprint(folder: Path) -> str | None:
    """Hash of names and contents of the sources in a folder; None where there are none."""
    paths = sorted(path for pattern in SOURCES for path in folder.glob(pattern))
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest() if paths else None


def _load() -> _Found:
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                _found = _find()
    return _found


def _find() -> _Found:
    """Look where the environment says, or beside this file; whatever is wrong becomes the refusal."""
    asked = os.environ.get("TSGDN2_NATIVE", "")
    if asked.lower() == "off":
        return _Found(None, (), "TSGDN2_NATIVE=off switches it off; unset it", wanted=False)
    here = Path(__file__).parent
    path = Path(asked).resolve() if asked else here / NAME
    if asked and not path.is_file():
        return _refused(f"TSGDN2_NATIVE must be a file or off; there is no file {asked}; unset it or name another")
    if not path.is_file():
        return _refused(
            "its native library was not compiled when it was installed (no C++ compiler, or one that failed); "
            f"install a C++ compiler (g++ 12 or later), then run {REINSTALL}"
        )
    try:
        loaded = ctypes.CDLL(str(path))
        interface = loaded.tsgdn2_abi()
        if interface != ABI:
            return _refused(f"{path} has interface {interface}, this tsgdn2 has {ABI}; reinstall: {REINSTALL}")
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return _refused(f"{path} cannot be loaded ({error}); reinstall: {REINSTALL}")
    sources = None if asked else fingerprint(here)
    if sources is not None and _built_from(loaded) != sources:
        return _refused(f"{path} was compiled from other sources than those beside it; reinstall: {REINSTALL}")
    return _Found(loaded, tuple(loaded.tsgdn2_targets().decode().split()), None, wanted=True)


def _built_from(loaded: ctypes.CDLL) -> str | None:
    """The fingerprint that setup.py compiled into the library; None in one that was built without it."""
    try:
        said = loaded.tsgdn2_sources
    except AttributeError:
        return None
    said.restype = c_char_p
    text: bytes = said()
    return text.decode()


def _refused(reason: str) -> _Found:
    return _Found(None, (), reason, wanted=True)
