"""A process that appends, snapshots and prunes until it is killed; first it says what it found. Run by test_store_kill.

    python appender.py sqlite|postgres PLACE SEED      found <counts>, then one line for each committed append

Stream i has rows with the sequences 0, 1, 2, ..; its state is the list of those it has seen. What it finds must be
0, 1, .., n - 1 of every stream, with nothing missing, double or out of order, and marks that say the same.
"""

from __future__ import annotations

import json
import random
import sys

import numpy as np
from tests.service.shelves import MODEL, rows, sequences_of, snapshot, store_at

from tsgdn2.service.marks import Marks, sift
from tsgdn2.service.store import LedgerRow, Store

STREAMS = [f"stream {number}" for number in range(7)]


def found_in(store: Store) -> tuple[dict[str, list[int]], dict[str, Marks]]:
    """Sequences and marks of every stream, as snapshots and journal tell them."""
    states: dict[str, list[int]] = {name: [] for name in STREAMS}
    marks = {name: Marks() for name in STREAMS}
    for found in store.recover():
        assert not found.damage, found.damage
        if found.snapshot is not None:
            states[found.stream] = np.frombuffer(found.snapshot.blob, np.int64).tolist()
            marks[found.stream] = Marks.from_bytes(found.snapshot.marks)
        behind = sequences_of(found)
        assert all(marks[found.stream].take("mqtt", sequence) == 0 for sequence in behind)
        states[found.stream] += behind
    for name, sequences in states.items():
        assert sequences == list(range(len(sequences))), (name, sequences[:5], len(sequences))
        assert marks[name] == store.marks(name)
    return states, marks


def main(kind: str, where: str, seed: int) -> None:
    """Work until killed."""
    dice = random.Random(seed)
    store = store_at(kind, where)
    store.open(MODEL)
    assert store.claim(STREAMS) == {}
    states, marks = found_in(store)
    print("found", json.dumps({name: len(sequences) for name, sequences in states.items()}), flush=True)
    number = store.cursor("test")
    assert len([row for row in store.read_ledger(0, 10_000) if row.kind == "appended"]) == number
    while True:
        names: list[str] = []
        sequences: list[int] = []
        after = {name: len(found) for name, found in states.items()}
        for _ in range(dice.choice([1, 3, 40, 300])):
            name = dice.choice(STREAMS)
            again = dice.random() < 0.2 and after[name] > 0
            names.append(name)
            sequences.append(dice.randrange(max(0, after[name] - 1500), after[name]) if again else after[name])
            after[name] += not again
        batch = rows(names, sequences)
        fresh = batch.take(sift(batch, marks.__getitem__).fresh)
        number += 1
        if len(fresh):
            ledger = [LedgerRow(kind="appended", facts={"number": number})]
            store.append(fresh, ledger=ledger, cursors={"test": number})
        else:
            number -= 1
        for name, sequence in zip(fresh.streams, fresh.sequences.tolist(), strict=True):
            states[name].append(sequence)
        print("kept", json.dumps({name: len(found) for name, found in states.items()}), flush=True)
        if dice.random() < 0.3:
            chosen = dice.sample(STREAMS, dice.randint(1, len(STREAMS)))
            made = [snapshot(name, store.last, np.array(states[name]).tobytes(), marks[name]) for name in chosen]
            store.snapshot(made)
        if dice.random() < 0.1:
            store.prune()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
