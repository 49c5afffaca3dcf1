"""The PostgreSQL store between processes: leases, fencing, and connections that break at the worst moments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from tests.service.peers import postgres
from tests.service.shelves import MODEL, all_of, rows, snapshot

from tsgdn2.errors import ConfigError
from tsgdn2.service.errors import StoreError
from tsgdn2.service.postgres_store import PostgresStore
from tsgdn2.service.store import LedgerRow


@pytest.fixture
def base() -> str:
    return postgres().empty()


@pytest.fixture
def one(base: str) -> Iterator[PostgresStore]:
    yield from opened(base, "one:1")


@pytest.fixture
def two(base: str) -> Iterator[PostgresStore]:
    yield from opened(base, "two:2")


def opened(base: str, label: str) -> Iterator[PostgresStore]:
    store = PostgresStore(base, label=label)
    store.open(MODEL)
    yield store
    store._end()


def server(base: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(base, autocommit=True) as connection:
        done = connection.execute(sql.encode())
        return done.fetchall() if done.description else []


def expire(base: str, label: str) -> None:
    server(base, f"UPDATE owners SET expires = clock_timestamp() - INTERVAL '1 second' WHERE label = '{label}'")


def test_a_stream_is_held_by_one_process_and_the_other_is_told_by_which(one: PostgresStore, two: PostgresStore) -> None:
    assert one.claim(["a", "b"]) == {}
    assert two.claim(["a", "c"]) == {"a": "one:1"}
    two.append(rows(["c"], [0]))
    with pytest.raises(StoreError, match="'a' is not held by this process"):
        two.append(rows(["c", "a"], [1, 2]))
    with pytest.raises(StoreError, match="'a' is not held"):
        two.snapshot([snapshot("a", 1)])
    with pytest.raises(StoreError, match="'a' is not held"):
        two.restore("a")
    assert list(all_of(two)) == [("c", None, [0])]


def test_a_released_stream_goes_on_elsewhere_with_everything(one: PostgresStore, two: PostgresStore) -> None:
    one.claim(["a"])
    one.append(rows(["a"] * 2, [0, 1]))
    one.snapshot([snapshot("a", one.last, b"state")])
    one.append(rows(["a"], [2]))
    last = one.last
    one.release(["a"])
    assert two.claim(["a"]) == {}
    assert two.last >= last
    assert list(all_of(two)) == [("a", b"state", [2])]
    assert two.append(rows(["a"], [3])) > last
    assert one.claim(["a"]) == {"a": "two:2"}


def test_a_process_that_closes_leaves_its_streams_to_others(one: PostgresStore, two: PostgresStore) -> None:
    one.claim(["a"])
    one.append(rows(["a"], [0]))
    one.close()
    assert two.claim(["a"]) == {}
    assert list(all_of(two)) == [("a", None, [0])]


def test_a_process_whose_lease_ran_out_can_write_nothing_once_another_has_its_stream(
    one: PostgresStore, two: PostgresStore, base: str
) -> None:
    one.claim(["a", "b"])
    one.append(rows(["a", "b"], [0, 1]))
    expire(base, "one:1")
    one.append(rows(["a"], [2]))
    assert two.claim(["a"]) == {}
    for call in (
        lambda: one.append(rows(["a"], [3])),
        lambda: one.append(rows(["b"], [3])),
        lambda: one.snapshot([snapshot("a", one.last)]),
        lambda: one.record([LedgerRow(kind="x")]),
        lambda: one.forget(["b"]),
        lambda: one.prune(),
        one.renew,
    ):
        with pytest.raises(StoreError, match="close and open the store, claim the streams and recover"):
            call()
    assert list(all_of(two)) == [("a", None, [0, 2])]
    with pytest.raises(StoreError, match="lease"):
        one.close()
    one.open(MODEL)
    assert one.claim(["a", "b"]) == {"a": "two:2"}
    assert list(all_of(one)) == [("b", None, [1])]


def test_a_lease_that_is_renewed_is_kept(one: PostgresStore, two: PostgresStore, base: str) -> None:
    one.claim(["a"])
    expire(base, "one:1")
    one.renew()
    assert two.claim(["a"]) == {"a": "one:1"}


def test_an_append_that_is_under_way_is_not_overtaken(one: PostgresStore, two: PostgresStore, base: str) -> None:
    one.claim(["a"])
    expire(base, "one:1")
    with one._transaction():
        assert two.claim(["a"]) == {"a": "one:1"}
    assert two.claim(["a"]) == {}


def test_many_processes_never_hold_the_same_stream(base: str) -> None:
    names = [f"s{number}" for number in range(40)]
    stores = [PostgresStore(base, label=f"p{number}") for number in range(4)]
    taken: dict[str, set[str]] = {}
    failures: list[BaseException] = []

    def work(store: PostgresStore, order: list[str]) -> None:
        try:
            store.open(MODEL)
            refused = store.claim(order)
            taken[store.label] = set(order) - set(refused)
            if taken[store.label]:
                store.append(rows(sorted(taken[store.label]), list(range(len(taken[store.label])))))
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(store, names[at * 5 :] + names[: at * 5]))
        for at, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(name for found in taken.values() for name in found) == sorted(names)
    assert server(base, "SELECT COUNT(*) FROM journal") == [(sum(bool(found) for found in taken.values()),)]
    for store in stores:
        store.close()


def test_pruning_leaves_alone_what_other_processes_hold(one: PostgresStore, two: PostgresStore) -> None:
    one.claim(["a"])
    two.claim(["b"])
    for at in range(3):
        one.append(rows(["a"], [at]))
        two.append(rows(["b"], [at]))
        one.snapshot([snapshot("a", one.last)])
    two.prune()
    assert list(all_of(two)) == [("b", None, [0, 1, 2])]
    assert list(all_of(one)) == [("a", b"state", [])]
    assert server(one._conninfo, "SELECT COUNT(*) FROM journal") == [(4,)]


def kill_connections(base: str) -> None:
    server(
        base,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()",
    )


def test_a_connection_that_broke_is_made_anew(one: PostgresStore, base: str) -> None:
    one.claim(["a"])
    one.append(rows(["a"], [0]))
    kill_connections(base)
    assert list(all_of(one)) == [("a", None, [0])]
    with pytest.raises(StoreError, match=r"no answer from the server .* send it again"):
        one.append(rows(["a"], [1]))
    one.append(rows(["a"], [2]))
    assert list(all_of(one)) == [("a", None, [0, 2])]


def test_a_connection_that_breaks_before_its_commit_has_kept_nothing(one: PostgresStore, base: str) -> None:
    one.claim(["a"])

    def cut_off() -> None:
        with one._transaction() as transaction:
            transaction.run("INSERT INTO cursors VALUES ('x', 1)")
            kill_connections(base)

    with pytest.raises(StoreError, match="nothing of this call was kept"):
        cut_off()
    assert one.cursor("x") == 0


class Cut:
    """A connection that breaks when it commits: before the server has seen it, or before its answer has come."""

    def __init__(
        self, connection: psycopg.Connection[tuple[object, ...]], *, done: bool, then: Callable[[], None] | None = None
    ) -> None:
        self._connection, self._done, self._then = connection, done, then

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, query: object, *arguments: object, **more: object) -> object:
        if query != "COMMIT":
            return self._connection.execute(query, *arguments, **more)  # type: ignore[call-overload]
        if self._done:
            self._connection.execute("COMMIT")
        self._connection.close()
        if self._then is not None:
            self._then()
        raise psycopg.OperationalError("the connection is lost")


@pytest.mark.parametrize("done", [False, True])
def test_a_connection_that_breaks_within_its_commit_is_asked_what_became_of_it(one: PostgresStore, done: bool) -> None:
    one.claim(["a"])
    assert one._writer is not None
    one._writer._connection = Cut(one._writer._connected(), done=done)  # type: ignore[assignment]
    if done:
        one.append(rows(["a"], [0]), cursors={"x": 1})
    else:
        with pytest.raises(StoreError, match="nothing of this call was kept"):
            one.append(rows(["a"], [0]), cursors={"x": 1})
    assert one.cursor("x") == int(done)
    one.append(rows(["a"], [1]))
    assert list(all_of(one)) == [("a", None, [0, 1] if done else [1])]


def test_a_crash_of_the_server_costs_calls_and_nothing_else() -> None:
    own = postgres()
    store = PostgresStore(own.empty(), label="one:1")
    store.open(MODEL)
    store.claim(["a"])
    store.append(rows(["a"], [0]))
    own.stop()
    for _ in range(2):
        with pytest.raises(StoreError, match="no answer from the server"):
            store.append(rows(["a"], [1]))
    own.start()
    store.append(rows(["a"], [2]))
    assert list(all_of(store)) == [("a", None, [0, 2])]

    assert store._writer is not None
    store._writer._connection = Cut(store._writer._connected(), done=True, then=own.stop)  # type: ignore[assignment]
    with pytest.raises(StoreError):
        store.append(rows(["a"], [3]))
    own.start()
    with pytest.raises(StoreError, match="whether it was kept is not known; close and open"):
        store.append(rows(["a"], [4]))
    with pytest.raises(StoreError, match="not known"):
        store.close()
    store.open(MODEL)
    assert store.claim(["a"]) == {}
    assert list(all_of(store)) == [("a", None, [0, 2, 3])]
    store.close()


def test_a_server_that_is_not_there_is_an_error_that_says_so_and_names_no_password() -> None:
    store = PostgresStore("host=127.0.0.1 port=1 user=x password=secret dbname=x", label="x")
    with pytest.raises(StoreError, match="see that it runs") as caught:
        store.open(MODEL)
    assert "secret" not in str(caught.value)


def test_a_lease_has_bounds() -> None:
    for lease in (0.5, 4000, float("nan")):
        with pytest.raises(ConfigError, match="lease_s: must be from 1 to 3600"):
            PostgresStore("", label="x", lease_s=lease)
