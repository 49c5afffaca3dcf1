"""The errors of this room: what can be wrong with data before a model sees them.

They stand apart from tsgdn2.errors, because this room imports nothing of ours; all are ValueErrors all the same.

    DataError (ValueError)
    +-- FrameError           a frame has the wrong columns, dtypes, order or values
    +-- FetchError           a named set is neither on this machine nor to be had from its public home
        +-- ChecksumError    a file is not the one that was expected
"""

from __future__ import annotations


class DataError(ValueError):
    """Root of the tree: data could not be found, read or understood."""


class FrameError(DataError):
    """A frame does not follow the schema; the message names the column and the row."""


class FetchError(DataError):
    """A file could not be had; the message names the URL, the environment variable and where to put the file."""


class ChecksumError(FetchError):
    """A file's bytes are not the expected ones; both digests are in the message."""
