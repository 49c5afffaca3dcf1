"""Raw rows of one stream in the order of time, one per step: what is held back, and what can be replayed.

    put: a later step is appended, an earlier one inserted, the same one merged (a value replaces, NaN says nothing;
         covariates as in columns.py)

Never more than `most` rows, which its owner sees to; the arrays grow by doubling, to twice that at most. Appending and
taking from the front are O(1) on average, inserting moves the rows behind.

C channels, F columns of covariates, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tsgdn2.columns import merged
from tsgdn2.scale import Bools, Floats
from tsgdn2.slab import Ints, fit


class Span(NamedTuple):
    """Consecutive rows: steps [R], values [R, C] (NaN is missing), columns of covariates known [R, F]."""

    steps: Ints
    values: Floats
    known: Floats


class Rows:
    """A bounded, sorted list of rows; see the module's docstring."""

    def __init__(self, channels: int, known: int, past: int, most: int) -> None:
        self.past, self.most = past, most
        self._arrays = Span(np.zeros(0, np.int64), np.zeros((0, channels)), np.zeros((0, known)))
        self._begin = self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays as they are."""
        return sum(a.nbytes for a in self._arrays)

    @property
    def oldest(self) -> int:
        """The first step; there must be one."""
        return int(self._arrays.steps[self._begin])

    @property
    def newest(self) -> int:
        """The last step; there must be one."""
        return int(self._arrays.steps[self._end - 1])

    @property
    def most_nbytes(self) -> int:
        """Bytes that the arrays never exceed."""
        width = 1 + int(self._arrays.values.shape[1] + self._arrays.known.shape[1])
        return 2 * self.most * 8 * width

    def all(self) -> Span:
        """Every row, as views that the next `put` may change."""
        return Span._make(a[self._begin : self._end] for a in self._arrays)

    def put(self, step: int, values: Floats, known: Floats) -> tuple[bool, bool]:
        """Take one row, values [C], known [F]. Returns whether it held no new cell, and whether it replaced one."""
        at = self._at(step)
        if at < self._end and self._arrays.steps[at] == step:
            return self._merge(at, values, known)
        at -= self._begin
        self._reserve()
        at += self._begin
        for array in self._arrays:
            if at < self._end:
                array[at + 1 : self._end + 1] = array[at : self._end].copy()
        arrays = self._arrays
        arrays.steps[at], arrays.values[at], arrays.known[at] = step, values, known
        self._end += 1
        return bool(np.isnan(values).all()), False

    def take(self, through: int) -> Span:
        """Remove and return the rows of all steps up to `through`."""
        stop = self._at(through + 1)
        taken = Span._make(a[self._begin : stop].copy() for a in self._arrays)
        self._begin = stop
        return taken

    def keep(self, wanted: Bools) -> None:
        """Leave only the rows where `wanted` [R] is true."""
        count = int(wanted.sum())
        for array in self._arrays:
            array[self._begin : self._begin + count] = array[self._begin : self._end][wanted]
        self._end = self._begin + count

    def copy(self) -> Rows:
        """The same rows, on their own."""
        twin = Rows(0, 0, self.past, self.most)
        twin._arrays = Span._make(a.copy() for a in self._arrays)
        twin._begin, twin._end = self._begin, self._end
        return twin

    def of(self, span: Span) -> Rows:
        """Other rows in a list like this one. ValueError unless their steps rise."""
        if (span.steps[1:] <= span.steps[:-1]).any():
            raise ValueError("steps of rows must rise")
        other = Rows(0, 0, self.past, self.most)
        other._arrays, other._end = Span._make(a.copy() for a in span), len(span.steps)
        return other

    def _at(self, step: int) -> int:
        if self._begin == self._end or step > self._arrays.steps[self._end - 1]:
            return self._end
        return self._begin + int(np.searchsorted(self._arrays.steps[self._begin : self._end], step))

    def _merge(self, at: int, values: Floats, known: Floats) -> tuple[bool, bool]:
        old = self._arrays.values[at]
        given, had = np.isfinite(values), np.isfinite(old)
        differs = given & had & (old != values)
        self._arrays.values[at] = np.where(given, values, old)
        self._arrays.known[at] = merged(self._arrays.known[at], known, self.past)
        return not bool((given & ~had | differs).any()), bool(differs.any())

    def _reserve(self) -> None:
        """Room for one row at the end: the rows move to the front when half of the arrays is free, else these grow."""
        room, count = len(self._arrays.steps), len(self)
        if self._end < room:
            return
        if 2 * count >= room:
            room = min(max(8, 2 * room), max(2 * self.most, count + 1))
        fresh = Span._make(np.zeros((room, *a.shape[1:]), a.dtype) for a in self._arrays)
        for new, old in zip(fresh, self._arrays, strict=True):
            new[:count] = old[self._begin : self._end]
        self._arrays, self._begin, self._end = fresh, 0, count


def rows_to_tensors(many: Sequence[Rows], like: Rows) -> dict[str, Tensor]:
    """Rows of many streams end to end, and how many each has; `like` gives the shapes where there are none."""
    empty = Span._make(a[:0] for a in like.all())
    joined = Span._make(np.concatenate(arrays) for arrays in zip(empty, *(rows.all() for rows in many), strict=True))
    counts = torch.tensor([len(rows) for rows in many], dtype=torch.int64)
    return {"counts": counts} | {name: torch.from_numpy(a) for name, a in joined._asdict().items()}


def rows_from_tensors(tensors: dict[str, Tensor], like: Rows, streams: int) -> list[Rows]:
    """Undo `rows_to_tensors` of so many streams; KeyError where one is missing, ValueError where it can not be so."""
    counts = tensors["counts"]
    if counts.dtype != torch.int64 or counts.shape != (streams,) or ((counts < 0) | (counts > like.most)).any():
        raise ValueError(f"counts of rows must be {streams} integers from 0 to {like.most}, got {counts.tolist()[:9]}")
    for name, own in like.all()._asdict().items():
        fit(name, tensors, torch.from_numpy(own), int(counts.sum()))
    arrays, many, begin = Span._make(tensors[name].numpy() for name in Span._fields), list[Rows](), 0
    for count in counts.tolist():
        many.append(like.of(Span._make(a[begin : begin + count] for a in arrays)))
        begin += count
    return many
