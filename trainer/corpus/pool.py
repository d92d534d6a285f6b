"""Maps a function over a stream with several processes: results in the stream's order, only a few items ahead.

Own code around concurrent.futures, whose `map` reads the whole stream before the first result. It must not know what it
computes. Workers end with their parent, even where it is killed.

Example::

    with ordered(encode, batches, workers=4) as results:
        for batch, encoded in results: ...
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD_PER_WORKER = 2


class WorkerLostError(RuntimeError):
    """A worker process ended without a result."""


@contextmanager
def ordered(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Iterator[tuple[Item, Result]]]:
    """Pairs of item and result. One worker means this process. An error of `work` is raised at its item's turn."""
    if workers == 1:
        yield ((item, work(item)) for item in items)
        return
    # Not forked: a reader's threads may hold locks, which a child would never see released.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent)
    try:
        yield _in_order(pool, work, items, AHEAD_PER_WORKER * workers)
    except BrokenProcessPool as error:
        raise WorkerLostError(
            "something ended a worker process, perhaps for lack of memory: run the command again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Result]]:
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _end_with_parent() -> None:
    """In a worker: a killed parent closes no queue, so a thread waits for its end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
