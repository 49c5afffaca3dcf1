"""What the service tells a caller; all of it is under TsgdnError, and `status` is the HTTP answer.

A message names what was wrong, what is allowed and what to do. Nothing of another tenant's data is ever in one.
"""

from __future__ import annotations

from typing import ClassVar

from tsgdn2.errors import StreamError, TsgdnError


class ServiceError(TsgdnError):
    """Something that a caller can mend."""

    status: ClassVar[int] = 400


class StoreError(ServiceError):
    """The store could not keep or give something: full disk, no connection, another process has it."""

    status = 503


class CorruptError(StoreError):
    """What the store gave is not what was written; the message says what was lost, if anything."""

    status = 500


class UnavailableError(StoreError):
    """The memory does not answer now: it starts, it stops, it has failed, or it took too long; a connector waits."""

    def __init__(self, message: str, *, retry_after: float = 2.0) -> None:
        """retry_after: seconds after which it is worth trying again."""
        super().__init__(message)
        self.retry_after = retry_after


class ElsewhereError(ServiceError, StreamError):
    """Another process of the same store holds the stream; the message has its label. HTTP: 421 Misdirected Request."""

    status = 421


class BusyError(ServiceError):
    """The queue or a tenant's share of it is full; nothing of the request was taken. Come back later."""

    status = 429

    def __init__(self, message: str, *, retry_after: float) -> None:
        """retry_after: seconds after which it is worth trying again."""
        super().__init__(message)
        self.retry_after = retry_after


class ForbiddenError(ServiceError):
    """The key is good, its role does not allow this."""

    status = 403


class KeyRefusedError(ServiceError):
    """No key, or one that is unknown, expired or withdrawn."""

    status = 401
