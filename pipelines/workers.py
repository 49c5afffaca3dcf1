"""Independent pieces of work over processes: results come as they are made, in any order.

One worker is this process itself. Others are new ones, for torch's threads do not survive a fork. On an error or an
interrupt what waits is dropped, and what runs ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[tuple[Item, Result]]:
    """Each item with its result; `work` and items must go through pickle where there are several workers."""
    if workers == 1:
        yield from ((item, work(item)) for item in items)
        return
    pool = ProcessPoolExecutor(min(workers, max(1, len(items))), mp_context=get_context("spawn"))
    try:
        futures = {pool.submit(work, item): item for item in items}
        for done in as_completed(futures):
            yield futures[done], done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
