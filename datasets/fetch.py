"""One file of a named set: found in a local folder, in the cache, or fetched from its public home and verified.

    1. $TSGDN2_DATA/<one of source.local>       yours: used as it is, verified only against a digest that you pass
    2. <cache>/<source.name>                    verified at every read
    3. source.urls, in order                    verified, then renamed into the cache in one step

The cache is $TSGDN2_CACHE, else ~/.cache/tsgdn2. A digest is the sha256 of the file as it is served or of the one
table inside it (zip, gzip): packing it anew does not matter. A source without a known digest is pinned on first use:
its digest is written beside it (<name>.sha256) before the file appears, and checked from then on. Such a pin notices
later changes; it can not notice a wrong first answer. Downloads are not resumed.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import importlib.util
import io
import os
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tsgdn2.datasets.errors import ChecksumError, DataError, FetchError

DATA_VARIABLE = "TSGDN2_DATA"
CACHE_VARIABLE = "TSGDN2_CACHE"

_ZIP, _GZIP = b"PK\x03\x04", b"\x1f\x8b"
_MOST_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one file of a set comes from."""

    name: str
    """File name in the cache."""
    urls: tuple[str, ...]
    """Public addresses, tried in order."""
    local: tuple[str, ...]
    """Paths under $TSGDN2_DATA, tried in order."""
    sha256: str | None = None
    """Known digest of the file or of the table inside; None: pinned on first use."""

    def __post_init__(self) -> None:
        """Check the digest's form."""
        if self.sha256 is not None:
            _check_form(self.sha256)


def locate(source: Source, *, sha256: str | None = None, timeout_seconds: float = 60.0) -> Path:
    """Give the path of a verified local copy, fetching it if need be.

    Args:
        source: what to find.
        sha256: the digest that you expect, in place of the known or the pinned one; also checked on local files.
        timeout_seconds: of each network operation.

    Raises ChecksumError if the bytes are others, FetchError if the file is nowhere to be had.
    """
    if sha256 is not None:
        _check_form(sha256)
    found = local_file(source.local)
    if found is not None:
        if sha256 is not None:
            _verify(found.read_bytes(), sha256, str(found))
        return found
    folder = cache_folder()
    path, pin = folder / source.name, folder / f"{source.name}.sha256"
    pinned = pin.read_text().strip() if pin.is_file() else None
    expected = sha256 or source.sha256 or pinned
    if path.is_file():
        content = path.read_bytes()
        if expected is None:
            _write(pin, f"{hashlib.sha256(content).hexdigest()}\n".encode())
        else:
            _verify(content, expected, f"{path} (delete it to fetch it again)")
        return path
    content = _download(source, expected, timeout_seconds)
    if source.sha256 is None:
        _write(pin, f"{hashlib.sha256(content).hexdigest()}\n".encode())
    _write(path, content)
    return path


def packaged(package: str, path: str) -> Path:
    """Name a data file of an installed package, which is not imported. Raises FetchError if it is not there."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise FetchError(f"this set needs the package {package}; install it: pip install {package}")
    return Path(places[0]) / path


def table(path: Path) -> bytes:
    """Read the one table of a file: the file itself, or what is inside its gzip, or the only .csv inside its zip."""
    try:
        return unpacked(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} can not be opened: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def unpacked(content: bytes) -> bytes:
    """Take the table out of gzip or zip bytes; other bytes are given back. At most 512 MiB. Raises DataError."""
    try:
        if content.startswith(_GZIP):
            with gzip.open(io.BytesIO(content)) as stream:
                inside = stream.read(_MOST_BYTES + 1)
        elif content.startswith(_ZIP):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = [m for m in archive.namelist() if m.lower().endswith(".csv") and "__MACOSX" not in m]
                if len(members) != 1:
                    raise DataError(f"the zip must hold one .csv file, it holds {archive.namelist()}")
                with archive.open(members[0]) as stream:
                    inside = stream.read(_MOST_BYTES + 1)
        else:
            return content
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"damaged archive ({error}); fetch it again") from error
    if len(inside) > _MOST_BYTES:
        raise DataError(f"the archive holds more than {_MOST_BYTES:,} bytes; that is no set of ours")
    return inside


def local_file(paths: Sequence[str]) -> Path | None:
    """Find the first of these paths that is a file under $TSGDN2_DATA; None without that variable or such a file.

    Raises DataError if the variable names no folder: a misspelt one must not end in a download.
    """
    given = os.environ.get(DATA_VARIABLE)
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise DataError(f"{DATA_VARIABLE} must name an existing folder, got {given!r}; correct or unset it")
    return next((folder / path for path in paths if (folder / path).is_file()), None)


def cache_folder() -> Path:
    """Name the folder of fetched files; it is made when the first file is written."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "tsgdn2"


def _download(source: Source, expected: str | None, timeout_seconds: float) -> bytes:
    """Fetch from the first address that answers; a wrong answer is an error at once, not a reason to go on."""
    reasons = []
    for url in source.urls:
        try:
            content = _get(url, timeout_seconds)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(f"{url} ({getattr(error, 'reason', None) or error or type(error).__name__})")
            continue
        if expected is not None:
            _verify(content, expected, url)
        elif source.name.endswith(".zip"):
            if not content.startswith(_ZIP):
                raise FetchError(f"{url} did not send a zip file but {content[:40]!r}; {_remedy(source)}")
            unpacked(content)
        return content
    raise FetchError(f"{source.name} can not be fetched from {'; '.join(reasons)}; {_remedy(source)}")


def _get(url: str, timeout_seconds: float) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "tsgdn2"})
    with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
        content: bytes = answer.read(_MOST_BYTES + 1)
        length = answer.headers.get("Content-Length")
    if len(content) > _MOST_BYTES:
        raise OSError(f"more than {_MOST_BYTES:,} bytes")
    if length is not None and len(content) != int(length):
        raise OSError(f"the connection broke after {len(content):,} of {int(length):,} bytes")
    return content


def _verify(content: bytes, expected: str, origin: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest == expected.lower():
        return
    inside = digest
    if content.startswith((_ZIP, _GZIP)):
        try:
            inside = hashlib.sha256(unpacked(content)).hexdigest()
        except DataError as error:
            raise ChecksumError(f"{origin} has sha256 {digest}, expected {expected}, and is a {error}") from error
    if inside != expected.lower():
        raise ChecksumError(
            f"{origin} has sha256 {digest}{'' if inside == digest else f' ({inside} unpacked)'}, expected {expected}; "
            "it is truncated, altered, or a new edition: pass sha256=... only if you trust it"
        )


def _write(path: Path, content: bytes) -> None:
    """Write beside the target and rename, so that no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _remedy(source: Source) -> str:
    return (
        f"download it by other means and put it at ${DATA_VARIABLE}/{source.local[0]} "
        f"or {cache_folder() / source.name} (the folder of ${CACHE_VARIABLE})"
    )


def _check_form(sha256: str) -> None:
    if len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef"):
        raise DataError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
