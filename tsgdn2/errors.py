"""Every error that tsgdn2 raises on purpose.

One tree, so that a caller can catch all of it or the part that it can mend. Each message names the argument,
what is allowed, what came, and what to do.

    TsgdnError (ValueError)
    +-- ConfigError          a setting is out of its bounds, or does not fit the model
    +-- SchemaError          a frame, an array or a channel has the wrong shape, dtype or name
    +-- StreamError          an observation or a request does not fit the stream it names
    |   +-- LateDataError    its patch is closed; the state can not be undone
    |   +-- UnknownStreamError
    |   +-- UnknownChannelError
    +-- CheckpointError      a file is truncated, altered, or from a newer schema
    +-- DataError            a data set could not be fetched, verified or read
    +-- TrackingError        the tracking store refused what was sent            (pipelines/spool.py)
        +-- ServerDownError  it does not answer; the spool is as it was
"""

from __future__ import annotations


class TsgdnError(ValueError):
    """Root of the tree; a ValueError, so that generic callers catch it too."""


class ConfigError(TsgdnError):
    """A setting is out of its bounds, or does not fit the model."""


class SchemaError(TsgdnError):
    """A frame, an array or a channel has the wrong shape, dtype or name."""


class StreamError(TsgdnError):
    """An observation or a request does not fit the stream that it names."""


class LateDataError(StreamError):
    """The observation belongs to a patch that is closed; what it would have changed can not be undone."""


class UnknownStreamError(StreamError):
    """No observation of this stream has been seen."""


class UnknownChannelError(StreamError):
    """The channel is not one that the model was trained for."""


class CheckpointError(TsgdnError):
    """A checkpoint is truncated, altered, or written by a newer version."""


class DataError(TsgdnError):
    """A data set could not be fetched, verified or read."""


def require(name: str, value: object, allowed: str, ok: bool) -> None:
    """ConfigError of a field's name where its value is not ok."""
    if not ok:
        raise ConfigError(f"{name}: must be {allowed}, got {value!r}")
