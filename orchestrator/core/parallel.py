"""Calls that are made all at once: under one deadline, where none may raise; or until each has its result. Or in turn,
where one that fails must not keep the next from being made.

Example: `answers_within(2.0, {"lambda": list_lambda, "ec2": list_ec2})` -> {"ec2": [...]}: lambda was silent
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from orchestrator.core.errors import GptctlError, StillBilling

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


def in_turn(items: Iterable[Item], do: Callable[[Item], Answer]) -> list[Answer]:
    """What `do` returns for each. What ends jobs or machines reaches the last one also where the first does not answer.
    Raises the first StillBilling, else the first GptctlError, once all are over."""
    answers, troubles = list[Answer](), list[GptctlError]()
    for item in items:
        try:
            answers.append(do(item))
        except GptctlError as error:
            troubles.append(error)
    if troubles:
        raise max(troubles, key=lambda error: isinstance(error, StillBilling))
    return answers
