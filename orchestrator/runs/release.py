"""Release from outside a run: ends it if it has not ended, and gives its machine back."""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.core.errors import ProviderError, StillBilling, UserError
from orchestrator.core.events import Listener
from orchestrator.core.parallel import in_turn
from orchestrator.core.states import State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN
from orchestrator.ledger.run_lock import RunLock
from orchestrator.pipeline import STAGES, may_bill, perform, still_costs
from orchestrator.runs.stop import stop_run
from orchestrator.stages.context import RunContext
from orchestrator.wiring import open_context


def release_run(home: Path, run_id: str, listener: Listener, *, force: bool = False) -> int:
    """Ends the run if it has not ended, fetches what is kept, and gives the machine back. With force a paid
    machine ends by its id and is asked nothing: what is not here yet is lost with it.

    Raises StillBilling when the wish cannot be written here (a full disk); with force its end is still ordered.
    """
    with Ledger.open(home, time.time) as ledger:
        run = ledger.run(run_id)
        try:
            ledger.update_run(run_id, keep=False, facts={"abandon": force or run.facts.abandon})
        except UserError as error:
            context = open_context(home, ledger, run_id, listener)
            if not may_bill(context):
                raise
            raise _unwritten(context, error, force=force) from error
        ended = run.state == State.ENDED
    return _release_ended(home, run_id, listener) if ended else stop_run(home, run_id, listener)


def _unwritten(context: RunContext, error: UserError, *, force: bool) -> StillBilling:
    why, again = error.message, f"{error.hint}; then gptctl release {context.run_id}{' --force' * force}"
    if force and context.instance_ids:
        try:
            held = [node.rental for node in context.machines if node.rental.instance_id is not None]
            in_turn(held, lambda rental: context.provider.release(rental.instance))
            why = f"{why}; the end of {', '.join(context.instance_ids)} was ordered, and is not proven"
        except ProviderError as refused:
            why = f"{why}; {refused.message}"
    return StillBilling(still_costs(context, why)[0], again)


def _release_ended(home: Path, run_id: str, listener: Listener) -> int:
    """A rental that a kept run left open."""
    with RunLock.acquire(home, run_id), Ledger.open(home, time.time) as ledger:
        context = open_context(home, ledger, run_id, listener)
        try:
            if context.rental.state == RENTAL_OPEN:
                perform(context, STAGES[-1])
            else:
                context.say(f"{context.rental.id} was released already")
            return 0
        finally:
            context.disconnect()
