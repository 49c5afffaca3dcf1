"""API keys: 32 random bytes that are shown once; the store has their SHA-256, a role, a tenant and an end.

    tsgdn2_<id of 12>_<secret of 43>        Authorization: Bearer .. | Token ..        X-API-Key: ..

    read    forecasts, streams, readings, ledger, events     write   and observe, ingest
    admin   and export, import, delete, keys                 open    no key: health alone

A secret of 256 bits needs no slow hash: nobody can try them. Rotation gives a second key that is valid beside the
first one for as long as is asked. Keys are read again every few seconds, so that one withdrawn in another process ends
here, too; one withdrawn here ends at once.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from threading import Lock
from typing import Final, Literal, NamedTuple, get_args

from tsgdn2.errors import ConfigError
from tsgdn2.service.errors import ForbiddenError, KeyRefusedError, ServiceError
from tsgdn2.service.store import KeyRow, Store
from tsgdn2.service.tenants import check_tenant

Role = Literal["read", "write", "admin"]
Needed = Literal["open", "read", "write", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
FRESH_S: Final = 5.0
"""Seconds after which keys are read from the store again."""
MOST: Final = 10_000
_FORM: Final = re.compile(r"tsgdn2_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NOBODY: Final = KeyRow(id="", hash=bytes(32), role="", tenant="")


class Caller(NamedTuple):
    """Who asks: tenant, role, and the id of the key, "" where keys are off."""

    tenant: str
    role: Role
    key: str


class Issued(NamedTuple):
    """A new key: `text` is shown once and kept nowhere."""

    row: KeyRow
    text: str


class UnknownKeyError(ServiceError):
    """There is no key of this id, or it is another tenant's."""

    status = 404


class KeyRing:
    """The keys of a store that is open; any thread may use it."""

    def __init__(self, store: Store, *, now: Callable[[], int] = time.time_ns) -> None:
        self._store, self._now = store, now
        self._rows: dict[str, KeyRow] = {}
        self._read = -float("inf")
        self._lock = Lock()

    @property
    def stale(self) -> bool:
        """Whether the next look should read the store first."""
        return time.monotonic() - self._read > FRESH_S

    def refresh(self) -> None:
        """Read the keys again; it takes a moment. StoreError."""
        with self._lock:
            self._rows = {row.id: row for row in self._store.keys()}  # noqa: SIM118
            self._read = time.monotonic()

    def check(self, text: str, needed: Needed) -> Caller:
        """Whose key this is. KeyRefusedError: none, unknown, expired, withdrawn; ForbiddenError: its role is less."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise KeyRefusedError("key: none, or not one of ours; send Authorization: Bearer tsgdn2_..")
        row = self._rows.get(found[1], _NOBODY)
        # One answer, in one time, for an id that is unknown and a secret that is wrong.
        good = hmac.compare_digest(digest(found[2]), row.hash)
        if not good or row is _NOBODY or row.role not in ROLES or not self.valid(row):
            raise KeyRefusedError("key: unknown, expired or withdrawn; ask whoever runs the service for a new one")
        role: Role = next(role for role in ROLES if role == row.role)
        if not allows(role, needed):
            raise ForbiddenError(f"key: its role is {role!r}, this needs {needed!r}; use a key of that role")
        return Caller(row.tenant, role, row.id)

    def valid(self, row: KeyRow) -> bool:
        """Whether a key is neither withdrawn nor expired."""
        return row.withdrawn is None and (row.expires is None or row.expires > self._now())

    def is_valid(self, id: str) -> bool:
        """Whether a key of this id is there and valid, as far as was read last."""
        row = self._rows.get(id)
        return row is not None and self.valid(row)

    def issue(self, role: str, tenant: str = "", *, days: float | None = None) -> Issued:
        """Make a key. ConfigError for a role, a tenant or an end that can not be."""
        if role not in ROLES:
            raise ConfigError(f"role: must be one of {ROLES}, got {role!r}")
        if days is not None and not 0 < days <= 36_500:
            raise ConfigError(f"days: must be above 0 and at most 36500, or None for no end, got {days!r}")
        if len(self._rows) >= MOST:
            raise ConfigError(f"keys: there are {MOST}, that is all; withdraw and reuse")
        expires = None if days is None else self._now() + int(days * 86_400e9)
        return self._new(role, check_tenant(tenant), expires)

    def rotate(self, id: str, tenant: str | None = None, *, overlap_s: float = 86_400.0) -> Issued:
        """A new key like an old one, which ends after `overlap_s`; both are valid until then."""
        if not 0 <= overlap_s <= 366 * 86_400:
            raise ConfigError(f"overlap_s: must be from 0 to a year, got {overlap_s!r}")
        old = self._find(id, tenant)
        if not self.valid(old):
            raise ConfigError("id: this key is expired or withdrawn; issue a new one")
        made = self._new(old.role, old.tenant, old.expires)
        end = self._now() + int(overlap_s * 1e9)
        self._keep(_changed(old, expires=end if old.expires is None else min(old.expires, end)))
        return made

    def withdraw(self, id: str, tenant: str | None = None) -> KeyRow:
        """End a key now and for ever."""
        row = self._find(id, tenant)
        if row.withdrawn is None:
            row = _changed(row, withdrawn=self._now())
            self._keep(row)
        return row

    def listed(self, tenant: str | None = None) -> list[KeyRow]:
        """Keys, all or those of a tenant; hashes are among them, show none."""
        self.refresh()
        return [row for row in self._rows.values() if tenant is None or row.tenant == tenant]

    def _new(self, role: str, tenant: str, expires: int | None) -> Issued:
        secret, id = secrets.token_urlsafe(32), secrets.token_hex(6)
        row = KeyRow(id=id, hash=digest(secret), role=role, tenant=tenant, expires=expires)
        self._keep(row)
        return Issued(row, f"tsgdn2_{id}_{secret}")

    def _keep(self, row: KeyRow) -> None:
        with self._lock:
            self._store.put_key(row)
            self._rows = {**self._rows, row.id: row}

    def _find(self, id: str, tenant: str | None) -> KeyRow:
        self.refresh()
        row = self._rows.get(id)
        if row is None or (tenant is not None and row.tenant != tenant):
            raise UnknownKeyError("id: there is no such key; list them first")
        return row


def digest(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def allows(role: Role, needed: Needed) -> bool:
    """Whether a role may do what another one may."""
    return needed == "open" or ROLES.index(role) >= ROLES.index(needed)


def _changed(row: KeyRow, *, expires: int | None = None, withdrawn: int | None = None) -> KeyRow:
    return KeyRow(
        id=row.id, hash=row.hash, role=row.role, tenant=row.tenant,
        expires=row.expires if expires is None else expires, withdrawn=withdrawn or row.withdrawn,
    )  # fmt: skip
