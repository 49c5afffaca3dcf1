"""Events as sorted rows of integers: the same rows in whatever order they came, and the events that they were."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tsgdn2.events.held import Held, Recent, from_rows, identities, to_rows
from tsgdn2.events.schema import EventArrays


@given(st.lists(st.tuples(st.integers(-9, 9), st.floats(width=64), st.floats(allow_infinity=False)), max_size=30))
def test_rows_come_back_as_the_events_they_were_in_one_order(given_rows):
    count = len(given_rows)
    marks = np.array([row[1:] for row in given_rows]).reshape(count, 2)
    time, kind = np.array([row[0] for row in given_rows], np.int64), np.arange(count) % 3
    rows = to_rows(EventArrays(time, kind, marks), -marks[:, :1], identities([None] * count))
    back, known = from_rows(rows, 2)
    np.testing.assert_array_equal(back.time, time)
    for mine, theirs in ((back.marks, marks), (known, -marks[:, :1])):
        np.testing.assert_array_equal(mine, theirs)
        number = ~np.isnan(theirs)
        np.testing.assert_array_equal(np.signbit(mine)[number], np.signbit(theirs)[number])
    held, other = Held(rows.shape[1], 40), Held(rows.shape[1], 40)
    for row in rows.tolist():
        held.put(tuple(row))
    for row in rows.tolist()[::-1]:
        other.put(tuple(row))
    np.testing.assert_array_equal(held.all(), other.all())
    assert held.all().tolist() == sorted(rows.tolist())
    gone = held.take(0)
    assert (gone[:, 0] <= 0).all()
    assert (held.all()[:, 0] > 0).all()
    assert held.after(tuple(rows[0].tolist()) if count else ()).tolist() == [
        row for row in held.all().tolist() if not count or row > rows[0].tolist()
    ]


def test_a_window_of_ids_holds_the_last_ones():
    recent, ids = Recent(3), identities(["a", None, "b", "c", 4, "e"])
    recent.push(ids[:2])
    assert recent.has(ids[0])
    assert not recent.has(identities([None])[0])
    recent.push(ids[2:])
    assert [recent.has(one) for one in ids[[0, 2, 3, 4, 5]]] == [False, False, True, True, True]
