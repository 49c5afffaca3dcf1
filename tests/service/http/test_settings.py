"""Settings from arguments, environment and files: who wins, and that nothing misspelt or unsafe gets by."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsgdn2.errors import ConfigError
from tsgdn2.service.settings import is_loopback, read_settings


def test_arguments_win_over_the_environment_and_that_over_a_file(folder: Path) -> None:
    file = folder / "serve.yaml"
    file.write_text("port: 1\nhost: localhost\nrows: 7\nlimits: {queue_rows: 100, group_rows: 50}\n")
    environ = {
        "TSGDN2_SERVE_PORT": "2",
        "TSGDN2_SERVE_ROWS": "8",
        "tsgdn2_serve_limits__queue_rows": "200",
        "PATH": "x",
    }
    found = read_settings(file, environ=environ, port=3, store=None)
    assert (found.port, found.rows, found.host, found.store) == (3, 8, "localhost", "tsgdn2-service.db")
    assert (found.limits.queue_rows, found.limits.group_rows) == (200, 50)
    toml = folder / "serve.toml"
    toml.write_text("port = 4\n[limits]\nttl_s = 5.5\n")
    found = read_settings(environ={"TSGDN2_SERVE_FILE": str(toml)})
    assert (found.port, found.limits.ttl_s, found.limits.queue_rows) == (4, 5.5, 65_536)


@pytest.mark.parametrize(
    ("environ", "arguments", "said"),
    [
        ({"TSGDN2_SERVE_PROT": "1"}, {}, "did you mean 'port'"),
        ({}, {"prot": 1}, "did you mean 'port'"),
        ({"TSGDN2_SERVE_LIMITS__QUEUE_ROW": "1"}, {}, "did you mean 'queue_rows'"),
        ({"TSGDN2_SERVE_LIMITS__QUEUE_ROWS": "0"}, {}, "queue_rows"),
        ({"TSGDN2_SERVE_LIMITS__QUEUE_ROWS": "many"}, {}, "queue_rows"),
        ({"TSGDN2_SERVE_LIMITS": "{"}, {}, "limits"),
        ({"TSGDN2_SERVE_PORT": "many"}, {}, "port"),
        ({}, {"port": 70_000}, "port"),
        ({}, {"keys": "off", "host": "0.0.0.0"}, "loopback"),
        ({}, {"keys": "off", "host": "example.org"}, "loopback"),
        ({}, {"keys": "none"}, "keys"),
        ({}, {"private_key": "x.pem"}, "certificate"),
        ({}, {"certificate": "x.pem"}, "is no file"),
        ({}, {"mapping": "x.yaml"}, "is no file"),
        ({}, {"waiting_bytes": 2_000}, "waiting_bytes"),
        ({}, {"traces": "host:4318"}, "traces"),
        ({}, {"timeout_s": float("inf")}, "timeout_s"),
        ({"TSGDN2_SERVE_FILE": "none.yaml"}, {}, "can not be opened"),
    ],
)
def test_what_is_wrong_is_named(environ: dict[str, str], arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_settings(environ=environ, **arguments)


@pytest.mark.parametrize(
    "text", ["- 1", "port: [", "prot: 1", "1: 2", "limits: {rows: 1}", "port: !!python/object:os.system x"]
)
def test_a_file_that_is_none_is_refused(folder: Path, text: str) -> None:
    file = folder / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        read_settings(file, environ={})


def test_a_secret_in_a_wrong_setting_is_not_in_the_message() -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings(environ={}, store="", port="postgresql://me:secret@host")
    assert "secret" not in str(refused.value)


def test_loopback_is_what_nobody_else_reaches() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")))
    assert not any(
        map(is_loopback, ("0.0.0.0", "::", "", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org"))
    )
