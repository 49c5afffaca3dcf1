"""Whose stream is whose: a tenant's streams stand in store and memory under its name, which nobody else can say.

    tenant "acme", stream "boiler/1"   ->   "acme" US "boiler/1"          US: the control character U+001F
    no tenant (""), stream "boiler/1"  ->   "boiler/1"                    connectors, and a service without tenants

No name from outside may hold U+001F and no tenant's name can, so what a caller names always lies within its tenant.
Messages of the inside hold whole names; `shown` takes the tenant's own prefix off and blots out what is another's.
"""

from __future__ import annotations

import re
from typing import Final

from tsgdn2.errors import ConfigError, StreamError
from tsgdn2.service.batch import LONGEST_NAME, check_name

US: Final = "\x1f"
_TENANT: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_AFTER_ALL: Final = "\U0010ffff" * (LONGEST_NAME // 4)
_FOREIGN: Final = re.compile(r"[a-z0-9._-]*(?:\x1f|\\x1f)")


def check_tenant(tenant: str) -> str:
    """The name of a tenant, "" for none. ConfigError for anything but small letters, digits and . _ - between them."""
    if tenant and not _TENANT.fullmatch(tenant):
        raise ConfigError(
            f"tenant: must be 1 to 64 of a-z, 0-9 and . _ - between them, or empty, got {tenant[:80]!r}; rename it"
        )
    return tenant


def whole(tenant: str, stream: str) -> str:
    """The stream's name in memory and store. StreamError for a name that can not be one."""
    if US in stream:
        raise StreamError("stream: a name may not hold the control character U+001F; rename the stream")
    prefix = f"{tenant}{US}" if tenant else ""
    if prefix and len(stream.encode(errors="replace")) > LONGEST_NAME - len(prefix):
        raise StreamError(f"stream: may have {LONGEST_NAME - len(prefix)} bytes at most; shorten {stream[:40]!r}..")
    check_name("stream", stream)
    return prefix + stream


def is_of(tenant: str, name: str) -> bool:
    """Whether a whole name is a stream of this tenant."""
    return name.startswith(f"{tenant}{US}") if tenant else US not in name


def own(tenant: str, name: str) -> str:
    """What the tenant calls its stream of this whole name."""
    return name.removeprefix(f"{tenant}{US}") if tenant else name


def shown(tenant: str, text: str) -> str:
    """A message of the inside as the tenant may see it."""
    if tenant:
        text = text.replace(f"{tenant}{US}", "").replace(f"{tenant}\\x1f", "")
    return _FOREIGN.sub("(another tenant's) ", text)


def passed(tenant: str, names: list[str]) -> str | None:
    """Where a listing of this tenant goes on behind these whole names; None: there can be no more of its streams."""
    last = names[-1]
    if tenant:
        return last if is_of(tenant, last) else None
    if US in last:  # over all streams of that other tenant at once
        return max(last, last.split(US)[0] + US + _AFTER_ALL)
    return last


def before(tenant: str, after: str) -> str:
    """The whole name behind which a listing of this tenant begins."""
    return f"{tenant}{US}{after}" if tenant else after
