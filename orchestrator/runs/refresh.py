"""Asks the machines of unfinished runs how they are, all at once, and writes their answers into the ledger.

A machine that does not answer in time is `unknown`, never dead; the run's state stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.core.checkpoints.store_places import run_uri
from orchestrator.core.checkpoints.store_state import reported_store
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import GptctlError
from orchestrator.core.fleet.guard_state import KINDS_ON_BOX, GuardState
from orchestrator.core.states import Seen, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from orchestrator.ledger.run_lock import holder
from orchestrator.remote.agent_client.client import Agent
from orchestrator.stages.machine import box_guard
from orchestrator.wiring import open_shell


def look(home: Path, runs: Sequence[RunRecord], deadline_s: float = 2.0) -> list[RunRecord]:
    """Asks the machines of unfinished runs, all at once, and returns the runs as the ledger then has them.

    A machine that does not answer in time is `unknown`, never dead; the run's state stays.
    """
    with Ledger.open(home, time.time) as ledger:
        rentals = {run.id: ledger.rental(run.rental_id) for run in runs if _worth_asking(run) and run.rental_id}
        asked = [run for run in runs if run.id in rentals and rentals[run.id].facts.reached]
        answers: dict[str, dict[str, Any]] = {}
        threads = [
            # Daemons: one that hangs on a dead link must not keep the command from ending.
            threading.Thread(target=_ask, args=(home, run, rentals[run.id], deadline_s, answers), daemon=True)
            for run in asked
        ]
        deadline = time.monotonic() + deadline_s
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for run in asked:
            ledger.update_run(run.id, **_seen(answers.get(run.id), rentals[run.id]))
            _note_store(ledger, run, answers.get(run.id) or {})
            _note_guard(ledger, run, answers.get(run.id) or {})
        return [ledger.run(run.id) if run in asked else run for run in runs]


def _note_guard(ledger: Ledger, run: RunRecord, answer: dict[str, Any]) -> None:
    """What the machine says of its guard; whoever drives the run writes that down by itself."""
    rental = ledger.rental(run.rental_id or "")
    known, report = rental.facts.guard or GuardState(), answer.get("guard") or {}
    if report and {known.kind, report.get("kind")} & {*KINDS_ON_BOX} and holder(ledger.home, run.id) is None:
        ledger.update_rental(rental.id, facts={"guard": box_guard.reported(known, report, time.time())})


def _note_store(ledger: Ledger, run: RunRecord, answer: dict[str, Any]) -> None:
    """What the machine says of the store; the newest step that is safe anywhere else counts."""
    safe = max(map(int, answer.get("safe") or []), default=0)
    if safe > (ledger.run(run.id).safe_step or 0):
        ledger.update_run(run.id, safe_step=safe)
    uri = HostSpec.from_resolved(run.host_data).checkpoint_store
    if uri is not None and answer.get("store") and holder(ledger.home, run.id) is None:
        ledger.update_run(run.id, facts={"store": reported_store(run_uri(uri, run.id), answer["store"])})


def _worth_asking(run: RunRecord) -> bool:
    return run.state in (State.PREPARING, State.TRAINING, State.ENDING)


def _ask(home: Path, run: RunRecord, rental: Rental, deadline_s: float, answers: dict[str, dict[str, Any]]) -> None:
    """Puts the agent's view of the run into `answers`; silence or any failure leaves it out."""
    accept = run.facts.accept_new_host_key
    with suppress(GptctlError):
        shell = open_shell(home, rental.address, accept_new=accept, deadline_s=deadline_s)
        try:
            answer = Agent(shell, rental.folder).status(run.id, deadline_s=deadline_s)
            answers[run.id] = dict(answer["runs"].get(run.id, {}))
        finally:
            shell.close()


def _seen(answer: dict[str, Any] | None, rental: Rental) -> dict[str, Any]:
    """The fields of a run's row that one answer changes."""
    if answer is None:
        return {"seen": Seen.UNKNOWN}
    via = "local" if rental.address.host is None else "ssh"
    metrics = answer.get("metrics") or {}
    known = {
        name: metrics[name] for name in ("step", "loss", "tokens_per_second", "mfu") if metrics.get(name) is not None
    }
    return {"seen": Seen.LIVE, "seen_at": time.time(), "seen_via": via, **known}
