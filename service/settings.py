"""Every setting of the service: arguments win over the environment (TSGDN2_SERVE_*), that over a file, that over this.

    TSGDN2_SERVE_PORT=8000  TSGDN2_SERVE_LIMITS__QUEUE_ROWS=100000      file: {port: 8000, limits: {queue_rows: 100000}}

A name that is not one of ours is an error, wherever it stands: a misspelt limit that is silently not there is worse
than a service that does not start. Messages name the setting and never show its value where that may be a secret.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tsgdn2.errors import ConfigError
from tsgdn2.service.limits import Limits

PREFIX: Final = "TSGDN2_SERVE_"
FILE: Final = f"{PREFIX}FILE"
_LARGEST_FILE: Final = 1 << 20


def _known_limits(given: object) -> object:
    """Pydantic passes over what a dataclass does not know; here that is an error."""
    if isinstance(given, Mapping):
        names = {field.name for field in fields(Limits)}
        for name in given:
            if name not in names:
                raise ValueError(f"{name!r} is no limit{_nearest(str(name), names)}")
    return given


class Settings(BaseSettings):
    """Checked as a whole when it is made; make one with `read_settings`, which turns what is wrong into ConfigError."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__", allow_inf_nan=False,
        hide_input_in_errors=True,
    )  # fmt: skip

    host: str = "127.0.0.1"
    """Address to listen at; one that others can reach needs keys."""
    port: int = Field(default=8321, ge=0, le=65_535)
    """0 takes a free one."""
    store: str = Field(default="tsgdn2-service.db", min_length=1)
    """Path of an SQLite file, or postgresql://.."""
    keys: Literal["required", "off"] = "required"
    """"off" lets everybody in as administrator, and is taken at a loopback address only."""
    mapping: Path | None = None
    """Mapping file of the ingest routes and connectors; None takes the default one."""
    certificate: Path | None = None
    """PEM file with the certificate chain; with it the service speaks TLS only."""
    private_key: Path | None = None
    """PEM file of the certificate's key; None: it is in the certificate's file."""
    client_authority: Path | None = None
    """PEM file of an authority; clients must then show a certificate of it, and a key as well."""
    body_bytes: int = Field(default=16 << 20, ge=1_024)
    """Bytes of one request's body as it is sent."""
    unpacked_bytes: int = Field(default=64 << 20, ge=1_024)
    """Bytes that such a body may unpack to; the ingest routes have limits.body_bytes of the mapping."""
    waiting_bytes: int = Field(default=256 << 20, ge=1_024)
    """Bytes of all bodies that are held at a time, as large as they may unpack to; beyond them 429."""
    rows: int = Field(default=16_384, ge=1)
    """Rows of one request to observe."""
    streams: int = Field(default=256, ge=1)
    """Streams of one request to forecast: the worker does nothing else meanwhile."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds until a request that waits for the memory is answered with 503."""
    head_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds in which the head of a request must have arrived, from the connection or its first byte on."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds in which a body must have arrived."""
    grace_s: float = Field(default=10.0, gt=0)
    """Seconds that requests may still take once the service is asked to stop."""
    connections: int = Field(default=1_000, ge=1)
    """Connections at a time; beyond them 503."""
    tenant_requests_per_s: float = Field(default=0.0, ge=0)
    """Requests a second of one tenant, with bursts of as many as two seconds hold; 0 is no limit."""
    tenant_rows_per_s: float = Field(default=0.0, ge=0)
    """Rows a second of one tenant, likewise."""
    event_clients: int = Field(default=64, ge=0)
    """Clients of /v1/events at a time, half of them of one tenant at most."""
    event_queue: int = Field(default=256, ge=1)
    """Events that wait for one client; beyond them the oldest go, and the client is told how many."""
    alert_bits: float = Field(default=10.0, gt=0)
    """A surprise of so many bits is an alert: 10 is once in a thousand."""
    forecast_every_s: float = Field(default=1.0, gt=0)
    """Seconds between two forecasts of a stream that a client of /v1/events watches."""
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    traces: str = Field(default="", pattern=r"^(https?://.+)?$")
    """OTLP/HTTP endpoint of traces (http://host:4318/v1/traces); empty is off."""
    limits: Annotated[Limits, BeforeValidator(_known_limits)] = Limits()
    """Bounds of queue, memory and journal."""

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.keys == "off" and not is_loopback(self.host):
            raise ValueError(
                f'keys: "off" is allowed at a loopback address only (127.0.0.1, ::1, localhost), host is {self.host!r}'
                '; set keys to "required", or host to 127.0.0.1'
            )
        if self.certificate is None and (self.private_key or self.client_authority):
            raise ValueError("certificate: is needed with private_key or client_authority; give its PEM file")
        for name in ("certificate", "private_key", "client_authority", "mapping"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name}: {path} is no file; give an existing one")
        if self.waiting_bytes < max(self.body_bytes, self.unpacked_bytes):
            raise ValueError(
                f"waiting_bytes: must hold one body (body_bytes {self.body_bytes}, unpacked_bytes "
                f"{self.unpacked_bytes}), got {self.waiting_bytes}; raise it"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches the address; a name other than localhost is not looked up."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_settings(
    file: str | Path | None = None, *, environ: Mapping[str, str] | None = None, **arguments: object
) -> Settings:
    """Settings from arguments, environment and a .yaml, .yml or .toml file, that of TSGDN2_SERVE_FILE unless given.

    Raises ConfigError, which names the setting; an argument that is None counts as not given.
    """
    names = set(Settings.model_fields)
    own = {name: value for name, value in (os.environ if environ is None else environ).items()
           if name.upper().startswith(PREFIX)}  # fmt: skip
    for name in own:
        setting = name.upper().removeprefix(PREFIX).lower().split("__")[0]
        if setting not in names and name.upper() != FILE:
            raise ConfigError(f"{name}: is no setting of the service{_nearest(setting, names)}")
    chosen = file or next((value for name, value in own.items() if name.upper() == FILE), None)
    content = _read(Path(chosen)) if chosen else {}
    given: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None}
    for origin, keys in ((f"file {chosen}", content), ("arguments", given)):
        for name in keys:
            if name not in names:
                raise ConfigError(f"{name}: is no setting of the service ({origin}){_nearest(name, names)}")

    class Sourced(Settings):
        """The settings with these sources, the first one winning."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            env_settings.env_vars = {name.lower(): value for name, value in own.items()}  # type: ignore[attr-defined]
            return init_settings, env_settings, _FileSource(settings_cls, content)

    try:
        made = Sourced(**given)
        return Settings.model_construct(**{name: getattr(made, name) for name in names})
    except ValidationError as error:
        raise ConfigError(f"settings: {_explained(error)}") from None
    except ValueError as error:  # pydantic-settings could not read a value of the environment as JSON
        raise ConfigError(f"settings: {error}; mend the variable of the environment") from None


class _FileSource(PydanticBaseSettingsSource):
    """What a file said."""

    def __init__(self, settings_cls: type[BaseSettings], content: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self._content = content

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return self._content.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self._content)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"file: {path} can not be opened ({error.strerror}); give an existing file") from None
    if len(content) > _LARGEST_FILE:
        raise ConfigError(f"file: {path} has {len(content)} bytes, at most {_LARGEST_FILE} are read")
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise ConfigError(f"file: {path} must end in .yaml, .yml or .toml, its format is told by that")
    try:
        text = content.decode()
        found: Any = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"file: {path} can not be read: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"file: {path} must hold names and their values, got a {type(found).__name__}")
    return found


def _explained(error: ValidationError) -> str:
    found = []
    for problem in error.errors(include_url=False, include_input=False)[:5]:
        name = ".".join(str(part) for part in problem["loc"])
        said = problem["msg"].removeprefix("Value error, ")
        found.append(f"{name}: {said}" if name else said)
    return "; ".join(found)


def _nearest(name: str, names: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(names))}"
