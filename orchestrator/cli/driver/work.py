"""What a driver does with a run: drives it, and after a failure drives it again, until it has ended or was taken back.

One process for what hangs together, the runs of the same machines and of the same sweep: `gptctl driver work RUN`
starts it detached and returns. It drives in processes of their own, so that no failure of one ends the driving. A lock
keeps it to one.

Example: `python -m orchestrator driver work tiny-1130-k3f9qa --stay`
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from orchestrator.cli.open_ledger import open_ledger
from orchestrator.core.errors import RunLocked
from orchestrator.core.states import State
from orchestrator.ledger import handover, sweeps
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.run_lock import RunLock
from orchestrator.runs.sweep_revival import current

PAUSES_S = (10.0, 30.0, 120.0, 300.0)
"""After the first failure, the second, and so on; the last one stays."""


def work(run_id: str) -> int:
    """Starts the driving of this run, detached. Twice is fine."""
    with open_ledger() as ledger:
        log = ledger.home / "driver.log"
    argv = [sys.executable, "-m", "orchestrator", "driver", "work", run_id, "--stay"]
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    print(json.dumps({"pid": process.pid, "log": str(log)}))
    return 0


def stay(run_id: str, *, pause: Callable[[float], None] = time.sleep) -> int:
    """Drives until nothing is left to do here; returns the last exit code."""
    code, failures = 0, 0
    with open_ledger() as ledger:
        try:
            lock = RunLock.acquire(ledger.home, _lock_name(ledger, run_id))
        except RunLocked:
            return 0
        with lock:
            while words := next_words(ledger, run_id):
                code = subprocess.run([sys.executable, "-m", "orchestrator", *words], check=False).returncode
                if next_words(ledger, run_id):
                    pause(PAUSES_S[min(failures, len(PAUSES_S) - 1)])
                    failures += 1
    return code


def _lock_name(ledger: Ledger, run_id: str) -> str:
    """One for all that hangs together. A digest: cut to the length of an id, the names of two runs may be the same."""
    first = handover.together(ledger.rows, [run_id]).runs[0]
    return f"driver-{hashlib.sha256(first.encode()).hexdigest()[:32]}"


def next_words(ledger: Ledger, run_id: str) -> Sequence[str]:
    """The command that does what is left of all that hangs together with this run; nothing when all has ended, or
    another computer drives."""
    these = handover.together(ledger.rows, [run_id]).runs
    return next((words for each in these if (words := _words(ledger, each))), ())


def _words(ledger: Ledger, run_id: str) -> Sequence[str]:
    run = ledger.run(run_id)
    if run.facts.driven_by is not None:
        return ()
    group = run.facts.queue.group if run.facts.queue else None
    if group is not None:
        members = current(sweeps.runs_of(ledger.rows, group))
        return ("sweep", "resume", group) if any(each.state is not State.ENDED for each in members) else ()
    return ("resume", run_id) if run.state is not State.ENDED else ()
