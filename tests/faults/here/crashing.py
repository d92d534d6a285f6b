"""Runs gptctl and ends it by SIGKILL at a chosen write to the ledger: a power cut at the worst moments there are.

    python -m tests.faults.here.crashing 7 before run tiny.toml --host cloud --yes

`before` the n-th COMMIT: all was done that it was to record, and none of it is recorded. `after`: it is recorded, and
nothing that follows was done. 0 never crashes; the number of commits then goes to stderr. The product is not changed:
it gets a connection class of ours from sqlite3.
"""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import sys
from typing import Any

from tests.support.clock import proof

WHEN = ("before", "after")


class Crashing(sqlite3.Connection):
    """A connection that ends this process at one of its commits."""

    at = 0
    when = "before"
    commits = 0
    """Of this process, over all its connections."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        Crashing.commits += sql == "COMMIT"
        due = sql == "COMMIT" and Crashing.commits == self.at
        if due and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = super().execute(sql, *parameters)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def main() -> None:
    at, when, *words = sys.argv[1:]
    assert when in WHEN, when
    Crashing.at, Crashing.when = int(at), when
    sqlite3.connect = functools.partial(sqlite3.connect, factory=Crashing)  # type: ignore[assignment]
    sys.argv[1:] = words
    proof.shorten()
    from orchestrator.__main__ import main as gptctl

    try:
        gptctl()
    finally:
        print(f"commits: {Crashing.commits}", file=sys.stderr)


if __name__ == "__main__":
    main()
