"""The job `serve`: a saved model becomes a service. It says what is missing before anything heavy is imported.

    model, or what is made for the host  ->  store, with the streams of a saved state  ->  service, sources, drain

How the process is run is in live.py; the service itself is a room of its own, whose packages are an extra.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.service_jobs import Serve

NEEDED: Final = (
    "fastapi", "uvicorn", "pydantic_settings", "structlog", "prometheus_client", "psutil", "opentelemetry.sdk",
    "opentelemetry.proto", "google.protobuf", "cramjam", "aiohttp", "yaml", "aiomqtt", "nats", "aiokafka", "psycopg",
)  # fmt: skip
"""Modules of the extra."""


def run(job: Serve) -> None:
    """Serve until a signal comes. Errors: those of the model, the sources, the settings and the store."""
    check_packages("serve")
    from tsgdn2.pipelines.live import live

    live(job)


def check_packages(job: str) -> None:
    """ConfigError where a package of the service is not installed."""
    if missing := [name for name in NEEDED if not _there(name)]:
        raise ConfigError(
            f"{job}: needs packages that are not installed ({', '.join(missing[:3])}); pip install 'tsgdn2[service]'"
        )


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False
