"""Which cores the tests' processes compute on: each worker of pytest-xdist, and all that it starts, on one of its own.

Two threads or ranks that spin while they wait for each other crawl on a busy machine and burn what the other workers
need (measured for a training of 20 steps: 17 s of processor time on two shared cores, 5 s on one).
"""

from __future__ import annotations

import os

_ALL = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else frozenset[int]()


def pin_worker() -> None:
    """Worker N computes on core N, modulo the cores there are; a session without workers keeps all of them."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and _ALL:
        cores = sorted(_ALL)
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def take_all() -> None:
    """What starts from now on may use every core again."""
    if _ALL:
        os.sched_setaffinity(0, _ALL)
