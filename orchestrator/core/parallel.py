"""Calls that are made all at once: under one deadline, where none may raise; or until each has its result.

Example: `answers_within(2.0, {"lambda": list_lambda, "ec2": list_ec2})` -> {"ec2": [...]}: lambda was silent
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")
Item = TypeVar("Item")


def answers_within(within_s: float, calls: Mapping[Key, Callable[[], Answer]]) -> dict[Key, Answer]:
    """The answers that came in time, in the order of the calls. What comes later is dropped."""
    answers: dict[Key, Answer] = {}

    def ask(key: Key, call: Callable[[], Answer]) -> None:
        answers[key] = call()

    # Daemons: a call that hangs on a dead link must not keep the command from ending.
    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in calls.items()]
    until = time.monotonic() + within_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    arrived = dict(answers)
    return {key: arrived[key] for key in calls if key in arrived}


def on_each(items: Sequence[Item], do: Callable[[Item], Answer]) -> list[Answer]:
    """What `do` returns for each, in their order. Raises the first error, in that order, once all are over.
    One alone is done in this thread."""
    if len(items) < 2:
        return [do(item) for item in items]
    pool = ThreadPoolExecutor(len(items))
    futures = [pool.submit(do, item) for item in items]
    try:
        wait(futures)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [future.result() for future in futures]
