"""What a machine reports of its guard and of its store goes into the ledger: from the stages, and from `status`.

It must not reach a machine: the caller has the report. Nor does it load what knows the settings of hosts, which takes
longer than a machine to answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.agent.contract.answers import Death, GuardStatus, RunStatus
from orchestrator.core.checkpoints.store_places import run_uri
from orchestrator.core.checkpoints.store_state import reported_store
from orchestrator.core.fleet.guard_state import KINDS_ON_BOX, GuardState, reported_guard
from orchestrator.core.ports import UNPAID
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord

if TYPE_CHECKING:
    from orchestrator.stages.context import RunContext
from orchestrator.core.fleet.lease import lease_s

SAME_S = 30.0
"""Moments that differ by less are the same moment, so that a heartbeat is not news."""


def news_of_guard(rental: Rental, guard: str, report: GuardStatus, now: float) -> GuardState | None:
    """What is to be recorded of the guard on the machine; None where that is known already, and for any other guard.
    guard: as the host's entry has it."""
    known = rental.facts.guard or GuardState("none" if rental.provider in UNPAID else guard)
    if known.kind not in KINDS_ON_BOX and report["kind"] not in KINDS_ON_BOX:
        return None
    found = reported_guard(known, report, now, same_s=min(SAME_S, lease_s() / 4))
    return found if found != rental.facts.guard else None


def record_store(ledger: Ledger, run: RunRecord, store: str | None, status: RunStatus) -> str | None:
    """Records the state of the store, if that is news, and returns a problem that was not known. store: the host's
    `checkpoint_store`."""
    record_safe_step(ledger, run, status)
    if store is None or status["store"] is None:
        return None
    known, state = run.facts.store, reported_store(run_uri(store, run.id), status["store"])
    if state == known:
        return None
    ledger.update_run(run.id, facts={"store": state})
    return state.problem if known is None or state.problem != known.problem else None


def record_safe_step(ledger: Ledger, run: RunRecord, status: RunStatus) -> None:
    """Records the newest step that is safe outside the machine, wherever that is."""
    newest = max(status["safe"], default=0)
    if newest > (run.safe_step or 0):
        ledger.update_run(run.id, safe_step=newest)


def tell_deaths(context: RunContext, deaths: Sequence[Death]) -> None:
    """Says once of each time that a training died, and that it starts again: the agent decided that by itself."""
    known = context.facts.deaths
    for death in deaths[known:]:
        again = death["pause_s"] is not None
        text = f"the training died at step {death['step']}: {death['reason']}"
        if again:
            text += "; it starts again from its newest checkpoint"
        context.emit("warning", text)
    if len(deaths) > known:
        context.set_run_facts(deaths=len(deaths))
